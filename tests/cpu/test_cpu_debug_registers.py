"""Breakpoints of the debug registers, set by the guest's own MOV: on instructions, data and ports."""

from __future__ import annotations

import pytest

from hvemu.events import How
from hvemu.guest.image import Image
from hvemu.machine import Machine, technique_for
from hvemu.techniques.vm import Budget
from tests.cpu.silicon import (
    BD,
    BS,
    CS3,
    DS0,
    HANDLERS,
    IF,
    IST,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    REQUEST,
    RF,
    RSI,
    STACK,
    TF,
    program,
    silicon,
)

ALL, WIDE, LEGACY = (16, 32, 64), (32, 64), (16, 32)
INIT6, INIT7 = 0xFFFF_0FF0, 0x400
EXECUTE, WRITE, IO, ACCESS = range(4)  # R/W of DR7
LEN = {1: 0, 2: 1, 8: 2, 4: 3}
DE, OSFXSR = 8, 0x200
WORDS = {
    16: {"a": "eax", "b": "bx", "s": "si", "sp": "sp", "iret": "iret", "pusha": "pusha", "popf": "popf", "w": "ax"},
    32: {
        "a": "eax",
        "b": "ebx",
        "s": "esi",
        "sp": "esp",
        "iret": "iretd",
        "pusha": "pusha",
        "popf": "popfd",
        "w": "eax",
    },
    64: {"a": "rax", "b": "rbx", "s": "rsi", "sp": "rsp", "iret": "iretq", "pusha": "nop", "popf": "popfq", "w": "rax"},
}
# Every snippet begins with the registers as `machine` leaves them: B at 0x4000, SI at 0x4100, DI at 0x4200, AX 0x1234.
SNIPPETS = """
    arm: mov dr7, {a}
        hlt
    code: inc ecx
    second: inc ecx
    third: inc ecx
        hlt
    loop_: inc ecx
        jmp loop_
    resume: inc edx
        or byte ptr [{sp} + {rf}], 1
        {iret}
    unresumed: inc edx
        mov ecx, 0
        mov dr7, {a}
    iret_: {iret}
    write: mov [{b}], al
        hlt
    write2: mov [{b} + 1], ax
        hlt
    write4: mov [{b}], eax
        hlt
    read: mov al, [{b}]
        hlt
    read4: mov eax, [{b}]
        hlt
    below: mov [{b} - 4], eax
        hlt
    above: mov [{b} + 4], eax
        hlt
    rmw: add dword ptr [{b}], 1
        hlt
    cmp_: cmp dword ptr [{b}], 1
        hlt
    lea_: lea eax, [{b}]
        nop word ptr [{b}]
        hlt
    movs_: movsb
        hlt
    rep_: rep movsb
    rep_after: hlt
    push_: push {w}
        hlt
    pop_: pop {w}
        hlt
    pusha_: {pusha}
        hlt
    call_: call callee
        hlt
    callee: hlt
    ret_: .byte 0xc3
    enter_: enter 8, 0
        hlt
    leave_: leave
        hlt
    popf_: {popf}
        hlt
    int_: int 0x40
        hlt
    mov_ss: mov ss, [{b}]
    mov_ss_next: inc ecx
    mov_ss_after: inc ecx
        hlt
    mov_ss_int: mov ss, [{b}]
        int 0x40
    ss_: mov ss, ax
    ss_next: inc ecx
    ss_after: inc ecx
        hlt
    sti_: sti
    sti_next: inc ecx
        hlt
    fault: mov [{b}], {w}
        div cl
    out_: out dx, al
    out_after: hlt
    in_: in eax, dx
        hlt
    outs_: outsb
        hlt
    ins_: insb
        hlt
    rep_out: rep outsb
    rep_out_after: hlt
    smsw_: smsw [{b}]
        hlt
    dr0_: mov dr0, {a}
        hlt
    dr3_: mov dr3, {a}
        hlt
    dr4_: mov dr4, {a}
        hlt
    dr5_: mov dr5, {a}
        hlt
    dr6_: mov dr6, {a}
        hlt
    from_dr0: mov {a}, dr0
        hlt
    from_dr3: mov {a}, dr3
        hlt
    from_dr4: mov {a}, dr4
        hlt
    from_dr5: mov {a}, dr5
        hlt
    from_dr6: mov {a}, dr6
        hlt
    from_dr7: mov {a}, dr7
        hlt
    cross: mov [{s}], eax
        hlt
    cpuid_: cpuid
        hlt
"""


def source(mode):
    # RF is bit 0 of the third byte of the flags, which a 16-bit frame does not have
    rf = {16: 6, 32: 4 * 2 + 2, 64: 8 * 2 + 2}[mode]
    text = SNIPPETS.format(**WORDS[mode], rf=rf)
    return text.replace("[sp + 6]", "[0x700]") if mode == 16 else text


CODE = {mode: program(mode, source(mode)) for mode in ALL}


def control(*points):
    """DR7 for (number, R/W, bytes) of breakpoints that are enabled globally."""
    return INIT7 | sum(2 << 2 * n | (rw | LEN[size] << 2) << 16 + 4 * n for n, rw, size in points)


def machine(mode, ring=0, **registers):
    s = silicon(CODE[mode], ring)
    for gpr, value in ((RAX, 0x1234), (RBX, 0x4000), (RSI, 0x4100), (RDI, 0x4200), (RBP, 0x4300)):
        s.gpr(gpr, value)
    return s


def arm(s, *points):
    """Set breakpoints (number, R/W, bytes, gva) as a guest in ring 0 does."""
    for number, _, _, gva in points:
        s.state.set_dr(number, gva)
    value, old = control(*(point[:3] for point in points)), s.reg(RAX)
    s.gpr(RAX, value)
    s.halts("arm")
    s.gpr(RAX, old)
    s.engine.instructions, s.cpu.halted = 0, False
    assert s.state.dr7 == value
    return s


def hit(s, start, bits, limit=1000):
    """Run to a #DB, which must report *bits*; return the RIP in its frame."""
    assert s.vector(start, limit) == 1
    assert s.state.dr6 == INIT6 | bits
    return s.frame(1)[0]


# -- on instructions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("number", range(4))
def test_a_breakpoint_stops_before_its_instruction(mode, number):
    s = machine(mode)
    arm(s, (number, EXECUTE, 1, s.at("second")))
    assert hit(s, "code", 1 << number) == s.at("second")
    assert s.reg(RCX) == 1
    assert s.frame(3)[2] & RF == 0  # SDM 3B "Instruction-Breakpoint Exception Condition"
    assert s.retired == 2  # INC, and the HLT of the handler


@pytest.mark.parametrize("mode", WIDE)
def test_a_handler_that_sets_rf_goes_past_it_once(mode):
    s = machine(mode)
    s.gate(1, "resume")
    arm(s, (0, EXECUTE, 1, s.at("loop_")))
    s.run("loop_", 50)
    laps = s.reg(RCX)
    assert laps > 3
    assert laps <= s.reg(RDX) <= laps + 1  # once for each lap


@pytest.mark.parametrize("mode", WIDE)
def test_a_handler_that_does_not_set_rf_never_gets_past_it(mode):
    s = machine(mode)
    s.gate(1, "unresumed")
    arm(s, (0, EXECUTE, 1, s.at("second")))
    s.gpr(RAX, s.state.dr7)
    s.run("code", 50)
    assert s.reg(RCX) == 0
    assert s.reg(RDX) >= 10


@pytest.mark.parametrize("mode", ALL)
def test_rf_lasts_for_one_instruction(mode):
    s = machine(mode)
    arm(s, (0, EXECUTE, 1, s.at("code")), (1, EXECUTE, 1, s.at("second")))
    s.flags(RF)
    assert hit(s, "code", 2) == s.at("second")
    assert s.reg(RCX) == 1


@pytest.mark.parametrize("dr7", [INIT7, INIT7 | 1 << 4, INIT7 | 0x300])
def test_a_breakpoint_that_is_not_enabled_does_nothing(dr7):
    s = machine(32)
    s.state.set_dr(0, s.at("second"))
    s.gpr(RAX, dr7).halts("arm")
    s.gpr(RCX, 0)
    assert s.vector("code") is None
    assert (s.reg(RCX), s.state.dr6) == (3, INIT6)


@pytest.mark.parametrize("bit", [1, 2])
def test_local_and_global_enables_are_alike(bit):
    s = machine(32)
    s.state.set_dr(0, s.at("second"))
    s.gpr(RAX, INIT7 | bit).halts("arm")
    assert hit(s, "code", 1) == s.at("second")


def test_the_first_byte_of_the_instruction_counts():
    s = machine(32)
    arm(s, (0, EXECUTE, 1, s.at("write4") + 1))
    assert s.vector("write4") is None


@pytest.mark.parametrize("mode", ALL)
def test_after_a_load_of_ss_a_breakpoint_is_suppressed(mode):
    """SDM 3A "Masking Exceptions and Interrupts When Switching Stacks"."""
    s = machine(mode).gpr(RAX, 0 if mode == 16 else DS0)
    arm(s, (0, EXECUTE, 1, s.at("ss_next")), (1, EXECUTE, 1, s.at("ss_after")))
    assert hit(s, "ss_", 2) == s.at("ss_after")


@pytest.mark.parametrize("mode", ALL)
def test_after_sti_it_is_not(mode):
    s = machine(mode)
    arm(s, (0, EXECUTE, 1, s.at("sti_next")))
    assert hit(s, "sti_", 1) == s.at("sti_next")


@pytest.mark.parametrize("mode", ALL)
def test_a_repeated_instruction_is_hit_once(mode):
    s = machine(mode).gpr(RCX, 5)
    s.gate(1, "resume")
    arm(s, (0, EXECUTE, 1, s.at("rep_")))
    s.state.rflags = 2 | (RF if mode == 16 else 0)  # a real-mode handler cannot set RF
    s.halts("rep_")
    assert (s.state.rip, s.reg(RCX)) == (s.at("rep_after") + 1, 0)
    assert s.reg(RDX) == (0 if mode == 16 else 1)


def test_interrupts_come_before_instruction_breakpoints():
    """SDM 3A "Priority Among Concurrent Events"."""
    s = machine(32)
    arm(s, (0, EXECUTE, 1, s.at("second")))
    s.flags(IF)
    s.state.rip = s.at("code")
    s.step()
    assert s.request(0x50).vector() == 0x50
    assert s.frame(1) == [s.at("second")]
    assert s.state.dr6 == INIT6


@pytest.mark.parametrize("mode", WIDE)
def test_a_program_in_ring_3_is_stopped_too(mode):
    s = machine(mode)
    arm(s, (2, EXECUTE, 1, s.at("second")))
    s.ring3()
    assert hit(s, "code", 4) == s.at("second")
    assert s.frame(2)[1] == CS3


# -- on data ----------------------------------------------------------------------------------------------------------

DATA_CASES = [
    # start, R/W, bytes watched, where, does it trap
    ("write", WRITE, 1, 0x4000, True),
    ("write", ACCESS, 1, 0x4000, True),
    ("write", WRITE, 1, 0x4001, False),
    ("write", WRITE, 2, 0x4001, True),  # bit 0 does not count: bytes 0x4000 and 0x4001
    ("write", WRITE, 4, 0x4003, True),
    ("write", WRITE, 4, 0x3FFF, False),
    ("write2", WRITE, 1, 0x4000, False),
    ("write2", WRITE, 1, 0x4001, True),
    ("write2", WRITE, 1, 0x4002, True),
    ("write2", WRITE, 1, 0x4003, False),
    ("write2", WRITE, 4, 0x4000, True),
    ("write4", WRITE, 1, 0x4003, True),
    ("write4", WRITE, 8, 0x4000, True),
    ("below", WRITE, 8, 0x4000, False),
    ("above", WRITE, 8, 0x4000, True),
    ("above", WRITE, 4, 0x4000, False),
    ("read", WRITE, 1, 0x4000, False),
    ("read", ACCESS, 1, 0x4000, True),
    ("read4", ACCESS, 2, 0x4002, True),
    ("cmp_", WRITE, 4, 0x4000, False),
    ("cmp_", ACCESS, 4, 0x4000, True),
    ("rmw", WRITE, 4, 0x4000, True),
    ("rmw", ACCESS, 4, 0x4000, True),
    ("lea_", ACCESS, 4, 0x4000, False),
    ("movs_", WRITE, 1, 0x4200, True),
    ("movs_", ACCESS, 1, 0x4100, True),
    ("movs_", WRITE, 1, 0x4100, False),
    ("push_", WRITE, 1, STACK - 1, True),
    ("push_", WRITE, 1, STACK, False),
    ("pop_", ACCESS, 1, STACK, True),
    ("pop_", WRITE, 1, STACK, False),
    ("call_", WRITE, 2, STACK - 2, True),
    ("ret_", ACCESS, 2, STACK, True),
    ("enter_", WRITE, 2, STACK - 2, True),
    ("leave_", ACCESS, 2, 0x4300, True),
    ("popf_", ACCESS, 2, STACK, True),
    ("int_", WRITE, 2, STACK - 2, True),
    ("int_", ACCESS, 2, STACK, False),
    ("outs_", ACCESS, 1, 0x4100, True),
    ("outs_", WRITE, 1, 0x4100, False),
    ("ins_", WRITE, 1, 0x4200, True),
    ("smsw_", WRITE, 2, 0x4000, True),
    ("cpuid_", ACCESS, 4, 0x4000, False),
]


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(("start", "rw", "size", "gva", "traps"), DATA_CASES)
def test_data_that_is_touched_traps_after_the_instruction(mode, start, rw, size, gva, traps):
    s = machine(mode).gpr(RDX, 0x90)
    s.poke(STACK, 8, s.at("callee"))
    arm(s, (1, rw, size, gva))
    vector = s.vector(start)
    if not traps:
        assert vector in (None, 0x40)
        assert s.state.dr6 == INIT6
        return
    assert vector == 1
    assert s.state.dr6 == INIT6 | 2
    rip = s.frame(1)[0]
    if start == "call_":
        assert rip == s.at("callee")
    elif start == "ret_":  # the frame of the #DB lies where RET has popped, which is a second #DB, in its handler
        assert s.at("callee") in (rip, s.frame(4)[3])
    elif start == "int_":
        assert rip == HANDLERS + 0x40  # before the first instruction of the handler
    else:
        assert s.peek(rip, 1) == 0xF4  # the HLT that follows
    assert s.frame(3)[2] & RF == 0
    assert s.retired == 2


@pytest.mark.parametrize("mode", LEGACY)
def test_pusha_writes_all_it_pushes(mode):
    for n in range(8):
        s = machine(mode)
        arm(s, (0, WRITE, 1, STACK - 1 - n * s.word))
        hit(s, "pusha_", 1)


@pytest.mark.parametrize("mode", ALL)
def test_every_breakpoint_that_is_met_is_reported(mode):
    s = machine(mode)
    arm(s, (0, WRITE, 4, 0x4000), (1, ACCESS, 1, 0x4003), (2, WRITE, 1, 0x4004), (3, WRITE, 2, 0x4002))
    hit(s, "write4", 1 | 2 | 8)


@pytest.mark.parametrize("mode", ALL)
def test_an_access_may_cross_a_page(mode):
    s = machine(mode).gpr(RSI, 0x4FFE)
    arm(s, (0, WRITE, 1, 0x5001))
    hit(s, "cross", 1)


@pytest.mark.parametrize("mode", ALL)
def test_a_repeated_instruction_traps_after_the_iteration(mode):
    s = machine(mode).gpr(RCX, 5)
    arm(s, (0, WRITE, 1, 0x4202))
    assert hit(s, "rep_", 1) == s.at("rep_")
    assert s.reg(RCX) == 2
    assert bool(s.frame(3)[2] & RF) is (mode != 16)


def test_after_the_last_iteration_rf_is_clear():
    s = machine(32).gpr(RCX, 3)
    arm(s, (0, WRITE, 1, 0x4202))
    assert hit(s, "rep_", 1) == s.at("rep_after")
    assert s.frame(3)[2] & RF == 0


def test_a_repeated_instruction_goes_on_after_the_trap():
    s = machine(32).gpr(RCX, 5)
    s.poke(0x4100, 8, 0x0504030201)
    s.gate(1, "resume")
    arm(s, (0, WRITE, 1, 0x4202))
    s.halts("rep_")
    assert (s.reg(RCX), s.reg(RDX), s.peek(0x4200, 8)) == (0, 1, 0x0504030201)


@pytest.mark.parametrize("mode", ALL)
def test_a_load_of_ss_holds_the_trap_back_for_one_instruction(mode):
    """SDM 3A "Masking Exceptions and Interrupts When Switching Stacks"."""
    s = machine(mode)
    s.poke(0x4000, 2, 0 if mode == 16 else DS0)
    arm(s, (0, ACCESS, 2, 0x4000))
    assert hit(s, "mov_ss", 1) == s.at("mov_ss_after")


def test_a_trap_that_was_held_back_can_meet_a_kernel_at_its_first_instruction():
    s = machine(32, 0)
    s.poke(0x4000, 2, 0x23)
    s.gate(0x40, dpl=3)
    arm(s, (0, ACCESS, 2, 0x4000))
    s.ring3()
    assert hit(s, "mov_ss_int", 1) == HANDLERS + 0x40


def test_an_instruction_that_faults_reports_no_data():
    s = machine(64).gpr(RBX, 0x4000_0000 - 4)
    s.poke(0x3000 + 8 * 511, 8, 0x20_0087)
    s.engine.flush_tlb()
    arm(s, (0, WRITE, 4, 0x3FFF_FFFC))
    assert s.vector("fault") == 14  # the second half of the store is not mapped
    assert s.state.dr6 == INIT6


def test_the_next_instruction_does_not_run_before_the_trap():
    s = machine(32)
    arm(s, (0, WRITE, 4, 0x4000))
    hit(s, "fault", 1)  # and not the #DE behind it


def test_a_trap_comes_before_interrupts():
    s = machine(32).gpr(RDX, REQUEST)
    s.poke(0x4100, 1, 0x50)
    arm(s, (0, ACCESS, 1, 0x4100))
    s.flags(IF)
    hit(s, "outs_", 1)
    assert s.pins.waiting == [0x50]


@pytest.mark.parametrize("ring", [0, 3])
def test_the_frame_of_an_event_is_data_too(ring):
    s = machine(64)
    s.gate(0, ist=1)
    arm(s, (0, WRITE, 8, IST + 0x1000 - 40))
    if ring:
        s.ring3()
    s.gpr(RCX, 0)
    s.state.rip = s.at("fault")
    s.step(2)
    assert s.state.rip == HANDLERS + 0  # of #DE, delivered
    assert hit(s, None, 1) == HANDLERS + 0


def test_iret_to_an_outer_ring_reads_the_stack_pointer():
    s = machine(32)
    s.gate(0x40, dpl=3)
    arm(s, (0, ACCESS, 4, STACK + 16))
    for n, value in enumerate((s.at("int_"), CS3, 2, STACK, 0x23)):
        s.poke(STACK + 4 * n, 4, value)
    assert hit(s, "iret_", 1) == s.at("int_")


@pytest.mark.parametrize("mode", ALL)
def test_without_breakpoints_nothing_is_stepped(mode, monkeypatch):
    s = machine(mode)
    arm(s)
    monkeypatch.setattr(s.engine, "step", None)
    assert s.vector("write") is None


# -- on ports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(
    ("start", "size", "port", "hits"),
    [
        ("out_", 1, 0x90, True),
        ("out_", 1, 0x91, False),
        ("out_", 4, 0x93, True),
        ("in_", 1, 0x93, True),  # four ports from 0x90
        ("in_", 1, 0x94, False),
        ("outs_", 1, 0x90, True),
        ("ins_", 2, 0x90, True),
        ("rep_out", 1, 0x90, True),
        ("write", 1, 0x4000, False),
    ],
)
def test_a_port_traps_after_the_access(mode, start, size, port, hits):
    s = machine(mode).gpr(RDX, 0x90).gpr(RCX, 2)
    s.state.cr4 |= DE
    arm(s, (0, IO, size, port))
    assert s.vector(start) == (1 if hits else None)
    assert s.state.dr6 == INIT6 | hits
    if start == "rep_out":
        assert (s.frame(1)[0], s.reg(RCX)) == (s.at("rep_out"), 1)


def test_without_de_there_are_no_breakpoints_on_ports():
    s = machine(32).gpr(RDX, 0x90)
    arm(s, (0, IO, 1, 0x90))
    assert s.vector("out_") is None


# -- together with TF -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
def test_a_single_step_and_a_breakpoint_on_data_are_one_trap(mode):
    s = machine(mode)
    arm(s, (3, WRITE, 1, 0x4000))
    s.flags(TF)
    hit(s, "write", BS | 8)


@pytest.mark.parametrize("mode", ALL)
def test_a_breakpoint_on_the_next_instruction_is_not_part_of_a_single_step(mode):
    s = machine(mode)
    arm(s, (0, EXECUTE, 1, s.at("second")))
    s.flags(TF)
    assert hit(s, "code", BS) == s.at("second")


# -- the registers themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("number", [0, 3])
def test_an_address_is_as_wide_as_the_mode(mode, number):
    value = 0x1234_5678_9ABC_DEF0 if mode == 64 else 0x9ABC_DEF0
    s = machine(mode).gpr(RAX, 0x1234_5678_9ABC_DEF0).halts(f"dr{number}_")
    assert s.state.dr(number) == value
    assert s.gpr(RAX, 0xFFFF_FFFF_FFFF_FFFF).halts(f"from_dr{number}").reg(RAX) == value


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(
    ("start", "value", "found"),
    [
        ("dr6_", 0, INIT6), ("dr6_", 0xFFFF_FFFF, 0xFFFF_EFFF), ("dr6_", 0xE00F, 0xFFFF_EFFF),  # bit 12 is 0
        ("dr4_", 0xE00F, 0xFFFF_EFFF), ("arm", 0, INIT7), ("arm", 0xFFFF_D800, 0xFFFF_0400), ("arm", 0x2300, 0x2700),
        ("dr5_", 0x300, 0x700),
    ],
)  # fmt: skip
def test_bits_of_dr6_and_dr7_are_fixed(mode, start, value, found):
    """SDM 3B "Debug Status Register (DR6)", "Debug Control Register (DR7)": 10 is 1, 11, 12, 14 and 15 are 0."""
    s = machine(mode).gpr(RAX, value).halts(start)
    register = {"dr6_": "dr6", "dr4_": "dr6", "arm": "dr7", "dr5_": "dr7"}[start]
    assert getattr(s.state, register) == found


@pytest.mark.parametrize("start", ["dr6_", "arm", "dr4_", "dr5_"])
def test_an_upper_half_is_refused(start):
    s = machine(64).gpr(RAX, 1 << 32)
    assert s.vector(start) == 13
    assert s.frame(2) == [0, s.at(start)]


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(("start", "alias"), [("from_dr4", "from_dr6"), ("from_dr5", "from_dr7")])
def test_dr4_and_dr5_are_aliases_until_de_is_set(mode, start, alias):
    s = machine(mode)
    assert s.halts(start).reg(RAX) == (INIT6 if alias == "from_dr6" else INIT7)
    s = machine(mode)
    s.state.cr4 |= DE
    assert s.vector(start) == 6


@pytest.mark.parametrize("start", ["dr4_", "dr5_"])
def test_with_de_they_cannot_be_written(start):
    s = machine(32)
    s.state.cr4 |= DE
    assert s.vector(start) == 6


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("start", ["dr0_", "dr6_", "arm", "from_dr0", "from_dr3", "from_dr6", "from_dr7"])
def test_gd_guards_all_of_them(mode, start):
    s = machine(mode).gpr(RAX, INIT7 | 0x2000).halts("arm")
    assert s.state.dr7 == INIT7 | 0x2000
    s.gpr(RAX, 0x55)
    assert hit(s, start, BD) == s.at(start)
    assert s.state.dr7 == INIT7  # so that the handler can use them
    assert s.reg(RAX) == 0x55
    assert bool(s.frame(3)[2] & RF) is (mode != 16)  # a fault


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("start", ["dr0_", "dr6_", "from_dr0", "from_dr7"])
def test_a_program_may_not_touch_them(mode, start):
    s = machine(mode, 3)
    assert s.vector(start) == 13
    assert s.frame(2) == [0, s.at(start)]


# -- under a hypervisor -----------------------------------------------------------------------------------------------

KERNEL = """
    start: lidt [idtr]
        mov eax, debug
        mov [idt + 8], ax
        mov word ptr [idt + 10], cs
        shr eax, 16
        mov word ptr [idt + 12], 0x8e00
        mov [idt + 14], ax
        mov eax, watched
        mov dr1, eax
        mov eax, code
        mov dr2, eax
        mov eax, 0x00d00428
        mov dr7, eax
        mov ecx, [watched]
        inc dword ptr [watched]
        mov ebx, esi
    code: nop
        shl esi, 8
        or ebx, esi
        xor eax, eax
        mov dr7, eax
        inc dword ptr [watched]
        mov edx, 0xf4
        mov eax, ebx
        out dx, eax
        hlt
    debug: mov esi, dr6
        and esi, 0xf
        inc edi
        cmp edi, 3
        jae stop
        mov eax, 0
        mov dr6, eax
        or byte ptr [esp + 10], 1
        iretd
    stop: mov edx, 0xf4
        mov eax, 0xbad
        out dx, eax
        hlt
    watched: .long 0
    idtr: .word 0x7ff
        .long idt
    idt: .fill 0x40, 1, 0
"""


@pytest.mark.parametrize("technique", ["bare", "deprivilege", "hardware"])
def test_a_guest_of_a_hypervisor_has_breakpoints_too(technique):
    code = program(32, KERNEL)
    image = Image("breakpoints", 32, ((code.origin, code.code),), code.origin)
    ending = Machine(image, technique_for(technique, None), ram=4 << 20).run(Budget(10_000)).ending
    assert (ending.how, ending.code) == (How.EXITED, 0x402)  # breakpoint 1, on a write of four bytes, and then 2
