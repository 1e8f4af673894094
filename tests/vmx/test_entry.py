"""VM entry: launch state, failures, loading, injection, and what a clean entry skips."""

from __future__ import annotations

import pytest

from hvemu.vmx.controls import Entry, Exit
from hvemu.vmx.entry import EntryEvent, EntryFailed, vm_entry
from hvemu.vmx.exit import VmExit, deliver_exit
from hvemu.vmx.fail import VmFail
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import EventType, Reason
from hvemu.vmx.template import minimal_host, minimal_vmcs, own_fixed_bits
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import CpuMode, PlainState, mode


def entered(**edit):
    vmcs, state = minimal_vmcs(), PlainState()
    for name, value in edit.items():
        vmcs[Field[name]] = value
    return vmcs, state, vm_entry(vmcs, state, launch=True)


def test_the_minimal_guest_starts_in_64_bit_mode():
    vmcs, state, event = entered()
    assert event is None
    assert vmcs.launched
    assert mode(state) is CpuMode.LONG64
    assert (state.rip, state.gpr(Gpr.RSP), state.rflags, state.cr3) == (0x8000, 0x7000, 2, 0x1000)
    assert (state.cr4, state.efer, state.dr7) == (0x2020, 0xD00, 0x400)
    # ET, NW and CD stay as they were: RESET leaves all three set.
    assert state.cr0 == 0x8001_0031 | 0x6000_0010
    assert (state.segment(Sreg.CS).selector, state.segment(Sreg.CS).rights) == (0x08, 0xA09B)
    assert (state.segment(Sreg.SS).limit, state.tr.rights, state.ldtr.rights) == (0xFFFF_FFFF, 0x8B, 0x10000)
    assert (state.gdtr.limit, state.idtr.limit) == (0x27, 0xFFF)


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize("launch", [False, True])
def test_launch_state(launched, launch):
    vmcs, state = minimal_vmcs(), PlainState()
    vmcs.launched = launched
    if launch != launched:
        vm_entry(vmcs, state, launch=launch)
        assert vmcs.launched
    else:
        with pytest.raises(VmFail) as caught:
            vm_entry(vmcs, state, launch=launch)
        assert caught.value.number == (4 if launch else 5)


@pytest.mark.parametrize(
    ("field", "value", "number"),
    [("CR3_TARGET_COUNT", 5, 7), ("HOST_RIP", 1 << 47, 8), ("PIN_BASED_VM_EXECUTION_CONTROLS", 0, 7)],
)
def test_invalid_controls_and_host_state_fail_the_instruction(field, value, number):
    with pytest.raises(VmFail) as caught:
        entered(**{field: value})
    assert caught.value.number == number
    assert field in str(caught.value)


def test_controls_are_checked_before_host_and_guest():
    with pytest.raises(VmFail) as caught:
        entered(GUEST_RFLAGS=0, HOST_RIP=1 << 47, CR3_TARGET_COUNT=5)
    assert caught.value.number == 7


@pytest.mark.parametrize(
    ("edit", "qualification"),
    [({"GUEST_RFLAGS": 0}, 0), ({"VMCS_LINK_POINTER": 8}, 4),
     ({"GUEST_PDPTE0": 3, "VM_ENTRY_CONTROLS": 0x11FB, "GUEST_CS_ACCESS_RIGHTS": 0xC09B}, 2)],
)  # fmt: skip
def test_invalid_guest_state_is_an_exit_with_reason_33(edit, qualification):
    vmcs, state = minimal_vmcs(), PlainState(rip=0x1234)
    for name, value in edit.items():
        vmcs[Field[name]] = value
    with pytest.raises(EntryFailed) as caught:
        vm_entry(vmcs, state, launch=True)
    assert caught.value.exit == VmExit(Reason.ENTRY_FAILURE_GUEST_STATE, qualification, entry_failure=True)
    assert (state.rip, vmcs.launched) == (0x1234, False)
    deliver_exit(vmcs, state, caught.value.exit)
    assert (vmcs[Field.VM_EXIT_REASON], vmcs[Field.EXIT_QUALIFICATION]) == (0x8000_0021, qualification)


def test_a_later_entry_loads_nothing_and_sees_what_was_written():
    vmcs, state, _ = entered()
    state.rip = 0x9000
    deliver_exit(vmcs, state, VmExit(Reason.CPUID, 0, 2))
    vmcs[Field.GUEST_RIP] += vmcs[Field.VM_EXIT_INSTRUCTION_LENGTH]
    assert vmcs.dirty == {Field.GUEST_RIP}
    vm_entry(vmcs, state, launch=False)
    assert (state.rip, vmcs.dirty) == (0x9002, set())
    state.rip = 0x9010
    vm_entry(vmcs, state, launch=False)
    assert state.rip == 0x9010


def test_a_clean_entry_runs_no_clause(monkeypatch):
    vmcs, state, _ = entered()
    monkeypatch.setattr("hvemu.vmx.entry._check", lambda _: pytest.fail("checked"))
    vm_entry(vmcs, state, launch=False)


@pytest.mark.parametrize(
    ("field", "value"), [("GUEST_RIP", 1 << 63), ("GUEST_CR4", 0), ("GUEST_TR_ACCESS_RIGHTS", 0x1_0000)]
)
def test_a_later_entry_checks_what_was_written(field, value):
    vmcs, state, _ = entered()
    vmcs[Field[field]] = value
    for _ in range(2):  # it stays refused
        with pytest.raises(EntryFailed):
            vm_entry(vmcs, state, launch=False)


def test_a_later_entry_checks_clauses_over_what_changed_underneath():
    """The guest itself set IF; an interrupt may then be injected, and no longer after it cleared IF."""
    vmcs, state, _ = entered()
    for flags, legal in [(0x202, True), (2, False)]:
        state.rflags = flags
        vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = 0x8000_0020
        if legal:
            assert vm_entry(vmcs, state, launch=False) == EntryEvent(0x20, EventType.EXTERNAL_INTERRUPT, None, 0)
        else:
            with pytest.raises(EntryFailed, match="injected_interrupt_needs_if"):
                vm_entry(vmcs, state, launch=False)


@pytest.mark.parametrize(
    ("information", "code", "length", "event"),
    [
        (0x8000_0B0D, 0x18, 0, EntryEvent(13, EventType.HARDWARE_EXCEPTION, 0x18, 0)),
        (0x8000_0306, 0x18, 0, EntryEvent(6, EventType.HARDWARE_EXCEPTION, None, 0)),
        (0x8000_0202, 0, 0, EntryEvent(2, EventType.NMI, None, 0)),
        (0x8000_0480, 0, 2, EntryEvent(0x80, EventType.SOFTWARE_INTERRUPT, None, 2)),
        (0x0000_0B0D, 0, 0, None),
    ],
)
def test_injection(information, code, length, event):
    vmcs, state, injected = entered(
        VM_ENTRY_INTERRUPTION_INFORMATION=information,
        VM_ENTRY_EXCEPTION_ERROR_CODE=code,
        VM_ENTRY_INSTRUCTION_LENGTH=length,
    )
    assert injected == event
    deliver_exit(vmcs, state, VmExit(Reason.HLT, 0, 1))
    assert vm_entry(vmcs, state, launch=False) is None


def test_an_sti_shadow_is_reported_after_a_mov_ss_shadow_was_loaded():
    vmcs, state, _ = entered(GUEST_INTERRUPTIBILITY_STATE=0xA)
    assert state.blocking_by_sti_or_mov_ss
    assert vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] == 9
    state.blocking_by_sti_or_mov_ss = False
    assert vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] == 8


def test_entering_another_processor_moves_the_guest():
    vmcs, first, _ = entered()
    first.rip, second = 0x8888, PlainState()
    vm_entry(vmcs, second, launch=False)
    assert (second.rip, mode(second)) == (0x8888, CpuMode.LONG64)
    assert vmcs.state is second


def test_efer_is_loaded_at_every_entry_when_exits_do_not_save_it():
    vmcs, state, _ = entered(VM_EXIT_CONTROLS=int(Exit(0x3_6DFF, host_address_space_size=1, load_ia32_efer=1)))
    state.efer |= 1
    vm_entry(vmcs, state, launch=False)
    assert (state.efer, vmcs[Field.GUEST_IA32_EFER]) == (0xD00, 0xD00)


@pytest.mark.parametrize("long", [0, 1])
def test_lma_and_lme_follow_the_entry_control_when_efer_is_not_loaded(long):
    controls = Entry(0x11FB, ia32e_mode_guest=long)
    rights = 0xA09B if long else 0xC09B
    _, state, _ = entered(VM_ENTRY_CONTROLS=int(controls), GUEST_CS_ACCESS_RIGHTS=rights)
    assert state.efer == (0x500 if long else 0)


def test_switching_on_efer_loading_loads_it():
    vmcs, state, _ = entered(VM_ENTRY_CONTROLS=0x13FB, GUEST_IA32_EFER=0x501)
    assert state.efer == 0x500
    vmcs[Field.GUEST_IA32_EFER] = 0xD01
    vmcs[Field.VM_ENTRY_CONTROLS] = 0x93FB
    vm_entry(vmcs, state, launch=False)
    assert state.efer == 0xD01


def test_a_processor_after_reset_is_a_legal_unrestricted_guest():
    """The way of a monitor: the guest's registers are where they are, only the fixed bits are added and hidden."""
    vmcs, state = minimal_host(), PlainState()
    vmcs.attach(state)
    own_fixed_bits(vmcs)
    vm_entry(vmcs, state, launch=True)
    assert mode(state) is CpuMode.REAL
    assert (state.cr0, state.cr4) == (0x6000_0030, 0x2000)
    assert (vmcs[Field.CR0_READ_SHADOW], vmcs[Field.CR4_READ_SHADOW]) == (0x6000_0010, 0)
    assert (vmcs[Field.CR0_GUEST_HOST_MASK], vmcs[Field.CR4_GUEST_HOST_MASK]) == (0x20, 0x2000)
