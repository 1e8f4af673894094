"""Memory by linear address: what delivery, task switches and far transfers need of it."""

from __future__ import annotations

from typing import Protocol


class Linear(Protocol):
    """Linear memory. Integers are little-endian, sizes 1 to 8 bytes; any access may raise Fault(#PF).

    *user* False is a supervisor access: explicit at CPL 0 to 2, implicit (descriptor tables, TSS) at CPL 3.
    """

    def read(self, gva: int, size: int, *, user: bool) -> int:
        """Read an integer of *size* bytes."""
        ...

    def write(self, gva: int, size: int, value: int, *, user: bool) -> None:
        """Write an integer of *size* bytes."""
        ...

    def probe_write(self, gva: int, size: int, *, user: bool) -> None:
        """Raise what `write` of *size* bytes would raise, and change no byte."""
        ...

    def read_bytes(self, gva: int, size: int, *, user: bool) -> bytes:
        """Read *size* bytes."""
        ...
