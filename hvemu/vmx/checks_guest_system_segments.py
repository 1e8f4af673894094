"""Clauses on the access rights of TR and LDTR (SDM 3C "Checks on Guest Segment Registers")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.checks import Section, check_segments
from hvemu.vmx.checks_guest_segments import is_granular_enough, is_not_too_granular
from hvemu.vmx.controls import Entry
from hvemu.x86.state import AccessRights

_tr = partial(check_segments, ("TR",), Section.GUEST_SEGMENTS)
_ldtr = partial(check_segments, ("LDTR",), Section.GUEST_SEGMENTS)


@_tr({"rights": 0x83})
def type_is_busy_tss(rights: AccessRights, entry: Entry) -> bool:
    """The type of {register} must be 11 (busy TSS); 3 (16-bit) is legal too if "IA-32e mode guest" is 0."""
    return rights.type == 11 or (rights.type == 3 and not entry.ia32e_mode_guest)


@_tr({"rights": 0x9B})
def is_system(rights: AccessRights) -> bool:
    """The S bit of {register} must be 0."""
    return not rights.s


@_tr({"rights": 0x0B})
def is_present(rights: AccessRights) -> bool:
    """The P bit of {register} must be 1."""
    return rights.p


@_tr({"rights": 0x18B})
def reserved_bits_11_8(rights: AccessRights) -> bool:
    """Bits 11:8 of the access rights of {register} must be 0."""
    return not rights.reserved_low


@_tr({"limit": 0x66, "rights": 0x808B})
def granularity_0(limit: int, rights: AccessRights) -> bool:
    """If any of bits 11:0 of the limit of {register} is 0, its G bit must be 0."""
    return is_not_too_granular(limit, rights)


@_tr({"limit": 0x10_0067})
def granularity_1(limit: int, rights: AccessRights) -> bool:
    """If any of bits 31:20 of the limit of {register} is 1, its G bit must be 1."""
    return is_granular_enough(limit, rights)


@_tr({"rights": 0x1_008B})
def is_usable(rights: AccessRights) -> bool:
    """{register} must be usable: bit 16 of its access rights must be 0."""
    return not rights.unusable


@_tr({"rights": 0x2_008B})
def reserved_bits_31_17(rights: AccessRights) -> bool:
    """Bits 31:17 of the access rights of {register} must be 0."""
    return not rights.reserved_high


@_ldtr({"rights": 0x83})
def type_is_ldt_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, its type must be 2 (LDT)."""
    return rights.unusable or rights.type == 2


@_ldtr({"rights": 0x92})
def is_system_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, its S bit must be 0."""
    return rights.unusable or not rights.s


@_ldtr({"rights": 0x02})
def is_present_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, its P bit must be 1."""
    return rights.unusable or rights.p


@_ldtr({"rights": 0x182})
def reserved_bits_11_8_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, bits 11:8 of its access rights must be 0."""
    return rights.unusable or not rights.reserved_low


@_ldtr({"rights": 0x8082})
def granularity_0_if_usable(limit: int, rights: AccessRights) -> bool:
    """If {register} is usable and any of bits 11:0 of its limit is 0, its G bit must be 0."""
    return rights.unusable or is_not_too_granular(limit, rights)


@_ldtr({"rights": 0x82, "limit": 0x10_0067})
def granularity_1_if_usable(limit: int, rights: AccessRights) -> bool:
    """If {register} is usable and any of bits 31:20 of its limit is 1, its G bit must be 1."""
    return rights.unusable or is_granular_enough(limit, rights)


@_ldtr({"rights": 0x2_0082})
def reserved_bits_31_17_if_usable(rights: AccessRights) -> bool:
    """If {register} is usable, bits 31:17 of its access rights must be 0."""
    return rights.unusable or not rights.reserved_high
