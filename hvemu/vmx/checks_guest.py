"""Clauses on the guest-state area, but for the segment registers (SDM 3C "Checks on the Guest State Area")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import CR0_FIXED0, CR0_FIXED1, CR4_FIXED0, CR4_FIXED1, ENTRY
from hvemu.vmx.checks import CheckArea, check, fits_physical, is_aligned, is_canonical, is_pat
from hvemu.vmx.controls import Entry, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import MASKS, Field
from hvemu.vmx.reasons import (
    Activity,
    EntryFailure,
    EntryInterruption,
    EventType,
    Interruptibility,
    PendingDebug,
)
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.registers import Cr0, Cr4, Efer, Rflags
from hvemu.x86.state import AccessRights
from hvemu.x86.vectors import Vector

_registers = partial(check, CheckArea.GUEST_STATE, "Checks on Guest Control Registers, Debug Registers, and MSRs")
_tables = partial(check, CheckArea.GUEST_STATE, "Checks on Guest Descriptor-Table Registers")
_rip = partial(check, CheckArea.GUEST_STATE, "Checks on Guest RIP, RFLAGS, and SSP")
_other = partial(check, CheckArea.GUEST_STATE, "Checks on Guest Non-Register State")
_pdptes = partial(check, CheckArea.GUEST_STATE, "Checks on Guest Page-Directory-Pointer-Table Entries")

_NOT_CANONICAL = 1 << 47
_PAGING = int(Cr0(pe=1, pg=1))
_DEBUGCTL = 0x5FC3  # LBR, BTF, TR to FREEZE_PERFMON_ON_PMI, FREEZE_WHILE_SMM
_LOADS_PAT = ENTRY.adjust(Entry(ia32e_mode_guest=1, load_ia32_efer=1, load_ia32_pat=1))
_GUEST_32 = ENTRY.adjust(0)
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
VM86: dict[str, int] = {
    "vm_entry_controls": _GUEST_32,
    "guest_rflags": 0x2_0002,
    **{f"guest_{register}_access_rights": 0xF3 for register in _SEGMENTS},
    **{f"guest_{register}_limit": 0xFFFF for register in _SEGMENTS},
    **{f"guest_{register}_base": 0x100 for register in _SEGMENTS},
    "guest_cs_base": 0x80,
}
"""The edit that makes a virtual-8086 guest of the minimal VMCS."""


def unrestricted(primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased) -> bool:
    """Whether "unrestricted guest" acts."""
    return primary.activate_secondary_controls and secondary.unrestricted_guest


@_registers({Field.GUEST_CR0: 0x8000_0011})
def cr0_fixed_bits(primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased, guest_cr0: int) -> bool:
    """CR0 must not have a bit set to a value that VMX operation does not support.

    If "unrestricted guest" is 1, PE and PG may have either value.
    """
    fixed0 = CR0_FIXED0 & ~(_PAGING if unrestricted(primary, secondary) else 0)
    return not (fixed0 & ~guest_cr0 or guest_cr0 & ~CR0_FIXED1)


@_registers({Field.GUEST_CR0: 0x8000_0030})
def cr0_pg_needs_pe(guest_cr0: Cr0) -> bool:
    """If CR0.PG is 1, CR0.PE must be 1."""
    return guest_cr0.pe or not guest_cr0.pg


@_registers({Field.GUEST_CR4: 0x20})
def cr4_fixed_bits(guest_cr4: int) -> bool:
    """CR4 must not have a bit set to a value that VMX operation does not support."""
    return not (CR4_FIXED0 & ~guest_cr4 or guest_cr4 & ~CR4_FIXED1)


@_registers({Field.GUEST_IA32_DEBUGCTL: 1 << 3})
def debugctl_reserved_bits(entry: Entry, guest_ia32_debugctl: int) -> bool:
    """If "load debug controls" is 1, reserved bits of the IA32_DEBUGCTL field must be 0."""
    return not entry.load_debug_controls or not guest_ia32_debugctl & ~_DEBUGCTL


@_registers({Field.GUEST_CR4: 0x2000})
def ia32e_mode_needs_paging_and_pae(entry: Entry, guest_cr0: Cr0, guest_cr4: Cr4) -> bool:
    """If "IA-32e mode guest" is 1, CR0.PG and CR4.PAE must be 1."""
    return not entry.ia32e_mode_guest or (guest_cr0.pg and guest_cr4.pae)


@_registers({Field.GUEST_CR3: 1 << PHYSICAL_ADDRESS_WIDTH})
def cr3_is_physical(guest_cr3: int) -> bool:
    """Bits of CR3 above the physical-address width must be 0."""
    return fits_physical(guest_cr3)


@_registers({Field.GUEST_DR7: 1 << 32})
def dr7_is_32_bit(entry: Entry, guest_dr7: int) -> bool:
    """If "load debug controls" is 1, bits 63:32 of the DR7 field must be 0."""
    return not entry.load_debug_controls or not guest_dr7 >> 32


@_registers({Field.GUEST_IA32_SYSENTER_EIP: _NOT_CANONICAL})
def sysenter_is_canonical(guest_ia32_sysenter_esp: int, guest_ia32_sysenter_eip: int) -> bool:
    """The IA32_SYSENTER_ESP and IA32_SYSENTER_EIP fields must each hold a canonical address."""
    return is_canonical(guest_ia32_sysenter_esp) and is_canonical(guest_ia32_sysenter_eip)


@_registers({Field.VM_ENTRY_CONTROLS: _LOADS_PAT, Field.GUEST_IA32_PAT: 3 << 56})
def pat_is_legal(entry: Entry, guest_ia32_pat: int) -> bool:
    """If "load IA32_PAT" is 1, each byte of the IA32_PAT field must be 0, 1, 4, 5, 6 or 7."""
    return not entry.load_ia32_pat or is_pat(guest_ia32_pat)


@_registers({Field.GUEST_IA32_EFER: 0xD02})
def efer_reserved_bits(entry: Entry, guest_ia32_efer: int) -> bool:
    """If "load IA32_EFER" is 1, bits reserved in IA32_EFER must be 0 in the field."""
    return not entry.load_ia32_efer or not guest_ia32_efer & ~Efer(sce=1, lme=1, lma=1, nxe=1)


@_registers({Field.GUEST_IA32_EFER: 0x800})
def efer_lma_matches_mode(entry: Entry, guest_ia32_efer: Efer) -> bool:
    """If "load IA32_EFER" is 1, LMA must equal "IA-32e mode guest"."""
    return not entry.load_ia32_efer or guest_ia32_efer.lma == entry.ia32e_mode_guest


@_registers({Field.GUEST_IA32_EFER: 0xC00})
def efer_lma_matches_lme(entry: Entry, guest_cr0: Cr0, guest_ia32_efer: Efer) -> bool:
    """If "load IA32_EFER" is 1 and CR0.PG is 1, LMA must equal LME."""
    return not entry.load_ia32_efer or not guest_cr0.pg or guest_ia32_efer.lma == guest_ia32_efer.lme


@_tables({Field.GUEST_GDTR_BASE: _NOT_CANONICAL})
def table_bases_are_canonical(guest_gdtr_base: int, guest_idtr_base: int) -> bool:
    """The base addresses of GDTR and IDTR must be canonical."""
    return is_canonical(guest_gdtr_base) and is_canonical(guest_idtr_base)


@_tables({Field.GUEST_IDTR_LIMIT: 0x10000})
def table_limits_are_16_bit(guest_gdtr_limit: int, guest_idtr_limit: int) -> bool:
    """Bits 31:16 of the limits of GDTR and IDTR must be 0."""
    return not (guest_gdtr_limit | guest_idtr_limit) >> 16


@_rip({Field.GUEST_CS_ACCESS_RIGHTS: 0xC09B, Field.GUEST_RIP: 1 << 32})
def rip_is_32_bit(entry: Entry, guest_cs_access_rights: AccessRights, guest_rip: int) -> bool:
    """Bits 63:32 of RIP must be 0 if "IA-32e mode guest" is 0 or the L bit of CS is 0."""
    return (entry.ia32e_mode_guest and guest_cs_access_rights.l) or not guest_rip >> 32


@_rip({Field.GUEST_RIP: _NOT_CANONICAL})
def rip_is_canonical(entry: Entry, guest_cs_access_rights: AccessRights, guest_rip: int) -> bool:
    """RIP must be canonical if "IA-32e mode guest" and the L bit of CS are 1."""
    return not (entry.ia32e_mode_guest and guest_cs_access_rights.l) or is_canonical(guest_rip)


_RFLAGS_RESERVED = ~0x003F_7FD7


@_rip({Field.GUEST_RFLAGS: 0})
def rflags_reserved_bits(guest_rflags: Rflags) -> bool:
    """Bits 63:22, 15, 5 and 3 of RFLAGS must be 0, and bit 1 must be 1."""
    return guest_rflags.fixed1 and not guest_rflags & _RFLAGS_RESERVED


@_rip({Field[name.upper()]: value for name, value in VM86.items()} | {Field.GUEST_CR0: 0x30})
def vm86_needs_protected_mode(entry: Entry, guest_cr0: Cr0, guest_rflags: Rflags) -> bool:
    """RFLAGS.VM must be 0 if "IA-32e mode guest" is 1 or CR0.PE is 0."""
    return not guest_rflags.vm or (guest_cr0.pe and not entry.ia32e_mode_guest)


@_rip({Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0020})
def injected_interrupt_needs_if(event: EntryInterruption, guest_rflags: Rflags) -> bool:
    """RFLAGS.IF must be 1 if an external interrupt is injected."""
    return not (event.valid and event.type is EventType.EXTERNAL_INTERRUPT) or guest_rflags.if_


@_other({Field.GUEST_ACTIVITY_STATE: 4})
def activity_is_supported(activity: int) -> bool:
    """The activity state must be one that the processor supports: 0 to 3."""
    return activity <= max(Activity)


@_other({
    Field.GUEST_ACTIVITY_STATE: 1, Field.GUEST_SS_ACCESS_RIGHTS: 0xC0F3, Field.GUEST_CS_ACCESS_RIGHTS: 0xA09F,
})  # fmt: skip
def halted_only_in_ring_0(activity: int, guest_ss_access_rights: AccessRights) -> bool:
    """The activity state must not be HLT if the DPL of SS is not 0."""
    return activity != Activity.HLT or guest_ss_access_rights.dpl == 0


@_other({Field.GUEST_ACTIVITY_STATE: 1, Field.GUEST_INTERRUPTIBILITY_STATE: 2})
def blocking_needs_activity(activity: int, blocking: Interruptibility) -> bool:
    """The activity state must be active if there is blocking by STI or by MOV SS."""
    return activity == Activity.ACTIVE or not (blocking.blocking_by_sti or blocking.blocking_by_mov_ss)


_WAKES = {EventType.EXTERNAL_INTERRUPT, EventType.NMI}


@_other({
    Field.GUEST_ACTIVITY_STATE: 1, Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0603,
    Field.VM_ENTRY_INSTRUCTION_LENGTH: 1,
})  # fmt: skip
def injected_event_wakes(activity: int, event: EntryInterruption) -> bool:
    """An event to inject must be one that the activity state allows.

    HLT: external interrupts, NMIs, #DB and #MC. Shutdown: NMIs and #MC. Wait-for-SIPI: none.
    """
    if not event.valid or activity == Activity.ACTIVE:
        return True
    hardware = event.type is EventType.HARDWARE_EXCEPTION
    if activity == Activity.HLT:
        return event.type in _WAKES or (hardware and event.vector in {Vector.DB, Vector.MC})
    return activity == Activity.SHUTDOWN and (event.type is EventType.NMI or (hardware and event.vector == Vector.MC))


@_other({Field.GUEST_INTERRUPTIBILITY_STATE: 1 << 5})
def interruptibility_reserved_bits(blocking: int) -> bool:
    """Bits 31:5 of the interruptibility state must be 0."""
    return not blocking >> 5


@_other({Field.GUEST_INTERRUPTIBILITY_STATE: 3, Field.GUEST_RFLAGS: 0x202})
def not_blocked_by_sti_and_mov_ss(blocking: Interruptibility) -> bool:
    """Blocking by STI and blocking by MOV SS must not both be 1."""
    return not (blocking.blocking_by_sti and blocking.blocking_by_mov_ss)


@_other({Field.GUEST_INTERRUPTIBILITY_STATE: 1})
def blocking_by_sti_needs_if(blocking: Interruptibility, guest_rflags: Rflags) -> bool:
    """Blocking by STI must be 0 if RFLAGS.IF is 0."""
    return guest_rflags.if_ or not blocking.blocking_by_sti


@_other({
    Field.GUEST_INTERRUPTIBILITY_STATE: 1, Field.GUEST_RFLAGS: 0x202,
    Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0020,
})  # fmt: skip
def injected_interrupt_is_not_blocked(blocking: Interruptibility, event: EntryInterruption) -> bool:
    """There must be no blocking by STI or MOV SS if an external interrupt is injected."""
    blocked = blocking.blocking_by_sti or blocking.blocking_by_mov_ss
    return not (blocked and event.valid and event.type is EventType.EXTERNAL_INTERRUPT)


@_other({Field.GUEST_INTERRUPTIBILITY_STATE: 2, Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0202})
def injected_nmi_is_not_blocked_by_mov_ss(blocking: Interruptibility, event: EntryInterruption) -> bool:
    """There must be no blocking by MOV SS if an NMI is injected."""
    return not (blocking.blocking_by_mov_ss and event.valid and event.type is EventType.NMI)


@_other(
    {
        Field.GUEST_INTERRUPTIBILITY_STATE: 1, Field.GUEST_RFLAGS: 0x202,
        Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0202,
    },
    EntryFailure.NMI_INJECTION,
)  # fmt: skip
def injected_nmi_is_not_blocked_by_sti(blocking: Interruptibility, event: EntryInterruption) -> bool:
    """There must be no blocking by STI if an NMI is injected (the manual lets processors choose; this one refuses)."""
    return not (blocking.blocking_by_sti and event.valid and event.type is EventType.NMI)


@_other({Field.GUEST_INTERRUPTIBILITY_STATE: 4})
def not_blocked_by_smi(blocking: Interruptibility) -> bool:
    """Blocking by SMI must be 0 outside system-management mode."""
    return not blocking.blocking_by_smi


@_other({
    Field.PIN_BASED_VM_EXECUTION_CONTROLS: PinBased(0x16, nmi_exiting=1, virtual_nmis=1),
    Field.GUEST_INTERRUPTIBILITY_STATE: 8, Field.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0202,
})  # fmt: skip
def injected_virtual_nmi_is_not_blocked(pin: PinBased, blocking: Interruptibility, event: EntryInterruption) -> bool:
    """Blocking by NMI must be 0 if "virtual NMIs" is 1 and an NMI is injected."""
    injects = event.valid and event.type is EventType.NMI
    return not (pin.virtual_nmis and blocking.blocking_by_nmi and injects)


@_other({Field.GUEST_INTERRUPTIBILITY_STATE: 16})
def no_enclave_interruption(blocking: Interruptibility) -> bool:
    """Enclave interruption must be 0 if the processor does not support SGX."""
    return not blocking.enclave_interruption


_PENDING = int(PendingDebug(b=15, enabled_breakpoint=1, bs=1))


@_other({Field.GUEST_PENDING_DEBUG_EXCEPTIONS: 1 << 4})
def pending_debug_reserved_bits(guest_pending_debug_exceptions: int) -> bool:
    """Reserved bits of the pending debug exceptions must be 0; RTM and BLD are reserved here."""
    return not guest_pending_debug_exceptions & ~_PENDING


_BTF = 2


@_other({Field.GUEST_INTERRUPTIBILITY_STATE: 2, Field.GUEST_PENDING_DEBUG_EXCEPTIONS: 0x4000})
def pending_single_step_follows_tf(
    activity: int,
    blocking: Interruptibility,
    guest_rflags: Rflags,
    guest_ia32_debugctl: int,
    guest_pending_debug_exceptions: PendingDebug,
) -> bool:
    """If blocked by STI or MOV SS, or halted, BS must be 1 exactly if RFLAGS.TF is 1 and IA32_DEBUGCTL.BTF is 0."""
    delayed = blocking.blocking_by_sti or blocking.blocking_by_mov_ss or activity == Activity.HLT
    stepping = guest_rflags.tf and not guest_ia32_debugctl & _BTF
    return not delayed or guest_pending_debug_exceptions.bs == stepping


@_other({Field.VMCS_LINK_POINTER: 0x800}, EntryFailure.VMCS_LINK_POINTER)
def link_pointer_is_none_or_aligned(vmcs_link_pointer: int) -> bool:
    """The VMCS link pointer must be all ones, or 4 KiB aligned and a physical address."""
    return vmcs_link_pointer == MASKS[Field.VMCS_LINK_POINTER] or is_aligned(vmcs_link_pointer, 4096)


_PDPTE_RESERVED = 0x1E6
_PAE_GUEST = {
    Field.VM_ENTRY_CONTROLS: _GUEST_32,
    Field.GUEST_CS_ACCESS_RIGHTS: 0xC09B,
}


def _pdpte_ok(pdpte: int) -> bool:
    return not pdpte & 1 or (not pdpte & _PDPTE_RESERVED and fits_physical(pdpte))


@_pdptes(_PAE_GUEST | {Field.GUEST_PDPTE2: 3}, EntryFailure.PDPTE)
def pdptes_reserved_bits(
    entry: Entry, primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased, guest_cr0: Cr0, guest_cr4: Cr4,
    guest_pdpte0: int, guest_pdpte1: int, guest_pdpte2: int, guest_pdpte3: int,
) -> bool:  # fmt: skip
    """With PAE paging and "enable EPT", reserved bits must be 0 in each PDPTE field whose bit 0 is 1."""
    pae = guest_cr0.pg and guest_cr4.pae and not entry.ia32e_mode_guest
    if not (pae and primary.activate_secondary_controls and secondary.enable_ept):
        return True
    return all(map(_pdpte_ok, (guest_pdpte0, guest_pdpte1, guest_pdpte2, guest_pdpte3)))
