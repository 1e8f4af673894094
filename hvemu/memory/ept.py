"""Extended page tables: the formats of the entries and the four levels (SDM 3C "EPT Translation Mechanism").

Ordinary paging translates gva to gpa; extended paging translates gpa to hpa, below the guest and unseen by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from hvemu.bits import Register, bit, bits
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH

PAGE_4K, PAGE_2M, PAGE_1G = 1 << 12, 1 << 21, 1 << 30
ENTRY_SIZE, ENTRIES = 8, 512
GPA_WIDTH = 48
"""Bits of a gpa that four levels translate."""
HPA_WIDTH = 52
"""Bits of an hpa that an entry can hold."""


class MemoryType(IntEnum):
    """Memory types that an entry may name (SDM 3C "EPT and Memory Typing"); 2, 3 and 7 are reserved."""

    UC, WC, WT, WP, WB = 0, 1, 4, 5, 6


class EptRights(Register):
    """What entries allow. *execute* is for supervisor-mode linear addresses alone under mode-based execute control."""

    read = bit(0)
    write = bit(1)
    execute = bit(2)
    user_execute = bit(3)

    def __and__(self, other: int) -> EptRights:
        return EptRights(int(self) & other)


NO_RIGHTS = EptRights()
R, RW, RX = EptRights(read=1), EptRights(read=1, write=1), EptRights(read=1, execute=1)
RWX = EptRights(read=1, write=1, execute=1)
ALL_RIGHTS = EptRights(read=1, write=1, execute=1, user_execute=1)


class EptEntry(Register):
    """What all entries have in common."""

    read = bit(0)
    write = bit(1)
    execute = bit(2)
    large_page = bit(7)
    accessed = bit(8)
    user_execute = bit(10)
    frame = bits(51, 12)

    @property
    def hpa(self) -> int:
        """Host-physical address of the table or page."""
        return self.frame << type(self).frame.lo

    @property
    def rights(self) -> EptRights:
        """The rights as the entry spells them; user_execute counts only under mode-based execute control."""
        return EptRights(self & RWX | self.user_execute << EptRights.user_execute.lo)

    @classmethod
    def of(cls, hpa: int, rights: EptRights, **named: int) -> Self:
        """Return the entry for *hpa*, which must be aligned for this format."""
        assert not hpa % (1 << cls.frame.lo), f"{cls.__name__}: hpa {hpa:#x} is not aligned"
        return cls(frame=hpa >> cls.frame.lo, **named).allowing(rights)

    def allowing(self, rights: EptRights) -> Self:
        """Return a copy with exactly the given *rights*."""
        return self.replace(**{name: getattr(rights, name) for name in EptRights.fields})


class EptTableEntry(EptEntry):
    """An entry that references another EPT paging structure."""

    reserved = bits(6, 3)


class EptPage(EptEntry):
    """An entry that maps a page: an EPT PTE, or an entry with bit 7 set."""

    memory_type = bits(5, 3)
    ignore_pat = bit(6)
    dirty = bit(9)
    suppress_ve = bit(63)


class EptPage2M(EptPage):
    """An EPT PDE that maps a 2-MByte page."""

    reserved = bits(20, 12)
    frame = bits(51, 21)


class EptPage1G(EptPage):
    """An EPT PDPTE that maps a 1-GByte page."""

    reserved = bits(29, 12)
    frame = bits(51, 30)


@dataclass(frozen=True, slots=True)
class Level:
    """One level. *shift*: log2 of the bytes that one entry covers; *page*: the format of its page entries, if any."""

    name: str
    shift: int
    page: type[EptPage] | None
    table: type[EptTableEntry] | None = EptTableEntry

    @property
    def size(self) -> int:
        """Bytes of guest-physical memory that one entry covers."""
        return 1 << self.shift

    def slot(self, table: int, gpa: int) -> int:
        """Return the hpa of the entry for *gpa* in the *table* at that hpa."""
        return table + (gpa >> self.shift) % ENTRIES * ENTRY_SIZE

    def decode(self, raw: int) -> EptEntry:
        """Return the entry in its format: bit 7 tells pages from tables where there are both."""
        entry = EptEntry(raw)
        if self.page and (not self.table or entry.large_page):
            return self.page(raw)
        return EptTableEntry(raw)

    def __repr__(self) -> str:
        return self.name


LEVELS = (
    Level("EPT PML4E", 39, None),
    Level("EPT PDPTE", 30, EptPage1G),
    Level("EPT PDE", 21, EptPage2M),
    Level("EPT PTE", 12, EptPage, table=None),
)
"""The levels from the root down."""
PML4E, PDPTE, PDE, PTE = LEVELS


@dataclass(frozen=True, slots=True)
class EptPaging:
    """One extended-paging context: what the EPTP, the controls and the capabilities of the processor say of it.

    *root* is the hpa of the EPT PML4 table; *maxphyaddr* counts the bits of an hpa. Raises ValueError when *root* is
    not such an address.
    """

    root: int
    accessed_dirty: bool = False
    execute_only: bool = False
    mode_based_execute: bool = False
    pages_2m: bool = True
    pages_1g: bool = True
    maxphyaddr: int = PHYSICAL_ADDRESS_WIDTH

    def __post_init__(self) -> None:
        if self.root % PAGE_4K or self.root >> self.maxphyaddr:
            raise ValueError(f"root {self.root:#x} is not a 4 KiB aligned {self.maxphyaddr}-bit address")

    def rights(self, entry: EptEntry) -> EptRights:
        """Return what *entry* allows here; nothing means that it is not present."""
        return entry.rights if self.mode_based_execute else EptRights(entry & RWX)
