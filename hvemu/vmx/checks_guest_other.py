"""Clauses on descriptor tables, RIP, RFLAGS, and activity and blocking (SDM 3C "Checks on the Guest State Area")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.checks import Section, check, check_each
from hvemu.vmx.checks_execution import PIN_FIELD, pin_with
from hvemu.vmx.checks_guest import NOT_CANONICAL, loading
from hvemu.vmx.checks_guest_segments import VM86
from hvemu.vmx.controls import Entry, PinBased
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import Processor
from hvemu.vmx.reasons import Activity, EntryFailure, EntryInterruption, EventType, Interruptibility
from hvemu.x86.registers import Cr0, Rflags
from hvemu.x86.state import AccessRights
from hvemu.x86.vectors import Vector

_rip = partial(check, Section.GUEST_RIP)
_other = partial(check, Section.GUEST_OTHER)
_EVENT = Field.VM_ENTRY_INTERRUPTION_INFORMATION
_BLOCKING, _ACTIVITY = Field.GUEST_INTERRUPTIBILITY_STATE, Field.GUEST_ACTIVITY_STATE
_INTERRUPT, _NMI = 0x8000_0020, 0x8000_0202


@check_each(Section.GUEST_TABLES, ("guest_gdtr_base", "guest_idtr_base"), NOT_CANONICAL)
def is_canonical(on: Processor, value: int) -> bool:
    """{field} must be canonical."""
    return on.is_canonical(value)


@check_each(Section.GUEST_TABLES, ("guest_gdtr_limit", "guest_idtr_limit"), 0x10000)
def is_16_bit(value: int) -> bool:
    """Bits 31:16 of {field} must be 0."""
    return not value >> 16


# -- RIP, RFLAGS, and SSP ------------------------------------------------------------------------------------------


@_rip({Field.GUEST_CS_ACCESS_RIGHTS: 0xC09B, Field.GUEST_RIP: 1 << 32})
def rip_is_32_bit(entry: Entry, guest_cs_access_rights: AccessRights, guest_rip: int) -> bool:
    """Bits 63:32 of RIP must be 0 if "IA-32e mode guest" is 0 or the L bit of CS is 0."""
    return (entry.ia32e_mode_guest and guest_cs_access_rights.l) or not guest_rip >> 32


@_rip({Field.GUEST_RIP: NOT_CANONICAL})
def rip_is_extended(on: Processor, entry: Entry, guest_cs_access_rights: AccessRights, guest_rip: int) -> bool:
    """Bits 63:{on.linear_address_width} of RIP must be equal if "IA-32e mode guest" and the L bit of CS are 1.

    RIP need not be canonical: the next lower bit may differ from them.
    """
    return not (entry.ia32e_mode_guest and guest_cs_access_rights.l) or on.is_extended(guest_rip)


_RFLAGS_RESERVED = ~0x003F_7FD7


@_rip({Field.GUEST_RFLAGS: 0})
def rflags_reserved_bits(guest_rflags: Rflags) -> bool:
    """Bits 63:22, 15, 5 and 3 of RFLAGS must be 0, and bit 1 must be 1."""
    return guest_rflags.fixed1 and not guest_rflags & _RFLAGS_RESERVED


@_rip({Field[name.upper()]: value for name, value in VM86.items()} | {Field.GUEST_CR0: 0x30})
def vm86_needs_protected_mode(entry: Entry, guest_cr0: Cr0, guest_rflags: Rflags) -> bool:
    """RFLAGS.VM must be 0 if "IA-32e mode guest" is 1 or CR0.PE is 0."""
    return not guest_rflags.vm or (guest_cr0.pe and not entry.ia32e_mode_guest)


@_rip({_EVENT: _INTERRUPT})
def injected_interrupt_needs_if(event: EntryInterruption, guest_rflags: Rflags) -> bool:
    """RFLAGS.IF must be 1 if an external interrupt is injected."""
    return not _injects(event, EventType.EXTERNAL_INTERRUPT) or guest_rflags.if_


@_rip(loading(load_cet_state=1) | {Field.GUEST_SSP: 2})
def ssp_is_aligned(entry: Entry, guest_ssp: int) -> bool:
    """If "load CET state" is 1, bits 1:0 of SSP must be 0."""
    return not (entry.load_cet_state and guest_ssp & 3)


@_rip(loading(load_cet_state=1) | {Field.GUEST_SSP: NOT_CANONICAL})
def ssp_is_extended(on: Processor, entry: Entry, guest_ssp: int) -> bool:
    """If "load CET state" is 1, bits 63:{on.linear_address_width} of SSP must be equal."""
    return not entry.load_cet_state or on.is_extended(guest_ssp)


@_rip(loading(load_cet_state=1) | {Field.GUEST_CS_ACCESS_RIGHTS: 0xC09B, Field.GUEST_SSP: 1 << 32})
def ssp_is_32_bit(entry: Entry, guest_cs_access_rights: AccessRights, guest_ssp: int) -> bool:
    """If "load CET state" is 1, bits 63:32 of SSP must be 0 if "IA-32e mode guest" is 0 or the L bit of CS is 0."""
    wide = entry.ia32e_mode_guest and guest_cs_access_rights.l
    return not entry.load_cet_state or wide or not guest_ssp >> 32


def _injects(event: EntryInterruption, kind: EventType) -> bool:
    return event.valid and event.type is kind


# -- activity state ------------------------------------------------------------------------------------------------


@_other({_ACTIVITY: 4})
def activity_is_supported(on: Processor, activity: int) -> bool:
    """The activity state must be one that the processor supports: 0, or 1 (HLT), 2 (shutdown), 3 (wait-for-SIPI)."""
    offered = {
        Activity.ACTIVE: True,
        Activity.HLT: on.misc.activity_hlt,
        Activity.SHUTDOWN: on.misc.activity_shutdown,
        Activity.WAIT_FOR_SIPI: on.misc.activity_wait_for_sipi,
    }
    return any(offers and activity == state for state, offers in offered.items())


@_other({_ACTIVITY: 1, Field.GUEST_SS_ACCESS_RIGHTS: 0xC0F3, Field.GUEST_CS_ACCESS_RIGHTS: 0xA09F})
def halted_only_in_ring_0(activity: int, guest_ss_access_rights: AccessRights) -> bool:
    """The activity state must not be HLT if the DPL of SS is not 0."""
    return activity != Activity.HLT or guest_ss_access_rights.dpl == 0


@_other({_ACTIVITY: 1, _BLOCKING: 2})
def blocking_needs_activity(activity: int, blocking: Interruptibility) -> bool:
    """The activity state must be active if there is blocking by STI or by MOV SS."""
    return activity == Activity.ACTIVE or not (blocking.blocking_by_sti or blocking.blocking_by_mov_ss)


def _wakes_halted(event: EntryInterruption) -> bool:
    hardware = event.type is EventType.HARDWARE_EXCEPTION and event.vector in {Vector.DB, Vector.MC}
    trap = event.type is EventType.OTHER_EVENT and event.vector == 0
    return hardware or trap or event.type in {EventType.EXTERNAL_INTERRUPT, EventType.NMI}


def _wakes_shut_down(event: EntryInterruption) -> bool:
    hardware = event.type is EventType.HARDWARE_EXCEPTION and event.vector == Vector.MC
    return hardware or event.type is EventType.NMI


@_other({_ACTIVITY: 1, _EVENT: 0x8000_0603, Field.VM_ENTRY_INSTRUCTION_LENGTH: 1})
def injected_event_wakes_from_hlt(activity: int, event: EntryInterruption) -> bool:
    """If the activity state is HLT, only external interrupts, NMIs, #DB, #MC and pending MTF exits may be injected."""
    return not event.valid or activity != Activity.HLT or _wakes_halted(event)


@_other({_ACTIVITY: 2, _EVENT: _INTERRUPT, Field.GUEST_RFLAGS: 0x202})
def injected_event_wakes_from_shutdown(activity: int, event: EntryInterruption) -> bool:
    """If the activity state is shutdown, only NMIs and #MC may be injected."""
    return not event.valid or activity != Activity.SHUTDOWN or _wakes_shut_down(event)


@_other({_ACTIVITY: 3, _EVENT: _NMI})
def no_event_wakes_from_wait_for_sipi(activity: int, event: EntryInterruption) -> bool:
    """If the activity state is wait-for-SIPI, nothing may be injected."""
    return not event.valid or activity != Activity.WAIT_FOR_SIPI


# -- interruptibility state ----------------------------------------------------------------------------------------


@_other({_BLOCKING: 1 << 5})
def interruptibility_reserved_bits(blocking: int) -> bool:
    """Bits 31:5 of the interruptibility state must be 0."""
    return not blocking >> 5


@_other({_BLOCKING: 3, Field.GUEST_RFLAGS: 0x202})
def not_blocked_by_sti_and_mov_ss(blocking: Interruptibility) -> bool:
    """Blocking by STI and blocking by MOV SS must not both be 1."""
    return not (blocking.blocking_by_sti and blocking.blocking_by_mov_ss)


@_other({_BLOCKING: 1})
def blocking_by_sti_needs_if(blocking: Interruptibility, guest_rflags: Rflags) -> bool:
    """Blocking by STI must be 0 if RFLAGS.IF is 0."""
    return guest_rflags.if_ or not blocking.blocking_by_sti


@_other({_BLOCKING: 1, Field.GUEST_RFLAGS: 0x202, _EVENT: _INTERRUPT})
def injected_interrupt_is_not_blocked(blocking: Interruptibility, event: EntryInterruption) -> bool:
    """There must be no blocking by STI or MOV SS if an external interrupt is injected."""
    blocked = blocking.blocking_by_sti or blocking.blocking_by_mov_ss
    return not (blocked and _injects(event, EventType.EXTERNAL_INTERRUPT))


@_other({_BLOCKING: 2, _EVENT: _NMI})
def injected_nmi_is_not_blocked_by_mov_ss(blocking: Interruptibility, event: EntryInterruption) -> bool:
    """There must be no blocking by MOV SS if an NMI is injected."""
    return not (blocking.blocking_by_mov_ss and _injects(event, EventType.NMI))


@_other({_BLOCKING: 4})
def not_blocked_by_smi(blocking: Interruptibility) -> bool:
    """Blocking by SMI must be 0 outside system-management mode."""
    return not blocking.blocking_by_smi


@_other({_BLOCKING: 1, Field.GUEST_RFLAGS: 0x202, _EVENT: _NMI}, EntryFailure.NMI_INJECTION)
def injected_nmi_is_not_blocked_by_sti(on: Processor, blocking: Interruptibility, event: EntryInterruption) -> bool:
    """There must be no blocking by STI if an NMI is injected (the manual lets processors choose; this one refuses)."""
    return not (on.refuses_nmi_after_sti and blocking.blocking_by_sti and _injects(event, EventType.NMI))


@_other({PIN_FIELD: pin_with(nmi_exiting=1, virtual_nmis=1), _BLOCKING: 8, _EVENT: _NMI})
def injected_virtual_nmi_is_not_blocked(pin: PinBased, blocking: Interruptibility, event: EntryInterruption) -> bool:
    """Blocking by NMI must be 0 if "virtual NMIs" is 1 and an NMI is injected."""
    return not (pin.virtual_nmis and blocking.blocking_by_nmi and _injects(event, EventType.NMI))


@_other({_BLOCKING: 0x12})
def enclave_interruption_excludes_mov_ss(blocking: Interruptibility) -> bool:
    """If enclave interruption is 1, blocking by MOV SS must be 0."""
    return not (blocking.enclave_interruption and blocking.blocking_by_mov_ss)


@_other({_BLOCKING: 0x10})
def enclave_interruption_needs_sgx(on: Processor, blocking: Interruptibility) -> bool:
    """Enclave interruption must be 0 if the processor does not support SGX."""
    return on.features.sgx or not blocking.enclave_interruption
