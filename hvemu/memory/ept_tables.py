"""Extended page tables as a hypervisor builds them, in host-physical memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from hvemu.memory.ept import (
    ENTRIES,
    ENTRY_SIZE,
    GPA_WIDTH,
    HPA_WIDTH,
    LEVELS,
    PAGE_1G,
    PAGE_2M,
    PAGE_4K,
    PTE,
    RWX,
    EptEntry,
    EptPage,
    EptRights,
    EptTableEntry,
    Level,
    MemoryType,
)
from hvemu.memory.frames import Frames
from hvemu.memory.physical import Physical

_BELOW = dict(pairwise(LEVELS))
_TABLE = struct.Struct(f"<{ENTRIES}Q")


@dataclass(frozen=True, slots=True)
class _Slot:
    """The entry at *hpa*, which covers guest-physical memory from *gpa*; *whole*: all of it is in the range at work."""

    level: Level
    hpa: int
    gpa: int
    entry: EptEntry
    whole: bool

    @property
    def present(self) -> bool:
        return bool(self.entry.rights)

    @property
    def page(self) -> EptPage | None:
        return self.entry if self.present and isinstance(self.entry, EptPage) else None


class EptTables:
    """EPT paging structures that lie in *memory*, in frames taken from *frames*; *root* is the hpa of the first.

    Pages are as large as alignment allows, at most *largest* bytes. *table_rights* go into every entry that references
    a table: add user_execute under mode-based execute control. Addresses and sizes must be multiples of 4 KiB; every
    method raises ValueError when they are not, and MemoryError when no frame is left.

    A processor may go on using a translation that was changed until INVEPT (SDM 3C "Caching Translation Information").
    """

    def __init__(
        self, memory: Physical, frames: Frames, *, largest: int = PAGE_1G, table_rights: EptRights = RWX
    ) -> None:
        if largest not in {PAGE_4K, PAGE_2M, PAGE_1G}:
            raise ValueError(f"there are no pages of {largest:#x} bytes")
        self._memory, self._frames, self._largest, self._table_rights = memory, frames, largest, table_rights
        self.root = self._new_table((0,) * ENTRIES)

    def map(
        self, gpa: int, hpa: int, size: int, rights: EptRights = RWX, *, memory_type: MemoryType = MemoryType.WB
    ) -> None:
        """Map the *size* bytes from *gpa* to those from *hpa*, in place of what was mapped there.

        Raises ValueError too for a reserved *memory_type*, and for *rights* that are empty, write without read, or
        exceed table_rights.
        """
        _check_span("gpa", gpa, size, GPA_WIDTH)
        _check_span("hpa", hpa, size, HPA_WIDTH)
        self._check_rights(rights)
        offset, memory_type = hpa - gpa, MemoryType(memory_type)

        def fits(slot: _Slot) -> bool:
            level = slot.level
            page = level.page is not None and level.size <= self._largest
            return page and slot.whole and not (slot.gpa + offset) % level.size

        for slot in self._slots(gpa, size, fits):
            assert slot.level.page is not None
            large = slot.level is not PTE
            page = slot.level.page.of(slot.gpa + offset, rights, large_page=large, memory_type=memory_type)
            self._replace(slot, page)

    def unmap(self, gpa: int, size: int) -> None:
        """Make the *size* bytes from *gpa* not present; bytes that were not stay so."""
        _check_span("gpa", gpa, size, GPA_WIDTH)
        for slot in self._slots(gpa, size, lambda slot: slot.whole or not slot.present):
            self._replace(slot, EptEntry())

    def protect(self, gpa: int, size: int, rights: EptRights) -> None:
        """Give the pages in the *size* bytes from *gpa* these *rights*; bytes that are not mapped stay so.

        Raises ValueError too for the *rights* that map refuses.
        """
        _check_span("gpa", gpa, size, GPA_WIDTH)
        self._check_rights(rights)
        for slot in self._slots(gpa, size, lambda slot: not slot.present or (slot.whole and slot.page is not None)):
            if slot.page is not None:
                self._memory.write(slot.hpa, ENTRY_SIZE, slot.page.allowing(rights))

    def _slots(self, gpa: int, size: int, done: Callable[[_Slot], bool]) -> Iterator[_Slot]:
        """Yield, in order, the highest entries over the range for which *done* holds; make or split tables above."""
        end = gpa + size
        while gpa < end:
            table = self.root
            for level in LEVELS:
                start = gpa & -level.size
                slot = self._slot(level, table, gpa, whole=start == gpa and start + level.size <= end)
                if done(slot):
                    break
                table = self._below(slot)
            yield slot
            gpa = slot.gpa + level.size

    def _slot(self, level: Level, table: int, gpa: int, *, whole: bool) -> _Slot:
        hpa = level.slot(table, gpa)
        return _Slot(level, hpa, gpa & -level.size, level.decode(self._memory.read(hpa, ENTRY_SIZE)), whole)

    def _below(self, slot: _Slot) -> int:
        """Return the hpa of the table that the entry references, which is made first if there is none."""
        if slot.present and slot.page is None:
            return slot.entry.hpa
        table = self._new_table(_split(slot.page, _BELOW[slot.level]) if slot.page else (0,) * ENTRIES)
        self._memory.write(slot.hpa, ENTRY_SIZE, EptTableEntry.of(table, self._table_rights))
        return table

    def _new_table(self, entries: tuple[int, ...]) -> int:
        hpa = self._frames.allocate()
        self._memory.write_bytes(hpa, _TABLE.pack(*entries))
        return hpa

    def _replace(self, slot: _Slot, entry: EptEntry) -> None:
        """Write *entry*; then free the tables that nothing references any more."""
        self._memory.write(slot.hpa, ENTRY_SIZE, entry)
        self._free(slot.level, slot.entry)

    def _free(self, level: Level, entry: EptEntry) -> None:
        if not entry.rights or isinstance(entry, EptPage):
            return
        for raw in _TABLE.unpack(self._memory.read_bytes(entry.hpa, PAGE_4K)):
            below = _BELOW[level]
            self._free(below, below.decode(raw))
        self._frames.free(entry.hpa)

    def _check_rights(self, rights: EptRights) -> None:
        if not rights or (rights.write and not rights.read):
            raise ValueError(f"{rights!r}: a page that may not be touched or only written is no page")
        if rights & ~self._table_rights:
            raise ValueError(f"{rights!r}: the tables above allow only {self._table_rights!r}")

    def __repr__(self) -> str:
        return f"EptTables(root={self.root:#x})"


def _split(page: EptPage, below: Level) -> tuple[int, ...]:
    """Return a table of smaller pages that translates as *page* did, with its rights, memory type and flags."""
    assert below.page is not None
    same = page.replace(frame=0, large_page=below is not PTE)
    return tuple(same | page.hpa + n * below.size for n in range(ENTRIES))


def _check_span(name: str, start: int, size: int, width: int) -> None:
    if start % PAGE_4K or size % PAGE_4K:
        raise ValueError(f"{name} {start:#x}, {size:#x} bytes: not multiples of {PAGE_4K:#x}")
    if size <= 0 or start < 0 or start + size > 1 << width:
        raise ValueError(f"{name} {start:#x}, {size:#x} bytes: not inside {width} bits")
