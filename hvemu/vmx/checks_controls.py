"""Clauses on VM-execution, VM-exit and VM-entry control fields (SDM 3C "Checks on VMX Controls")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import CR3_TARGETS, ENTRY, EXIT, MISC, PIN, PRIMARY, SECONDARY, WRITE_BACK, Capability
from hvemu.vmx.checks import CheckArea, check, fits_physical, is_aligned
from hvemu.vmx.controls import Entry, EptPointer, Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import EntryInterruption, EventType
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.registers import Cr0
from hvemu.x86.vectors import Vector

_clause = partial(check, CheckArea.CONTROLS, "Checks on VMX Controls")
_PRIMARY = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_SECONDARY = Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_TEMPLATE_SECONDARY = SecondaryProcessorBased(enable_ept=1, unrestricted_guest=1)


def _primary(**named: int) -> int:
    return PRIMARY.adjust(PrimaryProcessorBased(activate_secondary_controls=1, **named))


def _allowed(value: int, capability: Capability) -> bool:
    return not (capability.must_be_one & ~value or value & ~capability.may_be_one)


def _active(primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased) -> SecondaryProcessorBased:
    return secondary if primary.activate_secondary_controls else SecondaryProcessorBased()


@_clause({Field.PIN_BASED_VM_EXECUTION_CONTROLS: 0})
def pin_based_reserved_bits(pin: int) -> bool:
    """Reserved bits in the pin-based VM-execution controls must be as the capability MSR allows."""
    return _allowed(pin, PIN)


@_clause({_PRIMARY: PrimaryProcessorBased(activate_secondary_controls=1)})
def primary_processor_based_reserved_bits(primary: int) -> bool:
    """Reserved bits in the primary processor-based VM-execution controls must be as the capability MSR allows."""
    return _allowed(primary, PRIMARY)


@_clause({_SECONDARY: _TEMPLATE_SECONDARY.replace(enable_invpcid=1)})
def secondary_processor_based_reserved_bits(primary: PrimaryProcessorBased, secondary: int) -> bool:
    """If "activate secondary controls" is 1, reserved bits in the secondary controls must be 0."""
    return not primary.activate_secondary_controls or _allowed(secondary, SECONDARY)


@_clause({Field.CR3_TARGET_COUNT: CR3_TARGETS + 1})
def cr3_target_count(cr3_target_count: int) -> bool:
    """The CR3-target count must not be greater than 4."""
    return cr3_target_count <= CR3_TARGETS


@_clause({_PRIMARY: _primary(use_io_bitmaps=1), Field.IO_BITMAP_A_ADDRESS: 0x800})
def io_bitmap_addresses(primary: PrimaryProcessorBased, io_bitmap_a_address: int, io_bitmap_b_address: int) -> bool:
    """If "use I/O bitmaps" is 1, each bitmap address must be 4 KiB aligned and a physical address."""
    addresses = (io_bitmap_a_address, io_bitmap_b_address)
    return not primary.use_io_bitmaps or all(is_aligned(hpa, 4096) for hpa in addresses)


@_clause({_PRIMARY: _primary(use_msr_bitmaps=1), Field.MSR_BITMAP_ADDRESS: 1 << PHYSICAL_ADDRESS_WIDTH})
def msr_bitmap_address(primary: PrimaryProcessorBased, msr_bitmap_address: int) -> bool:
    """If "use MSR bitmaps" is 1, the bitmap address must be 4 KiB aligned and a physical address."""
    return not primary.use_msr_bitmaps or is_aligned(msr_bitmap_address, 4096)


@_clause({Field.PIN_BASED_VM_EXECUTION_CONTROLS: PIN.adjust(PinBased(virtual_nmis=1))})
def virtual_nmis_need_nmi_exiting(pin: PinBased) -> bool:
    """If "NMI exiting" is 0, "virtual NMIs" must be 0."""
    return pin.nmi_exiting or not pin.virtual_nmis


@_clause({_PRIMARY: _primary(nmi_window_exiting=1)})
def nmi_window_needs_virtual_nmis(pin: PinBased, primary: PrimaryProcessorBased) -> bool:
    """If "virtual NMIs" is 0, "NMI-window exiting" must be 0."""
    return pin.virtual_nmis or not primary.nmi_window_exiting


@_clause({_SECONDARY: _TEMPLATE_SECONDARY.replace(enable_vpid=1)})
def vpid_is_not_zero(primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased, vpid: int) -> bool:
    """If "enable VPID" is 1, the virtual-processor identifier must not be 0."""
    return not _active(primary, secondary).enable_vpid or vpid != 0


@_clause({Field.EPT_POINTER: 0x201F})
def eptp_memory_type(
    primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased, ept_pointer: EptPointer
) -> bool:
    """If "enable EPT" is 1, the EPT memory type (bits 2:0) must be supported: 0 (UC) or 6 (WB)."""
    return not _active(primary, secondary).enable_ept or ept_pointer.memory_type in {0, WRITE_BACK}


@_clause({Field.EPT_POINTER: 0x2016})
def eptp_walk_length(
    primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased, ept_pointer: EptPointer
) -> bool:
    """If "enable EPT" is 1, bits 5:3 of the EPTP, the page-walk length less 1, must be 3."""
    return not _active(primary, secondary).enable_ept or ept_pointer.walk_length == 3


@_clause({Field.EPT_POINTER: 0x211E})
def eptp_reserved_bits(
    primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased, ept_pointer: EptPointer
) -> bool:
    """If "enable EPT" is 1, bits 11:7 of the EPTP and those above the physical-address width must be 0."""
    reserved = ept_pointer.reserved or ept_pointer.supervisor_shadow_stack or not fits_physical(ept_pointer)
    return not (_active(primary, secondary).enable_ept and reserved)


@_clause({_SECONDARY: _TEMPLATE_SECONDARY.replace(enable_ept=0)})
def unrestricted_guest_needs_ept(primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased) -> bool:
    """If "unrestricted guest" is 1, "enable EPT" must be 1."""
    active = _active(primary, secondary)
    return active.enable_ept or not active.unrestricted_guest


@_clause({Field.VM_EXIT_CONTROLS: Exit(EXIT.must_be_one, host_address_space_size=1, clear_ia32_bndcfgs=1)})
def vm_exit_controls_reserved_bits(exits: int) -> bool:
    """Reserved bits in the VM-exit controls must be as the capability MSR allows."""
    return _allowed(exits, EXIT)


def _list_fits(hpa: int, count: int) -> bool:
    """Whether *count* 16-byte entries at *hpa* are aligned and end below the physical-address width."""
    return not count or (is_aligned(hpa, 16) and fits_physical(hpa + count * 16 - 1))


@_clause({Field.VM_EXIT_MSR_STORE_COUNT: 1, Field.VM_EXIT_MSR_STORE_ADDRESS: 8})
def vm_exit_msr_store_list(vm_exit_msr_store_address: int, vm_exit_msr_store_count: int) -> bool:
    """If the VM-exit MSR-store count is not 0, the list must be 16-byte aligned and all at physical addresses."""
    return _list_fits(vm_exit_msr_store_address, vm_exit_msr_store_count)


@_clause({Field.VM_EXIT_MSR_LOAD_COUNT: 1, Field.VM_EXIT_MSR_LOAD_ADDRESS: 8})
def vm_exit_msr_load_list(vm_exit_msr_load_address: int, vm_exit_msr_load_count: int) -> bool:
    """If the VM-exit MSR-load count is not 0, the list must be 16-byte aligned and all at physical addresses."""
    return _list_fits(vm_exit_msr_load_address, vm_exit_msr_load_count)


@_clause({Field.VM_ENTRY_CONTROLS: Entry(ENTRY.must_be_one, ia32e_mode_guest=1, load_ia32_bndcfgs=1)})
def vm_entry_controls_reserved_bits(entry: int) -> bool:
    """Reserved bits in the VM-entry controls must be as the capability MSR allows."""
    return _allowed(entry, ENTRY)


@_clause({Field.VM_ENTRY_MSR_LOAD_COUNT: 2, Field.VM_ENTRY_MSR_LOAD_ADDRESS: (1 << PHYSICAL_ADDRESS_WIDTH) - 16})
def vm_entry_msr_load_list(vm_entry_msr_load_address: int, vm_entry_msr_load_count: int) -> bool:
    """If the VM-entry MSR-load count is not 0, the list must be 16-byte aligned and all at physical addresses."""
    return _list_fits(vm_entry_msr_load_address, vm_entry_msr_load_count)


_WITH_ERROR_CODE = {Vector.DF, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF, Vector.AC}
_SOFTWARE = {EventType.SOFTWARE_INTERRUPT, EventType.PRIVILEGED_SOFTWARE_EXCEPTION, EventType.SOFTWARE_EXCEPTION}


@_clause({Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0120})
def injected_type(event: EntryInterruption) -> bool:
    """An event to inject must not have the reserved type 1, nor type 7 without "monitor trap flag"."""
    return not event.valid or event.type not in {EventType.RESERVED, EventType.OTHER_EVENT}


@_clause({Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0203})
def injected_vector(event: EntryInterruption) -> bool:
    """The vector must fit the type: 2 for an NMI, at most 31 for a hardware exception."""
    if not event.valid:
        return True
    return {EventType.NMI: event.vector == Vector.NMI, EventType.HARDWARE_EXCEPTION: event.vector < 32}.get(
        event.type, True
    )


@_clause({Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0306 | 1 << 11})
def injected_error_code(
    event: EntryInterruption, primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased, guest_cr0: Cr0
) -> bool:
    """An error code is delivered exactly with hardware exceptions 8, 10-14 and 17, and never in real-address mode.

    Real-address mode: "unrestricted guest" is 1 and bit 0 of the CR0 field is 0.
    """
    if not event.valid:
        return True
    real = _active(primary, secondary).unrestricted_guest and not guest_cr0.pe
    hardware = event.type is EventType.HARDWARE_EXCEPTION
    return event.deliver_error_code == (hardware and not real and event.vector in _WITH_ERROR_CODE)


@_clause({Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_1020})
def injected_reserved_bits(event: EntryInterruption) -> bool:
    """Bits 30:12 of the interruption information of an event to inject must be 0."""
    return not event.valid or not event.reserved


@_clause({Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0B0D, Field.VM_ENTRY_EXCEPTION_ERROR_CODE: 0x1_0000})
def injected_error_code_bits(event: EntryInterruption, vm_entry_exception_error_code: int) -> bool:
    """If an error code is delivered, its bits 31:16 must be 0."""
    return not (event.valid and event.deliver_error_code and vm_entry_exception_error_code >> 16)


@_clause({Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0603})
def injected_instruction_length(event: EntryInterruption, vm_entry_instruction_length: int) -> bool:
    """For a software interrupt or exception, the instruction length must be from 1 to 15 bytes."""
    least = 0 if MISC.injects_length_zero else 1
    return not (event.valid and event.type in _SOFTWARE) or least <= vm_entry_instruction_length <= 15
