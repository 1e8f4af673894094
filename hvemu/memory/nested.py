"""Guest-physical memory through EPT: what the second dimension of two-dimensional paging reads and writes."""

from __future__ import annotations

from collections.abc import Iterator

from hvemu.memory.ept import PAGE_4K, EptPaging
from hvemu.memory.ept_walk import FETCH, PAGING_READ, PAGING_WRITE, READ, WRITE, EptAccess, EptWalk, walk_ept
from hvemu.memory.physical import Physical


class NestedPhysical:
    """A Physical over gpa: each page is translated by *ept*, then read or written in *host* memory.

    Every access may raise EptViolation or EptMisconfiguration, and then changes no byte of the guest's memory.
    Translations are kept until flush(), as a TLB keeps them until INVEPT (SDM 3C "Caching Translation Information").
    """

    def __init__(self, ept: EptPaging, host: Physical) -> None:
        self.ept, self.host = ept, host
        self._pages: dict[int, tuple[int, bool]] = {}

    def flush(self) -> None:
        """Forget all translations."""
        self._pages.clear()

    def translate(self, gpa: int, access: EptAccess) -> EptWalk:
        """Walk for *access*, past the kept translations; accessed and dirty flags are set if they are enabled."""
        return walk_ept(self.ept, self.host.read, gpa, access, self.host.write)

    def read(self, gpa: int, size: int) -> int:
        """Read an integer of *size* bytes."""
        return int.from_bytes(self.read_bytes(gpa, size), "little")

    def write(self, gpa: int, size: int, value: int) -> None:
        """Write an integer. Raises OverflowError when *value* needs more than *size* bytes."""
        self.write_bytes(gpa, value.to_bytes(size, "little"))

    def read_bytes(self, gpa: int, size: int) -> bytes:
        """Read *size* bytes."""
        return self._load(gpa, size, READ)

    def write_bytes(self, gpa: int, data: bytes) -> None:
        """Write *data*: nothing of it unless all pages allow it."""
        self._store(gpa, data, WRITE)

    def fetch(self, gpa: int, size: int, *, user: bool) -> bytes:
        """Read *size* bytes of code at a *user* or supervisor linear address."""
        return b"".join(
            self.host.read_bytes(self.translate(at, FETCH.replace(user=user)).hpa, length)
            for at, length in _pieces(gpa, size)
        )

    def read_entry(self, gpa: int, size: int) -> int:
        """Read an entry of a guest paging structure, as the processor's page walker does."""
        return int.from_bytes(self._load(gpa, size, PAGING_READ), "little")

    def write_entry(self, gpa: int, size: int, value: int) -> None:
        """Update an entry of a guest paging structure, as the processor's page walker does."""
        self._store(gpa, value.to_bytes(size, "little"), PAGING_WRITE)

    def _load(self, gpa: int, size: int, access: EptAccess) -> bytes:
        spans = [(self._hpa(at, access), length) for at, length in _pieces(gpa, size)]
        return b"".join(self.host.read_bytes(hpa, length) for hpa, length in spans)

    def _store(self, gpa: int, data: bytes, access: EptAccess) -> None:
        spans = [(self._hpa(at, access), length) for at, length in _pieces(gpa, len(data))]
        for hpa, length in spans:
            self.host.write_bytes(hpa, data[:length])
            data = data[length:]

    def _hpa(self, gpa: int, access: EptAccess) -> int:
        page, offset = gpa & -PAGE_4K, gpa % PAGE_4K
        writes = access.under(self.ept).write
        hpa, writable = self._pages.get(page, (None, False))
        if hpa is None or (writes and not writable):
            walk = self.translate(gpa, access)
            # A page that was only read must be walked again at the first write, which sets its dirty flag.
            writable = walk.rights.write and (writes or not self.ept.accessed_dirty)
            hpa = walk.hpa - offset
            self._pages[page] = hpa, writable
        return hpa + offset

    def __repr__(self) -> str:
        return f"NestedPhysical({self.ept!r}, {len(self._pages)} pages kept)"


def _pieces(gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """Split an access at page boundaries into (gpa, bytes)."""
    end = gpa + size
    while gpa < end:
        length = min(end, (gpa & -PAGE_4K) + PAGE_4K) - gpa
        yield gpa, length
        gpa += length
