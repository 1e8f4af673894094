"""Clauses on the VM-execution control fields, up to interrupts (SDM 3C "Checks on VMX Controls")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import EXIT, PIN, PRIMARY, Capability
from hvemu.vmx.checks import Section, check, check_addresses
from hvemu.vmx.controls import Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import Processor, Surroundings

_clause = partial(check, Section.EXECUTION_CONTROLS)
_address = partial(check_addresses, Section.EXECUTION_CONTROLS)
PIN_FIELD = Field.PIN_BASED_VM_EXECUTION_CONTROLS
PRIMARY_FIELD = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
SECONDARY_FIELD = Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_VTPR = 0x80
"""Offset of VTPR in the virtual-APIC page; its bits 7:4 are the class of the priority."""


def pin_with(**named: int) -> int:
    """Return pin-based controls with the *named* bits and those that must be 1."""
    return PinBased(PIN.must_be_one, **named)


def primary_with(**named: int) -> int:
    """Return primary controls with the *named* bits, secondary controls activated, and those that must be 1."""
    return PrimaryProcessorBased(PRIMARY.must_be_one, activate_secondary_controls=1, **named)


def secondary_with(**named: int) -> int:
    """Return the secondary controls of the minimal VMCS with the *named* bits changed."""
    return SecondaryProcessorBased(enable_ept=1, unrestricted_guest=1).replace(**named)


def allows(capability: Capability, value: int) -> bool:
    """Whether *value* has every bit that must be 1, and no bit that must be 0."""
    return not (capability.must_be_one & ~value or value & ~capability.may_be_one)


@_clause({PIN_FIELD: 0})
def pin_based_reserved_bits(on: Processor, pin: int) -> bool:
    """Reserved bits in the pin-based VM-execution controls must be as IA32_VMX_TRUE_PINBASED_CTLS says.

    Must be 1: {on.pin.must_be_one:#x}; may be 1: {on.pin.may_be_one:#x}.
    """
    return allows(on.pin, pin)


@_clause({PRIMARY_FIELD: PrimaryProcessorBased(activate_secondary_controls=1)})
def primary_processor_based_reserved_bits(on: Processor, primary: int) -> bool:
    """Reserved bits in the primary processor-based controls must be as IA32_VMX_TRUE_PROCBASED_CTLS says.

    Must be 1: {on.primary.must_be_one:#x}; may be 1: {on.primary.may_be_one:#x}.
    """
    return allows(on.primary, primary)


@_clause({SECONDARY_FIELD: secondary_with(pasid_translation=1)})
def secondary_processor_based_reserved_bits(on: Processor, active: SecondaryProcessorBased) -> bool:
    """If "activate secondary controls" is 1, reserved bits in the secondary processor-based controls must be 0.

    May be 1: {on.secondary.may_be_one:#x}, as IA32_VMX_PROCBASED_CTLS2 says.
    """
    return allows(on.secondary, active)


@_clause({Field.CR3_TARGET_COUNT: 5})
def cr3_target_count(on: Processor, cr3_target_count: int) -> bool:
    """The CR3-target count must not be greater than {on.misc.cr3_targets}."""
    return cr3_target_count <= on.misc.cr3_targets


@_address(("io_bitmap_a_address", "io_bitmap_b_address"), {PRIMARY_FIELD: primary_with(use_io_bitmaps=1)})
def _use_io_bitmaps(primary: PrimaryProcessorBased) -> bool:
    """If "use I/O bitmaps" is 1."""
    return primary.use_io_bitmaps


@_address(("msr_bitmap_address",), {PRIMARY_FIELD: primary_with(use_msr_bitmaps=1)})
def _use_msr_bitmaps(primary: PrimaryProcessorBased) -> bool:
    """If "use MSR bitmaps" is 1."""
    return primary.use_msr_bitmaps


@_address(("virtual_apic_address",), {PRIMARY_FIELD: primary_with(use_tpr_shadow=1)})
def _use_tpr_shadow(primary: PrimaryProcessorBased) -> bool:
    """If "use TPR shadow" is 1."""
    return primary.use_tpr_shadow


@_clause({PRIMARY_FIELD: primary_with(use_tpr_shadow=1), Field.TPR_THRESHOLD: 0x10})
def tpr_threshold_reserved_bits(
    primary: PrimaryProcessorBased, active: SecondaryProcessorBased, tpr_threshold: int
) -> bool:
    """If "use TPR shadow" is 1 and "virtual-interrupt delivery" is 0, bits 31:4 of the TPR threshold must be 0."""
    return not primary.use_tpr_shadow or active.virtual_interrupt_delivery or not tpr_threshold >> 4


@_clause(
    {PRIMARY_FIELD: primary_with(use_tpr_shadow=1), Field.TPR_THRESHOLD: 3},
    near=Surroundings(read=lambda _hpa, size: bytes([0x20] * size)),
)
def tpr_threshold_fits_vtpr(
    around: Surroundings,
    primary: PrimaryProcessorBased,
    active: SecondaryProcessorBased,
    tpr_threshold: int,
    virtual_apic_address: int,
) -> bool:
    """The TPR threshold must not be above bits 7:4 of VTPR, the byte at offset 80H of the virtual-APIC page.

    It applies if "use TPR shadow" is 1 and "virtualize APIC accesses" and "virtual-interrupt delivery" are 0.
    """
    exempt = active.virtualize_apic_accesses or active.virtual_interrupt_delivery
    if around.read is None or not primary.use_tpr_shadow or exempt:
        return True
    (vtpr,) = around.read(virtual_apic_address + _VTPR, 1)
    return tpr_threshold & 15 <= vtpr >> 4


@_clause({PIN_FIELD: pin_with(virtual_nmis=1)})
def virtual_nmis_need_nmi_exiting(pin: PinBased) -> bool:
    """If "NMI exiting" is 0, "virtual NMIs" must be 0."""
    return pin.nmi_exiting or not pin.virtual_nmis


@_clause({PRIMARY_FIELD: primary_with(nmi_window_exiting=1)})
def nmi_window_needs_virtual_nmis(pin: PinBased, primary: PrimaryProcessorBased) -> bool:
    """If "virtual NMIs" is 0, "NMI-window exiting" must be 0."""
    return pin.virtual_nmis or not primary.nmi_window_exiting


@_address(("apic_access_address",), {SECONDARY_FIELD: secondary_with(virtualize_apic_accesses=1)})
def _virtualize_apic_accesses(active: SecondaryProcessorBased) -> bool:
    """If "virtualize APIC accesses" is 1."""
    return active.virtualize_apic_accesses


@_clause({SECONDARY_FIELD: secondary_with(virtualize_x2apic_mode=1)})
def apic_virtualization_needs_tpr_shadow(primary: PrimaryProcessorBased, active: SecondaryProcessorBased) -> bool:
    """If "use TPR shadow" is 0, three secondary controls must be 0.

    They are "virtualize x2APIC mode", "APIC-register virtualization" and "virtual-interrupt delivery".
    """
    virtual = active.apic_register_virtualization or active.virtual_interrupt_delivery
    return primary.use_tpr_shadow or not (active.virtualize_x2apic_mode or virtual)


_X2APIC = {
    PRIMARY_FIELD: primary_with(use_tpr_shadow=1),
    SECONDARY_FIELD: secondary_with(virtualize_x2apic_mode=1, virtualize_apic_accesses=1),
}


@_clause(_X2APIC)
def x2apic_mode_excludes_apic_accesses(active: SecondaryProcessorBased) -> bool:
    """If "virtualize x2APIC mode" is 1, "virtualize APIC accesses" must be 0."""
    return not (active.virtualize_x2apic_mode and active.virtualize_apic_accesses)


_VIRTUAL_INTERRUPTS = {
    PRIMARY_FIELD: primary_with(use_tpr_shadow=1),
    SECONDARY_FIELD: secondary_with(virtual_interrupt_delivery=1),
}


@_clause(_VIRTUAL_INTERRUPTS)
def virtual_interrupts_need_interrupt_exiting(pin: PinBased, active: SecondaryProcessorBased) -> bool:
    """If "virtual-interrupt delivery" is 1, "external-interrupt exiting" must be 1."""
    return pin.external_interrupt_exiting or not active.virtual_interrupt_delivery


_POSTED = _VIRTUAL_INTERRUPTS | {
    PIN_FIELD: pin_with(external_interrupt_exiting=1, process_posted_interrupts=1),
    Field.VM_EXIT_CONTROLS: Exit(
        EXIT.must_be_one, host_address_space_size=1, load_ia32_efer=1, acknowledge_interrupt_on_exit=1
    ),
}


@_clause(_POSTED | {SECONDARY_FIELD: secondary_with()})
def posted_interrupts_need_virtual_interrupts(pin: PinBased, active: SecondaryProcessorBased) -> bool:
    """If "process posted interrupts" is 1, "virtual-interrupt delivery" must be 1."""
    return active.virtual_interrupt_delivery or not pin.process_posted_interrupts


@_clause({field: value for field, value in _POSTED.items() if field is not Field.VM_EXIT_CONTROLS})
def posted_interrupts_need_acknowledgement(pin: PinBased, exits: Exit) -> bool:
    """If "process posted interrupts" is 1, "acknowledge interrupt on exit" must be 1."""
    return exits.acknowledge_interrupt_on_exit or not pin.process_posted_interrupts


@_clause(_POSTED | {Field.POSTED_INTERRUPT_NOTIFICATION_VECTOR: 0x100})
def posted_interrupt_vector(pin: PinBased, posted_interrupt_notification_vector: int) -> bool:
    """If "process posted interrupts" is 1, bits 15:8 of the posted-interrupt notification vector must be 0."""
    return not pin.process_posted_interrupts or not posted_interrupt_notification_vector >> 8


@_address(("posted_interrupt_descriptor_address",), _POSTED, alignment=64)
def _process_posted_interrupts(pin: PinBased) -> bool:
    """If "process posted interrupts" is 1."""
    return pin.process_posted_interrupts
