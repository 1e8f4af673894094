from __future__ import annotations

import itertools

import pytest

from hvemu.cpu.ret import far_return, interrupt_return
from hvemu.x86.registers import Sreg
from hvemu.x86.state import Segment
from hvemu.x86.vectors import Fault, Vector
from tests.cpu.machines import (
    CODE16,
    CODE32,
    CODE64,
    CONFORMING32,
    DATA16,
    DATA32,
    Machine,
    dpl,
    long,
    protected,
    result,
    vm86,
)

PRESENT = 1 << 47
IF, TF, NT, RF, VM, AC, VIF, VIP, ID, IOPL = (
    0x200,
    0x100,
    0x4000,
    0x10000,
    0x20000,
    0x40000,
    1 << 19,
    1 << 20,
    1 << 21,
    0x3000,
)
STATUS = 0xCD5 | TF | NT  # CF PF AF ZF SF DF OF, TF and NT: free for everyone


def pushed(m: Machine, *values: int, size: int = 4) -> Machine:
    """Put *values* on the stack, the first on top."""
    base = m.state.segments[Sreg.SS].base if not m.state.segments[Sreg.CS].rights.l else 0
    for i, value in enumerate(values):
        m.memory.poke(base + m.sp + i * size, size, value % 256**size)
    return m


def iret(m: Machine, size: int = 4) -> Fault | None:
    return result(m, lambda: interrupt_return(m.state, m.memory, size=size, next_rip=0x5556))


def retf(m: Machine, size: int = 4, release: int = 0) -> Fault | None:
    return result(m, lambda: far_return(m.state, m.memory, size=size, release=release))


# -- real-address and virtual-8086 mode -------------------------------------------------------------------------------


def real() -> Machine:
    m = Machine()
    m.state.set_segment(Sreg.CS, Segment(0x0700, 0x7000, 0xFFFF, m.state.segments[0].rights))
    m.sp, m.state.rflags = 0x8000, 0x2
    return m


def test_real_mode_iret_loads_16_bits_of_flags() -> None:
    m = pushed(real(), 0x1234, 0xF000, 0xFFFF, size=2)
    m.state.blocking_by_sti_or_mov_ss = True
    assert iret(m, 2) is None
    assert (m.state.rip, m.selectors[Sreg.CS], m.state.segments[Sreg.CS].base) == (0x1234, 0xF000, 0xF0000)
    assert (m.sp, m.state.rflags) == (0x8006, 0x7FD7)
    assert not m.state.blocking_by_sti_or_mov_ss


def test_real_mode_iretd_keeps_vm_vif_vip() -> None:
    m = pushed(real(), 0x1234, 0xF000, 0xFFFF_FFFF)
    assert iret(m) is None
    assert m.state.rflags == 0x257FD7  # SDM 2A: (tempEFLAGS AND 257FD5H) OR (EFLAGS AND 1A0000H), bit 1 fixed


def test_real_mode_eip_must_be_within_64_kib() -> None:
    assert iret(pushed(real(), 0x10000, 0, 2)) == retf(pushed(real(), 0x10000, 0)) == Fault(Vector.GP, 0)


def test_real_mode_retf_releases() -> None:
    m = pushed(real(), 0x1234, 0xF000, size=2)
    assert retf(m, 2, release=6) is None
    assert (m.state.rip, m.selectors[Sreg.CS], m.sp) == (0x1234, 0xF000, 0x800A)


def test_real_mode_pop_beyond_the_stack() -> None:
    m = real()
    m.sp = 0xFFFF
    assert iret(m, 2) == retf(m, 2) == Fault(Vector.SS, 0)


@pytest.mark.parametrize("iopl", range(4))
def test_vm86_iret_needs_iopl_3_and_keeps_it(iopl: int) -> None:
    m = vm86(iopl)
    m.sp = 0x8000
    pushed(m, 0x1234, 0x0800, 0x4AD7, size=2)
    if iopl < 3:
        assert iret(m, 2) == Fault(Vector.GP, 0)
    else:
        assert iret(m, 2) is None
        assert (m.state.rflags, m.state.cpl, m.state.rip) == (0x27AD7 - 0x0, 3, 0x1234)


# -- RETF and IRET: code segments -------------------------------------------------------------------------------------


def expected(case: tuple[int, int, bool, int, int]) -> Fault | None:
    """SDM 2A "IRET/IRETD/IRETQ-Interrupt Return", PROTECTED-MODE-RETURN; the same for RET."""
    conforming, level, present, cpl, rpl = case
    if rpl < cpl or (conforming and level > rpl) or (not conforming and level != rpl):
        return Fault(Vector.GP, 0xC0)
    return None if present else Fault(Vector.NP, 0xC0)


@pytest.mark.parametrize("interrupt", [True, False])
def test_return_matrix(interrupt: bool) -> None:
    for case in itertools.product((0, 1), range(4), (True, False), range(4), range(4)):
        conforming, level, present, cpl, rpl = case
        m = protected(cpl)
        raw = dpl(CONFORMING32 if conforming else CODE32, level)
        m.gdt(0xC0, raw if present else raw & ~PRESENT)
        flags = [0x202] if interrupt else []
        pushed(m, 0x1234, 0xC0 | rpl, *flags, 0x7000, 0x10 + 17 * rpl)
        want = expected(case)
        assert (iret(m) if interrupt else retf(m)) == want, case
        if want is None:
            assert (m.selectors[Sreg.CS], m.state.rip, m.state.cpl) == (0xC0 | rpl, 0x1234, rpl), case
            assert m.sp == (0x7000 if rpl > cpl else 0x18000 + 8 + 4 * len(flags)), case


@pytest.mark.parametrize(
    ("selector", "raw", "error"), [(0, 0, 0), (3, 0, 0), (0x1003, 0, 0x1000), (0xC0, DATA32, 0xC0), (0xC4, 0, 0xC4)]
)
def test_bad_return_segments(selector: int, raw: int, error: int) -> None:
    m = protected()
    m.gdt(0xC0, raw)
    m.state.ldtr = Segment(0, 0, 0, m.state.ldtr.rights.replace(unusable=1))
    pushed(m, 0x1234, selector, 0x202)
    assert iret(m) == retf(m) == Fault(Vector.GP, error)


def test_eip_beyond_the_limit() -> None:
    m = protected()
    m.gdt(0xC0, CODE16)
    pushed(m, 0x10000, 0xC0, 0x202)
    assert iret(m) == retf(m) == Fault(Vector.GP, 0)


@pytest.mark.parametrize(
    ("ss", "raw", "fault"),
    [
        (0x0000, 0, Fault(Vector.GP, 0)),
        (0x0003, 0, Fault(Vector.GP, 0)),
        (0x1003, 0, Fault(Vector.GP, 0x1000)),
        (0x00C2, dpl(DATA32, 3), Fault(Vector.GP, 0xC0)),  # RPL is not that of CS
        (0x00C3, dpl(DATA32, 2), Fault(Vector.GP, 0xC0)),  # nor is the DPL
        (0x00C3, dpl(CODE32, 3), Fault(Vector.GP, 0xC0)),
        (0x00C3, dpl(DATA32, 3) & ~(1 << 41), Fault(Vector.GP, 0xC0)),
        (0x00C3, dpl(DATA32, 3) & ~PRESENT, Fault(Vector.SS, 0xC0)),
    ],
)
def test_bad_outer_stacks(ss: int, raw: int, fault: Fault) -> None:
    m = protected()
    m.gdt(0xC0, raw)
    assert iret(pushed(m, 0x1234, 0x3B, 0x202, 0x7000, ss)) == fault
    assert retf(pushed(m, 0x1234, 0x3B, 0x7000, ss)) == fault


def test_retf_outward_releases_on_both_stacks() -> None:
    m = pushed(protected(), 0x1234, 0x3B, 0xAAAA, 0xBBBB, 0x7000, 0x43)
    assert retf(m, release=8) is None
    assert (m.sp, m.selectors[Sreg.SS], m.state.cpl) == (0x7008, 0x43, 3)


def test_a_16_bit_outer_stack_takes_sp_only() -> None:
    m = protected()
    m.gdt(0xC0, dpl(DATA16, 3))
    m.sp = 0x0001_8000
    assert iret(pushed(m, 0x1234, 0x3B, 0x202, 0xABCD_7000, 0xC3)) is None
    assert m.sp == 0x0001_7000


def test_data_segments_of_inner_levels_are_dropped_on_the_way_out() -> None:
    m = protected()
    m.gdt(0xC0, dpl(DATA32, 2))
    m.gdt(0xC8, dpl(CONFORMING32, 0))
    for sreg, selector in (Sreg.ES, 0x43), (Sreg.DS, 0x10), (Sreg.FS, 0xC0), (Sreg.GS, 0xC8):
        m.load(sreg, selector)
    assert iret(pushed(m, 0x1234, 0x3B, 0x202, 0x7000, 0x43)) is None
    assert m.selectors == [0x43, 0x3B, 0x43, 0, 0, 0xC8]
    assert [m.state.segments[s].rights.unusable for s in (Sreg.ES, Sreg.DS, Sreg.FS, Sreg.GS)] == [0, 1, 1, 0]


def test_data_segments_stay_at_the_same_level() -> None:
    m = pushed(protected(), 0x1234, 0x08, 0x202)
    assert iret(m) is None
    assert m.selectors[Sreg.DS] == 0x10


def test_page_fault_on_the_stack() -> None:
    m = protected(3)
    m.memory.missing = {0x18}
    for fault in iret(m), retf(m):
        assert (fault.vector, fault.error_code, fault.cr2) == (Vector.PF, 4, 0x18000)


# -- IRET: flags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
def test_flags_that_iret_may_change(size: int) -> None:
    for cpl, iopl, old_set in itertools.product(range(4), range(4), (True, False)):
        m = protected(cpl)
        everything = STATUS | IF | RF | AC | ID | VIF | VIP
        m.state.rflags = 2 | iopl << 12 | (everything & ~NT if old_set else 0)
        image = 0 if old_set else (0xFFFF_FFFF & ~VM)
        free = STATUS | (IF if cpl <= iopl else 0) | (IOPL if cpl == 0 else 0)
        if size == 4:
            free |= RF | AC | ID | (VIF | VIP if cpl == 0 else 0)
        want = m.state.rflags & ~free | image & free
        pushed(m, 0x1234, 0x08 + 17 * cpl, image, size=size)
        assert iret(m, size) is None
        assert m.state.rflags == want, (cpl, iopl, old_set)


def test_if_is_decided_by_the_level_before_the_return() -> None:
    m = protected()
    m.state.rflags = 2
    assert iret(pushed(m, 0x1234, 0x3B, 0x3202, 0x7000, 0x43)) is None
    assert m.state.rflags == 0x3202


# -- IRET to virtual-8086 mode ----------------------------------------------------------------------------------------


def test_iretd_enters_virtual_8086_mode() -> None:
    m = protected()
    pushed(m, 0x0100, 0x2222, 0x23202, 0xFFF0, 0x3333, 0x1111, 0x4444, 0x5555, 0x6666)
    assert iret(m) is None
    assert m.selectors == [0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666]
    assert (m.state.rflags, m.state.rip, m.sp, m.state.cpl) == (0x23202, 0x100, 0xFFF0, 3)
    assert {(s.base, s.limit, int(s.rights)) for s in m.state.segments} == {
        (n * 0x11110, 0xFFFF, 0xF3) for n in range(1, 7)
    }


def test_eip_in_virtual_8086_mode_is_within_64_kib() -> None:
    m = pushed(protected(), 0x10000, 0x2222, 0x23202, 0xFFF0, 0x3333, 0, 0, 0, 0)
    assert iret(m) == Fault(Vector.GP, 0)


@pytest.mark.parametrize("cpl", [1, 2, 3])
def test_vm_is_ignored_above_cpl_0(cpl: int) -> None:
    m = pushed(protected(cpl), 0x1234, 0x08 + 17 * cpl, 0x20202)
    assert iret(m) is None
    assert not m.state.rflags & VM


# -- IA-32e mode ------------------------------------------------------------------------------------------------------


def test_iretq_always_pops_ss_rsp() -> None:
    m = pushed(long(), 0xFFFF_8000_0000_1234, 0x08, 0x202, 0xFFFF_8000_0000_7000, 0x10, size=8)
    assert iret(m, 8) is None
    assert (m.state.rip, m.sp, m.selectors[Sreg.SS]) == (0xFFFF_8000_0000_1234, 0xFFFF_8000_0000_7000, 0x10)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_iret_outward_with_every_operand_size(size: int) -> None:
    m = pushed(long(), 0x1234, 0x3B, 0x202, 0x7000, 0x43, size=size)
    assert iret(m, size) is None
    assert (m.state.rip, m.sp, m.state.cpl) == (0x1234, 0x7000, 3)


def test_null_ss_is_for_64_bit_code_below_ring_3_with_equal_rpl() -> None:
    for level, rpl, wide in itertools.product(range(4), range(4), (True, False)):
        m = long()
        m.gdt(0xC0, dpl(CODE64 if wide else CODE32, level))
        pushed(m, 0x1234, 0xC0 | level, 0x202, 0x7000, rpl, size=8)
        good = wide and level == rpl != 3
        assert iret(m, 8) == (None if good else Fault(Vector.GP, 0)), (level, rpl, wide)
        if good:
            assert (m.state.cpl, m.selectors[Sreg.SS]) == (level, level)


def test_iret_to_compatibility_mode() -> None:
    m = long()
    m.gdt(0xC0, dpl(CODE32, 3))
    assert iret(pushed(m, 0x1_0000_0000, 0xC3, 0x202, 0x7000, 0x43, size=8), 8) == Fault(Vector.GP, 0)
    assert iret(pushed(m, 0x1234, 0xC3, 0x202, 0x9_0000_7000, 0x43, size=8), 8) is None
    assert m.sp == 0x7000


def test_iret_in_long_mode_with_nt_is_gp() -> None:
    m = pushed(long(), 0x1234, 0x08, 0x202, 0x7000, 0x10, size=8)
    m.state.rflags |= NT
    assert iret(m, 8) == Fault(Vector.GP, 0)


def test_noncanonical_rip_and_stack() -> None:
    assert iret(pushed(long(), 1 << 47, 0x08, 0x202, 0x7000, 0x10, size=8), 8) == Fault(Vector.GP, 0)
    assert retf(pushed(long(), 1 << 47, 0x08, size=8), 8) == Fault(Vector.GP, 0)
    m = long()
    m.sp = 1 << 47
    assert iret(m, 8) == retf(m, 8) == Fault(Vector.SS, 0)


def test_retf_in_64_bit_mode_pops_ss_only_outward() -> None:
    m = pushed(long(), 0x1234, 0x08, size=8)
    assert retf(m, 8) is None
    assert m.sp == 0x18010
    m = pushed(long(), 0x1234, 0x3B, 0xAAAA, 0x7000, 0x43, size=8)
    assert retf(m, 8, release=8) is None
    assert (m.sp, m.state.cpl) == (0x7008, 3)
