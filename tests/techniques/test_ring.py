"""Ring compression: what the guest's kernel holds is in ring 1, and what it reads is in ring 0."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.techniques.base import Shutdown
from hvemu.techniques.ring import RingView
from hvemu.x86.registers import Sreg
from hvemu.x86.state import AccessRights, PlainState, Segment, TableRegister

IF, IOPL, VM = 0x200, 0x3000, 0x20000
CODE, DATA = (8, 9, 10, 11), (0, 1, 2, 3, 4, 5, 6, 7)
CONFORMING = (12, 13, 14, 15)


def view(**boot):
    real, seen = PlainState(cr0=0x8001_0011), []
    return RingView(real, PlainState(cr0=0x11, **boot), seen.append), real, seen


def segment(selector, kind, dpl, **more):
    return Segment(selector, 0x1234_5000, 0xFFFFF, AccessRights(type=kind, s=1, dpl=dpl, p=1, db=1, **more))


@pytest.mark.parametrize("cpl", [0, 2, 3])
def test_what_the_guest_may_hold_in_code_and_stack_segments_reads_back_as_it_was_written(cpl):
    guest, real, _ = view()
    ring = cpl or 1
    for sreg, kinds in ((Sreg.CS, CODE), (Sreg.SS, (2, 3, 6, 7))):
        for kind in kinds:
            value = segment(0x20 | cpl, kind, cpl)
            guest.set_segment(sreg, value)
            assert guest.segment(sreg) == value
            assert (real.segment(sreg).selector & 3, real.segment(sreg).rights.dpl) == (ring, ring)
    assert (guest.cpl, real.cpl) == (cpl, ring)


@pytest.mark.parametrize(("sreg", "kind", "dpl", "rpl"), [
    (sreg, kind, dpl, rpl)
    for sreg in (Sreg.DS, Sreg.ES, Sreg.FS, Sreg.GS)
    for kind, dpl, rpl in product(DATA + CODE + CONFORMING, (0, 2, 3), range(4))
])  # fmt: skip
def test_data_segments_keep_their_selectors_whatever_the_rpl(sreg, kind, dpl, rpl):
    guest, real, _ = view()
    value = segment(0x28 | rpl, kind, dpl)
    guest.set_segment(sreg, value)
    assert guest.segment(sreg) == value
    assert real.segment(sreg) == segment(0x28 | rpl, kind, dpl or 1)


@pytest.mark.parametrize("rpl", [0, 2, 3])
@pytest.mark.parametrize("kind", CONFORMING)
def test_conforming_code_of_ring_0_keeps_the_ring_of_its_caller(kind, rpl):
    guest, real, _ = view()
    value = segment(0x30 | rpl, kind, 0)
    guest.set_segment(Sreg.CS, value)
    assert guest.segment(Sreg.CS) == value
    assert real.segment(Sreg.CS) == segment(0x30 | (rpl or 1), kind, 1)


def test_ring_1_of_the_guest_is_ring_0():
    guest, _, _ = view()
    guest.set_segment(Sreg.SS, segment(0x21, 3, 1))
    assert (guest.segment(Sreg.SS), guest.cpl) == (segment(0x20, 3, 0), 0)


def test_an_unusable_segment_stays_one():
    guest, _, _ = view()
    value = Segment(0, 0, 0, AccessRights(unusable=1))
    for sreg in Sreg:
        guest.set_segment(sreg, value)
        assert guest.segment(sreg).rights.unusable


@settings(derandomize=True, max_examples=200)
@given(flags=st.integers(0, 2**22 - 1))
def test_flags_read_back_as_written_while_the_real_if_is_1_and_iopl_0(flags):
    guest, real, _ = view()
    flags = flags & ~VM | 2
    guest.rflags = flags
    assert guest.rflags == flags
    assert real.rflags == flags & ~IOPL | IF
    real.rflags ^= 0x8D5  # what instructions change
    assert guest.rflags == flags ^ 0x8D5


def test_virtual_8086_mode_is_refused():
    guest, _, _ = view()
    with pytest.raises(Shutdown, match="virtual-8086"):
        guest.rflags = VM | 2


@pytest.mark.parametrize(("cpl", "iopl", "if_", "takes"), [
    (0, 0, 0, False), (0, 0, 1, True), (0, 3, 0, False),
    (3, 0, 0, True), (3, 2, 0, True), (3, 3, 0, False), (3, 3, 1, True),
])  # fmt: skip
def test_programs_run_with_interrupts_on_unless_they_may_turn_them_off(cpl, iopl, if_, takes):
    guest, _, _ = view()
    guest.rflags = 2 | if_ << 9 | iopl << 12
    guest.set_segment(Sreg.SS, segment(0x20 | cpl, 3, cpl))
    assert guest.takes_interrupts is takes


@pytest.mark.parametrize("name", ["cr0", "cr3", "cr4", "efer"])
def test_control_registers_are_the_guests_own_and_changes_are_told(name):
    guest, real, seen = view()
    before = getattr(real, name)
    setattr(guest, name, 0x35)
    assert (getattr(guest, name), getattr(real, name), seen) == (0x35, before, [name])
    setattr(guest, name, 0x35)
    assert seen == ([name, name] if name == "cr3" else [name])  # MOV to CR3 flushes, whatever it loads


@pytest.mark.parametrize(("name", "value", "told"), [
    ("gdtr", TableRegister(0x1000, 0x27), True),
    ("ldtr", Segment(0x28, 0x2000, 0xFF, AccessRights(type=2, p=1)), True),
    ("idtr", TableRegister(0x3000, 0x7FF), False),
    ("tr", Segment(0x30, 0x4000, 0x67, AccessRights(type=11, p=1)), False),
])  # fmt: skip
def test_table_registers_are_the_guests_own(name, value, told):
    guest, real, seen = view()
    before = getattr(real, name)
    setattr(guest, name, value)
    assert (getattr(guest, name), getattr(real, name), seen) == (value, before, [name] * told)


def test_everything_else_is_the_processors():
    guest, real, seen = view()
    guest.rip, guest.cr2, guest.dr6, guest.dr7, guest.cr8 = 1, 2, 3, 4, 5
    guest.set_gpr(6, 7)
    guest.set_dr(2, 8)
    guest.blocking_by_sti_or_mov_ss = True
    assert (real.rip, real.cr2, real.dr6, real.dr7, real.cr8, real.gpr(6), real.dr(2)) == (1, 2, 3, 4, 5, 7, 8)
    assert real.blocking_by_sti_or_mov_ss
    assert seen == []
    real.rflags |= 0x100
    assert guest.retire(0x99)
    assert (guest.rip, real.blocking_by_sti_or_mov_ss) == (0x99, False)
