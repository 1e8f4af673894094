"""Clauses on the VM-exit and VM-entry control fields (SDM 3C "Checks on VMX Controls")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import ENTRY, EXIT
from hvemu.vmx.checks import Section, check, check_addresses
from hvemu.vmx.checks_execution import allows
from hvemu.vmx.controls import Entry, Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import Processor
from hvemu.vmx.reasons import EntryInterruption, EventType
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.registers import Cr0
from hvemu.x86.vectors import Vector

_exit = partial(check, Section.EXIT_CONTROLS)
_entry = partial(check, Section.ENTRY_CONTROLS)
_EVENT = Field.VM_ENTRY_INTERRUPTION_INFORMATION
_AREA_ENTRY = 16
"""Bytes of one entry of an MSR area."""
_HOST_64 = Exit(EXIT.must_be_one, host_address_space_size=1, load_ia32_efer=1)
_GUEST_64 = Entry(ENTRY.must_be_one, ia32e_mode_guest=1, load_ia32_efer=1)


@_exit({Field.VM_EXIT_CONTROLS: _HOST_64.replace(conceal_vmx_from_pt=1)})
def vm_exit_controls_reserved_bits(on: Processor, exits: int) -> bool:
    """Reserved bits in the VM-exit controls must be as IA32_VMX_TRUE_EXIT_CTLS says.

    Must be 1: {on.exits.must_be_one:#x}; may be 1: {on.exits.may_be_one:#x}.
    """
    return allows(on.exits, exits)


@_exit({Field.VM_EXIT_CONTROLS: _HOST_64.replace(save_vmx_preemption_timer_value=1)})
def saving_the_timer_needs_the_timer(pin: PinBased, exits: Exit) -> bool:
    """If "activate VMX-preemption timer" is 0, "save VMX-preemption timer value" must be 0."""
    return pin.activate_vmx_preemption_timer or not exits.save_vmx_preemption_timer_value


def _ends_in_memory(on: Processor, hpa: int, count: int) -> bool:
    """Whether the last byte of *count* entries at *hpa* has a physical address."""
    return not count or on.is_physical(hpa + count * _AREA_ENTRY - 1)


@check_addresses(
    Section.EXIT_CONTROLS, ("vm_exit_msr_store_address",), {Field.VM_EXIT_MSR_STORE_COUNT: 1}, alignment=_AREA_ENTRY
)
def _stores_msrs(vm_exit_msr_store_count: int) -> bool:
    """If the VM-exit MSR-store count is not 0."""
    return vm_exit_msr_store_count != 0


_LAST = (1 << PHYSICAL_ADDRESS_WIDTH) - _AREA_ENTRY


@_exit({Field.VM_EXIT_MSR_STORE_COUNT: 2, Field.VM_EXIT_MSR_STORE_ADDRESS: _LAST})
def vm_exit_msr_store_area_ends_in_memory(
    on: Processor, vm_exit_msr_store_address: int, vm_exit_msr_store_count: int
) -> bool:
    """The address of the last byte of the VM-exit MSR-store area must not set bits from {on.physical_address_width} on.

    It is the address of the area, plus 16 for each entry, less 1.
    """
    return _ends_in_memory(on, vm_exit_msr_store_address, vm_exit_msr_store_count)


@check_addresses(
    Section.EXIT_CONTROLS, ("vm_exit_msr_load_address",), {Field.VM_EXIT_MSR_LOAD_COUNT: 1}, alignment=_AREA_ENTRY
)
def _loads_host_msrs(vm_exit_msr_load_count: int) -> bool:
    """If the VM-exit MSR-load count is not 0."""
    return vm_exit_msr_load_count != 0


@_exit({Field.VM_EXIT_MSR_LOAD_COUNT: 2, Field.VM_EXIT_MSR_LOAD_ADDRESS: _LAST})
def vm_exit_msr_load_area_ends_in_memory(
    on: Processor, vm_exit_msr_load_address: int, vm_exit_msr_load_count: int
) -> bool:
    """The address of the last byte of the VM-exit MSR-load area must not set bits from {on.physical_address_width} on.

    It is the address of the area, plus 16 for each entry, less 1.
    """
    return _ends_in_memory(on, vm_exit_msr_load_address, vm_exit_msr_load_count)


@_entry({Field.VM_ENTRY_CONTROLS: _GUEST_64.replace(conceal_vmx_from_pt=1)})
def vm_entry_controls_reserved_bits(on: Processor, entry: int) -> bool:
    """Reserved bits in the VM-entry controls must be as IA32_VMX_TRUE_ENTRY_CTLS says.

    Must be 1: {on.entry.must_be_one:#x}; may be 1: {on.entry.may_be_one:#x}.
    """
    return allows(on.entry, entry)


_WITH_ERROR_CODE = {Vector.DF, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF, Vector.AC}
_SOFTWARE = {EventType.SOFTWARE_INTERRUPT, EventType.PRIVILEGED_SOFTWARE_EXCEPTION, EventType.SOFTWARE_EXCEPTION}
_TRAP_FLAG = int(PrimaryProcessorBased(monitor_trap_flag=1))


@_entry({_EVENT: 0x8000_0120})
def injected_type(on: Processor, event: EntryInterruption) -> bool:
    """An event to inject must not have the reserved type 1, nor type 7 unless "monitor trap flag" is offered."""
    reserved = {EventType.RESERVED} | (set() if on.primary.may_be_one & _TRAP_FLAG else {EventType.OTHER_EVENT})
    return not event.valid or event.type not in reserved


@_entry({_EVENT: 0x8000_0203})
def injected_vector(event: EntryInterruption) -> bool:
    """The vector must fit the type: 2 for an NMI, at most 31 for a hardware exception, 0 for "other event"."""
    fits = {
        EventType.NMI: event.vector == Vector.NMI,
        EventType.HARDWARE_EXCEPTION: event.vector < 32,
        EventType.OTHER_EVENT: event.vector == 0,
    }
    return not event.valid or fits.get(event.type, True)


def _in_real_mode(active: SecondaryProcessorBased, cr0: Cr0) -> bool:
    return active.unrestricted_guest and not cr0.pe


@_entry({_EVENT: 0x8000_030D})
def injected_error_code_is_there(
    on: Processor, active: SecondaryProcessorBased, event: EntryInterruption, guest_cr0: Cr0
) -> bool:
    """An error code must come with hardware exceptions 8, 10-14 and 17, unless the guest is in real-address mode.

    Real-address mode: "unrestricted guest" is 1 and bit 0 of CR0 (PE) is 0. The rule is off if IA32_VMX_BASIC[56] is 1.
    """
    if not event.valid or on.basic.hardware_exception_without_error_code or _in_real_mode(active, guest_cr0):
        return True
    needed = event.type is EventType.HARDWARE_EXCEPTION and event.vector in _WITH_ERROR_CODE
    return event.deliver_error_code or not needed


@_entry({_EVENT: 0x8000_0B06})
def injected_error_code_is_allowed(
    on: Processor, active: SecondaryProcessorBased, event: EntryInterruption, guest_cr0: Cr0
) -> bool:
    """No error code may come with other events than hardware exceptions 8, 10-14 and 17, nor in real-address mode.

    If IA32_VMX_BASIC[56] is 1, it may come with every hardware exception outside real-address mode.
    """
    if not event.valid or not event.deliver_error_code:
        return True
    legal = on.basic.hardware_exception_without_error_code or event.vector in _WITH_ERROR_CODE
    return event.type is EventType.HARDWARE_EXCEPTION and legal and not _in_real_mode(active, guest_cr0)


@_entry({_EVENT: 0x8000_1020})
def injected_reserved_bits(event: EntryInterruption) -> bool:
    """Bits 30:12 of the interruption information of an event to inject must be 0."""
    return not event.valid or not event.reserved


@_entry({_EVENT: 0x8000_0B0D, Field.VM_ENTRY_EXCEPTION_ERROR_CODE: 0x1_0000})
def injected_error_code_bits(event: EntryInterruption, vm_entry_exception_error_code: int) -> bool:
    """If an error code is delivered, its bits 31:16 must be 0."""
    return not (event.valid and event.deliver_error_code and vm_entry_exception_error_code >> 16)


@_entry({_EVENT: 0x8000_0603, Field.VM_ENTRY_INSTRUCTION_LENGTH: 16})
def injected_instruction_length(on: Processor, event: EntryInterruption, vm_entry_instruction_length: int) -> bool:
    """For a software interrupt or exception, the instruction length must be from 1 to 15 bytes.

    It may be 0 if IA32_VMX_MISC[30] is 1.
    """
    least = 0 if on.misc.injects_length_zero else 1
    return not (event.valid and event.type in _SOFTWARE) or least <= vm_entry_instruction_length <= 15


@check_addresses(
    Section.ENTRY_CONTROLS, ("vm_entry_msr_load_address",), {Field.VM_ENTRY_MSR_LOAD_COUNT: 1}, alignment=_AREA_ENTRY
)
def _loads_guest_msrs(vm_entry_msr_load_count: int) -> bool:
    """If the VM-entry MSR-load count is not 0."""
    return vm_entry_msr_load_count != 0


@_entry({Field.VM_ENTRY_MSR_LOAD_COUNT: 2, Field.VM_ENTRY_MSR_LOAD_ADDRESS: _LAST})
def vm_entry_msr_load_area_ends_in_memory(
    on: Processor, vm_entry_msr_load_address: int, vm_entry_msr_load_count: int
) -> bool:
    """The address of the last byte of the VM-entry MSR-load area must not set bits from {on.physical_address_width} on.

    It is the address of the area, plus 16 for each entry, less 1.
    """
    return _ends_in_memory(on, vm_entry_msr_load_address, vm_entry_msr_load_count)


@_entry({Field.VM_ENTRY_CONTROLS: _GUEST_64.replace(entry_to_smm=1)})
def no_smm_outside_smm(entry: Entry) -> bool:
    """Outside system-management mode, "entry to SMM" and "deactivate dual-monitor treatment" must be 0."""
    return not (entry.entry_to_smm or entry.deactivate_dual_monitor_treatment)
