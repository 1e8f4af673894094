"""Registers that a hypervisor shows otherwise than they are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.view import ShadowedView, StateView
from hvemu.vmx.fields import Field
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.registers import Sreg
from hvemu.x86.state import AccessRights, PlainState, Segment, TableRegister

PLAIN = ["rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "dr6", "dr7", "cpl"]
SEGMENT = Segment(0x1B, 0x1000, 0xFFF, AccessRights(type=3, s=1, dpl=3, p=1))


@pytest.mark.parametrize("name", PLAIN)
def test_a_view_without_an_opinion_shows_the_truth_and_changes_it(name):
    real = PlainState()
    view = StateView(real)
    assert getattr(view, name) == getattr(real, name)
    setattr(view, name, 3)
    assert getattr(real, name) == getattr(view, name) == 3


@pytest.mark.parametrize(("name", "value"), [
    ("ldtr", SEGMENT), ("tr", SEGMENT), ("gdtr", TableRegister(1, 2)), ("idtr", TableRegister(3, 4)),
    ("blocking_by_sti_or_mov_ss", True),
])  # fmt: skip
def test_tables_and_shadows_too(name, value):
    real = PlainState()
    setattr(StateView(real), name, value)
    assert getattr(real, name) == getattr(StateView(real), name) == value


def test_registers_by_number():
    real = PlainState()
    view = StateView(real)
    view.set_gpr(5, 6)
    view.set_dr(1, 7)
    view.set_segment(Sreg.SS, SEGMENT)
    assert (real.gpr(5), real.dr(1), real.segment(Sreg.SS)) == (6, 7, SEGMENT)
    assert (view.gpr(5), view.dr(1), view.segment(Sreg.SS), view.cpl) == (6, 7, SEGMENT, 3)
    real.rflags = 0x1_0102
    assert view.retire(9)
    assert (real.rip, real.rflags) == (9, 0x102)


WORD = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("number", [0, 4])
@settings(derandomize=True, max_examples=100)
@given(real=WORD, mask=WORD, shadow=WORD, value=WORD)
def test_each_bit_is_the_hosts_or_the_guests(number, real, mask, shadow, value):
    """SDM 3C "Guest/Host Masks and Shadows for CR0 and CR4", bit by bit; ET of CR0 is what it is."""
    state, vmcs = PlainState(**{f"cr{number}": real}), Vmcs()
    vmcs[Field[f"CR{number}_GUEST_HOST_MASK"]] = mask
    vmcs[Field[f"CR{number}_READ_SHADOW"]] = shadow
    vmcs.attach(state)
    view = ShadowedView(state, vmcs)
    for n in range(32):
        bit = 1 << n
        assert getattr(view, f"cr{number}") & bit == (shadow if mask & bit else real) & bit
    setattr(view, f"cr{number}", value)
    for n in range(32):
        bit = 1 << n
        assert getattr(state, f"cr{number}") & bit == (real if mask & bit else value) & bit
