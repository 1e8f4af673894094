"""A frame allocator over a range of host-physical memory."""

from __future__ import annotations

import heapq

FRAME = 0x1000  # bytes


class Frames:
    """The 4 KiB frames that lie in the *size* bytes from *base* (hpa); a partial frame at the end is not used.

    The free frame of the lowest address goes out first, so the same calls give the same addresses.
    """

    def __init__(self, base: int, size: int) -> None:
        if base % FRAME:
            raise ValueError(f"frames begin at {base:#x}, which is not a multiple of {FRAME:#x}")
        self.base, self.total = base, size // FRAME
        self._free = [base + n * FRAME for n in range(self.total)]  # sorted, hence a heap
        self._taken: set[int] = set()

    @property
    def free_count(self) -> int:
        """How many frames are left."""
        return len(self._free)

    def allocate(self) -> int:
        """Return the hpa of a frame, contents undefined. Raises MemoryError when none is left."""
        if not self._free:
            raise MemoryError(f"all {self.total} frames are taken")
        hpa = heapq.heappop(self._free)
        self._taken.add(hpa)
        return hpa

    def free(self, hpa: int) -> None:
        """Take the frame at *hpa* back. Raises AssertionError when it was not allocated."""
        assert hpa in self._taken, f"frame {hpa:#x} is not allocated"
        self._taken.remove(hpa)
        heapq.heappush(self._free, hpa)

    def __repr__(self) -> str:
        return f"Frames({self.free_count} of {self.total} free, from hpa {self.base:#x})"
