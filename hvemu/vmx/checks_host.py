"""Clauses on the host-state area (SDM 3C "Checks on VMX Controls and Host-State Area")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import ENTRY, EXIT
from hvemu.vmx.checks import Section, check, check_each, is_pat
from hvemu.vmx.controls import Entry, Exit
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import Processor, Surroundings
from hvemu.x86.msrs import SupervisorCet
from hvemu.x86.registers import Cr0, Cr4, Efer

_registers = partial(check, Section.HOST_REGISTERS)
_segments = partial(check, Section.HOST_SEGMENTS)
_size = partial(check, Section.ADDRESS_SPACE)
_EXITS, _ENTRY = Field.VM_EXIT_CONTROLS, Field.VM_ENTRY_CONTROLS
_NOT_CANONICAL = 1 << 63
_RPL_AND_TI = 7
_HOST_32, _GUEST_32 = EXIT.must_be_one, ENTRY.must_be_one
_32 = {_EXITS: _HOST_32, _ENTRY: _GUEST_32}


def _loading(**named: int) -> dict[Field, int]:
    return {_EXITS: Exit(EXIT.must_be_one, host_address_space_size=1, **named)}


@_registers({Field.HOST_CR0: 0x8000_0011})
def host_cr0_fixed_bits(on: Processor, host_cr0: int) -> bool:
    """CR0 must not have a bit set to a value that VMX operation does not support.

    Must be 1: {on.cr0_fixed0:#x}; may be 1: {on.cr0_fixed1:#x}.
    """
    return not (on.cr0_fixed0 & ~host_cr0 or host_cr0 & ~on.cr0_fixed1)


@_registers({Field.HOST_CR4: 0x20})
def host_cr4_fixed_bits(on: Processor, host_cr4: int) -> bool:
    """CR4 must not have a bit set to a value that VMX operation does not support.

    Must be 1: {on.cr4_fixed0:#x}; may be 1: {on.cr4_fixed1:#x}.
    """
    return not (on.cr4_fixed0 & ~host_cr4 or host_cr4 & ~on.cr4_fixed1)


@_registers({Field.HOST_CR4: Cr4(vmxe=1, pae=1, cet=1), Field.HOST_CR0: Cr0(pe=1, ne=1, pg=1)})
def host_cet_needs_wp(host_cr0: Cr0, host_cr4: Cr4) -> bool:
    """If CR4.CET is 1, CR0.WP must be 1."""
    return host_cr0.wp or not host_cr4.cet


@_registers({Field.HOST_CR3: 1 << 52})
def host_cr3_is_physical(on: Processor, host_cr3: int) -> bool:
    """Bits of CR3 from {on.physical_address_width} on must be 0."""
    return on.is_cr3(host_cr3)


@check_each(Section.HOST_REGISTERS, ("host_ia32_sysenter_esp", "host_ia32_sysenter_eip"), _NOT_CANONICAL)
def is_canonical(on: Processor, value: int) -> bool:
    """{field} must hold a canonical address."""
    return on.is_canonical(value)


@_registers(_loading(load_ia32_pat=1) | {Field.HOST_IA32_PAT: 2})
def host_pat_is_legal(exits: Exit, host_ia32_pat: int) -> bool:
    """If "load IA32_PAT" is 1, each byte of the IA32_PAT field must be 0, 1, 4, 5, 6 or 7."""
    return not exits.load_ia32_pat or is_pat(host_ia32_pat)


@_registers({Field.HOST_IA32_EFER: 0xD02})
def host_efer_reserved_bits(on: Processor, exits: Exit, host_ia32_efer: int) -> bool:
    """If "load IA32_EFER" is 1, bits reserved in IA32_EFER must be 0 in the field; may be 1: {on.efer:#x}."""
    return not exits.load_ia32_efer or not host_ia32_efer & ~on.efer


@_registers({Field.HOST_IA32_EFER: 0x900})
def host_efer_matches_address_space(exits: Exit, host_ia32_efer: Efer) -> bool:
    """If "load IA32_EFER" is 1, LMA and LME must each equal "host address-space size"."""
    return not exits.load_ia32_efer or host_ia32_efer.lma == host_ia32_efer.lme == exits.host_address_space_size


@_registers(_loading(load_cet_state=1) | {Field.HOST_IA32_S_CET: 1 << 6})
def host_s_cet_reserved_bits(exits: Exit, host_ia32_s_cet: SupervisorCet) -> bool:
    """If "load CET state" is 1, bits 9:6 of the IA32_S_CET field must be 0."""
    return not exits.load_cet_state or not host_ia32_s_cet.reserved


@_registers(_loading(load_cet_state=1) | {Field.HOST_IA32_S_CET: SupervisorCet(suppress=1, tracker=1)})
def host_s_cet_suppress_excludes_tracker(exits: Exit, host_ia32_s_cet: SupervisorCet) -> bool:
    """If "load CET state" is 1, bits 10 (SUPPRESS) and 11 (TRACKER) of the IA32_S_CET field must not both be 1."""
    return not (exits.load_cet_state and host_ia32_s_cet.suppress and host_ia32_s_cet.tracker)


@_registers(_loading(load_cet_state=1) | {Field.HOST_SSP: 2})
def host_ssp_is_aligned(exits: Exit, host_ssp: int) -> bool:
    """If "load CET state" is 1, bits 1:0 of the SSP field must be 0."""
    return not (exits.load_cet_state and host_ssp & 3)


@_registers(_loading(load_cet_state=1) | {Field.HOST_IA32_INTERRUPT_SSP_TABLE_ADDRESS: _NOT_CANONICAL})
def host_interrupt_ssp_table_is_canonical(
    on: Processor, exits: Exit, host_ia32_interrupt_ssp_table_address: int
) -> bool:
    """If "load CET state" is 1, the IA32_INTERRUPT_SSP_TABLE_ADDR field must hold a canonical address."""
    return not exits.load_cet_state or on.is_canonical(host_ia32_interrupt_ssp_table_address)


@_registers(_loading(load_pkrs=1) | {Field.HOST_IA32_PKRS: 1 << 32})
def host_pkrs_is_32_bit(exits: Exit, host_ia32_pkrs: int) -> bool:
    """If "load PKRS" is 1, bits 63:32 of the IA32_PKRS field must be 0."""
    return not (exits.load_pkrs and host_ia32_pkrs >> 32)


_SELECTORS = tuple(f"host_{register}_selector" for register in ("cs", "ss", "ds", "es", "fs", "gs", "tr"))
_BASES = tuple(f"host_{register}_base" for register in ("fs", "gs", "gdtr", "idtr", "tr"))


@check_each(Section.HOST_SEGMENTS, _SELECTORS, 0x13)
def has_no_rpl_and_ti(value: int) -> bool:
    """In {field}, the RPL (bits 1:0) and the TI flag (bit 2) must be 0."""
    return not value & _RPL_AND_TI


@check_each(Section.HOST_SEGMENTS, ("host_cs_selector", "host_tr_selector"), 0)
def is_not_null(value: int) -> bool:
    """{field} must not be 0000H."""
    return value != 0


@_segments({Field.HOST_SS_SELECTOR: 0} | _32)
def host_ss_selector_is_not_null(exits: Exit, host_ss_selector: int) -> bool:
    """HOST_SS_SELECTOR must not be 0000H if "host address-space size" is 0."""
    return exits.host_address_space_size or host_ss_selector != 0


check_each(Section.HOST_SEGMENTS, _BASES, _NOT_CANONICAL)(is_canonical)


@_size({}, near=Surroundings(ia32e=False))
def host_outside_ia32e_mode(around: Surroundings, exits: Exit, entry: Entry) -> bool:
    """If IA32_EFER.LMA is 0 at the VM entry, "IA-32e mode guest" and "host address-space size" must be 0."""
    return around.ia32e is not False or not (entry.ia32e_mode_guest or exits.host_address_space_size)


@_size(_32, near=Surroundings(ia32e=True))
def host_in_ia32e_mode(around: Surroundings, exits: Exit) -> bool:
    """If IA32_EFER.LMA is 1 at the VM entry, "host address-space size" must be 1."""
    return around.ia32e is not True or exits.host_address_space_size


@_size({_EXITS: _HOST_32})
def ia32e_guest_needs_64_bit_host(exits: Exit, entry: Entry) -> bool:
    """If "host address-space size" is 0, "IA-32e mode guest" must be 0."""
    return exits.host_address_space_size or not entry.ia32e_mode_guest


@_size(_32 | {Field.HOST_CR4: Cr4(vmxe=1, pae=1, pcide=1)})
def host_pcid_needs_64_bit_host(exits: Exit, host_cr4: Cr4) -> bool:
    """If "host address-space size" is 0, bit 17 of the CR4 field (PCIDE) must be 0."""
    return exits.host_address_space_size or not host_cr4.pcide


@_size(_32 | {Field.HOST_RIP: 1 << 32})
def host_rip_is_32_bit(exits: Exit, host_rip: int) -> bool:
    """If "host address-space size" is 0, bits 63:32 of the RIP field must be 0."""
    return exits.host_address_space_size or not host_rip >> 32


_CET_32 = _32 | {_EXITS: Exit(EXIT.must_be_one, load_cet_state=1)}


@check_each(Section.ADDRESS_SPACE, ("host_ia32_s_cet", "host_ssp"), 1 << 32, _CET_32)
def is_32_bit(exits: Exit, value: int) -> bool:
    """If "host address-space size" is 0 and "load CET state" is 1, bits 63:32 of {field} must be 0."""
    return exits.host_address_space_size or not exits.load_cet_state or not value >> 32


@_size({Field.HOST_CR4: 0x2000})
def host_cr4_has_pae(exits: Exit, host_cr4: Cr4) -> bool:
    """If "host address-space size" is 1, bit 5 of the CR4 field (PAE) must be 1."""
    return host_cr4.pae or not exits.host_address_space_size


@_size({Field.HOST_RIP: _NOT_CANONICAL})
def host_rip_is_canonical(on: Processor, exits: Exit, host_rip: int) -> bool:
    """If "host address-space size" is 1, the RIP field must hold a canonical address."""
    return not exits.host_address_space_size or on.is_canonical(host_rip)


@check_each(Section.ADDRESS_SPACE, ("host_ia32_s_cet", "host_ssp"), _NOT_CANONICAL, _loading(load_cet_state=1))
def is_canonical_with_64_bit_host(on: Processor, exits: Exit, value: int) -> bool:
    """If "host address-space size" and "load CET state" are 1, {field} must hold a canonical address."""
    return not (exits.host_address_space_size and exits.load_cet_state) or on.is_canonical(value)
