"""The VMCS: software's rules for VMREAD and VMWRITE, live guest state, and the region in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.vmx.controls import Entry, Exit
from hvemu.vmx.fail import VmFail
from hvemu.vmx.fields import MASKS, Area, Field, Width
from hvemu.vmx.guest_state import GUEST_FIELDS
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, PlainState, Segment, TableRegister

CODE = Segment(0x10, 0x1000, 0xFFFFF, AccessRights(type=11, s=1, p=1, l=1, g=1))


def attached(state=None, **controls):
    vmcs = Vmcs()
    vmcs[Field.VM_EXIT_CONTROLS] = controls.get("exit", Exit(save_ia32_efer=1, save_debug_controls=1))
    vmcs[Field.VM_ENTRY_CONTROLS] = controls.get("entry", Entry(load_ia32_efer=1, load_debug_controls=1))
    vmcs.attach(state or PlainState())
    vmcs.dirty.clear()
    return vmcs


def test_a_fresh_vmcs_is_clear_and_zero():
    vmcs = Vmcs()
    assert not vmcs.launched
    assert {vmcs[f] for f in Field} == {0}


@pytest.mark.parametrize("field", list(Field), ids=lambda f: f.name)
def test_every_component_reads_back_what_was_written(field):
    vmcs = Vmcs()
    if field.area is Area.EXIT_INFORMATION:
        with pytest.raises(VmFail) as caught:
            vmcs.vmwrite(field, 1)
        assert caught.value.number == 13
    else:
        vmcs.vmwrite(field, 0x1234_5678_9ABC_DEF0)
        width = {Width.WORD: 0xDEF0, Width.DWORD: 0x9ABC_DEF0}.get(field.width, 0x1234_5678_9ABC_DEF0)
        assert vmcs.vmread(field) == width


@pytest.mark.parametrize("encoding", [0x0001, 0x4001, 0x681F, 0x0816, 0x1000, 0x3FFE, 0x8000, 0x10000, 1 << 63])
def test_an_unsupported_component_is_error_12(encoding):
    for access in (lambda: Vmcs().vmread(encoding), lambda: Vmcs().vmwrite(encoding, 0)):
        with pytest.raises(VmFail) as caught:
            access()
        assert caught.value.number == 12


def test_an_odd_encoding_reaches_the_high_half():
    vmcs = Vmcs()
    vmcs.vmwrite(0x2010, 0x1111_2222_3333_4444)
    assert vmcs.vmread(0x2011) == 0x1111_2222
    vmcs.vmwrite(0x2011, 0xF_5555_6666)
    assert vmcs.vmread(0x2010) == 0x5555_6666_3333_4444


def test_a_value_that_does_not_fit_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError, match="GUEST_ES_SELECTOR"):
        Vmcs()[Field.GUEST_ES_SELECTOR] = 0x10000


def test_while_attached_guest_state_is_the_processors():
    state = PlainState(rip=0x1000, cr3=0x5000, gdtr=TableRegister(0x800, 0x27))
    state.set_gpr(Gpr.RSP, 0x7000)
    state.set_segment(Sreg.CS, CODE)
    vmcs = attached(state)
    state.rip = 0x1002
    names = ["GUEST_RIP", "GUEST_CR3", "GUEST_RSP", "GUEST_GDTR_BASE", "GUEST_GDTR_LIMIT", "GUEST_CS_SELECTOR",
             "GUEST_CS_BASE", "GUEST_CS_LIMIT", "GUEST_CS_ACCESS_RIGHTS"]  # fmt: skip
    assert [vmcs[Field[n]] for n in names] == [0x1002, 0x5000, 0x7000, 0x800, 0x27, 0x10, 0x1000, 0xFFFFF, 0xA09B]


def test_while_attached_a_write_reaches_the_processor():
    state = PlainState()
    vmcs = attached(state)
    vmcs[Field.GUEST_RIP] = 0x2000
    vmcs[Field.GUEST_SS_ACCESS_RIGHTS] = 0xC0F3
    vmcs[Field.GUEST_TR_SELECTOR] = 0x28
    vmcs[Field.GUEST_IDTR_LIMIT] = 0x7FF
    assert (state.rip, state.cpl, state.tr.selector, state.idtr.limit) == (0x2000, 3, 0x28, 0x7FF)
    assert vmcs.dirty == {
        Field.GUEST_RIP, Field.GUEST_SS_ACCESS_RIGHTS, Field.GUEST_TR_SELECTOR, Field.GUEST_IDTR_LIMIT,
    }  # fmt: skip


def test_a_written_field_reads_back_as_written_even_where_the_processor_differs():
    vmcs = attached(PlainState(cr0=0x11))
    vmcs[Field.GUEST_CR0] = 0x6000_0001
    assert vmcs[Field.GUEST_CR0] == 0x6000_0001


def test_loading_cr0_keeps_et_nw_and_cd():
    state = PlainState(cr0=0x4000_0010)
    attached(state)[Field.GUEST_CR0] = 0x2000_0021
    assert state.cr0 == 0x4000_0031


def test_loading_dr7_clears_bits_12_14_15_and_sets_bit_10():
    state = PlainState()
    attached(state)[Field.GUEST_DR7] = 0xF001
    assert state.dr7 == 0x2401


@pytest.mark.parametrize("save", [0, 1])
@pytest.mark.parametrize("load", [0, 1])
def test_efer_and_dr7_are_live_only_under_their_controls(save, load):
    state = PlainState(efer=0x100, dr7=0x400)
    vmcs = attached(
        state,
        exit=Exit(save_ia32_efer=save, save_debug_controls=save),
        entry=Entry(load_ia32_efer=load, load_debug_controls=load),
    )
    assert vmcs[Field.GUEST_IA32_EFER] == (0x100 if save else 0)
    assert vmcs[Field.GUEST_DR7] == (0x400 if save else 0)
    vmcs[Field.GUEST_IA32_EFER] = 0x800
    vmcs[Field.GUEST_DR7] = 0x455
    assert (state.efer, state.dr7) == ((0x800, 0x455) if load else (0x100, 0x400))


@pytest.mark.parametrize("lma", [0, 1])
def test_the_entry_control_follows_lma(lma):
    vmcs = attached(PlainState(efer=lma << 10))
    assert Entry(vmcs[Field.VM_ENTRY_CONTROLS]).ia32e_mode_guest == lma


@pytest.mark.parametrize(("written", "shadow"), [(0, False), (1, True), (2, True), (8, False), (9, True), (10, True)])
def test_interruptibility_shares_the_shadow_with_the_processor(written, shadow):
    state = PlainState()
    vmcs = attached(state)
    vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] = written
    assert state.blocking_by_sti_or_mov_ss is shadow
    vmcs.dirty.clear()
    assert vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] == written
    state.blocking_by_sti_or_mov_ss = False
    assert vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] == written & 8


def test_detaching_keeps_the_guest_state():
    state = PlainState(rip=0x1234)
    vmcs = attached(state)
    vmcs.detach()
    state.rip = 0
    assert vmcs[Field.GUEST_RIP] == 0x1234
    vmcs[Field.GUEST_RIP] = 0x4321
    assert state.rip == 0


def test_every_guest_field_of_the_table_is_in_the_guest_area():
    assert [f.name for f in GUEST_FIELDS if f.area is not Area.GUEST] == ["VM_ENTRY_CONTROLS"]


@given(st.dictionaries(st.sampled_from(sorted(Field)), st.integers(0, 2**64 - 1)), st.booleans())
def test_the_region_round_trips(written, launched):
    vmcs = Vmcs(revision_id=7)
    vmcs.launched = launched
    for field, value in written.items():
        vmcs[field] = value & MASKS[field]
    region = vmcs.to_region()
    again = Vmcs.from_region(region)
    assert len(region) == 4096
    assert region[:8] == bytes([7, 0, 0, 0, 0, 0, 0, 0])
    assert (again.revision_id, again.launched, again.values) == (7, launched, vmcs.values)


def test_the_region_holds_live_state():
    vmcs = attached(PlainState(rip=0xABC))
    assert Vmcs.from_region(vmcs.to_region())[Field.GUEST_RIP] == 0xABC


def test_a_dump_names_bits():
    vmcs = Vmcs()
    vmcs[Field.GUEST_CR0] = 0x8000_0001
    assert "0x6800 GUEST_CR0" in vmcs.dump()
    assert "0x80000001  pe pg" in vmcs.dump()
    assert "GUEST_CR3" not in vmcs.dump()
    assert "GUEST_CR3" in vmcs.dump(zeros=True)
    assert "<td>GUEST_CR0<td>0x80000001  pe pg" in vmcs._repr_html_()


def test_a_dump_survives_a_reserved_value():
    vmcs = Vmcs()
    vmcs[Field.VM_EXIT_REASON] = 35
    assert "0x23  reserved value" in vmcs.dump()


def test_failures_read_well():
    assert str(VmFail(None)) == "VMfailInvalid"
    assert str(VmFail(13, "x")).startswith("VM-instruction error 13: VMWRITE to read-only VMCS component")
