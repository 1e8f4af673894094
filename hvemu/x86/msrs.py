"""Model-specific registers as rows: index, the manual's name, value after reset, and what a write may put in.

The names are those of SDM 4 "Architectural MSRs"; indexes that no row has raise #GP(0), as reserved ones do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvemu.bits import Register, bit, bits
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH, Offer
from hvemu.x86.segments import is_canonical

TSC: Final = 0x10
APIC_BASE: Final = 0x1B
FEATURE_CONTROL: Final = 0x3A
SYSENTER_CS: Final = 0x174
SYSENTER_ESP: Final = 0x175
SYSENTER_EIP: Final = 0x176
DEBUGCTL: Final = 0x1D9
PAT: Final = 0x277
MTRR_DEF_TYPE: Final = 0x2FF
EFER: Final = 0xC000_0080
STAR: Final = 0xC000_0081
LSTAR: Final = 0xC000_0082
CSTAR: Final = 0xC000_0083
FMASK: Final = 0xC000_0084
FS_BASE: Final = 0xC000_0100
GS_BASE: Final = 0xC000_0101
KERNEL_GS_BASE: Final = 0xC000_0102
TSC_AUX: Final = 0xC000_0103

_DWORD = (1 << 32) - 1
_PAGES = (1 << PHYSICAL_ADDRESS_WIDTH - 12) - 1
"""The page numbers of physical memory: what a field of bits 51:12 may hold."""


class ApicBase(Register):
    """IA32_APIC_BASE (SDM 3A "Local APIC Status and Location"), with x2APIC mode in `extd`."""

    bsp = bit(8)
    extd = bit(10)
    enable = bit(11)
    base = bits(51, 12)


class FeatureControl(Register):
    """IA32_FEATURE_CONTROL (SDM 3C "Enabling and Entering VMX Operation")."""

    lock = bit(0)
    vmx_in_smx = bit(1)
    vmx_outside_smx = bit(2)


class MiscEnable(Register):
    """IA32_MISC_ENABLE (SDM 4 "Architectural MSRs")."""

    fast_strings = bit(0)
    bts_unavailable = bit(11)
    pebs_unavailable = bit(12)


class MtrrCap(Register):
    """IA32_MTRRCAP (SDM 3A "MTRR Feature Identification")."""

    vcnt = bits(7, 0)
    fix = bit(8)
    wc = bit(10)


class MtrrDefType(Register):
    """IA32_MTRR_DEF_TYPE (SDM 3A "IA32_MTRR_DEF_TYPE MSR")."""

    type = bits(7, 0)
    fe = bit(10)
    e = bit(11)


class MtrrPhysBase(Register):
    """IA32_MTRR_PHYSBASE0 and its like (SDM 3A "Variable Range MTRRs")."""

    type = bits(7, 0)
    base = bits(51, 12)


class MtrrPhysMask(Register):
    """IA32_MTRR_PHYSMASK0 and its like (SDM 3A "Variable Range MTRRs")."""

    v = bit(11)
    mask = bits(51, 12)


class McgStatus(Register):
    """IA32_MCG_STATUS (SDM 3B "IA32_MCG_STATUS MSR")."""

    ripv = bit(0)
    eipv = bit(1)
    mcip = bit(2)


class SupervisorCet(Register):
    """IA32_S_CET (SDM 4 "Architectural MSRs"), which this processor does not have."""

    sh_stk_en = bit(0)
    wr_shstk_en = bit(1)
    endbr_en = bit(2)
    leg_iw_en = bit(3)
    no_track_en = bit(4)
    suppress_dis = bit(5)
    reserved = bits(9, 6)
    suppress = bit(10)
    tracker = bit(11)
    legacy_bitmap = bits(63, 12)


class BoundConfiguration(Register):
    """IA32_BNDCFGS (SDM 4 "Architectural MSRs"), which this processor does not have."""

    en = bit(0)
    bndpreserve = bit(1)
    reserved = bits(11, 2)
    base = bits(63, 12)


Rule = Callable[[int, int], int | None]
"""From the old value and the one written to the new one, or to None where the write raises #GP(0)."""
_MTRR_TYPES = frozenset({0, 1, 4, 5, 6})  # UC WC WT WP WB
_PAT_TYPES = _MTRR_TYPES | {7}  # UC-


def _any_value(_old: int, new: int) -> int:
    return new


def _read_only(_old: int, _new: int) -> None:
    return None


def _canonical(_old: int, new: int) -> int | None:
    return new if is_canonical(new) else None


def _only(writable: int) -> Rule:
    """Bits outside *writable* are reserved: they must be written as 0."""
    return lambda _old, new: None if new & ~writable else new


def _changing_only(writable: int) -> Rule:
    """Bits outside *writable* must be written back as they are."""
    return lambda old, new: None if (old ^ new) & ~writable else new


def _until_locked(old: int, new: int) -> int | None:
    """SDM 3C "Enabling and Entering VMX Operation": once the lock bit is 1, a write raises #GP. SMX is not offered."""
    return None if FeatureControl(old).lock or new & ~_FEATURES else new


def _eight_types(legal: frozenset[int]) -> Rule:
    """Each of the eight bytes names a memory type."""
    return lambda _old, new: new if legal.issuperset(new.to_bytes(8, "little")) else None


def _typed(writable: int) -> Rule:
    """The low byte names a memory type; what is outside it and *writable* is reserved."""
    return lambda _old, new: new if new & _TYPE in _MTRR_TYPES and not new & ~(writable | _TYPE) else None


_TYPE = int(MtrrDefType(type=0xFF))
_FEATURES = int(FeatureControl(lock=1, vmx_outside_smx=1))


def _always(_offer: Offer) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Msr:
    """One row. *needs* tells whether a processor has this register."""

    index: int
    name: str
    reset: int
    rule: Rule
    needs: Callable[[Offer], bool] = _always


VARIABLE_RANGES = 8
PAT_RESET = 0x0007_0406_0007_0406
"""WB, WT, UC-, UC, and again (SDM 3A "Programming the PAT")."""
_FIXED_RANGES = {
    0x250: "64K_00000", 0x258: "16K_80000", 0x259: "16K_A0000", 0x268: "4K_C0000", 0x269: "4K_C8000",
    0x26A: "4K_D0000", 0x26B: "4K_D8000", 0x26C: "4K_E0000", 0x26D: "4K_E8000", 0x26E: "4K_F0000", 0x26F: "4K_F8000",
}  # fmt: skip
_FIRST_RANGE = 0x200
_RANGE_BASE, _RANGE_MASK = int(MtrrPhysBase(base=_PAGES)), int(MtrrPhysMask(v=1, mask=_PAGES))
_APIC = int(ApicBase(bsp=1, enable=1, base=_PAGES))
_APIC_RESET = int(ApicBase(bsp=1, enable=1, base=0xFEE00))
_MISC_RESET = int(MiscEnable(fast_strings=1, bts_unavailable=1, pebs_unavailable=1))
_CAP = int(MtrrCap(vcnt=VARIABLE_RANGES, fix=1, wc=1))
_MCG = int(McgStatus(ripv=1, eipv=1, mcip=1))
ROWS: tuple[Msr, ...] = (
    Msr(TSC, "IA32_TIME_STAMP_COUNTER", 0, _any_value),
    Msr(0x17, "IA32_PLATFORM_ID", 0, _read_only),
    Msr(APIC_BASE, "IA32_APIC_BASE", _APIC_RESET, _only(_APIC), lambda offer: offer.apic),
    Msr(FEATURE_CONTROL, "IA32_FEATURE_CONTROL", 0, _until_locked, lambda offer: offer.vmx),
    Msr(0x8B, "IA32_BIOS_SIGN_ID", 0, _any_value),  # no update is loaded, so CPUID leaves it alone
    Msr(0xFE, "IA32_MTRRCAP", _CAP, _read_only),
    Msr(SYSENTER_CS, "IA32_SYSENTER_CS", 0, _only(_DWORD)),
    Msr(SYSENTER_ESP, "IA32_SYSENTER_ESP", 0, _canonical),
    Msr(SYSENTER_EIP, "IA32_SYSENTER_EIP", 0, _canonical),
    Msr(0x179, "IA32_MCG_CAP", 0, _read_only),  # no banks
    Msr(0x17A, "IA32_MCG_STATUS", 0, _only(_MCG)),
    Msr(0x1A0, "IA32_MISC_ENABLE", _MISC_RESET, _changing_only(int(MiscEnable(fast_strings=1)))),
    Msr(DEBUGCTL, "IA32_DEBUGCTL", 0, _only(0)),  # no branch records, no single-step on branches
    *(
        row
        for n in range(VARIABLE_RANGES)
        for row in (
            Msr(_FIRST_RANGE + 2 * n, f"IA32_MTRR_PHYSBASE{n}", 0, _typed(_RANGE_BASE)),
            Msr(_FIRST_RANGE + 2 * n + 1, f"IA32_MTRR_PHYSMASK{n}", 0, _only(_RANGE_MASK)),
        )
    ),
    *(Msr(index, f"IA32_MTRR_FIX{name}", 0, _eight_types(_MTRR_TYPES)) for index, name in _FIXED_RANGES.items()),
    Msr(PAT, "IA32_PAT", PAT_RESET, _eight_types(_PAT_TYPES)),
    Msr(MTRR_DEF_TYPE, "IA32_MTRR_DEF_TYPE", 0, _typed(int(MtrrDefType(fe=1, e=1)))),
    Msr(EFER, "IA32_EFER", 0, _any_value),  # whoever writes it asks cpu.control
    Msr(STAR, "IA32_STAR", 0, _any_value),
    Msr(LSTAR, "IA32_LSTAR", 0, _canonical),
    Msr(CSTAR, "IA32_CSTAR", 0, _canonical),
    Msr(FMASK, "IA32_FMASK", 0, _only(_DWORD)),
    Msr(FS_BASE, "IA32_FS_BASE", 0, _canonical),
    Msr(GS_BASE, "IA32_GS_BASE", 0, _canonical),
    Msr(KERNEL_GS_BASE, "IA32_KERNEL_GS_BASE", 0, _canonical),
    Msr(TSC_AUX, "IA32_TSC_AUX", 0, _only(_DWORD)),
)
