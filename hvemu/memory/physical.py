"""Physical memory: what page walkers, devices and the CPU model read and write by physical address."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Protocol


class Physical(Protocol):
    """Guest-physical memory. Addresses and sizes in bytes; integers little-endian, 1 to 8 bytes.

    Nothing faults here: what is not there reads as all ones and forgets writes, as a bus where no one answers.
    """

    def read(self, gpa: int, size: int) -> int:
        """Read an integer of *size* bytes."""
        ...

    def write(self, gpa: int, size: int, value: int) -> None:
        """Write an integer of *size* bytes."""
        ...

    def read_bytes(self, gpa: int, size: int) -> bytes:
        """Read *size* bytes."""
        ...

    def write_bytes(self, gpa: int, data: bytes) -> None:
        """Write *data*."""
        ...


class Ram:
    """The *size* bytes of *buffer* from offset *base*, as physical addresses 0 to *size* - 1.

    *size* None: to the end of the buffer. *wrote* is told of every write, by offset in the buffer and bytes. The buffer
    stays the owner's, who may read and write it directly.
    """

    def __init__(
        self,
        buffer: bytearray | mmap.mmap,
        base: int = 0,
        size: int | None = None,
        wrote: Callable[[int, int], None] | None = None,
    ) -> None:
        self.base, self.size = base, len(buffer) - base if size is None else size
        if base < 0 or not 0 <= self.size <= len(buffer) - base:
            raise ValueError(f"{self.size:#x} bytes at {base:#x} are not inside a buffer of {len(buffer):#x}")
        self._buffer, self._wrote = buffer, wrote

    def read(self, gpa: int, size: int) -> int:
        """Read an integer of *size* bytes; bytes outside read as 0xff."""
        return int.from_bytes(self.read_bytes(gpa, size), "little")

    def write(self, gpa: int, size: int, value: int) -> None:
        """Write an integer; bytes outside are lost. Raises OverflowError when *value* needs more than *size* bytes."""
        self.write_bytes(gpa, value.to_bytes(size, "little"))

    def read_bytes(self, gpa: int, size: int) -> bytes:
        """Read *size* bytes; bytes outside read as 0xff."""
        start, inside = self.base + gpa, self.size - gpa
        if size <= inside:
            return bytes(self._buffer[start : start + size])
        return bytes(self._buffer[start : start + max(inside, 0)]).ljust(size, b"\xff")

    def write_bytes(self, gpa: int, data: bytes) -> None:
        """Write *data*; bytes outside are lost."""
        data = data[: max(self.size - gpa, 0)]
        self._buffer[self.base + gpa : self.base + gpa + len(data)] = data
        if self._wrote is not None:
            self._wrote(self.base + gpa, len(data))

    def __repr__(self) -> str:
        return f"Ram({self.size:#x} bytes from offset {self.base:#x})"
