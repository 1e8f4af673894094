"""Clauses on the guest's segment registers (SDM 3C "Checks on Guest Segment Registers")."""

from __future__ import annotations

from collections.abc import Mapping

from hvemu.vmx.checks import Register, check_segments, is_canonical
from hvemu.vmx.checks_guest import VM86, unrestricted
from hvemu.vmx.controls import Entry, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.x86.registers import Cr0, Rflags
from hvemu.x86.state import AccessRights

_DATA = ("SS", "DS", "ES", "FS", "GS")
_PLAIN = ("DS", "ES", "FS", "GS")
_SIX = ("CS", *_DATA)


def _clause(registers: str | tuple[str, ...], breaks: Mapping[str, int]) -> Register:
    names = (registers,) if isinstance(registers, str) else registers
    return check_segments(names, "Checks on Guest Segment Registers", breaks)


@_clause("TR", {"selector": 0x1C})
def selector_is_in_the_gdt(selector: int) -> bool:
    """The TI flag (bit 2) of {register} must be 0."""
    return not selector & 4


@_clause("LDTR", {"selector": 4, "rights": 0x82})
def selector_is_in_the_gdt_if_usable(selector: int, rights: AccessRights) -> bool:
    """If {register} is usable, its TI flag (bit 2) must be 0."""
    return rights.unusable or not selector & 4


@_clause("SS", {"guest_cs_selector": 0x0B, "secondary": 2})
def rpl_equals_cs_rpl(
    selector: int,
    guest_cs_selector: int,
    guest_rflags: Rflags,
    primary: PrimaryProcessorBased,
    secondary: SecondaryProcessorBased,
) -> bool:
    """If the guest is not in virtual-8086 mode nor unrestricted, the RPL of {register} must equal that of CS."""
    return guest_rflags.vm or unrestricted(primary, secondary) or not (selector ^ guest_cs_selector) & 3


@_clause(_SIX, VM86 | {"base": 0x5000})
def base_in_vm86(selector: int, base: int, guest_rflags: Rflags) -> bool:
    """In virtual-8086 mode, the base of {register} must be its selector shifted left by 4."""
    return not guest_rflags.vm or base == selector << 4


@_clause(_SIX, VM86 | {"limit": 0xFFFE})
def limit_in_vm86(limit: int, guest_rflags: Rflags) -> bool:
    """In virtual-8086 mode, the limit of {register} must be FFFFH."""
    return not guest_rflags.vm or limit == 0xFFFF


@_clause(_SIX, VM86 | {"rights": 0x93})
def rights_in_vm86(rights: int, guest_rflags: Rflags) -> bool:
    """In virtual-8086 mode, the access rights of {register} must be F3H."""
    return not guest_rflags.vm or rights == 0xF3


@_clause(("TR", "FS", "GS"), {"base": 1 << 47})
def base_is_canonical(base: int) -> bool:
    """The base of {register} must be canonical."""
    return is_canonical(base)


@_clause("LDTR", {"base": 1 << 47, "rights": 0x82})
def base_is_canonical_if_usable(base: int, rights: AccessRights) -> bool:
    """If {register} is usable, its base must be canonical."""
    return rights.unusable or is_canonical(base)


@_clause("CS", {"base": 1 << 32})
def base_is_32_bit(base: int) -> bool:
    """Bits 63:32 of the base of {register} must be 0."""
    return not base >> 32


@_clause(("SS", "DS", "ES"), {"base": 1 << 32})
def base_is_32_bit_if_usable(base: int, rights: AccessRights) -> bool:
    """If {register} is usable, bits 63:32 of its base must be 0."""
    return rights.unusable or not base >> 32


@_clause("CS", {"rights": 0xA093, "secondary": 2})
def type_is_accessed_code(
    rights: AccessRights, guest_rflags: Rflags, primary: PrimaryProcessorBased, secondary: SecondaryProcessorBased
) -> bool:
    """The type of {register} must be 9, 11, 13 or 15, or 3 for an unrestricted guest."""
    return guest_rflags.vm or rights.type in {9, 11, 13, 15} or (rights.type == 3 and unrestricted(primary, secondary))


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


@_clause("CS", {"rights": 0xA08B})
def is_code_or_data(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """The S bit of {register} must be 1."""
    return guest_rflags.vm or rights.s


@_clause(_DATA, {"rights": 0xC083})
def is_code_or_data_if_usable(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, its S bit must be 1."""
    return guest_rflags.vm or rights.unusable or rights.s


@_clause("CS", {"rights": 0xA0BB})
def dpl_fits_ss(rights: AccessRights, guest_ss_access_rights: AccessRights, guest_rflags: Rflags) -> bool:
    """The DPL of {register}: 0 for type 3; equal to that of SS for 9 and 11; not above it for 13 and 15."""
    if guest_rflags.vm:
        return True
    ss_dpl = guest_ss_access_rights.dpl
    legal = {3: {0}, 9: {ss_dpl}, 11: {ss_dpl}, 13: {*range(ss_dpl + 1)}, 15: {*range(ss_dpl + 1)}}
    return rights.type not in legal or rights.dpl in legal[rights.type]


@_clause("SS", {"rights": 0xC0B3, "guest_cs_access_rights": 0xA0BB, "secondary": 2})
def dpl_equals_rpl(
    selector: int,
    rights: AccessRights,
    guest_rflags: Rflags,
    primary: PrimaryProcessorBased,
    secondary: SecondaryProcessorBased,
) -> bool:
    """If the guest is not unrestricted, the DPL of {register} must equal its RPL."""
    return guest_rflags.vm or unrestricted(primary, secondary) or rights.dpl == selector & 3


@_clause("SS", {"rights": 0xC0B3, "guest_cs_access_rights": 0xC093})
def dpl_is_0_in_real_mode(
    rights: AccessRights, guest_cs_access_rights: AccessRights, guest_cr0: Cr0, guest_rflags: Rflags
) -> bool:
    """The DPL of {register} must be 0 if the type of CS is 3 or CR0.PE is 0."""
    return guest_rflags.vm or rights.dpl == 0 or (guest_cs_access_rights.type != 3 and guest_cr0.pe)


@_clause(_PLAIN, {"selector": 0x13, "secondary": 2})
def dpl_is_not_below_rpl(
    selector: int,
    rights: AccessRights,
    guest_rflags: Rflags,
    primary: PrimaryProcessorBased,
    secondary: SecondaryProcessorBased,
) -> bool:
    """If {register} is usable, of type 0-11, and the guest not unrestricted, its DPL must not be below its RPL."""
    exempt = guest_rflags.vm or unrestricted(primary, secondary) or rights.unusable or rights.type > 11
    return exempt or rights.dpl >= selector & 3


_RESERVED = 0xFFFE_0F00


def _limit_fits(limit: int, rights: AccessRights) -> bool:
    """G must be 0 if any of the low 12 bits of the limit is 0, and 1 if any of its high 12 bits is 1."""
    if rights.g:
        return limit & 0xFFF == 0xFFF
    return not limit >> 20


@_clause("CS", {"rights": 0xA01B})
def is_present(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """The P bit of {register} must be 1."""
    return guest_rflags.vm or rights.p


@_clause(_DATA, {"rights": 0xC013})
def is_present_if_usable(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, its P bit must be 1."""
    return guest_rflags.vm or rights.unusable or rights.p


@_clause("CS", {"rights": 0xA19B})
def reserved_bits(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """Bits 31:17 and 11:8 of the access rights of {register} must be 0."""
    return guest_rflags.vm or not rights & _RESERVED


@_clause(_DATA, {"rights": 0xC193})
def reserved_bits_if_usable(rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, bits 31:17 and 11:8 of its access rights must be 0."""
    return guest_rflags.vm or rights.unusable or not rights & _RESERVED


@_clause("CS", {"rights": 0xE09B})
def default_size_is_not_set_in_64_bit_mode(rights: AccessRights, entry: Entry, guest_rflags: Rflags) -> bool:
    """If "IA-32e mode guest" is 1 and the L bit of {register} is 1, its D/B bit must be 0."""
    return guest_rflags.vm or not (entry.ia32e_mode_guest and rights.l and rights.db)


@_clause("CS", {"limit": 0xFFFF_FFFE})
def granularity_fits_limit(limit: int, rights: AccessRights, guest_rflags: Rflags) -> bool:
    """The G bit of {register} must be 0 if bits 11:0 of the limit are not all 1, and 1 if any of bits 31:20 is 1."""
    return guest_rflags.vm or _limit_fits(limit, rights)


@_clause(_DATA, {"limit": 0xFFFF_FFFE})
def granularity_fits_limit_if_usable(limit: int, rights: AccessRights, guest_rflags: Rflags) -> bool:
    """If {register} is usable, G must be 0 if limit bits 11:0 are not all 1, and 1 if any of bits 31:20 is 1."""
    return guest_rflags.vm or rights.unusable or _limit_fits(limit, rights)


@_clause("TR", {"rights": 0x83})
def type_is_busy_tss(rights: AccessRights, entry: Entry) -> bool:
    """The type of {register} must be 11 (busy TSS); 3 (16-bit) is legal too if "IA-32e mode guest" is 0."""
    return rights.type == 11 or (rights.type == 3 and not entry.ia32e_mode_guest)


@_clause("TR", {"rights": 0x9B})
def is_system(rights: AccessRights) -> bool:
    """The S bit of {register} must be 0."""
    return not rights.s


@_clause("TR", {"rights": 0x0B})
def is_present_tss(rights: AccessRights) -> bool:
    """The P bit of {register} must be 1."""
    return rights.p


@_clause("TR", {"rights": 0x18B})
def reserved_bits_of_tss(rights: AccessRights) -> bool:
    """Bits 31:17 and 11:8 of the access rights of {register} must be 0."""
    return not rights & _RESERVED


@_clause("TR", {"limit": 0x10_0067})
def granularity_fits_limit_of_tss(limit: int, rights: AccessRights) -> bool:
    """The G bit of {register} must be 0 if bits 11:0 of the limit are not all 1, and 1 if any of bits 31:20 is 1."""
    return _limit_fits(limit, rights)


@_clause("TR", {"rights": 0x1_008B})
def is_usable(rights: AccessRights) -> bool:
    """{register} must be usable."""
    return not rights.unusable


@_clause("LDTR", {"rights": 0x83})
def type_is_ldt_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, its type must be 2 (LDT)."""
    return rights.unusable or rights.type == 2


@_clause("LDTR", {"rights": 0x92})
def is_system_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, its S bit must be 0."""
    return rights.unusable or not rights.s


@_clause("LDTR", {"rights": 0x02})
def is_present_ldt_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, its P bit must be 1."""
    return rights.unusable or rights.p


@_clause("LDTR", {"rights": 0x182})
def reserved_bits_of_ldt_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, bits 31:17 and 11:8 of its access rights must be 0."""
    return rights.unusable or not rights & _RESERVED


@_clause("LDTR", {"rights": 0x82, "limit": 0x10_0067})
def granularity_fits_limit_of_ldt_if_usable(limit: int, rights: AccessRights) -> bool:
    """If {register} is usable, G must be 0 if limit bits 11:0 are not all 1, and 1 if any of bits 31:20 is 1."""
    return rights.unusable or _limit_fits(limit, rights)
