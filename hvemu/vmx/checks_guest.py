"""Clauses on the guest's control registers, debug registers and MSRs (SDM 3C "Checks on the Guest State Area")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import ENTRY
from hvemu.vmx.checks import Section, check, check_each, is_pat
from hvemu.vmx.controls import Entry, SecondaryProcessorBased
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import Processor
from hvemu.x86.msrs import BoundConfiguration, SupervisorCet
from hvemu.x86.registers import Cr0, Cr4, Efer

_clause = partial(check, Section.GUEST_REGISTERS)
NOT_CANONICAL = 1 << 63
_PAGING = int(Cr0(pe=1, pg=1))
GUEST_32 = int(Entry(ENTRY.must_be_one))
_GUEST_64 = Entry(ENTRY.must_be_one, ia32e_mode_guest=1)


def loading(**named: int) -> dict[Field, int]:
    """Return the edit that lets VM entry load what is *named*, and not IA32_EFER."""
    return {Field.VM_ENTRY_CONTROLS: _GUEST_64.replace(**named)}


@_clause({Field.GUEST_CR0: 0x8000_0011})
def cr0_fixed_bits(on: Processor, active: SecondaryProcessorBased, guest_cr0: int) -> bool:
    """CR0 must not have a bit set to a value that VMX operation does not support.

    Must be 1: {on.cr0_fixed0:#x}, but for PE and PG if "unrestricted guest" is 1; may be 1: {on.cr0_fixed1:#x}.
    """
    fixed0 = on.cr0_fixed0 & ~(_PAGING if active.unrestricted_guest else 0)
    return not (fixed0 & ~guest_cr0 or guest_cr0 & ~on.cr0_fixed1)


@_clause({Field.GUEST_CR0: 0x8000_0030})
def cr0_pg_needs_pe(guest_cr0: Cr0) -> bool:
    """If CR0.PG is 1, CR0.PE must be 1."""
    return guest_cr0.pe or not guest_cr0.pg


@_clause({Field.GUEST_CR4: 0x20})
def cr4_fixed_bits(on: Processor, guest_cr4: int) -> bool:
    """CR4 must not have a bit set to a value that VMX operation does not support.

    Must be 1: {on.cr4_fixed0:#x}; may be 1: {on.cr4_fixed1:#x}.
    """
    return not (on.cr4_fixed0 & ~guest_cr4 or guest_cr4 & ~on.cr4_fixed1)


@_clause({Field.GUEST_CR4: Cr4(vmxe=1, pae=1, cet=1), Field.GUEST_CR0: Cr0(pe=1, ne=1, pg=1)})
def cet_needs_wp(guest_cr0: Cr0, guest_cr4: Cr4) -> bool:
    """If CR4.CET is 1, CR0.WP must be 1."""
    return guest_cr0.wp or not guest_cr4.cet


@_clause({Field.GUEST_IA32_DEBUGCTL: 1 << 3})
def debugctl_reserved_bits(on: Processor, entry: Entry, guest_ia32_debugctl: int) -> bool:
    """If "load debug controls" is 1, reserved bits of the IA32_DEBUGCTL field must be 0; may be 1: {on.debugctl:#x}."""
    return not entry.load_debug_controls or not guest_ia32_debugctl & ~on.debugctl


@_clause({Field.GUEST_CR4: 0x2000})
def ia32e_mode_needs_paging_and_pae(entry: Entry, guest_cr0: Cr0, guest_cr4: Cr4) -> bool:
    """If "IA-32e mode guest" is 1, CR0.PG and CR4.PAE must be 1."""
    return not entry.ia32e_mode_guest or (guest_cr0.pg and guest_cr4.pae)


@_clause({
    Field.VM_ENTRY_CONTROLS: GUEST_32, Field.GUEST_CS_ACCESS_RIGHTS: 0xC09B,
    Field.GUEST_CR4: Cr4(vmxe=1, pae=1, pcide=1),
})  # fmt: skip
def pcid_needs_ia32e_mode(entry: Entry, guest_cr4: Cr4) -> bool:
    """If "IA-32e mode guest" is 0, CR4.PCIDE must be 0."""
    return entry.ia32e_mode_guest or not guest_cr4.pcide


@_clause({Field.GUEST_CR3: 1 << 52})
def cr3_is_physical(on: Processor, guest_cr3: int) -> bool:
    """Bits of CR3 from {on.physical_address_width} on must be 0."""
    return on.is_cr3(guest_cr3)


@_clause({Field.GUEST_DR7: 1 << 32})
def dr7_is_32_bit(entry: Entry, guest_dr7: int) -> bool:
    """If "load debug controls" is 1, bits 63:32 of the DR7 field must be 0."""
    return not entry.load_debug_controls or not guest_dr7 >> 32


@check_each(Section.GUEST_REGISTERS, ("guest_ia32_sysenter_esp", "guest_ia32_sysenter_eip"), NOT_CANONICAL)
def is_canonical(on: Processor, value: int) -> bool:
    """{field} must hold a canonical address."""
    return on.is_canonical(value)


_CET = ("guest_ia32_s_cet", "guest_ia32_interrupt_ssp_table_address")


@check_each(Section.GUEST_REGISTERS, _CET, NOT_CANONICAL, loading(load_cet_state=1))
def is_canonical_if_loaded(on: Processor, entry: Entry, value: int) -> bool:
    """If "load CET state" is 1, {field} must hold a canonical address."""
    return not entry.load_cet_state or on.is_canonical(value)


@_clause(loading(load_ia32_pat=1) | {Field.GUEST_IA32_PAT: 3 << 56})
def pat_is_legal(entry: Entry, guest_ia32_pat: int) -> bool:
    """If "load IA32_PAT" is 1, each byte of the IA32_PAT field must be 0, 1, 4, 5, 6 or 7."""
    return not entry.load_ia32_pat or is_pat(guest_ia32_pat)


@_clause({Field.GUEST_IA32_EFER: 0xD02})
def efer_reserved_bits(on: Processor, entry: Entry, guest_ia32_efer: int) -> bool:
    """If "load IA32_EFER" is 1, bits reserved in IA32_EFER must be 0 in the field; may be 1: {on.efer:#x}."""
    return not entry.load_ia32_efer or not guest_ia32_efer & ~on.efer


@_clause({Field.GUEST_IA32_EFER: 0x800})
def efer_lma_matches_mode(entry: Entry, guest_ia32_efer: Efer) -> bool:
    """If "load IA32_EFER" is 1, LMA must equal "IA-32e mode guest"."""
    return not entry.load_ia32_efer or guest_ia32_efer.lma == entry.ia32e_mode_guest


@_clause({Field.GUEST_IA32_EFER: 0xC00})
def efer_lma_matches_lme(entry: Entry, guest_cr0: Cr0, guest_ia32_efer: Efer) -> bool:
    """If "load IA32_EFER" is 1 and CR0.PG is 1, LMA must equal LME."""
    return not entry.load_ia32_efer or not guest_cr0.pg or guest_ia32_efer.lma == guest_ia32_efer.lme


@_clause(loading(load_ia32_bndcfgs=1) | {Field.GUEST_IA32_BNDCFGS: 4})
def bndcfgs_reserved_bits(entry: Entry, guest_ia32_bndcfgs: BoundConfiguration) -> bool:
    """If "load IA32_BNDCFGS" is 1, bits 11:2 of the IA32_BNDCFGS field must be 0."""
    return not entry.load_ia32_bndcfgs or not guest_ia32_bndcfgs.reserved


@_clause(loading(load_ia32_bndcfgs=1) | {Field.GUEST_IA32_BNDCFGS: NOT_CANONICAL})
def bndcfgs_is_canonical(on: Processor, entry: Entry, guest_ia32_bndcfgs: int) -> bool:
    """If "load IA32_BNDCFGS" is 1, the linear address in bits 63:12 of the IA32_BNDCFGS field must be canonical."""
    return not entry.load_ia32_bndcfgs or on.is_canonical(guest_ia32_bndcfgs)


@_clause(loading(load_cet_state=1) | {Field.GUEST_IA32_S_CET: 1 << 6})
def s_cet_reserved_bits(entry: Entry, guest_ia32_s_cet: SupervisorCet) -> bool:
    """If "load CET state" is 1, bits 9:6 of the IA32_S_CET field must be 0."""
    return not entry.load_cet_state or not guest_ia32_s_cet.reserved


@_clause(loading(load_cet_state=1) | {Field.GUEST_IA32_S_CET: SupervisorCet(suppress=1, tracker=1)})
def s_cet_suppress_excludes_tracker(entry: Entry, guest_ia32_s_cet: SupervisorCet) -> bool:
    """If "load CET state" is 1, bits 10 (SUPPRESS) and 11 (TRACKER) of the IA32_S_CET field must not both be 1."""
    return not (entry.load_cet_state and guest_ia32_s_cet.suppress and guest_ia32_s_cet.tracker)


@_clause(loading(load_pkrs=1) | {Field.GUEST_IA32_PKRS: 1 << 32})
def pkrs_is_32_bit(entry: Entry, guest_ia32_pkrs: int) -> bool:
    """If "load PKRS" is 1, bits 63:32 of the IA32_PKRS field must be 0."""
    return not (entry.load_pkrs and guest_ia32_pkrs >> 32)


@_clause(loading(load_uinv=1) | {Field.GUEST_UINV: 0x100})
def uinv_is_8_bit(entry: Entry, guest_uinv: int) -> bool:
    """If "load UINV" is 1, bits 15:8 of the UINV field must be 0."""
    return not (entry.load_uinv and guest_uinv >> 8)
