from __future__ import annotations

import itertools

import pytest

from hvemu.cpu.far import far_call, far_jump
from hvemu.x86.registers import Sreg
from hvemu.x86.state import Segment, TableRegister
from hvemu.x86.vectors import Fault, Vector
from tests.cpu.machines import (
    CODE16,
    CODE32,
    CODE64,
    CONFORMING32,
    DATA16,
    DATA32,
    TSS,
    Machine,
    dpl,
    long,
    protected,
    result,
    vm86,
)

PRESENT, NEXT = 1 << 47, 0x5557
GATE16, GATE32 = 4, 12


def jump(m: Machine, selector: int, offset: int = 0x1234, size: int = 4) -> Fault | None:
    return result(m, lambda: far_jump(m.state, m.memory, selector, offset, size=size, next_rip=NEXT))


def call(m: Machine, selector: int, offset: int = 0x1234, size: int = 4) -> Fault | None:
    return result(m, lambda: far_call(m.state, m.memory, selector, offset, size=size, next_rip=NEXT))


def gate(selector: int, offset: int, kind: int = GATE32, level: int = 0, present: bool = True, count: int = 0) -> int:
    """A call gate, by SDM 3A "Call Gates"."""
    second = offset & 0xFFFF0000 | present << 15 | level << 13 | kind << 8 | count
    return (offset >> 32) << 64 | second << 32 | selector << 16 | offset & 0xFFFF


# -- real-address and virtual-8086 mode -------------------------------------------------------------------------------


def real() -> Machine:
    m = Machine()
    m.load = None
    m.state.set_segment(Sreg.CS, Segment(0x0700, 0x7000, 0xFFFF, m.state.segments[0].rights))
    m.state.rip, m.sp = 0x10, 0x8000
    return m


def test_real_mode() -> None:
    m = real()
    assert jump(m, 0xF000, 0xFFF0, 2) is None
    assert (m.selectors[Sreg.CS], m.state.segments[Sreg.CS].base, m.state.rip) == (0xF000, 0xF0000, 0xFFF0)
    m = real()
    assert call(m, 0x1000, 0x20, 2) is None
    assert (m.memory.items(0x7FFC, 2, 2), m.sp, m.state.rip) == ([NEXT, 0x700], 0x7FFC, 0x20)
    assert call(real(), 0x1000, 0x10000, 4) == jump(real(), 0x1000, 0x10000, 4) == Fault(Vector.GP, 0)


def test_real_mode_without_room() -> None:
    m = real()
    m.sp = 3
    assert call(m, 0x1000, 0x20, 2) == Fault(Vector.SS, 0)


def test_vm86_call() -> None:
    m = vm86(0)
    assert call(m, 0x0800, 0x20, 2) is None
    assert (m.memory.items(0x33330 + 0xFFEC, 2, 2), m.selectors[Sreg.CS], m.state.cpl) == ([NEXT, 0x2222], 0x800, 3)


# -- direct, protected mode -------------------------------------------------------------------------------------------


def direct(conforming: int, level: int, present: bool, cpl: int, rpl: int) -> Fault | None:
    """SDM 2A "JMP-Jump": CONFORMING-CODE-SEGMENT and NONCONFORMING-CODE-SEGMENT."""
    legal = level <= cpl if conforming else rpl <= cpl and level == cpl
    if not legal:
        return Fault(Vector.GP, 0xC0)
    return None if present else Fault(Vector.NP, 0xC0)


@pytest.mark.parametrize("go", [jump, call])
def test_direct_transfer_to_code(go: object) -> None:
    for case in itertools.product((0, 1), range(4), (True, False), range(4), range(4)):
        conforming, level, present, cpl, rpl = case
        m = protected(cpl)
        raw = dpl(CONFORMING32 if conforming else CODE32, level)
        m.gdt(0xC0, raw if present else raw & ~PRESENT)
        want = direct(*case)
        assert go(m, 0xC0 | rpl) == want, case
        if want is None:
            assert (m.selectors[Sreg.CS], m.state.rip, m.state.cpl) == (0xC0 | cpl, 0x1234, cpl)


@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize(
    ("selector", "raw", "error"),
    [(0, 0, 0), (3, 0, 0), (0x1000, 0, 0x1000), (0xC0, DATA32, 0xC0), (0xC0, 0x820070000067 | PRESENT, 0xC0)],
)
def test_no_code_is_gp(go: object, selector: int, raw: int, error: int) -> None:
    m = protected()
    m.gdt(0xC0, raw)
    assert go(m, selector) == Fault(Vector.GP, error)


def test_offset_beyond_the_limit_is_gp_0_and_is_cut_to_the_operand_size() -> None:
    m = protected()
    m.gdt(0xC0, CODE16)
    assert jump(m, 0xC0, 0x12345) == call(m, 0xC0, 0x12345) == Fault(Vector.GP, 0)
    assert jump(m, 0xC0, 0x12345, 2) is None
    assert m.state.rip == 0x2345


@pytest.mark.parametrize("size", [2, 4])
def test_direct_call_frame(size: int) -> None:
    m = protected(3)
    assert call(m, 0x3B, size=size) is None
    assert m.memory.items(0x18000 - 2 * size, size, 2) == [NEXT, 0x3B]
    assert m.sp == 0x18000 - 2 * size


def test_call_without_room() -> None:
    m = protected()
    m.gdt(0xC0, 0x0040_9300_0000_0FFF)
    m.load(Sreg.SS, 0xC0)
    m.sp = 7
    assert call(m, 8) == Fault(Vector.SS, 0)
    m.sp = 8
    assert call(m, 8) is None


# -- call gates -------------------------------------------------------------------------------------------------------


def through(case: tuple[int, bool, int, int, int, int, bool], *, jmp: bool) -> Fault | int:
    """Return the fault or the new CPL: SDM 2A "CALL-Call Procedure", CALL-GATE."""
    g_dpl, g_p, cpl, rpl, conforming, level, present = case
    if g_dpl < cpl or rpl > g_dpl:
        return Fault(Vector.GP, 0xC8)
    if not g_p:
        return Fault(Vector.NP, 0xC8)
    if level > cpl or (jmp and not conforming and level != cpl):
        return Fault(Vector.GP, 0xC0)
    if not present:
        return Fault(Vector.NP, 0xC0)
    return cpl if conforming else level


@pytest.mark.parametrize("jmp", [True, False])
def test_call_gate_matrix(jmp: bool) -> None:
    levels, flags = range(4), (True, False)
    for case in itertools.product(levels, flags, levels, levels, (0, 1), levels, flags):
        g_dpl, g_p, cpl, rpl, conforming, level, present = case
        m = protected(cpl)
        raw = dpl(CONFORMING32 if conforming else CODE32, level)
        m.gdt(0xC0, raw if present else raw & ~PRESENT)
        m.gdt(0xC8, gate(0xC3, 0x77777777, level=g_dpl, present=g_p))
        got, want = (jump if jmp else call)(m, 0xC8 | rpl), through(case, jmp=jmp)
        if isinstance(want, Fault):
            assert got == want, case
            continue
        assert (got, m.selectors[Sreg.CS], m.state.cpl, m.state.rip) == (None, 0xC0 | want, want, 0x77777777), case


@pytest.mark.parametrize(("target", "error"), [(0, 0), (3, 0), (0x1000, 0x1000), (0x10, 0x10)])
def test_bad_gate_targets(target: int, error: int) -> None:
    m = protected()
    m.gdt(0xC8, gate(target, 0x1000))
    assert call(m, 0xC8) == jump(m, 0xC8) == Fault(Vector.GP, error)


def test_gate_to_the_same_level_uses_the_same_stack_and_no_parameters() -> None:
    m = protected(3)
    m.gdt(0xC8, gate(0x3B, 0x1000, level=3, count=3))
    assert call(m, 0xC8) is None
    assert (m.memory.items(0x18000 - 8, 4, 2), m.sp) == ([NEXT, 0x3B], 0x18000 - 8)


@pytest.mark.parametrize(("kind", "size"), [(GATE16, 2), (GATE32, 4)])
def test_gate_inward_copies_the_parameters(kind: int, size: int) -> None:
    m = protected(3)
    for i in range(3):
        m.memory.poke(0x18000 + i * size, size, 0x1111 * (i + 1))
    m.gdt(0xC8, gate(0x08, 0x9999_1000, kind, level=3, count=3))
    assert call(m, 0xCB) is None
    frame = [NEXT, 0x3B, 0x1111, 0x2222, 0x3333, 0x18000 % 256**size, 0x43]
    assert m.memory.items(0x11000 - 7 * size, size, 7) == frame
    assert (m.sp, m.selectors[Sreg.SS], m.state.cpl) == (0x11000 - 7 * size, 0x10, 0)
    assert m.state.rip == (0x1000 if kind == GATE16 else 0x9999_1000)


def test_31_parameters_are_read_as_the_caller_and_written_as_the_kernel() -> None:
    m = protected(3)
    m.gdt(0xC8, gate(0x08, 0x1000, level=3, count=31))
    m.memory.accesses.clear()
    assert call(m, 0xCB) is None
    assert m.sp == 0x11000 - 4 * 35
    assert {(user, write) for gva, _, user, write in m.memory.accesses if gva >= 0x10000} == {
        (True, False), (False, True),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ss", "raw", "fault"),
    [
        (0x0000, 0, Fault(Vector.TS, 0)),
        (0x1000, 0, Fault(Vector.TS, 0x1000)),
        (0x00C2, DATA32, Fault(Vector.TS, 0x00C0)),
        (0x00C0, dpl(DATA32, 2), Fault(Vector.TS, 0x00C0)),
        (0x00C0, CODE32, Fault(Vector.TS, 0x00C0)),
        (0x00C0, DATA32 & ~PRESENT, Fault(Vector.SS, 0x00C0)),
    ],
)
def test_bad_inner_stacks(ss: int, raw: int, fault: Fault) -> None:
    m = protected(3)
    m.gdt(0xC0, raw)
    m.memory.poke(TSS + 8, 2, ss)
    m.gdt(0xC8, gate(0x08, 0x1000, level=3))
    assert call(m, 0xCB) == fault


def test_room_on_the_inner_stack_counts_the_parameters() -> None:
    m = protected(3)
    m.gdt(0xC0, 0x0040_9300_0000_0FFF)
    m.gdt(0xC8, gate(0x08, 0x1000, level=3, count=2))
    m.memory.poke(TSS + 4, 6, 0xC0 << 32 | 23)
    assert call(m, 0xCB) == Fault(Vector.SS, 0xC0)
    m.memory.poke(TSS + 4, 6, 0xC0 << 32 | 24)
    assert call(m, 0xCB) is None


def test_gate_entry_beyond_the_limit() -> None:
    m = protected()
    m.gdt(0xC0, CODE16)
    m.gdt(0xC8, gate(0xC0, 0x10000))
    assert call(m, 0xC8) == jump(m, 0xC8) == Fault(Vector.GP, 0)


# -- IA-32e mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4, 8])
def test_direct_call_in_64_bit_mode(size: int) -> None:
    m = long()
    assert call(m, 8, 0x1234, size) is None
    assert m.memory.items(0x18000 - 2 * size, size, 2) == [NEXT, 8]


def test_64_bit_targets_must_be_canonical() -> None:
    m = long()
    assert jump(m, 8, 1 << 47, 8) == Fault(Vector.GP, 0)
    assert jump(m, 8, 0xFFFF_8000_0000_0000, 8) is None
    assert m.state.rip == 0xFFFF_8000_0000_0000


def test_jump_to_compatibility_mode_and_back() -> None:
    m = long()
    m.gdt(0xC0, CODE32)
    assert jump(m, 0xC0, 0x1_0000_0000, 8) == Fault(Vector.GP, 0)
    assert jump(m, 0xC0, 0x2000, 8) is None
    assert not m.state.segments[Sreg.CS].rights.l
    assert jump(m, 8, 0x3000) is None
    assert m.state.segments[Sreg.CS].rights.l


@pytest.mark.parametrize("go", [jump, call])
def test_code_with_l_and_d_is_gp(go: object) -> None:
    m = long()
    m.gdt(0xC0, CODE64 | 1 << 54)
    assert go(m, 0xC0) == Fault(Vector.GP, 0xC0)


@pytest.mark.parametrize("kind", sorted({*range(16)} - {12}))
@pytest.mark.parametrize("go", [jump, call])
def test_only_64_bit_call_gates_exist_in_long_mode(go: object, kind: int) -> None:
    m = long()
    m.gdt(0xC8, 0)
    m.gdt(0xC0, gate(8, 0x1000, kind))
    assert go(m, 0xC0) == Fault(Vector.GP, 0xC0)


def test_64_bit_call_gate_inward() -> None:
    m = long(3)
    m.gdt(0xD0, 0)
    m.gdt(0xC8, gate(8, 0xFFFF_8000_1234_5678, level=3, count=5))
    assert call(m, 0xCB, 0, 8) is None
    assert m.memory.items(0x11000 - 32, 8, 4) == [NEXT, 0x3B, 0x18000, 0x43]
    assert (m.sp, m.state.rip, m.selectors[Sreg.SS]) == (0x11000 - 32, 0xFFFF_8000_1234_5678, 0)
    assert m.state.segments[Sreg.SS].rights.unusable
    assert m.state.cpl == 0


def test_64_bit_call_gate_at_the_same_level_pushes_quadwords() -> None:
    m = long()
    m.gdt(0xD0, 0)
    m.gdt(0xC8, gate(8, 0x1000))
    assert call(m, 0xC8, 0, 4) is None
    assert (m.memory.items(0x18000 - 16, 8, 2), m.sp) == ([NEXT, 8], 0x18000 - 16)


@pytest.mark.parametrize("raw", [CODE32, CODE64 | 1 << 54])
def test_a_64_bit_gate_leads_to_64_bit_code(raw: int) -> None:
    m = long()
    m.gdt(0xC0, raw)
    m.gdt(0xD0, 0)
    m.gdt(0xC8, gate(0xC0, 0x1000))
    assert call(m, 0xC8) == jump(m, 0xC8) == Fault(Vector.GP, 0xC0)


def test_a_64_bit_gate_is_16_bytes_with_a_zero_type_in_the_second_half() -> None:
    m = long()
    m.gdt(0xC8, gate(8, 0x1000))
    m.gdt(0xD0, 1 << 40)
    assert call(m, 0xC8) == Fault(Vector.GP, 0xC8)
    m.gdt(0xD0, 0)
    m.state.gdtr = TableRegister(m.state.gdtr.base, 0xD6)
    assert call(m, 0xC8) == Fault(Vector.GP, 0xC8)


def test_a_16_bit_stack_segment_wraps() -> None:
    m = protected()
    m.gdt(0xC0, DATA16 | 2 << 32)
    m.load(Sreg.SS, 0xC0)
    m.sp = 0xABCD_0000
    assert call(m, 8) is None
    assert (m.sp, m.memory.items(0x2FFF8, 4, 2)) == (0xABCD_FFF8, [NEXT, 8])
