"""Linear memory as an emulated instruction sees it: translated by the page walker, with A and D bits set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from hvemu.memory.physical import Physical
from hvemu.memory.walk import Access, walk
from hvemu.x86.paging import PAGE, Paging
from hvemu.x86.registers import Rflags
from hvemu.x86.state import CpuState

_USER = 3  # CPL
_access = cache(Access)  # values, and few of them


class PagedMemory:
    """What *state* makes of *physical*; *maxphyaddr* in bits.

    Accesses raise Fault(#PF) exactly as the processor's own would, and Fault(#GP) for a gva that is not canonical.
    One that crosses a page boundary is translated on both sides, in order, before any of it is transferred.
    """

    def __init__(self, state: CpuState, physical: Physical, maxphyaddr: int = 40) -> None:
        self._state, self._physical, self._maxphyaddr = state, physical, maxphyaddr
        self._read_entry, self._write_entry = physical.read, physical.write

    def translate(self, gva: int, *, write: bool = False, fetch: bool = False, user: bool = False) -> int:
        """Return the gpa of *gva*, with the side effects of the access on the page tables."""
        state = self._state
        paging = Paging.of(state, self._maxphyaddr)
        implicit = not user and state.cpl == _USER
        ac = paging.smap and Rflags(state.rflags).ac
        access = _access(write, fetch, user, implicit, ac)
        return walk(paging, self._read_entry, gva, access, self._write_entry).gpa

    def read(self, gva: int, size: int, *, user: bool) -> int:
        """Read an integer of *size* bytes."""
        if gva % PAGE + size <= PAGE:
            return self._physical.read(self.translate(gva, user=user), size)
        return int.from_bytes(self.read_bytes(gva, size, user=user), "little")

    def write(self, gva: int, size: int, value: int, *, user: bool) -> None:
        """Write an integer of *size* bytes; nothing is written when any byte of it would fault."""
        if gva % PAGE + size <= PAGE:
            self._physical.write(self.translate(gva, write=True, user=user), size, value)
            return
        data, pieces = value.to_bytes(size, "little"), self._pieces(gva, size, write=True, user=user)
        for gpa, part in pieces:
            self._physical.write_bytes(gpa, data[:part])
            data = data[part:]

    def probe_write(self, gva: int, size: int, *, user: bool) -> None:
        """Do all of a write but the transfer, page-table side effects included."""
        self._pieces(gva, size, write=True, user=user)

    def read_bytes(self, gva: int, size: int, *, user: bool) -> bytes:
        """Read *size* bytes; nothing is read when any of them would fault."""
        pieces = self._pieces(gva, size, write=False, user=user)
        return b"".join(self._physical.read_bytes(gpa, part) for gpa, part in pieces)

    def _pieces(self, gva: int, size: int, *, write: bool, user: bool) -> list[tuple[int, int]]:
        """Return (gpa, bytes) for every page that the *size* bytes at *gva* touch."""
        return [(self.translate(start, write=write, user=user), part) for start, part in _split(gva, size)]


def _split(gva: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (gva, bytes) of the pieces of an access, cut at page boundaries."""
    end = gva + size
    while gva < end:
        part = min(end, gva - gva % PAGE + PAGE) - gva
        yield gva, part
        gva += part
