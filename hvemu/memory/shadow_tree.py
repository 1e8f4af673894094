"""A shadow page table: a radix tree in hypervisor memory, in the form that the processor walks.

Two forms: 3 levels for PAE paging, 4 or 5 for 4-level and 5-level paging (SDM 3A "PAE Paging", "4-Level Paging and
5-Level Paging"). The leaves map 4 KiB and carry all rights; what is above them permits everything. A and D are set from
the start, so that the processor never writes to a tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hvemu.bits import Register, bit, bits
from hvemu.memory.frames import FRAME, Frames
from hvemu.memory.physical import Physical

PAGE = FRAME
_ENTRY, _INDEX_BITS = 8, 9
_ENTRIES = 1 << _INDEX_BITS
_PAE_LEVELS, _PAE_SPACE = 3, 1 << 32


class ShadowEntry(Register):
    """An entry at any level of a tree."""

    p = bit(0)
    w = bit(1)
    u = bit(2)
    a = bit(5)
    d = bit(6)
    frame = bits(51, 12)
    nx = bit(63)

    @property
    def hpa(self) -> int:
        """The page or table that this points to."""
        return self.frame * FRAME


def leaf(hpa: int, *, w: bool, u: bool, nx: bool) -> ShadowEntry:
    """Return the entry that maps the 4 KiB page at *hpa*."""
    return ShadowEntry(p=1, w=w, u=u, a=1, d=1, frame=hpa // FRAME, nx=nx)


_ABSENT = ShadowEntry()
_TABLE = ShadowEntry(p=1, w=1, u=1, a=1)
_PDPTE = ShadowEntry(p=1)  # of PAE paging: the other low bits are reserved


class ShadowTree:
    """One tree of *levels* levels, its tables from *frames*; *pins* are leaves that stay in it whatever is cleared.

    Its gvas have no sign extension: 0 to *space* - 1; fold() makes them. *root* (hpa) goes into CR3. PAE paging loads
    the four entries of its root into registers at that moment, so they are filled from the start and never change.
    """

    def __init__(self, host: Physical, frames: Frames, levels: int, pins: Mapping[int, ShadowEntry]) -> None:
        """Raise MemoryError, holding no frame, when there are too few for the root and the pins."""
        self._host, self._frames, self.levels = host, frames, levels
        self.space = _PAE_SPACE if levels == _PAE_LEVELS else PAGE << _INDEX_BITS * levels
        self._pins: set[int] = set()
        self.root = self._table()
        assert self.root < _PAE_SPACE, f"CR3 has 32 bits with PAE paging: no root at hpa {self.root:#x}"
        try:
            if levels == _PAE_LEVELS:
                for slot in range(self.root, self.root + _PAE_SPACE // self._span(levels - 1) * _ENTRY, _ENTRY):
                    host.write(slot, _ENTRY, _PDPTE | self._table())
            for gva, entry in pins.items():
                self.pin(gva, entry)
        except MemoryError:
            self.destroy()
            raise

    def leaf(self, gva: int) -> ShadowEntry:
        """Return the leaf for the page of *gva*, not present when there is none."""
        slot = self._slot(gva, create=False)
        return _ABSENT if slot is None else self._entry(slot)

    def set_leaf(self, gva: int, entry: ShadowEntry) -> None:
        """Map the page of *gva*. Raises MemoryError when a table is needed and there is no frame."""
        slot = self._slot(gva, create=True)
        assert slot is not None
        self._host.write(slot, _ENTRY, entry)

    def fold(self, gva: int) -> int:
        """Return the page of a full *gva* as this tree numbers it."""
        return gva % self.space // PAGE * PAGE

    def pinned(self, gva: int) -> bool:
        """Whether the page of *gva* is pinned."""
        return self.fold(gva) in self._pins

    def pin(self, gva: int, entry: ShadowEntry) -> None:
        """Map a page at the full *gva* for good, if this tree reaches it. Raises MemoryError as set_leaf does."""
        if self._reaches(gva):
            self.set_leaf(self.fold(gva), entry)
            self._pins.add(self.fold(gva))

    def unpin(self, gva: int) -> None:
        """Take the page pinned at the full *gva* out, if this tree has it."""
        if self._reaches(gva):
            self._pins.remove(self.fold(gva))
            self.set_leaf(self.fold(gva), _ABSENT)

    def clear(self, start: int, size: int) -> list[tuple[int, ShadowEntry]]:
        """Remove the leaves in the *size* bytes from *start*, except the pinned ones, and the tables in it.

        Return (gva, leaf) of each. The part of the range outside the tree's space is ignored.
        """
        removed: list[tuple[int, ShadowEntry]] = []
        start, end = max(start, 0), min(start + size, self.space)
        if start < end:
            self._clear(self.root, self.levels - 1, 0, start, end, removed)
        return removed

    def leaves(self) -> Iterator[tuple[int, ShadowEntry]]:
        """Yield (gva, leaf) in order, without the pinned ones."""
        yield from self._leaves(self.root, self.levels - 1, 0)

    def destroy(self) -> None:
        """Give all frames back."""
        self._free(self.root, self.levels - 1)

    def _reaches(self, gva: int) -> bool:
        return gva < self.space or self.levels > _PAE_LEVELS

    @staticmethod
    def _span(level: int) -> int:
        """Return the bytes that an entry covers; level 0 holds the leaves."""
        return PAGE << _INDEX_BITS * level

    def _table(self) -> int:
        hpa = self._frames.allocate()
        self._host.write_bytes(hpa, bytes(FRAME))
        return hpa

    def _entry(self, slot: int) -> ShadowEntry:
        return ShadowEntry(self._host.read(slot, _ENTRY))

    def _slot(self, gva: int, *, create: bool) -> int | None:
        """Return the hpa of the leaf for *gva*, or None when a table is missing and not to be made."""
        assert 0 <= gva < self.space, f"gva {gva:#x} is outside a tree of {self.levels} levels"
        table = self.root
        for level in range(self.levels - 1, 0, -1):
            slot = table + gva // self._span(level) % _ENTRIES * _ENTRY
            entry = self._entry(slot)
            if not entry.p:
                if not create:
                    return None
                entry = ShadowEntry(_TABLE | self._table())
                self._host.write(slot, _ENTRY, entry)
            table = entry.hpa
        return table + gva // PAGE % _ENTRIES * _ENTRY

    def _present(self, table: int, first: int = 0, last: int = _ENTRIES) -> Iterator[tuple[int, ShadowEntry]]:
        """Yield (index, entry) of the present entries of *table* from number *first* to before *last*."""
        raw = self._host.read_bytes(table + first * _ENTRY, (last - first) * _ENTRY)
        for n, value in enumerate(memoryview(raw).cast("Q"), first):
            if value:
                yield n, ShadowEntry(value)

    def _clear(
        self, table: int, level: int, base: int, start: int, end: int, removed: list[tuple[int, ShadowEntry]]
    ) -> bool:
        """Clear *start* to *end* below *table*, which maps from *base*; return whether anything is left in it."""
        span = self._span(level)
        first, last = max(start - base, 0) // span, min(-((base - end) // span), _ENTRIES)
        left = last - first < _ENTRIES  # there may be more in it, outside of the range
        for n, entry in self._present(table, first, last):
            gva = base + n * span
            if level:
                stays = self._clear(entry.hpa, level - 1, gva, start, end, removed) or self._fixed(level)
            else:
                stays = gva in self._pins
            left |= stays
            if not stays:
                self._host.write(table + n * _ENTRY, _ENTRY, 0)
                if level:
                    self._frames.free(entry.hpa)
                else:
                    removed.append((gva, entry))
        return left

    def _fixed(self, level: int) -> bool:
        """Whether the entries of *level* never change."""
        return self.levels == _PAE_LEVELS and level == _PAE_LEVELS - 1

    def _leaves(self, table: int, level: int, base: int) -> Iterator[tuple[int, ShadowEntry]]:
        for n, entry in self._present(table):
            gva = base + n * self._span(level)
            if level:
                yield from self._leaves(entry.hpa, level - 1, gva)
            elif gva not in self._pins:
                yield gva, entry

    def _free(self, table: int, level: int) -> None:
        if level:
            for _, entry in self._present(table):
                self._free(entry.hpa, level - 1)
        self._frames.free(table)

    def __repr__(self) -> str:
        return f"ShadowTree({self.levels} levels, root hpa {self.root:#x}, {len([*self.leaves()])} leaves)"
