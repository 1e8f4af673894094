"""The physical address space under the guest: a nested page table that the emulator walks at full speed.

Stands for the machine's memory map (``bare``: an identity map of RAM) or mirrors EPT. Entries never carry the NX bit:
with it the emulator ends the host process (see docs/deviations.md).
"""

from __future__ import annotations

import mmap
from array import array
from dataclasses import dataclass

from hvemu.bits import Register, bit

PAGE = 0x1000
LARGE = 0x20_0000
_PRESENT, _WRITE, _USER, _LARGE_PAGE = 1, 2, 4, 0x80
_FRAME = 0xF_FFFF_FFFF_F000


class SecondLevelCode(Register):
    """Error bits of a second-level fault (AMD64 APM 2, "Nested versus Guest Page Faults")."""

    p = bit(0)
    wr = bit(1)
    us = bit(2)
    rsvd = bit(3)
    id = bit(4)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One leaf: *hpa* of the page, whether stores may pass, page *size* in bytes."""

    hpa: int
    writable: bool
    size: int


class SecondLevel:
    """A 4-level table in the bytes from *first_free* to *end* of *hidden* memory, which is at physical address *base*.

    *holds* is what it mirrors, for whoever fills it.
    """

    def __init__(self, hidden: mmap.mmap, base: int, first_free: int, end: int | None = None) -> None:
        self._words = memoryview(hidden).cast("Q")
        self._base, self._first_free, self._end = base, first_free, len(hidden) if end is None else end
        self.holds: object
        self.clear()

    def clear(self) -> None:
        """Forget every mapping. The caller flushes the TLB."""
        self._free, self._spare, self.holds = self._first_free, list[int](), None
        self.root = self._table()

    def _table(self) -> int:
        if self._spare:
            offset = self._spare.pop()
        elif self._free + PAGE > self._end:  # a mirror may be dropped at any time: whoever maps fills it again
            raise MemoryError("second-level tables are full")
        else:
            offset, self._free = self._free, self._free + PAGE
        start = offset // 8
        self._words[start : start + 512] = memoryview(bytes(PAGE)).cast("Q")
        return self._base + offset

    def _slot(self, gpa: int, level: int, *, create: bool) -> int | None:
        """Return the word index of the entry for *gpa* at *level* (0 is the 4 KiB leaf)."""
        table = self.root
        for depth in range(3, level, -1):
            index = (table - self._base) // 8 + (gpa >> (12 + 9 * depth) & 0x1FF)
            entry = self._words[index]
            if not entry & _PRESENT:
                if not create:
                    return None
                entry = self._words[index] = self._table() | _PRESENT | _WRITE | _USER
            elif entry & _LARGE_PAGE:
                if not create:
                    return index
                entry = self._split(index, entry)
            table = entry & _FRAME
        return (table - self._base) // 8 + (gpa >> (12 + 9 * level) & 0x1FF)

    def _split(self, index: int, large: int) -> int:
        """Replace a 2 MiB leaf by 512 small ones with the same meaning."""
        table = self._table()
        start, small = (table - self._base) // 8, large & ~_LARGE_PAGE
        self._words[start : start + 512] = memoryview(array("Q", range(small, small + LARGE, PAGE)))
        entry = self._words[index] = table | _PRESENT | _WRITE | _USER
        return entry

    def map(self, gpa: int, hpa: int, size: int, *, writable: bool = True) -> None:
        """Map *size* bytes (a multiple of 4 KiB) at *gpa* to *hpa*; 2 MiB leaves where all is aligned."""
        flags = _PRESENT | _USER | (_WRITE if writable else 0)
        end = gpa + size
        while gpa < end:
            large = not (gpa | hpa) % LARGE and end - gpa >= LARGE
            slot = self._slot(gpa, 1 if large else 0, create=True)
            assert slot is not None
            if large:
                self._set_large(slot, hpa | flags | _LARGE_PAGE)
            else:
                self._words[slot] = hpa | flags
            step = LARGE if large else PAGE
            gpa, hpa = gpa + step, hpa + step

    def unmap(self, gpa: int, size: int) -> None:
        """Remove the mapping of every page in the *size* bytes from *gpa*.

        Raises MemoryError when a large page must be split and the tables are full.
        """
        end = gpa + size
        while gpa < end:
            whole = not gpa % LARGE and end - gpa >= LARGE
            slot = self._slot(gpa, 1, create=False) if whole else self._small(gpa)
            if slot is not None and whole:
                self._set_large(slot, 0)
            elif slot is not None:
                self._words[slot] = 0
            gpa += LARGE if whole else PAGE

    def _set_large(self, slot: int, entry: int) -> None:
        """Write the entry for a whole large page; a table of small pages that was there is used again."""
        old, self._words[slot] = self._words[slot], entry
        if old & _PRESENT and not old & _LARGE_PAGE:
            self._spare.append((old & _FRAME) - self._base)

    def _small(self, gpa: int) -> int | None:
        """Return the word index of the 4 KiB entry for *gpa*, splitting a large leaf; None if there is none."""
        slot = self._slot(gpa, 0, create=False)
        if slot is None or not self._words[slot] & _LARGE_PAGE:
            return slot
        return self._slot(gpa, 0, create=True)

    def lookup(self, gpa: int) -> Mapping | None:
        """Return the leaf that maps *gpa*, or None."""
        slot = self._slot(gpa, 0, create=False)
        if slot is None or not (entry := self._words[slot]) & _PRESENT:
            return None
        size = LARGE if entry & _LARGE_PAGE else PAGE
        return Mapping(entry & _FRAME & -size, bool(entry & _WRITE), size)

    def set_writable(self, gpa: int, writable: bool) -> None:
        """Open or close one 4 KiB page for stores."""
        slot = self._slot(gpa, 0, create=True)
        assert slot is not None
        self._words[slot] = self._words[slot] | _WRITE if writable else self._words[slot] & ~_WRITE
