from __future__ import annotations

import itertools

import pytest

from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import (
    AccessRights,
    CpuMode,
    PlainState,
    Segment,
    TableRegister,
    code_size,
    mode,
    paging_enabled,
    paging_is_long,
)

RF, TF, VM, PE, PG, LMA, PAE = 0x10000, 0x100, 0x20000, 1, 1 << 31, 0x400, 0x20


def test_access_rights_lie_as_the_vmcs_has_them() -> None:  # the table of SDM 3C "Guest Register State"
    fields = {n: (f.lo, f.mask.bit_length()) for n, f in AccessRights.fields.items()}
    assert fields == {
        "type": (0, 4), "s": (4, 1), "dpl": (5, 2), "p": (7, 1), "reserved_low": (8, 4), "avl": (12, 1),
        "l": (13, 1), "db": (14, 1), "g": (15, 1), "unusable": (16, 1), "reserved_high": (17, 15),
    }  # fmt: skip


def test_the_fresh_state_is_that_after_reset() -> None:  # SDM 3A "Processor State After Reset", but for the base of CS
    s = PlainState()
    assert (s.rip, s.rflags, s.cr0, s.dr6, s.dr7) == (0xFFF0, 2, 0x60000010, 0xFFFF0FF0, 0x400)
    assert (s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.cpl) == (0, 0, 0, 0, 0, 0)
    assert (s.gdtr, s.idtr) == (TableRegister(0, 0xFFFF), TableRegister(0, 0xFFFF))
    assert s.segments == [Segment(0, 0, 0xFFFF, AccessRights(0x93))] * 6
    assert (s.ldtr.limit, s.ldtr.rights, s.tr.limit, s.tr.rights) == (0xFFFF, 0x82, 0xFFFF, 0x8B)
    assert s.gprs == [0] * 16


def test_states_share_nothing() -> None:
    one, two = PlainState(), PlainState()
    one.set_gpr(Gpr.R15, 1)
    one.set_segment(Sreg.GS, Segment(5))
    assert (two.gpr(Gpr.R15), two.segment(Sreg.GS).selector) == (0, 0)


def test_the_cpl_follows_ss() -> None:
    s = PlainState()
    for level in (3, 1, 0, 2):
        s.set_segment(Sreg.SS, Segment(0x10, rights=AccessRights(type=3, s=1, p=1, dpl=level)))
        s.set_segment(Sreg.CS, Segment(0x08, rights=AccessRights(type=11, s=1, p=1, dpl=0)))
        assert s.cpl == level


@pytest.mark.parametrize(("rf", "tf", "shadow"), [*itertools.product((0, RF), (0, TF), (False, True))])
def test_an_instruction_that_ends(rf: int, tf: int, shadow: bool) -> None:
    s = PlainState(rip=0x100, rflags=0x246 | rf | tf, blocking_by_sti_or_mov_ss=shadow)
    assert s.retire(0x103) == bool(tf)
    assert (s.rip, s.rflags, s.blocking_by_sti_or_mov_ss) == (0x103, 0x246 | tf, False)


# (PE, LMA, VM, CS.L, CS.D) -> mode, default size: SDM 3A "Modes of Operation".
MODES = [
    (0, 0, 0, 0, 0, CpuMode.REAL, 16),
    (PE, 0, 0, 0, 0, CpuMode.PROTECTED, 16),
    (PE, 0, 0, 0, 1, CpuMode.PROTECTED, 32),
    (PE, 0, 0, 1, 1, CpuMode.PROTECTED, 32),  # CS.L is reserved outside IA-32e mode, and means nothing
    (PE, 0, VM, 0, 0, CpuMode.VM86, 16),
    (PE, LMA, 0, 0, 0, CpuMode.COMPATIBILITY, 16),
    (PE, LMA, 0, 0, 1, CpuMode.COMPATIBILITY, 32),
    (PE, LMA, 0, 1, 0, CpuMode.LONG64, 64),
]


@pytest.mark.parametrize(("pe", "lma", "vm", "l", "db", "expected", "size"), MODES)
def test_modes(pe: int, lma: int, vm: int, l: int, db: int, expected: CpuMode, size: int) -> None:  # noqa: E741
    s = PlainState(cr0=pe, efer=lma, rflags=2 | vm)
    s.set_segment(Sreg.CS, Segment(8, rights=AccessRights(type=11, s=1, p=1, l=l, db=db)))
    assert (mode(s), code_size(s)) == (expected, size)


@pytest.mark.parametrize(("pg", "pae", "lma"), [*itertools.product((0, PG), (0, PAE), (0, LMA))])
def test_paging(pg: int, pae: int, lma: int) -> None:
    s = PlainState(cr0=PE | pg, cr4=pae, efer=lma)
    assert paging_enabled(s) == bool(pg)
    assert paging_is_long(s) == bool(pae and lma)


def test_a_segment_prints_in_hex() -> None:
    segment = Segment(0x10, 0x1000, 0xFFFFF, AccessRights(type=3, s=1, p=1))
    assert repr(segment) == "Segment(0x0010 base=0x1000 limit=0xfffff AccessRights(0x93: type=0x3 s p))"
