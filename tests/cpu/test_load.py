from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from hvemu.cpu.load import load_ldtr, load_segment, load_tr
from hvemu.x86.registers import Sreg
from hvemu.x86.state import Segment
from hvemu.x86.vectors import Fault, Vector
from tests.cpu.machines import GDT, LDT, Machine, long, protected, result, vm86

PRESENT = 1 << 47


def expected(sreg: int, case: tuple[int, int, bool, int, int]) -> Fault | None:
    """SDM 2B "MOV-Move": *kind* is the 4-bit type of a code or data segment (type bit 3: code, 2: C/E, 1: R/W)."""
    kind, level, present, cpl, rpl = case
    code, conforming, rw = kind & 8, kind & 8 and kind & 4, kind & 2
    selector = 0xC0
    if sreg == Sreg.SS:
        if rpl != cpl or code or not rw or level != cpl:
            return Fault(Vector.GP, selector)
        return None if present else Fault(Vector.SS, selector)
    if code and not rw:
        return Fault(Vector.GP, selector)
    if not conforming and (rpl > level or cpl > level):
        return Fault(Vector.GP, selector)
    return None if present else Fault(Vector.NP, selector)


@pytest.mark.parametrize("sreg", [Sreg.ES, Sreg.SS, Sreg.DS, Sreg.FS, Sreg.GS])
def test_every_type_dpl_cpl_rpl(sreg: Sreg) -> None:
    machines = [protected(cpl) for cpl in range(4)]
    for case in itertools.product(range(16), range(4), (True, False), range(4), range(4)):
        kind, level, present, cpl, rpl = case
        m = machines[cpl]
        m.load(Sreg.SS, 0x10 + 17 * cpl)
        m.gdt(0xC0, 0x00CF10000000FFFF | kind << 40 | level << 45 | present * PRESENT)
        want = expected(sreg, case)
        assert result(m, lambda m=m, rpl=rpl: load_segment(m.state, m.memory, sreg, 0xC0 | rpl)) == want, case
        if want is None:
            assert m.state.segment(sreg).selector == 0xC0 | rpl
            assert m.memory.peek(GDT + 0xC5, 1) & 1, "accessed"


@pytest.mark.parametrize("kind", range(16))
def test_system_descriptors_are_gp(kind: int) -> None:
    m = protected()
    m.gdt(0xC0, 0x0000_8000_0000_FFFF | kind << 40)
    assert result(m, lambda: load_segment(m.state, m.memory, Sreg.DS, 0xC0)) == Fault(Vector.GP, 0xC0)


def test_hidden_part_comes_from_the_descriptor() -> None:
    m = protected()
    m.gdt(0xC0, 0x12C3_9200_0000_0000 | 0x345678 << 16 | 0x4321 | 1 << 52)
    load_segment(m.state, m.memory, Sreg.FS, 0xC0)
    fs = m.state.segment(Sreg.FS)
    assert (fs.base, fs.limit) == (0x12345678, 0x34321FFF)
    assert (fs.rights.type, fs.rights.s, fs.rights.p, fs.rights.avl, fs.rights.db, fs.rights.g) == (3, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(("selector", "good"), [(0xFF8, True), (0x1000, False)])
def test_gdt_limit(selector: int, good: bool) -> None:
    m = protected()
    m.gdt(0xFF8, 0x00CF93000000FFFF)
    got = result(m, lambda: load_segment(m.state, m.memory, Sreg.DS, selector))
    assert got == (None if good else Fault(Vector.GP, selector))


def test_ldt_selectors_use_the_ldt() -> None:
    m = protected()
    m.gdt(0xC0, 0x0000_8200_7000_000F)  # LDT at 0x7000, two entries
    assert result(m, lambda: load_ldtr(m.state, m.memory, 0xC0)) is None
    m.memory.poke(LDT + 8, 8, 0x0040_9212_3000_00FF)
    load_segment(m.state, m.memory, Sreg.GS, 0x0C)
    assert m.state.segment(Sreg.GS).base == 0x123000
    assert result(m, lambda: load_segment(m.state, m.memory, Sreg.GS, 0x14)) == Fault(Vector.GP, 0x14)


@pytest.mark.parametrize("null", range(4))
def test_null_selectors(null: int) -> None:
    m = protected()
    load_segment(m.state, m.memory, Sreg.DS, null)
    assert (m.state.segment(Sreg.DS).selector, m.state.segment(Sreg.DS).rights.unusable) == (null, True)
    assert result(m, lambda: load_segment(m.state, m.memory, Sreg.SS, null)) == Fault(Vector.GP, 0)


def test_null_ss_in_64_bit_mode_needs_rpl_cpl_and_not_ring_3() -> None:
    for cpl, rpl in itertools.product(range(4), range(4)):
        m = long(cpl)
        want = None if cpl == rpl != 3 else Fault(Vector.GP, 0)
        assert result(m, lambda m=m, rpl=rpl: load_segment(m.state, m.memory, Sreg.SS, rpl)) == want
        assert m.state.cpl == cpl


def test_real_mode_changes_selector_and_base_only() -> None:
    m = Machine()
    old = Segment(0, 0, 0xFFFF_FFFF, m.state.segments[0].rights.replace(db=1))
    m.state.set_segment(Sreg.DS, old)
    load_segment(m.state, m.memory, Sreg.DS, 0xB800)
    assert m.state.segment(Sreg.DS) == Segment(0xB800, 0xB8000, 0xFFFF_FFFF, old.rights)


def test_virtual_8086_mode_makes_a_64_kib_ring_3_data_segment() -> None:
    m = vm86()
    load_segment(m.state, m.memory, Sreg.SS, 0x1234)
    ss = m.state.segment(Sreg.SS)
    assert (ss.base, ss.limit, int(ss.rights), m.state.cpl) == (0x12340, 0xFFFF, 0xF3, 3)


# -- LLDT, LTR --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_ldtr, load_tr])
def test_lldt_and_ltr_need_protected_mode_and_cpl_0(load: Callable[..., None]) -> None:
    for m, want in (
        (Machine(), Fault(Vector.UD)),
        (vm86(), Fault(Vector.UD)),
        (protected(1), Fault(Vector.GP, 0)),
        (protected(3), Fault(Vector.GP, 0)),
    ):
        assert result(m, lambda m=m: load(m.state, m.memory, 0xC0)) == want


@pytest.mark.parametrize("kind", range(16))
def test_lldt_takes_an_ldt_and_ltr_an_available_tss(kind: int) -> None:
    m = protected()
    m.gdt(0xC0, 0x0000_8000_7000_0067 | kind << 40)
    bad = Fault(Vector.GP, 0xC0)
    assert result(m, lambda: load_ldtr(m.state, m.memory, 0xC0)) == (None if kind == 2 else bad)
    assert result(m, lambda: load_tr(m.state, m.memory, 0xC0)) == (None if kind in (1, 9) else bad)
    if kind in (1, 9):
        assert m.memory.peek(GDT + 0xC5, 1) == 0x80 | kind | 2
        assert (m.state.tr.selector, m.state.tr.base, m.state.tr.rights.type) == (0xC0, 0x7000, kind | 2)


@pytest.mark.parametrize(("load", "kind"), [(load_ldtr, 2), (load_tr, 9)])
def test_lldt_and_ltr_of_absent_local_and_outside(load: Callable[..., None], kind: int) -> None:
    m = protected()
    m.gdt(0xC0, 0x7000_0067 | kind << 40)
    assert result(m, lambda: load(m.state, m.memory, 0xC0)) == Fault(Vector.NP, 0xC0)
    assert result(m, lambda: load(m.state, m.memory, 0xC4)) == Fault(Vector.GP, 0xC4)
    assert result(m, lambda: load(m.state, m.memory, 0x1003)) == Fault(Vector.GP, 0x1000)


def test_null_is_no_ldt_and_no_task() -> None:
    m = protected()
    load_ldtr(m.state, m.memory, 0)
    assert m.state.ldtr.rights.unusable
    assert result(m, lambda: load_tr(m.state, m.memory, 0)) == Fault(Vector.GP, 0)


@pytest.mark.parametrize("kind", range(16))
def test_long_mode_tss_is_64_bit_and_16_bytes(kind: int) -> None:
    m = long()
    m.gdt(0xC0, 0xFFFF_8000 << 64 | 0x0000_8000_7000_0067 | kind << 40)
    want = None if kind == 9 else Fault(Vector.GP, 0xC0)
    assert result(m, lambda: load_tr(m.state, m.memory, 0xC0)) == want
    if kind == 9:
        assert m.state.tr.base == 0xFFFF_8000_0000_7000


def test_long_mode_system_descriptors_are_canonical_whole_and_end_in_zero_type() -> None:
    m = long()
    m.gdt(0xC0, 0x8000 << 64 | 0x0000_8900_7000_0067)
    assert result(m, lambda: load_tr(m.state, m.memory, 0xC0)) == Fault(Vector.GP, 0xC0)
    m.gdt(0xC0, 1 << 104 | 0x0000_8900_7000_0067)
    assert result(m, lambda: load_tr(m.state, m.memory, 0xC0)) == Fault(Vector.GP, 0xC0)
    m.gdt(0xFF8, 0x0000_8900_7000_0067)
    assert result(m, lambda: load_tr(m.state, m.memory, 0xFF8)) == Fault(Vector.GP, 0xFF8)
