"""Clauses on the host-state area (SDM 3C "Checks on VMX Controls and Host-State Area")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import CR0_FIXED0, CR0_FIXED1, CR4_FIXED0, CR4_FIXED1, ENTRY, EXIT
from hvemu.vmx.checks import CheckArea, check, fits_physical, is_canonical, is_pat
from hvemu.vmx.controls import Entry, Exit
from hvemu.vmx.fields import Field
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.registers import Cr4, Efer

_registers = partial(check, CheckArea.HOST_STATE, "Checks on Host Control Registers, MSRs, and SSP")
_segments = partial(check, CheckArea.HOST_STATE, "Checks on Host Segment and Descriptor-Table Registers")
_size = partial(check, CheckArea.HOST_STATE, "Checks Related to Address-Space Size")
_NOT_CANONICAL = 1 << 47
_RPL_AND_TI = 7
_LOADS_PAT = EXIT.adjust(Exit(host_address_space_size=1, load_ia32_pat=1, load_ia32_efer=1))
_HOST_32, _GUEST_32 = EXIT.adjust(0), ENTRY.adjust(0)


@_registers({Field.HOST_CR0: 0x8000_0011})
def host_cr0_fixed_bits(host_cr0: int) -> bool:
    """CR0 must not have a bit set to a value that VMX operation does not support."""
    return not (CR0_FIXED0 & ~host_cr0 or host_cr0 & ~CR0_FIXED1)


@_registers({Field.HOST_CR4: 0x20})
def host_cr4_fixed_bits(host_cr4: int) -> bool:
    """CR4 must not have a bit set to a value that VMX operation does not support."""
    return not (CR4_FIXED0 & ~host_cr4 or host_cr4 & ~CR4_FIXED1)


@_registers({Field.HOST_CR3: 1 << PHYSICAL_ADDRESS_WIDTH})
def host_cr3_is_physical(host_cr3: int) -> bool:
    """Bits of CR3 above the physical-address width must be 0."""
    return fits_physical(host_cr3)


@_registers({Field.HOST_IA32_SYSENTER_ESP: _NOT_CANONICAL})
def host_sysenter_is_canonical(host_ia32_sysenter_esp: int, host_ia32_sysenter_eip: int) -> bool:
    """The IA32_SYSENTER_ESP and IA32_SYSENTER_EIP fields must each hold a canonical address."""
    return is_canonical(host_ia32_sysenter_esp) and is_canonical(host_ia32_sysenter_eip)


@_registers({Field.VM_EXIT_CONTROLS: _LOADS_PAT, Field.HOST_IA32_PAT: 2})
def host_pat_is_legal(exits: Exit, host_ia32_pat: int) -> bool:
    """If "load IA32_PAT" is 1, each byte of the IA32_PAT field must be 0, 1, 4, 5, 6 or 7."""
    return not exits.load_ia32_pat or is_pat(host_ia32_pat)


@_registers({Field.HOST_IA32_EFER: 0xD02})
def host_efer_reserved_bits(exits: Exit, host_ia32_efer: int) -> bool:
    """If "load IA32_EFER" is 1, bits reserved in IA32_EFER must be 0 in the field."""
    return not exits.load_ia32_efer or not host_ia32_efer & ~Efer(sce=1, lme=1, lma=1, nxe=1)


@_registers({Field.HOST_IA32_EFER: 0x900})
def host_efer_matches_address_space(exits: Exit, host_ia32_efer: Efer) -> bool:
    """If "load IA32_EFER" is 1, LMA and LME must each equal "host address-space size"."""
    return not exits.load_ia32_efer or host_ia32_efer.lma == host_ia32_efer.lme == exits.host_address_space_size


@_segments({Field.HOST_DS_SELECTOR: 0x13})
def host_selectors_have_no_rpl_and_ti(
    host_cs_selector: int, host_ss_selector: int, host_ds_selector: int, host_es_selector: int,
    host_fs_selector: int, host_gs_selector: int, host_tr_selector: int,
) -> bool:  # fmt: skip
    """In each selector field, the RPL (bits 1:0) and the TI flag (bit 2) must be 0."""
    data = host_ds_selector | host_es_selector | host_fs_selector | host_gs_selector
    return not (host_cs_selector | host_ss_selector | data | host_tr_selector) & _RPL_AND_TI


@_segments({Field.HOST_CS_SELECTOR: 0})
def host_cs_is_not_null(host_cs_selector: int) -> bool:
    """The CS selector must not be 0000H."""
    return host_cs_selector != 0


@_segments({Field.HOST_TR_SELECTOR: 0})
def host_tr_is_not_null(host_tr_selector: int) -> bool:
    """The TR selector must not be 0000H."""
    return host_tr_selector != 0


@_segments({
    Field.HOST_SS_SELECTOR: 0, Field.VM_EXIT_CONTROLS: _HOST_32, Field.VM_ENTRY_CONTROLS: _GUEST_32,
})  # fmt: skip
def host_ss_is_not_null(exits: Exit, host_ss_selector: int) -> bool:
    """The SS selector must not be 0000H if "host address-space size" is 0."""
    return exits.host_address_space_size or host_ss_selector != 0


@_segments({Field.HOST_GDTR_BASE: _NOT_CANONICAL})
def host_bases_are_canonical(
    host_fs_base: int, host_gs_base: int, host_tr_base: int, host_gdtr_base: int, host_idtr_base: int
) -> bool:
    """The base addresses of FS, GS, GDTR, IDTR and TR must be canonical."""
    return all(map(is_canonical, (host_fs_base, host_gs_base, host_tr_base, host_gdtr_base, host_idtr_base)))


@_size({Field.VM_EXIT_CONTROLS: _HOST_32})
def ia32e_guest_needs_64_bit_host(exits: Exit, entry: Entry) -> bool:
    """If "host address-space size" is 0, "IA-32e mode guest" must be 0."""
    return exits.host_address_space_size or not entry.ia32e_mode_guest


@_size({
    Field.VM_EXIT_CONTROLS: _HOST_32, Field.VM_ENTRY_CONTROLS: _GUEST_32, Field.HOST_RIP: 1 << 32,
})  # fmt: skip
def host_rip_is_32_bit(exits: Exit, host_rip: int) -> bool:
    """If "host address-space size" is 0, bits 63:32 of the RIP field must be 0."""
    return exits.host_address_space_size or not host_rip >> 32


@_size({Field.HOST_CR4: 0x2000})
def host_cr4_has_pae(exits: Exit, host_cr4: Cr4) -> bool:
    """If "host address-space size" is 1, bit 5 of the CR4 field (PAE) must be 1."""
    return host_cr4.pae or not exits.host_address_space_size


@_size({Field.HOST_RIP: _NOT_CANONICAL})
def host_rip_is_canonical(exits: Exit, host_rip: int) -> bool:
    """If "host address-space size" is 1, the RIP field must hold a canonical address."""
    return not exits.host_address_space_size or is_canonical(host_rip)
