"""Exceptions and software interrupts end to end: the frame on the stack, in every mode and ring."""

from __future__ import annotations

import pytest

from hvemu.events import How
from hvemu.x86.registers import Sreg
from hvemu.x86.state import Segment
from hvemu.x86.vectors import Fault, TripleFault, Vector
from tests.cpu.silicon import (
    AC,
    CS0,
    CS3,
    DS0,
    DS3,
    GDT,
    HANDLERS,
    IDT,
    IF,
    INT16,
    IST,
    KERNEL,
    RAX,
    RBX,
    RF,
    RSP,
    STACK,
    TASK,
    TF,
    TSS,
    TSS_DF,
    VM,
    program,
    silicon,
)

HERE, AFTER = False, True
ALL, LEGACY, PROTECTED, WIDE = (16, 32, 64), (16, 32), (32, 64), (32,)
NOT_PRESENT, DATA_NP = 0x68, 0x0000_1300_0000_FFFF
# name: what comes before, the instruction, its vector, the RIP in the frame, the error code, the modes where it is so.
# SDM 3A "Exception and Interrupt Reference" says for each whether it is a fault or a trap.
EVENTS = {
    "int_n": ("", "int 0x40", 0x40, AFTER, None, ALL),
    "int_3": ("", ".byte 0xcd, 3", 3, AFTER, None, ALL),
    "int_6": ("", ".byte 0xcd, 6", 6, AFTER, None, ALL),
    "int_13": ("", ".byte 0xcd, 13", 13, AFTER, None, ALL),  # no error code, although #GP has one
    "int3": ("", "int3", 3, AFTER, None, ALL),
    "int_prefixed": ("", ".byte 0x66, 0x3e, 0xcd, 0x40", 0x40, AFTER, None, ALL),
    "int3_prefixed": ("", ".byte 0x66, 0xcc", 3, AFTER, None, ALL),
    "int1": ("", ".byte 0xf1", 1, AFTER, None, ALL),
    "into": ("mov al, 0x7f\nadd al, 1", "into", 4, AFTER, None, LEGACY),
    "div": ("xor ecx, ecx", "div ecx", 0, HERE, None, ALL),
    "bound": ("xor eax, eax\ndec eax", ".byte 0x66, 0x62, 0x06, 0, 8", 5, HERE, None, (16,)),
    "bound32": ("xor eax, eax\ndec eax", "bound eax, [0x800]", 5, HERE, None, WIDE),
    "into64": ("", ".byte 0xce", 6, HERE, None, (64,)),
    "ud2": ("", "ud2", 6, HERE, None, ALL),
    "lock_nop": ("", ".byte 0xf0, 0x90", 6, HERE, None, ALL),
    "gp_limit": ("mov ax, 0x1230", "mov ds, ax", 13, HERE, 0x1230, PROTECTED),
    "gp_ldt": ("mov ax, 0x1237", "mov ds, ax", 13, HERE, 0x1234, PROTECTED),  # RPL gives way to EXT and IDT
    "gp_null_ss": ("xor ax, ax", "mov ss, ax", 13, HERE, 0, WIDE),
    "np": ("mov ax, 0x6b", "mov ds, ax", 11, HERE, NOT_PRESENT, PROTECTED),
    "gp_idt": ("", "int 0x41", 13, HERE, 0x41 * 8 + 2, PROTECTED),
    "np_idt": ("", "int 0x42", 11, HERE, 0x42 * 8 + 2, PROTECTED),
    "gp_beyond_idt": ("", "int 0xff", 13, HERE, 0xFF * 8 + 2, PROTECTED),
}
CASES = [
    (name, mode, ring)
    for name, event in EVENTS.items()
    for mode in event[5]
    for ring in ((0,) if mode == 16 else (0, 3))
]


def source(mode):
    lines = [f"{name}:\n{before}\n{name}_here:\n{code}\n{name}_after:\nhlt"
             for name, (before, code, *_, modes) in EVENTS.items() if mode in modes]  # fmt: skip
    iret = {16: "iret", 32: "iretd", 64: "iretq"}[mode]
    return "\n".join([*lines, f"back: inc ebx\n{iret}", "call_back: int 0x43\ninc ebx\nint 0x44\nend: hlt"])


CODE = {mode: program(mode, source(mode)) for mode in ALL}


def machine(mode, ring=0):
    s = silicon(CODE[mode], ring)
    if mode == 16:
        return s
    s.poke(GDT + NOT_PRESENT, 8, DATA_NP | 3 << 45)
    for vector in (1, 3, 4, 6, 13, 0x40, 0x42, 0x43, 0x44):
        s.gate(vector, dpl=3)
    s.gate(0x41, kind=12)  # a call gate is none for the IDT
    s.gate(0x42, dpl=3, p=0)
    s.state.idtr = type(s.state.idtr)(IDT, (0xFF * (8 if mode == 32 else 16)) - 1)
    return s


@pytest.mark.parametrize(("name", "mode", "ring"), CASES)
def test_an_event_pushes_its_frame(name, mode, ring):
    _, _, vector, after, code, _ = EVENTS[name]
    s = machine(mode, ring).flags(IF)
    assert s.vector(name) == vector
    code = [] if code is None else [code]
    frame = s.frame(len(code) + 5)
    assert frame[: len(code)] == code
    rip, cs, flags, rsp, ss = frame[len(code) :]
    assert rip == s.at(f"{name}_{'after' if after else 'here'}")
    assert cs == (0 if mode == 16 else CS3 if ring else CS0)
    assert flags & (IF | RF) == (IF if after or mode == 16 else IF | RF)  # 16 bits have no room for RF
    if ring or mode == 64:
        assert (rsp, ss) == (STACK, DS3 if ring else DS0)
    assert s.state.rflags & IF == 0
    assert s.state.cpl == 0
    top = KERNEL if ring else STACK
    items = len(code) + (5 if ring or mode == 64 else 3)
    assert s.reg(RSP) == top - items * s.word


def test_real_mode_pushes_no_error_code_and_16_bits():
    s = machine(16).flags(IF | AC)
    assert s.vector("div") == 0
    assert s.reg(RSP) == STACK - 6
    assert s.state.rflags & (IF | TF | AC) == 0


@pytest.mark.parametrize(("mode", "ring"), [(16, 0), (32, 0), (32, 3), (64, 0), (64, 3)])
def test_iret_goes_back_to_where_the_event_came_from(mode, ring):
    s = machine(mode, ring).flags(IF)
    s.gate(0x43, "back", dpl=3)
    assert s.vector("call_back") == 0x44
    assert s.reg(RBX) == 2
    rip, cs, flags, rsp, ss = s.frame(5)
    assert (rip, cs, flags & IF) == (s.at("end"), 0 if mode == 16 else CS3 if ring else CS0, IF)
    if ring:
        assert (rsp, ss) == (STACK, DS3)


# -- software interrupts and privilege --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PROTECTED)
@pytest.mark.parametrize(("name", "vector"), [("int_n", 0x40), ("int3", 3)])
def test_a_program_may_not_use_a_gate_of_a_lower_dpl(mode, name, vector):
    s = machine(mode, 3)
    s.gate(vector, dpl=2)
    assert s.vector(name) == 13
    code, rip, cs, flags = s.frame(4)
    assert (code, rip, cs) == (vector * 8 + 2, s.at(f"{name}_here"), CS3)
    assert flags & RF


@pytest.mark.parametrize("mode", PROTECTED)
def test_exceptions_and_int1_do_not_look_at_the_dpl(mode):
    for name, vector in (("div", 0), ("int1", 1)):
        s = machine(mode, 3)
        s.gate(vector, dpl=0)
        assert s.vector(name) == vector


def test_the_error_code_of_a_failed_delivery_says_external_for_exceptions_only():
    s = machine(32, 3)
    s.gate(0, dpl=0, selector=0x1230)
    s.gate(0x40, dpl=3, selector=0x1230)
    # a #DE whose handler cannot be reached: contributory after contributory, a double fault
    assert s.vector("div") == 8
    assert s.frame(1) == [0]
    s = machine(32, 3)
    s.gate(0x40, dpl=3, selector=0x1230)
    assert s.vector("int_n") == 13
    assert s.frame(1) == [0x1230]
    s = machine(32, 3)
    s.gate(1, selector=0x1230)  # INT1 counts as an exception for EXT, and is benign
    assert s.vector("int1") == 13
    assert s.frame(1) == [0x1231]


# -- page faults ------------------------------------------------------------------------------------------------------

PF = program(
    64,
    """
    read: mov eax, [0x40000000]
    write: mov [0x40000008], eax
    jump: mov eax, 0x40000010
        jmp rax
    straddle: mov eax, [0x3ffffffe]
    user: mov eax, [0x500000]
    user_write: mov [0x3004], eax
    """,
)


@pytest.mark.parametrize(
    ("name", "ring", "code", "cr2"),
    [
        ("read", 0, 0, 0x4000_0000),
        ("read", 3, 4, 0x4000_0000),
        ("write", 0, 2, 0x4000_0008),
        ("write", 3, 6, 0x4000_0008),
        ("jump", 0, 0, 0x4000_0010),  # I/D stays 0 without NX and SMEP
        ("jump", 3, 4, 0x4000_0010),
        ("straddle", 0, 0, 0x4000_0000),  # the first byte that faults, not the first of the access
        ("user", 3, 5, 0x50_0000),  # present, but the supervisor's: above what the tests give to programs
    ],
)
def test_a_page_fault_says_where_and_what(name, ring, code, cr2):
    s = silicon(PF, ring)
    if name == "user":
        s.poke(0x3000 + 8 * 2, 8, 0x40_0083)
    if name == "straddle":
        s.poke(0x3000 + 8 * 511, 8, 0x20_0087)  # the last 2 MiB of the first GiB are RAM
        s.engine.flush_tlb()
    assert s.vector(name) == 14
    assert (s.frame(1), s.state.cr2) == ([code], cr2)
    at = cr2 if name == "jump" else s.at(name)
    assert s.frame(2)[1] == at


def test_cr2_of_a_page_fault_is_written_even_when_it_becomes_a_double_fault():
    s = silicon(PF)
    s.gate(14, p=0)
    assert s.vector("read") == 8
    assert s.state.cr2 == 0x4000_0000
    assert s.frame(2) == [0, s.at("read")]


# -- stacks of long mode ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("ist", range(1, 8))
def test_an_ist_stack_is_used_whatever_the_ring(ist, ring):
    s = machine(64, ring)
    s.gate(6, ist=ist)
    assert s.vector("ud2") == 6
    assert s.reg(RSP) == IST + 0x1000 * ist - 40
    rip, cs, _, rsp, ss = s.frame(5)
    assert (rip, cs, rsp, ss) == (s.at("ud2_here"), CS3 if ring else CS0, STACK, DS3 if ring else DS0)
    assert s.state.segment(Sreg.SS).selector == (0 if ring else DS0)


@pytest.mark.parametrize("misaligned", range(16))
def test_long_mode_aligns_the_stack(misaligned):
    s = machine(64).gpr(RSP, STACK - misaligned)
    assert s.vector("ud2") == 6
    assert s.reg(RSP) == (STACK - misaligned) // 16 * 16 - 40
    assert s.frame(5)[3] == STACK - misaligned


def test_a_handler_in_16_bit_protected_code_gets_a_16_bit_frame():
    code = program(16, "start: int 0x40\nback: inc bx\niret")
    s = silicon(code, mode=32).code16()
    s.gate(0x40, "back", kind=INT16, selector=0x28)
    s.state.rip = s.at("start")
    s.step(1)
    assert s.frame(3, 2) == [s.at("start") + 2, 0x28, 2]
    s.step(2)
    assert (s.state.rip, s.reg(RBX), s.reg(RSP)) == (s.at("start") + 2, 1, STACK)


# -- virtual-8086 mode ------------------------------------------------------------------------------------------------

VM86 = program(
    16,
    """
    int_n: int 0x40
    int3: int3
    ud: ud2
    hlt_: hlt
    """,
)


@pytest.mark.parametrize(
    ("name", "iopl", "vector", "offset", "code"),
    [
        ("int_n", 3, 0x40, 2, None),
        ("int_n", 0, 13, 0, 0),  # SDM 3B "Class 3-Software Interrupt Handling in Virtual-8086 Mode"
        ("int3", 0, 3, 1, None),  # INT3 does not look at IOPL
        ("ud", 0, 6, 0, None),
        ("hlt_", 3, 13, 0, 0),  # privileged
    ],
)
def test_virtual_8086_mode_pushes_its_data_segments(name, iopl, vector, offset, code):
    s = silicon(VM86, mode=32).vm86(iopl)
    for sreg, selector in ((Sreg.ES, 0x11), (Sreg.DS, 0x22), (Sreg.FS, 0x33), (Sreg.GS, 0x44)):
        old = s.state.segment(sreg)
        s.state.set_segment(sreg, Segment(selector, selector << 4, old.limit, old.rights))
    for n in (3, 0x40):
        s.gate(n, dpl=3)
    assert s.vector(name) == vector
    code = [] if code is None else [code]
    frame = s.frame(len(code) + 9)
    assert frame[: len(code)] == code
    rip, cs, flags, *rest = frame[len(code) :]
    assert (rip, cs) == (s.at(name) + offset, 0)
    assert flags & (VM | 0x3000) == VM | iopl << 12
    assert rest == [STACK, 0, 0x11, 0x22, 0x33, 0x44]
    assert s.state.rflags & VM == 0
    assert [s.state.segment(sreg).selector for sreg in (Sreg.ES, Sreg.DS, Sreg.FS, Sreg.GS)] == [0, 0, 0, 0]


# -- double and triple faults -----------------------------------------------------------------------------------------


def test_a_double_fault_through_a_task_gate_starts_another_task():
    s = machine(32)
    s.poke(GDT + 0x60, 8, 0x0000_8900_0000_0067 | TSS_DF << 16)
    for offset, value in ((0x1C, 0), (0x20, HANDLERS + 8), (0x24, 2), (0x38, IST), (0x4C, CS0), (0x50, DS0)):
        s.poke(TSS_DF + offset, 4, value)
    for offset in (0x48, 0x54, 0x58, 0x5C):
        s.poke(TSS_DF + offset, 4, DS0)
    s.gate(13, p=0)
    s.gate(8, 0, kind=TASK, selector=0x60)
    s.gpr(RAX, 0x1234)
    assert s.vector("gp_limit") == 8
    assert s.frame(1) == [0]
    assert s.reg(RSP) == IST - 4
    assert s.state.tr.selector == 0x60
    assert s.peek(TSS_DF, 2) == 0x50  # the back link
    assert s.state.rflags & 0x4000  # NT
    assert s.state.cr0 & 8  # TS
    assert s.peek(TSS + 0x20, 4) == s.at("gp_limit_here")  # EIP of the task that failed
    assert s.peek(TSS + 0x24, 4) == 2  # RF is for faults, and #DF is an abort


def test_a_double_fault_on_an_ist_stack_survives_a_broken_stack():
    s = machine(64).gpr(RSP, 0x7FFF_FFFF_FFF0)  # canonical, and not mapped
    s.gate(8, ist=1)
    assert s.vector("ud2") == 8
    assert s.frame(2) == [0, s.at("ud2_here")]
    assert s.frame(6)[4] == 0x7FFF_FFFF_FFF0


@pytest.mark.parametrize(("mode", "ring"), [(32, 0), (32, 3), (64, 0), (64, 3)])
def test_a_triple_fault_tells_the_whole_chain(mode, ring):
    s = machine(mode, ring)
    for vector in (8, 11, 13):
        s.gate(vector, p=0)
    s.state.rip = s.at("gp_limit_here")
    s.gpr(RAX, 0x1230)
    with pytest.raises(TripleFault) as dead:
        s.step(2)
    np = [Fault(Vector.NP, 8 * n + 3) for n in (13, 8)]  # IDT and EXT
    assert dead.value.chain == (Fault(Vector.GP, 0x1230), np[0], Fault(Vector.DF, 0), np[1])


def test_a_triple_fault_ends_the_run_with_its_reason():
    s = machine(32)
    s.state.idtr = type(s.state.idtr)(IDT, 0)
    ending = s.run("int_n")
    assert ending.how is How.DIED
    assert ending.why == "triple fault: #GP(0x202), then #GP(0x6b), then #DF(0x0), then #GP(0x43)"


def test_real_mode_dies_without_a_vector_table():
    s = machine(16)
    s.state.idtr = type(s.state.idtr)(0, 3)
    assert s.run("ud2").how is How.DIED
