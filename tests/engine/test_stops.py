"""What the engine stops at: before the instruction, with RIP on it, in code of every size."""

from __future__ import annotations

import itertools

import pytest

from hvemu.engine.traps import Kind
from tests.engine.rig import BITS, CODE, DATA, RAX, RCX, STACK, TF, rig, summary

ALL = dict.fromkeys(("cr_read", "cr_write", "dr_read", "dr_write"), 0xFFFF)
ONLY_PROTECTED, ONLY_LONG = (32, 64), (64,)
# name: the bytes, the stop, and the code sizes where the instruction exists in this form
INSTRUCTIONS = {
    "mov from cr0": (b"\x0f\x20\xc0", (Kind.CR_READ, 0), BITS),
    "mov from cr2": (b"\x0f\x20\xd0", (Kind.CR_READ, 2), BITS),
    "mov from cr3": (b"\x0f\x20\xd8", (Kind.CR_READ, 3), BITS),
    "mov from cr4": (b"\x0f\x20\xe0", (Kind.CR_READ, 4), BITS),
    "mov from cr8": (b"\x44\x0f\x20\xc0", (Kind.CR_READ, 8), ONLY_LONG),
    "smsw": (b"\x0f\x01\xe0", (Kind.CR_READ, 0), BITS),
    "mov to cr0": (b"\x0f\x22\xc0", (Kind.CR_WRITE, 0), BITS),
    "mov to cr2": (b"\x0f\x22\xd0", (Kind.CR_WRITE, 2), BITS),
    "mov to cr3": (b"\x0f\x22\xd8", (Kind.CR_WRITE, 3), BITS),
    "mov to cr4": (b"\x0f\x22\xe0", (Kind.CR_WRITE, 4), BITS),
    "mov to cr8": (b"\x44\x0f\x22\xc0", (Kind.CR_WRITE, 8), ONLY_LONG),
    "lmsw": (b"\x0f\x01\xf0", (Kind.CR_WRITE, 0), BITS),
    "clts": (b"\x0f\x06", (Kind.CR_WRITE, 0), BITS),
    **{f"mov from dr{n}": (bytes([0x0F, 0x21, 0xC0 | n << 3]), (Kind.DR_READ, n), BITS) for n in range(8)},
    **{f"mov to dr{n}": (bytes([0x0F, 0x23, 0xC0 | n << 3]), (Kind.DR_WRITE, n), BITS) for n in range(8)},
    "sidt": (b"\x0f\x01\x0b", (Kind.IDTR_READ, 0), BITS),
    "sgdt": (b"\x0f\x01\x03", (Kind.GDTR_READ, 0), BITS),
    "sldt": (b"\x0f\x00\xc0", (Kind.LDTR_READ, 0), ONLY_PROTECTED),
    "str": (b"\x0f\x00\xc8", (Kind.TR_READ, 0), ONLY_PROTECTED),
    "lidt": (b"\x0f\x01\x1b", (Kind.IDTR_WRITE, 0), BITS),
    "lgdt": (b"\x0f\x01\x13", (Kind.GDTR_WRITE, 0), BITS),
    "lldt": (b"\x0f\x00\xd0", (Kind.LDTR_WRITE, 0), ONLY_PROTECTED),
    "ltr": (b"\x0f\x00\xd8", (Kind.TR_WRITE, 0), ONLY_PROTECTED),
    "rdtsc": (b"\x0f\x31", (Kind.RDTSC, 0), BITS),
    "rdtscp": (b"\x0f\x01\xf9", (Kind.RDTSC, 0), BITS),
    "rdpmc": (b"\x0f\x33", (Kind.RDPMC, 0), BITS),
    "pushf": (b"\x9c", (Kind.PUSHF, 0), BITS),
    "popf": (b"\x9d", (Kind.POPF, 0), BITS),
    "cpuid": (b"\x0f\xa2", (Kind.CPUID, 0), BITS),
    "iret": (b"\xcf", (Kind.IRET, 0), BITS),
    "invd": (b"\x0f\x08", (Kind.INVD, 0), BITS),
    "pause": (b"\xf3\x90", (Kind.PAUSE, 0), BITS),
    "hlt": (b"\xf4", (Kind.HLT, 0), BITS),
    "invlpg": (b"\x0f\x01\x3b", (Kind.INVLPG, 0), BITS),
    "rdmsr": (b"\x0f\x32", (Kind.MSR, 0), BITS),
    "wrmsr": (b"\x0f\x30", (Kind.MSR, 1), BITS),
    "wbinvd": (b"\x0f\x09", (Kind.WBINVD, 0), BITS),
    "in al, imm": (b"\xe4\x40", (Kind.IO, 0), BITS),
    "in al, dx": (b"\xec", (Kind.IO, 0), BITS),
    "in eax, dx": (b"\xed", (Kind.IO, 0), BITS),
    "out imm, al": (b"\xe6\x40", (Kind.IO, 0), BITS),
    "out dx, al": (b"\xee", (Kind.IO, 0), BITS),
    "out dx, eax": (b"\xef", (Kind.IO, 0), BITS),
    "insb": (b"\x6c", (Kind.IO, 0), BITS),
    "insd": (b"\x6d", (Kind.IO, 0), BITS),
    "outsb": (b"\x6e", (Kind.IO, 0), BITS),
    "outsd": (b"\x6f", (Kind.IO, 0), BITS),
    "rep insb": (b"\xf3\x6c", (Kind.IO, 0), BITS),
    "rep outsb": (b"\xf3\x6e", (Kind.IO, 0), BITS),
    "syscall": (b"\x0f\x05", (Kind.SYSCALL, 0), ONLY_PROTECTED),
    "sysenter": (b"\x0f\x34", (Kind.SYSENTER, 0), ONLY_PROTECTED),
}
CASES = [(name, bits) for name, (_, _, sizes) in INSTRUCTIONS.items() for bits in sizes]
ALWAYS = frozenset(
    {Kind.RDTSC, Kind.RDPMC, Kind.CPUID, Kind.INVD, Kind.PAUSE, Kind.HLT, Kind.MSR, Kind.WBINVD, Kind.IO, Kind.SYSCALL,
     Kind.SYSENTER, Kind.INVLPG}
)  # fmt: skip
UNDEFINED = frozenset({Kind.MONITOR, Kind.MWAIT})
REGISTERS = frozenset({Kind.CR_READ, Kind.CR_WRITE, Kind.DR_READ, Kind.DR_WRITE})
OPTIONAL = frozenset(Kind(n) for n in range(Kind.IDTR_READ, Kind.TR_WRITE + 1)) | {
    Kind.PUSHF, Kind.POPF, Kind.IRET
}  # fmt: skip


def prepared(bits, *, counted=True):
    r = rig(bits, counted=counted)
    for gpr in range(16):
        if gpr not in (RCX, 4):
            r.gpr(gpr, 0x4000 + 8 * gpr)  # memory operands use [bx] or [bp+di] in 16-bit code
    r.gpr(RCX, 3)
    r.state.rflags = 0x8D7  # all arithmetic flags
    return r


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_a_stop_comes_before_its_instruction_and_nothing_has_changed(name, bits, counted):
    code, expected, _ = INSTRUCTIONS[name]
    r = prepared(bits, counted=counted)
    r.engine.arm(OPTIONAL)
    r.engine.arm_registers(**ALL)
    before = [*r.state.regs]
    r.put(b"\x90\x90" + code + b"\x47" * 15)  # INC DI, or REX: the block goes on
    memory = bytes(r.ram[:])
    r.state.rip = r.start
    stop = r.engine.run(1000)
    assert summary(stop) == expected
    assert r.offset == 2
    assert [*r.state.regs] == before
    assert r.state.rflags == 0x8D7
    assert bytes(r.ram[:0x8_0000]) == memory[:0x8_0000]  # above: page tables, where A is set
    assert r.engine.instructions == (2 if counted else 0)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_a_stop_comes_again_until_somebody_moves_rip(name, bits):
    code, expected, _ = INSTRUCTIONS[name]
    r = prepared(bits)
    r.engine.arm(OPTIONAL)
    r.engine.arm_registers(**ALL)
    assert summary(r.run(code + b"\x90")) == summary(r.engine.run(1000)) == expected
    assert r.offset == 0
    assert r.engine.instructions == 0


def test_the_table_has_every_kind_of_stop():
    elsewhere = UNDEFINED | {Kind.LIMIT, Kind.EXCEPTION, Kind.SOFTWARE_INT, Kind.WINDOW, Kind.SECOND_LEVEL}
    assert {kind for _, (kind, _), _ in INSTRUCTIONS.values()} | elsewhere == set(Kind)
    assert OPTIONAL | ALWAYS | REGISTERS | elsewhere == set(Kind)


@pytest.mark.parametrize(
    ("name", "bits"), [(name, bits) for name, bits in CASES if INSTRUCTIONS[name][1][0] not in ALWAYS]
)
def test_what_is_not_armed_runs_natively(name, bits):
    code, (kind, detail), _ = INSTRUCTIONS[name]
    r = prepared(bits)
    r.engine.arm(OPTIONAL - {kind})
    r.engine.arm_registers(**(ALL | ({kind.name.lower(): 0xFFFF ^ 1 << detail} if kind in REGISTERS else {})))
    r.gpr(RAX, r.state.cr[detail] if kind is Kind.CR_WRITE and detail != 8 else 0)
    if name == "lmsw":
        r.gpr(RAX, bits != 16)
    stop = r.run(code + b"\x0f\xa2", limit=1)
    # what runs either retires or raises the exception of its operands: LTR of selector 0, IRET to nowhere
    assert summary(stop) in [(Kind.LIMIT, 0), (Kind.EXCEPTION, 13)]
    if stop.kind is Kind.LIMIT and name != "iret":
        assert r.offset == len(code)


@pytest.mark.parametrize("kind", sorted(OPTIONAL))
def test_arming_one_kind_arms_no_other(kind):
    r = rig(64)
    r.engine.arm({kind})
    stopped = set()
    for name, (code, (expected, detail), sizes) in INSTRUCTIONS.items():
        if 64 not in sizes or expected not in OPTIONAL:
            continue
        r.gpr(3, DATA)
        if summary(r.run(code + b"\x0f\xa2")) == (expected, detail):
            stopped.add(INSTRUCTIONS[name][1][0])
        r = rig(64)
        r.engine.arm({kind})
    assert stopped == {kind}


@pytest.mark.parametrize(("what", "index"), [*itertools.product(("cr_read", "cr_write"), (0, 2, 3, 4, 8))])
def test_one_bit_of_a_mask_stands_for_one_control_register(what, index):
    r = rig(64)
    r.engine.arm_registers(**(dict.fromkeys(ALL, 0) | {what: 1 << index}))
    kind = Kind[what.upper()]
    for other in (0, 2, 3, 4, 8):
        opcode = 0x20 if kind is Kind.CR_READ else 0x22
        code = (b"\x44" if other == 8 else b"") + bytes([0x0F, opcode, 0xC0 | (other & 7) << 3])
        r.gpr(RAX, 0 if other == 8 else r.state.cr[other])
        assert (r.run(code, limit=1).kind is kind) == (other == index), other


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("code", [b"\x0f\x01\xc8", b"\x0f\x01\xc9"], ids=["monitor", "mwait"])
def test_this_processor_has_no_monitor_and_no_mwait(code, bits):
    r = rig(bits)
    assert summary(r.run(code)) == (Kind.EXCEPTION, 6)
    assert r.offset == 0


# -- INT n ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("counted", [True, False])
def test_int_n_is_reported_with_its_vector_and_rip_after_it(bits, counted):
    r = rig(bits, counted=counted)
    for vector in range(256):
        assert summary(r.run(b"\x90\xcd" + bytes([vector]) + b"\x90\xf4")) == (Kind.SOFTWARE_INT, vector)
        assert r.offset == 3
        assert summary(r.engine.run(1000)) == (Kind.HLT, 0)
        assert r.offset == 4
    assert r.engine.instructions == (256 * 3 if counted else 0)  # NOP, INT n and the NOP behind it


@pytest.mark.parametrize("bits", BITS)
def test_int3_is_reported_with_rip_after_it(bits):
    r = rig(bits)
    assert summary(r.run(b"\x90\xcc\x90")) == (Kind.SOFTWARE_INT, 3)
    assert r.offset == 2


@pytest.mark.parametrize(("bits", "of"), [*itertools.product((16, 32), (False, True))])
def test_into_is_reported_with_rip_after_it_if_of_is_set(bits, of):
    r = rig(bits)
    r.state.rflags = 0x802 if of else 2
    assert summary(r.run(b"\x90\xce\xf4")) == ((Kind.SOFTWARE_INT, 4) if of else (Kind.HLT, 0))
    assert r.offset == 2


def test_into_does_not_exist_in_64_bit_code():
    assert summary(rig(64).run(b"\xce")) == (Kind.EXCEPTION, 6)


@pytest.mark.parametrize("first", [b"\xcd\x21", b"\xcd\x06", b"\xcc", b"\xce"])
@pytest.mark.parametrize("then", [b"\x0f\xa2", b"\x0f\x0b", b"\xec"], ids=["cpuid", "ud2", "in"])
def test_after_int_n_the_next_stop_has_its_own_rip(first, then):
    r = rig(32)
    r.state.rflags = 0x802
    assert r.run(first + b"\x90\x90" + then).kind is Kind.SOFTWARE_INT
    r.engine.run(1000)
    assert r.offset == len(first) + 2


# -- other facts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_a_disarmed_invlpg_runs_natively(bits):
    r = rig(bits)
    r.engine.disarm()
    assert r.run(b"\x0f\x01\x3b\xf4").kind is Kind.HLT
    assert r.offset == 3
    r.engine.arm(())
    assert r.run(b"\x0f\x01\x3b\xf4").kind is Kind.INVLPG


def test_fetch_returns_the_bytes_at_rip():
    r = rig(32)
    r.put(bytes(range(0x40, 0x60)))
    r.state.rip = r.start + 3
    assert r.engine.fetch() == bytes(range(0x43, 0x43 + 15))


def test_fetch_sees_registers_that_were_just_written():
    r = rig(16)
    r.run(b"\xf4")
    r.put(b"\x0f\xa2", DATA)
    r.state.set_segment(1, r.state.segment(1).__class__(DATA >> 4, DATA, 0xFFFF, r.state.segment(1).rights))
    r.state.rip = 0
    assert r.engine.fetch()[:2] == b"\x0f\xa2"


def test_syscall_and_sysenter_leave_everything_to_the_cpu_model():
    for code, kind in ((b"\x0f\x05", Kind.SYSCALL), (b"\x0f\x34", Kind.SYSENTER)):
        r = rig(64, 3)
        r.gpr(RCX, 0x1234)
        assert r.run(code).kind is kind
        assert (r.offset, r.state.cpl, r.state.gpr(RCX), r.state.gpr(4)) == (0, 3, 0x1234, STACK)


def test_a_mov_to_cr_of_another_register_keeps_its_operand_size():
    r = rig(64)
    r.engine.arm_registers(**ALL)
    assert summary(r.run(b"\x41\x0f\x22\xdf")) == (Kind.CR_WRITE, 3)  # mov cr3, r15
    assert r.engine.fetch()[:4] == b"\x41\x0f\x22\xdf"


def test_the_trap_flag_stops_after_one_instruction_with_rip_on_the_next():
    r = rig(32)
    r.state.rflags = 2 | TF
    assert summary(r.run(b"\x40\x40\x40")) == (Kind.EXCEPTION, 1)
    assert (r.offset, r.state.gpr(RAX), r.engine.instructions) == (1, 1, 1)
    assert r.state.dr6 & 1 << 14


def test_a_breakpoint_that_the_guest_arms_natively_stops_before_its_instruction():
    r = rig(32)
    r.gpr(RAX, CODE + 9)
    r.gpr(RCX, 0x402)
    # mov dr0, eax; mov dr7, ecx; nop; nop; nop; (here) inc eax; hlt
    assert summary(r.run(b"\x0f\x23\xc0\x0f\x23\xf9\x90\x90\x90\x40\xf4")) == (Kind.EXCEPTION, 1)
    assert (r.offset, r.state.gpr(RAX), r.state.dr6 & 0xF) == (9, CODE + 9, 1)
    assert r.engine.instructions == 5
