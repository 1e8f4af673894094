"""What a device is: registers at offsets, and a state. It knows nothing of bus, CPU or log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Line = Callable[[bool], None]
"""An interrupt line or another wire: called with its new level."""
Clock = Callable[[], int]
"""Virtual time in nanoseconds since the machine started."""
Output = Callable[[int], None]
"""Where a device sends a byte."""
State = dict[str, Any]
"""The registers of a device as numbers, booleans, strings, lists and dictionaries: fit for JSON."""


class Device(Protocol):
    """Registers at *offset* from the place where the device is put; *size* is 1, 2 or 4 bytes."""

    def read(self, offset: int, size: int) -> int:
        """Return *size* bytes as an unsigned integer."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Take *size* bytes as an unsigned integer."""
        ...

    def state(self) -> State:
        """Return all that `from_state` of the same class needs to make an equal device."""
        ...


def unconnected(_: int) -> None:
    """Be the far end of a line or an output that leads nowhere."""
