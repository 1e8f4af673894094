"""Clauses on pending debug exceptions, the VMCS link pointer and PDPTEs (SDM 3C "Checks on the Guest State Area")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import REVISION_ID
from hvemu.vmx.checks import Section, check, check_each
from hvemu.vmx.checks_execution import SECONDARY_FIELD, secondary_with
from hvemu.vmx.checks_guest import GUEST_32
from hvemu.vmx.controls import Entry, RegionHeader, SecondaryProcessorBased
from hvemu.vmx.fields import MASKS, Field
from hvemu.vmx.processor import Processor, Read, Surroundings
from hvemu.vmx.reasons import Activity, EntryFailure, Interruptibility, PendingDebug
from hvemu.x86.paging import PdptePae
from hvemu.x86.registers import Cr0, Cr4, Rflags

_other = partial(check, Section.GUEST_OTHER)
_pdptes = partial(check, Section.GUEST_PDPTES)
_PENDING, _BLOCKING = Field.GUEST_PENDING_DEBUG_EXCEPTIONS, Field.GUEST_INTERRUPTIBILITY_STATE

# -- pending debug exceptions --------------------------------------------------------------------------------------

_DEFINED = int(PendingDebug(b=15, enabled_breakpoint=1, bs=1, rtm=1))
_BUS_LOCK = int(PendingDebug(bld=1))
_WITH_RTM = int(PendingDebug(rtm=1, enabled_breakpoint=1))


@_other({_PENDING: 1 << 4})
def pending_debug_reserved_bits(on: Processor, guest_pending_debug_exceptions: int) -> bool:
    """Bits 11:4, 13, 15 and 63:17 of the pending debug exceptions must be 0; 11 only without bus-lock detection."""
    return not guest_pending_debug_exceptions & ~(_DEFINED | (_BUS_LOCK if on.bus_lock_detection else 0))


_BTF = 2


def _delayed(activity: int, blocking: Interruptibility) -> bool:
    return blocking.blocking_by_sti or blocking.blocking_by_mov_ss or activity == Activity.HLT


def _stepping(flags: Rflags, debugctl: int) -> bool:
    return flags.tf and not debugctl & _BTF


@_other({_BLOCKING: 2, Field.GUEST_RFLAGS: 0x102})
def pending_single_step_is_there(
    activity: int,
    blocking: Interruptibility,
    guest_rflags: Rflags,
    guest_ia32_debugctl: int,
    guest_pending_debug_exceptions: PendingDebug,
) -> bool:
    """With blocking by STI or MOV SS, or in HLT, BS (bit 14) must be 1 if RFLAGS.TF is 1 and IA32_DEBUGCTL.BTF is 0."""
    needed = _delayed(activity, blocking) and _stepping(guest_rflags, guest_ia32_debugctl)
    return guest_pending_debug_exceptions.bs or not needed


@_other({_BLOCKING: 2, _PENDING: 0x4000})
def pending_single_step_is_not_there(
    activity: int,
    blocking: Interruptibility,
    guest_rflags: Rflags,
    guest_ia32_debugctl: int,
    guest_pending_debug_exceptions: PendingDebug,
) -> bool:
    """With blocking by STI or MOV SS, or in HLT, BS (bit 14) must be 0 if RFLAGS.TF is 0 or IA32_DEBUGCTL.BTF is 1."""
    wrong = _delayed(activity, blocking) and not _stepping(guest_rflags, guest_ia32_debugctl)
    return not (guest_pending_debug_exceptions.bs and wrong)


@_other({_PENDING: 0x1_0000})
def pending_rtm_stands_alone(guest_pending_debug_exceptions: PendingDebug) -> bool:
    """If bit 16 (RTM) of the pending debug exceptions is 1, bit 12 must be 1 and all others 0."""
    return not guest_pending_debug_exceptions.rtm or guest_pending_debug_exceptions == _WITH_RTM


@_other({_PENDING: _WITH_RTM})
def pending_rtm_needs_rtm(on: Processor, guest_pending_debug_exceptions: PendingDebug) -> bool:
    """Bit 16 (RTM) of the pending debug exceptions must be 0 if the processor does not support RTM."""
    return on.features.rtm or not guest_pending_debug_exceptions.rtm


@_other({_PENDING: _WITH_RTM, _BLOCKING: 2})
def pending_rtm_excludes_mov_ss(blocking: Interruptibility, guest_pending_debug_exceptions: PendingDebug) -> bool:
    """If bit 16 (RTM) of the pending debug exceptions is 1, blocking by MOV SS must be 0."""
    return not (guest_pending_debug_exceptions.rtm and blocking.blocking_by_mov_ss)


# -- VMCS link pointer ---------------------------------------------------------------------------------------------

_NONE = MASKS[Field.VMCS_LINK_POINTER]
_LINK = Field.VMCS_LINK_POINTER
_link = partial(_other, qualification=EntryFailure.VMCS_LINK_POINTER)


def _region(revision: int, *, shadow: bool = False) -> Surroundings:
    header = RegionHeader(revision_id=revision, shadow=shadow).to_bytes(4, "little")
    return Surroundings(read=lambda _hpa, _size: header)


def _header(read: Read | None, pointer: int) -> RegionHeader | None:
    """Return the first 4 bytes of the region that the link pointer names, if there is one and memory is known."""
    if read is None or pointer == _NONE:
        return None
    return RegionHeader(int.from_bytes(read(pointer, 4), "little"))


@_link({_LINK: 0x800})
def link_pointer_is_aligned(vmcs_link_pointer: int) -> bool:
    """The VMCS link pointer must be all ones, or its bits 11:0 must be 0."""
    return vmcs_link_pointer == _NONE or not vmcs_link_pointer & 0xFFF


@_link({_LINK: 1 << 52})
def link_pointer_is_physical(on: Processor, vmcs_link_pointer: int) -> bool:
    """The VMCS link pointer must be all ones, or must not set bits from {on.physical_address_width} on."""
    return vmcs_link_pointer == _NONE or on.is_physical(vmcs_link_pointer)


@_link({_LINK: 0x1000}, near=_region(REVISION_ID + 1))
def link_pointer_names_a_vmcs(on: Processor, around: Surroundings, vmcs_link_pointer: int) -> bool:
    """Bits 30:0 of the 4 bytes at the VMCS link pointer must be the revision identifier, {on.basic.revision_id:#x}."""
    header = _header(around.read, vmcs_link_pointer)
    return header is None or header.revision_id == on.basic.revision_id


@_link({_LINK: 0x1000}, near=_region(REVISION_ID, shadow=True))
def link_pointer_names_the_right_kind(
    around: Surroundings, active: SecondaryProcessorBased, vmcs_link_pointer: int
) -> bool:
    """Bit 31 of the 4 bytes at the VMCS link pointer must be the setting of "VMCS shadowing"."""
    header = _header(around.read, vmcs_link_pointer)
    return header is None or header.shadow == active.vmcs_shadowing


@_link({_LINK: 0x1000}, near=Surroundings(vmcs_hpa=0x1000))
def link_pointer_is_not_the_current_vmcs(around: Surroundings, vmcs_link_pointer: int) -> bool:
    """The VMCS link pointer must not be the current-VMCS pointer."""
    return around.vmcs_hpa is None or vmcs_link_pointer != around.vmcs_hpa


# -- PDPTEs --------------------------------------------------------------------------------------------------------

_PAE_GUEST = {Field.VM_ENTRY_CONTROLS: GUEST_32, Field.GUEST_CS_ACCESS_RIGHTS: 0xC09B}
_TABLE_SIZE = 32


def _uses_pae(entry: Entry, cr0: Cr0, cr4: Cr4) -> bool:
    return cr0.pg and cr4.pae and not entry.ia32e_mode_guest


def _is_legal(on: Processor, pdpte: PdptePae) -> bool:
    reserved = pdpte.reserved_rights or pdpte.reserved_flags or not on.is_physical(pdpte)
    return not (pdpte.p and reserved)


@check_each(
    Section.GUEST_PDPTES, tuple(f"guest_pdpte{n}" for n in range(4)), 3, _PAE_GUEST, qualification=EntryFailure.PDPTE
)
def reserved_bits(
    on: Processor, active: SecondaryProcessorBased, entry: Entry, guest_cr0: Cr0, guest_cr4: Cr4, value: PdptePae
) -> bool:
    """With PAE paging and "enable EPT", reserved bits of {field} must be 0 if its bit 0 (present) is 1."""
    return not (active.enable_ept and _uses_pae(entry, guest_cr0, guest_cr4)) or _is_legal(on, value)


@_pdptes(
    _PAE_GUEST | {SECONDARY_FIELD: secondary_with(enable_ept=0, unrestricted_guest=0)},
    EntryFailure.PDPTE,
    near=Surroundings(read=lambda _hpa, size: bytes([3, 0, 0, 0, 0, 0, 0, 0]) * (size // 8)),
)
def pdptes_in_memory(
    on: Processor,
    around: Surroundings,
    active: SecondaryProcessorBased,
    entry: Entry,
    guest_cr0: Cr0,
    guest_cr3: int,
    guest_cr4: Cr4,
) -> bool:
    """With PAE paging and without EPT, reserved bits must be 0 in each PDPTE at bits 31:5 of CR3 that is present."""
    if around.read is None or active.enable_ept or not _uses_pae(entry, guest_cr0, guest_cr4):
        return True
    table = around.read(guest_cr3 & 0xFFFF_FFE0, _TABLE_SIZE)
    pdptes = (PdptePae(int.from_bytes(table[i : i + 8], "little")) for i in range(0, _TABLE_SIZE, 8))
    return all(_is_legal(on, pdpte) for pdpte in pdptes)
