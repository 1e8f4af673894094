"""Delivering a VM exit: exit information, guest state, host state."""

from __future__ import annotations

import pytest

from hvemu.vmx.controls import Exit
from hvemu.vmx.exit import VmExit, deliver_exit, load_host_state
from hvemu.vmx.fields import Area, Field
from hvemu.vmx.reasons import Reason
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import PlainState


def information(vmcs):
    return {f.name: vmcs[f] for f in Field if f.area is Area.EXIT_INFORMATION and vmcs[f]}


def delivered(exit_, vmcs=None):
    vmcs = vmcs or Vmcs()
    deliver_exit(vmcs, PlainState(rip=0x1000), exit_)
    return vmcs


def test_an_instruction_exit():
    vmcs = delivered(VmExit(Reason.CR_ACCESS, 0x303, 3))
    assert information(vmcs) == {"VM_EXIT_REASON": 28, "EXIT_QUALIFICATION": 0x303, "VM_EXIT_INSTRUCTION_LENGTH": 3}


def test_an_exception_exit_during_delivery():
    vmcs = delivered(
        VmExit(Reason.EXCEPTION_OR_NMI, 0x5000, 0, 0x8000_0B0E, 2, idt_vectoring=0x8000_0B0D, idt_error_code=8)
    )
    assert information(vmcs) == {
        "EXIT_QUALIFICATION": 0x5000,
        "VM_EXIT_INTERRUPTION_INFORMATION": 0x8000_0B0E,
        "VM_EXIT_INTERRUPTION_ERROR_CODE": 2,
        "IDT_VECTORING_INFORMATION": 0x8000_0B0D,
        "IDT_VECTORING_ERROR_CODE": 8,
    }


def test_an_ept_violation():
    vmcs = delivered(VmExit(Reason.EPT_VIOLATION, 0x182, guest_linear=0, guest_physical=0x7000))
    assert information(vmcs) == {"VM_EXIT_REASON": 48, "EXIT_QUALIFICATION": 0x182, "GUEST_PHYSICAL_ADDRESS": 0x7000}


def test_the_next_exit_leaves_no_event_of_the_last():
    vmcs = delivered(VmExit(Reason.EXCEPTION_OR_NMI, 1, 2, 0x8000_0306, idt_vectoring=0x8000_0080))
    delivered(VmExit(Reason.HLT, 0, 1), vmcs)
    assert information(vmcs) == {"VM_EXIT_REASON": 12, "VM_EXIT_INSTRUCTION_LENGTH": 1}


def test_an_exit_clears_the_event_to_inject():
    vmcs = Vmcs()
    vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = 0x8000_0B0E
    assert delivered(VmExit(Reason.HLT), vmcs)[Field.VM_ENTRY_INTERRUPTION_INFORMATION] == 0xB0E


def test_an_entry_failure_records_reason_and_qualification_alone():
    vmcs = delivered(VmExit(Reason.CPUID, 0, 2))
    vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = 0x8000_0B0E
    delivered(VmExit(Reason.ENTRY_FAILURE_GUEST_STATE, 4, entry_failure=True), vmcs)
    assert information(vmcs) == {
        "VM_EXIT_REASON": 0x8000_0021, "EXIT_QUALIFICATION": 4, "VM_EXIT_INSTRUCTION_LENGTH": 2,
    }  # fmt: skip
    assert vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] == 0x8000_0B0E


def test_guest_state_is_read_where_it_is():
    vmcs, state = Vmcs(), PlainState(rip=0x1000, cr3=0x8000)
    deliver_exit(vmcs, state, VmExit(Reason.CPUID, 0, 2))
    assert (vmcs[Field.GUEST_RIP], vmcs[Field.GUEST_CR3]) == (0x1000, 0x8000)
    state.rip += 2
    assert vmcs[Field.GUEST_RIP] == 0x1002


def test_an_exit_reads_well():
    assert repr(VmExit(Reason.CR_ACCESS, 0x303, 3)) == "VmExit(CR_ACCESS, qualification=0x303, instruction_length=0x3)"


HOST = {
    "HOST_CR0": 0x8000_0021, "HOST_CR3": 0x9000, "HOST_CR4": 0x2020, "HOST_RIP": 0xFFFF_8000_0000_1000,
    "HOST_RSP": 0xFFFF_8000_0000_2000, "HOST_CS_SELECTOR": 0x10, "HOST_SS_SELECTOR": 0x18, "HOST_DS_SELECTOR": 0,
    "HOST_FS_SELECTOR": 0x20, "HOST_FS_BASE": 0x1111, "HOST_GS_BASE": 0x2222, "HOST_TR_SELECTOR": 0x40,
    "HOST_TR_BASE": 0x3333, "HOST_GDTR_BASE": 0x4444, "HOST_IDTR_BASE": 0x5555, "HOST_IA32_EFER": 0xD01,
}  # fmt: skip


def host_loaded(exit_controls, **guest):
    vmcs, state = Vmcs(), PlainState(**guest)
    for name, value in HOST.items():
        vmcs[Field[name]] = value
    vmcs[Field.VM_EXIT_CONTROLS] = exit_controls
    deliver_exit(vmcs, state, VmExit(Reason.CPUID))
    load_host_state(vmcs, state)
    return vmcs, state


def test_host_registers():
    controls = Exit(host_address_space_size=1, load_ia32_efer=1)
    _, state = host_loaded(controls, rflags=0x246, dr7=0x455, cr0=0x11, blocking_by_sti_or_mov_ss=True)
    assert (state.cr0, state.cr3, state.cr4, state.efer) == (0x8000_0031, 0x9000, 0x2020, 0xD01)
    assert (state.rip, state.gpr(Gpr.RSP)) == (0xFFFF_8000_0000_1000, 0xFFFF_8000_0000_2000)
    assert (state.rflags, state.dr7, state.blocking_by_sti_or_mov_ss) == (2, 0x400, False)


@pytest.mark.parametrize(("long", "cs_rights", "lme_lma"), [(1, 0xA09B, 0x500), (0, 0xC09B, 0)])
def test_host_segments(long, cs_rights, lme_lma):
    _, state = host_loaded(Exit(host_address_space_size=long))
    cs, fs, ds = state.segment(Sreg.CS), state.segment(Sreg.FS), state.segment(Sreg.DS)
    assert (cs.selector, cs.base, cs.limit, cs.rights) == (0x10, 0, 0xFFFF_FFFF, cs_rights)
    assert (fs.selector, fs.base, fs.rights) == (0x20, 0x1111, 0xC093)
    assert (ds.rights.unusable, state.segment(Sreg.GS).base) == (True, 0x2222)
    assert (state.tr.selector, state.tr.base, state.tr.limit, state.tr.rights) == (0x40, 0x3333, 0x67, 0x8B)
    assert (state.ldtr.selector, state.ldtr.rights.unusable) == (0, True)
    assert (state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit) == (0x4444, 0xFFFF, 0x5555, 0xFFFF)
    assert state.efer == lme_lma


def test_a_32_bit_host_has_no_pcid_and_a_64_bit_one_has_pae():
    for controls, written, loaded in [(Exit(), 0x2_2020, 0x2020), (Exit(host_address_space_size=1), 0x2000, 0x2020)]:
        vmcs, state = Vmcs(), PlainState()
        vmcs[Field.VM_EXIT_CONTROLS], vmcs[Field.HOST_CR4] = controls, written
        load_host_state(vmcs, state)
        assert state.cr4 == loaded


def test_loading_host_state_keeps_the_guests_in_the_vmcs():
    vmcs, state = host_loaded(Exit(host_address_space_size=1), rip=0x1234, cr3=0x7000)
    assert (vmcs[Field.GUEST_RIP], vmcs[Field.GUEST_CR3]) == (0x1234, 0x7000)
    vmcs[Field.GUEST_RIP] = 0x1236
    assert state.rip == 0xFFFF_8000_0000_1000
