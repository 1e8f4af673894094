"""Paging facts: entry formats, the shape of every hierarchy, and what a translation depends on.

Protection keys and shadow stacks are not offered by CPUID and have no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from dataclasses import field as field_of
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar

from hvemu.bits import Register, bit, bits, field
from hvemu.x86.registers import Cr0, Cr3, Cr4, Efer
from hvemu.x86.segments import is_canonical
from hvemu.x86.state import CpuState

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB  # bytes of the smallest page
_BEYOND_4GIB = 32  # address bits from here on are held by Pde4M.frame_high


def mask(of: field[Any]) -> int:
    """Return the bits that a field covers, in place."""
    return of.mask << of.lo


# -- entry formats ----------------------------------------------------------------------------------------------------


class Entry(Register):
    """What every paging-structure entry has. Fields whose names begin with "reserved" must be 0 in a present one."""

    p = bit(0)
    FRAME: ClassVar[int]  # the bits that hold an address
    ACCESSED: ClassVar[int] = 0  # the bit to set when the entry is used
    ASSUMED: ClassVar[int] = 0  # rights that the format has no bits for, and which it grants

    @property
    def gpa(self) -> int:
        """The gpa of the table or page that this entry refers to."""
        return int(self) & self.FRAME


class RightsEntry(Entry):
    """An entry that limits access: all but the PDPTE of PAE paging."""

    rw = bit(1)
    us = bit(2)
    pwt = bit(3)
    pcd = bit(4)
    a = bit(5)
    ACCESSED = mask(a)


class Executable(RightsEntry):
    """An entry of 64 bits that can disable execution; the bit is reserved without EFER.NXE."""

    xd = bit(63)


class Pde32(RightsEntry):
    """Refers to a page table (SDM 3A "32-Bit Paging"). Without CR4.PSE the PS bit is ignored."""

    ps = bit(7)
    frame = bits(31, 12)
    FRAME = mask(frame)


class Pde4M(RightsEntry):
    """Maps 4 MiB (SDM 3A "32-Bit Paging"), anywhere in 40 bits of physical memory: PSE-36."""

    d = bit(6)
    ps = bit(7)
    g = bit(8)
    pat = bit(12)
    frame_high = bits(20, 13)
    reserved = bit(21)
    frame = bits(31, 22)
    FRAME = mask(frame)

    @property
    def gpa(self) -> int:
        """The gpa of the page."""
        return int(self) & self.FRAME | self.frame_high << _BEYOND_4GIB


class Pte32(RightsEntry):
    """Maps 4 KiB (SDM 3A "32-Bit Paging")."""

    d = bit(6)
    pat = bit(7)
    g = bit(8)
    frame = bits(31, 12)
    FRAME = mask(frame)


class PdptePae(Entry):
    """Refers to a page directory; grants every right (SDM 3A "PAE Paging")."""

    reserved_rights = bits(2, 1)
    pwt = bit(3)
    pcd = bit(4)
    reserved_flags = bits(8, 5)
    frame = bits(51, 12)
    reserved_high = bits(63, 52)
    FRAME = mask(frame)
    ASSUMED = mask(RightsEntry.rw) | mask(RightsEntry.us)


class Pml4e(Executable):
    """Refers to the next table (SDM 3A "4-Level Paging and 5-Level Paging"). PS is reserved here."""

    reserved = bit(7)
    frame = bits(51, 12)
    FRAME = mask(frame)


class Pml5e(Pml4e):
    """The same one level up."""


class Pdpte(Executable):
    """Refers to a page directory (SDM 3A "4-Level Paging and 5-Level Paging")."""

    ps = bit(7)
    frame = bits(51, 12)
    FRAME = mask(frame)


class Pde(Pdpte):
    """Refers to a page table."""


class Pdpte1G(Executable):
    """Maps 1 GiB (SDM 3A "4-Level Paging and 5-Level Paging")."""

    d = bit(6)
    ps = bit(7)
    g = bit(8)
    pat = bit(12)
    reserved = bits(29, 13)
    frame = bits(51, 30)
    FRAME = mask(frame)


class Pde2M(Executable):
    """Maps 2 MiB (SDM 3A "4-Level Paging and 5-Level Paging")."""

    d = bit(6)
    ps = bit(7)
    g = bit(8)
    pat = bit(12)
    reserved = bits(20, 13)
    frame = bits(51, 21)
    FRAME = mask(frame)


class Pte(Executable):
    """Maps 4 KiB (SDM 3A "4-Level Paging and 5-Level Paging")."""

    d = bit(6)
    pat = bit(7)
    g = bit(8)
    frame = bits(51, 12)
    FRAME = mask(frame)


class PdePae(Pde):
    """As in 4-level paging, but the bits above the address are reserved (SDM 3A "PAE Paging")."""

    reserved_high = bits(62, 52)


class Pde2MPae(Pde2M):
    """As in 4-level paging, but the bits above the address are reserved (SDM 3A "PAE Paging")."""

    reserved_high = bits(62, 52)


class PtePae(Pte):
    """As in 4-level paging, but the bits above the address are reserved (SDM 3A "PAE Paging")."""

    reserved_high = bits(62, 52)


# -- hierarchies ------------------------------------------------------------------------------------------------------


class PagingMode(Enum):
    """Paging mode (SDM 3A "Paging Modes and Control Bits")."""

    NONE = "no paging"
    BITS32 = "32-bit paging"
    PAE = "PAE paging"
    LEVEL4 = "4-level paging"
    LEVEL5 = "5-level paging"


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a hierarchy. *span*: bytes of linear address space that one entry maps; *entries* of one table.

    *table* and *leaf* are the formats of an entry that refers to another table and of one that maps a page of *span*
    bytes; where both exist, PS chooses.
    """

    number: int
    span: int
    entries: int
    table: type[Entry] | None
    leaf: type[Entry] | None

    def format(self, raw: int) -> type[Entry]:
        """Return the format of an entry of this level whose bits are *raw*."""
        if self.leaf is not None and (self.table is None or raw & _PS):
            return self.leaf
        assert self.table is not None
        return self.table


@dataclass(frozen=True, slots=True)
class Geometry:
    """A hierarchy: *levels* top first, *entry_size* in bytes.

    *root*: the bits of CR3 that hold the gpa of the first table; *linear*: those of a linear address.
    """

    levels: tuple[Level, ...]
    entry_size: int
    root: int
    linear: int


_PS = mask(Pde.ps)
_CR3_PAE = bits(31, 5)
_LINEAR32, _LINEAR64 = mask(bits(31, 0)), mask(bits(63, 0))
_PT = Level(1, 4 * KIB, 512, None, Pte)
_PD = Level(2, 2 * MIB, 512, Pde, Pde2M)
_PDPT = Level(3, GIB, 512, Pdpte, Pdpte1G)
_PML4 = Level(4, 512 * GIB, 512, Pml4e, None)
_PML5 = Level(5, 512 * 512 * GIB, 512, Pml5e, None)
_LEVELS32 = (Level(2, 4 * MIB, 1024, Pde32, Pde4M), Level(1, 4 * KIB, 1024, None, Pte32))
_LEVELS_PAE = (
    Level(3, GIB, 4, PdptePae, None), Level(2, 2 * MIB, 512, PdePae, Pde2MPae), Level(1, 4 * KIB, 512, None, PtePae)
)  # fmt: skip
GEOMETRY: dict[PagingMode, Geometry] = {
    PagingMode.NONE: Geometry((), 0, 0, _LINEAR32),
    PagingMode.BITS32: Geometry(_LEVELS32, 4, Pde32.FRAME, _LINEAR32),
    PagingMode.PAE: Geometry(_LEVELS_PAE, 8, mask(_CR3_PAE), _LINEAR32),
    PagingMode.LEVEL4: Geometry((_PML4, _PDPT, _PD, _PT), 8, mask(Cr3.frame), _LINEAR64),
    PagingMode.LEVEL5: Geometry((_PML5, _PML4, _PDPT, _PD, _PT), 8, mask(Cr3.frame), _LINEAR64),
}


# -- one processor's settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """Everything that translation depends on. *root* is the gpa of the first table, *maxphyaddr* in bits.

    *nxe*: execute-disable is in use, which 32-bit paging cannot do. From the rest follow *levels*, top first, and
    *reserved*, the bits of each entry format that must be 0.
    """

    mode: PagingMode
    root: int = 0
    wp: bool = False
    nxe: bool = False
    smep: bool = False
    smap: bool = False
    pse: bool = False
    gigabyte_pages: bool = True
    maxphyaddr: int = 40
    levels: tuple[Level, ...] = field_of(init=False, repr=False, compare=False)
    reserved: dict[type[Entry], int] = field_of(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        levels = tuple(self._active(level) for level in self.geometry.levels)
        kinds = [kind for level in levels for kind in (level.table, level.leaf) if kind]
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "reserved", {kind: self._reserved(kind) for kind in kinds})

    @classmethod
    def of(cls, state: CpuState, maxphyaddr: int) -> Paging:
        """Return the paging of *state*. Cheap: equal registers give the same object."""
        return _paging(state.cr0, state.cr3, state.cr4, state.efer, maxphyaddr)

    @property
    def geometry(self) -> Geometry:
        """The shape of the hierarchy."""
        return GEOMETRY[self.mode]

    def canonical(self, gva: int) -> bool:
        """Whether *gva* is one that translation can take; outside IA-32e mode all are."""
        if self.geometry.linear == _LINEAR32:
            return True
        return is_canonical(gva, la57=self.mode is PagingMode.LEVEL5)

    def _active(self, level: Level) -> Level:
        """Return *level* without the page size that is switched off."""
        off = (level.leaf is Pde4M and not self.pse) or (level.leaf is Pdpte1G and not self.gigabyte_pages)
        return replace(level, leaf=None) if off else level

    def _reserved(self, kind: type[Entry]) -> int:
        """Return the bits that must be 0: always, for want of EFER.NXE or 1 GiB pages, and beyond MAXPHYADDR."""
        reserved = sum(mask(f) for name, f in kind.fields.items() if name.startswith("reserved"))
        if issubclass(kind, Executable) and not self.nxe:
            reserved |= mask(kind.xd)
        if kind is Pdpte and not self.gigabyte_pages:
            reserved |= mask(Pdpte.ps)
        return reserved | sum(1 << n for n in range(64) if kind(1 << n).gpa >> self.maxphyaddr)


@lru_cache(maxsize=1024)
def _paging(cr0: int, cr3: int, cr4: int, efer: int, maxphyaddr: int) -> Paging:
    c0, c4, e = Cr0(cr0), Cr4(cr4), Efer(efer)
    mode = _mode(c0, c4, e)
    return Paging(
        mode=mode, root=cr3 & GEOMETRY[mode].root, wp=c0.wp, nxe=e.nxe and mode is not PagingMode.BITS32,
        smep=c4.smep, smap=c4.smap, pse=c4.pse, maxphyaddr=maxphyaddr,
    )  # fmt: skip


def _mode(cr0: Cr0, cr4: Cr4, efer: Efer) -> PagingMode:
    """SDM 3A "Paging Modes and Control Bits"."""
    if not cr0.pg:
        return PagingMode.NONE
    if not cr4.pae:
        return PagingMode.BITS32
    if not efer.lma:
        return PagingMode.PAE
    return PagingMode.LEVEL5 if cr4.la57 else PagingMode.LEVEL4
