"""Clauses on the guest's segment registers (SDM 3C "Checks on Guest Segment Registers").

The access rights of TR and LDTR follow in checks_guest_system_segments.
"""

from __future__ import annotations

from collections.abc import Mapping

from hvemu.vmx.checks import Register, Section, check_segments
from hvemu.vmx.checks_guest import GUEST_32, NOT_CANONICAL
from hvemu.vmx.controls import Entry, SecondaryProcessorBased
from hvemu.vmx.processor import Processor
from hvemu.x86.registers import Cr0, Rflags
from hvemu.x86.state import AccessRights

_DATA = ("SS", "DS", "ES", "FS", "GS")
_PLAIN = ("DS", "ES", "FS", "GS")
_SIX = ("CS", *_DATA)
_EPT_ONLY = {"secondary": 2}
VM86: dict[str, int] = {
    "vm_entry_controls": GUEST_32,
    "guest_rflags": 0x2_0002,
    **{f"guest_{register.lower()}_access_rights": 0xF3 for register in _SIX},
    **{f"guest_{register.lower()}_limit": 0xFFFF for register in _SIX},
    **{f"guest_{register.lower()}_base": 0x100 for register in _SIX},
    "guest_cs_base": 0x80,
}
"""The edit that makes a virtual-8086 guest of the minimal VMCS."""


def _clause(registers: str | tuple[str, ...], breaks: Mapping[str, int]) -> Register:
    names = (registers,) if isinstance(registers, str) else registers
    return check_segments(names, Section.GUEST_SEGMENTS, breaks)


# -- selectors -----------------------------------------------------------------------------------------------------


@_clause("TR", {"selector": 0x1C})
def selector_is_in_the_gdt(selector: int) -> bool:
    """The TI flag (bit 2) of the selector of {register} must be 0."""
    return not selector & 4


@_clause("LDTR", {"selector": 4, "rights": 0x82})
def selector_is_in_the_gdt_if_usable(selector: int, rights: AccessRights) -> bool:
    """If {register} is usable, the TI flag (bit 2) of its selector must be 0."""
    return rights.unusable or not selector & 4


@_clause("SS", _EPT_ONLY | {"guest_cs_selector": 0x0B})
def rpl_equals_cs_rpl(
    selector: int, guest_cs_selector: int, guest_rflags: Rflags, active: SecondaryProcessorBased
) -> bool:
    """If the guest is neither in virtual-8086 mode nor unrestricted, the RPL of {register} must equal that of CS."""
    return guest_rflags.vm or active.unrestricted_guest or not (selector ^ guest_cs_selector) & 3


# -- base addresses ------------------------------------------------------------------------------------------------


@_clause(_SIX, VM86 | {"base": 0x5000})
def base_in_vm86(selector: int, base: int, guest_rflags: Rflags) -> bool:
    """In virtual-8086 mode, the base of {register} must be its selector shifted left by 4."""
    return not guest_rflags.vm or base == selector << 4


@_clause(("TR", "FS", "GS"), {"base": NOT_CANONICAL})
def base_is_canonical(on: Processor, base: int) -> bool:
    """The base of {register} must be canonical."""
    return on.is_canonical(base)


@_clause("LDTR", {"base": NOT_CANONICAL, "rights": 0x82})
def base_is_canonical_if_usable(on: Processor, base: int, rights: AccessRights) -> bool:
    """If {register} is usable, its base must be canonical."""
    return rights.unusable or on.is_canonical(base)


@_clause("CS", {"base": 1 << 32})
def base_is_32_bit(base: int) -> bool:
    """Bits 63:32 of the base of {register} must be 0."""
    return not base >> 32


@_clause(("SS", "DS", "ES"), {"base": 1 << 32})
def base_is_32_bit_if_usable(base: int, rights: AccessRights) -> bool:
    """If {register} is usable, bits 63:32 of its base must be 0."""
    return rights.unusable or not base >> 32


# -- limits and access rights in virtual-8086 mode -----------------------------------------------------------------


@_clause(_SIX, VM86 | {"limit": 0xFFFE})
def limit_in_vm86(limit: int, guest_rflags: Rflags) -> bool:
    """In virtual-8086 mode, the limit of {register} must be FFFFH."""
    return not guest_rflags.vm or limit == 0xFFFF


@_clause(_SIX, VM86 | {"rights": 0x93})
def rights_in_vm86(rights: int, guest_rflags: Rflags) -> bool:
    """In virtual-8086 mode, the access rights of {register} must be F3H."""
    return not guest_rflags.vm or rights == 0xF3


# -- access rights: type -------------------------------------------------------------------------------------------


@_clause("CS", _EPT_ONLY | {"rights": 0xA093})
def type_is_accessed_code(rights: AccessRights, guest_rflags: Rflags, active: SecondaryProcessorBased) -> bool:
    """The type of {register} must be 9, 11, 13 or 15, or 3 for an unrestricted guest."""
    return guest_rflags.vm or rights.type in {9, 11, 13, 15} or (rights.type == 3 and active.unrestricted_guest)


@_clause("SS", {"rights": 0xC091})
def type_is_accessed_writable_data(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, its type must be 3 or 7."""
    return guest_rflags.vm or rights.unusable or rights.type in {3, 7}


@_clause(_PLAIN, {"rights": 0xC092})
def type_is_accessed(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, bit 0 of its type (accessed) must be 1."""
    return guest_rflags.vm or rights.unusable or bool(rights.type & 1)


@_clause(_PLAIN, {"rights": 0xC099})
def code_is_readable(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable and a code segment (bit 3 of its type), it must be readable (bit 1)."""
    return guest_rflags.vm or rights.unusable or not rights.type & 8 or bool(rights.type & 2)


# -- access rights: S and DPL --------------------------------------------------------------------------------------


@_clause("CS", {"rights": 0xA08B})
def is_code_or_data(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """The S bit of {register} must be 1."""
    return guest_rflags.vm or rights.s


@_clause(_DATA, {"rights": 0xC083})
def is_code_or_data_if_usable(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, its S bit must be 1."""
    return guest_rflags.vm or rights.unusable or rights.s


@_clause("CS", {"rights": 0xC0B3})
def data_has_dpl_0(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If the type of {register} is 3, its DPL must be 0."""
    return guest_rflags.vm or rights.type != 3 or rights.dpl == 0


@_clause("CS", {"rights": 0xA0BB})
def non_conforming_dpl_equals_ss_dpl(
    rights: AccessRights, guest_ss_access_rights: AccessRights, guest_rflags: Rflags
) -> bool:
    """If the type of {register} is 9 or 11 (non-conforming code), its DPL must equal that of SS."""
    return guest_rflags.vm or rights.type not in {9, 11} or rights.dpl == guest_ss_access_rights.dpl


@_clause("CS", {"rights": 0xA0BF})
def conforming_dpl_is_not_above_ss_dpl(
    rights: AccessRights, guest_ss_access_rights: AccessRights, guest_rflags: Rflags
) -> bool:
    """If the type of {register} is 13 or 15 (conforming code), its DPL must not be greater than that of SS."""
    return guest_rflags.vm or rights.type not in {13, 15} or rights.dpl <= guest_ss_access_rights.dpl


@_clause("SS", _EPT_ONLY | {"rights": 0xC0B3, "guest_cs_access_rights": 0xA0BB})
def dpl_equals_rpl(selector: int, rights: AccessRights, guest_rflags: Rflags, active: SecondaryProcessorBased) -> bool:
    """If the guest is not unrestricted, the DPL of {register} must equal its RPL."""
    return guest_rflags.vm or active.unrestricted_guest or rights.dpl == selector & 3


@_clause("SS", {"rights": 0xC0B3, "guest_cs_access_rights": 0xC093})
def dpl_is_0_in_real_mode(
    rights: AccessRights, guest_cs_access_rights: AccessRights, guest_cr0: Cr0, guest_rflags: Rflags
) -> bool:
    """The DPL of {register} must be 0 if the type of CS is 3 or CR0.PE is 0."""
    return guest_rflags.vm or rights.dpl == 0 or (guest_cs_access_rights.type != 3 and guest_cr0.pe)


@_clause(_PLAIN, _EPT_ONLY | {"selector": 0x13})
def dpl_is_not_below_rpl(
    selector: int, rights: AccessRights, guest_rflags: Rflags, active: SecondaryProcessorBased
) -> bool:
    """If {register} is usable, of type 0-11, and the guest not unrestricted, its DPL must not be below its RPL."""
    exempt = guest_rflags.vm or active.unrestricted_guest or rights.unusable or rights.type > 11
    return exempt or rights.dpl >= selector & 3


# -- access rights: P, reserved bits, D/B, G -----------------------------------------------------------------------


@_clause("CS", {"rights": 0xA01B})
def is_present(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """The P bit of {register} must be 1."""
    return guest_rflags.vm or rights.p


@_clause(_DATA, {"rights": 0xC013})
def is_present_if_usable(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, its P bit must be 1."""
    return guest_rflags.vm or rights.unusable or rights.p


@_clause("CS", {"rights": 0xA19B})
def reserved_bits_11_8(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """Bits 11:8 of the access rights of {register} must be 0."""
    return guest_rflags.vm or not rights.reserved_low


@_clause(_DATA, {"rights": 0xC193})
def reserved_bits_11_8_if_usable(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, bits 11:8 of its access rights must be 0."""
    return guest_rflags.vm or rights.unusable or not rights.reserved_low


@_clause("CS", {"rights": 0xE09B})
def default_size_is_not_set_in_64_bit_mode(rights: AccessRights, entry: Entry, guest_rflags: Rflags) -> bool:
    """If "IA-32e mode guest" is 1 and the L bit of {register} is 1, its D/B bit must be 0."""
    return guest_rflags.vm or not (entry.ia32e_mode_guest and rights.l and rights.db)


def is_not_too_granular(limit: int, rights: AccessRights) -> bool:
    """Whether a limit with a 0 among its low 12 bits goes with byte granularity."""
    return not rights.g or limit & 0xFFF == 0xFFF


def is_granular_enough(limit: int, rights: AccessRights) -> bool:
    """Whether a limit with a 1 among its high 12 bits goes with page granularity."""
    return rights.g or not limit >> 20


@_clause("CS", {"limit": 0xFFFF_FFFE})
def granularity_0(limit: int, rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If any of bits 11:0 of the limit of {register} is 0, its G bit must be 0."""
    return guest_rflags.vm or is_not_too_granular(limit, rights)


@_clause(_DATA, {"limit": 0xFFFF_FFFE})
def granularity_0_if_usable(limit: int, rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable and any of bits 11:0 of its limit is 0, its G bit must be 0."""
    return guest_rflags.vm or rights.unusable or is_not_too_granular(limit, rights)


@_clause("CS", {"rights": 0x209B})
def granularity_1(limit: int, rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If any of bits 31:20 of the limit of {register} is 1, its G bit must be 1."""
    return guest_rflags.vm or is_granular_enough(limit, rights)


@_clause(_DATA, {"rights": 0x4093})
def granularity_1_if_usable(limit: int, rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable and any of bits 31:20 of its limit is 1, its G bit must be 1."""
    return guest_rflags.vm or rights.unusable or is_granular_enough(limit, rights)


@_clause("CS", {"rights": 0x2_A09B})
def reserved_bits_31_17(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """Bits 31:17 of the access rights of {register} must be 0."""
    return guest_rflags.vm or not rights.reserved_high


@_clause(_DATA, {"rights": 0x2_C093})
def reserved_bits_31_17_if_usable(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, bits 31:17 of its access rights must be 0."""
    return guest_rflags.vm or rights.unusable or not rights.reserved_high
