"""The bus: which device answers at which port or guest-physical address."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from hvemu.devices.device import Device


@dataclass(frozen=True, slots=True)
class Window:
    """A device put at addresses *first*..*last*; *first* reaches its register at *offset*.

    *width* is the widest access in bytes that the device takes at once.
    """

    first: int
    last: int
    device: Device
    offset: int
    width: int


class Bus:
    """A port or memory-mapped I/O space: addresses are ports or gpas, accesses are little-endian.

    An access wider than the device, or one that crosses its end, is split into bytes, lowest address first, as a
    chipset does. Where no device answers, reads give all ones, writes are lost, and `unclaimed` counts the bytes by
    address.
    """

    def __init__(self) -> None:
        self._windows: list[Window] = []
        self._firsts: list[int] = []
        self.unclaimed: dict[int, int] = {}

    def __repr__(self) -> str:
        return "Bus(" + ", ".join(f"{w.first:#x}-{w.last:#x} {type(w.device).__name__}" for w in self._windows) + ")"

    def add(self, first: int, count: int, device: Device, *, offset: int = 0, width: int = 1) -> None:
        """Put *device* at *count* addresses from *first*. Two devices at one address are a bug of the machine."""
        window = Window(first, first + count - 1, device, offset, width)
        assert all(window.last < w.first or w.last < first for w in self._windows), f"{window} overlaps in {self}"
        self._windows.append(window)
        self._windows.sort(key=lambda w: w.first)
        self._firsts = [w.first for w in self._windows]

    def claims(self, address: int) -> bool:
        """Return whether a device answers at *address*."""
        return self._at(address) is not None

    def read(self, address: int, size: int) -> int:
        """Read *size* bytes."""
        window = self._at(address)
        if window is None and size == 1:
            return self._nobody(address)
        if window is not None and self._fits(window, address, size):
            return window.device.read(address - window.first + window.offset, size)
        return int.from_bytes([self.read(address + i, 1) for i in range(size)], "little")

    def write(self, address: int, size: int, value: int) -> None:
        """Write *size* bytes."""
        window = self._at(address)
        if window is None and size == 1:
            self._nobody(address)
        elif window is not None and self._fits(window, address, size):
            window.device.write(address - window.first + window.offset, size, value)
        else:
            for i, byte in enumerate(value.to_bytes(size, "little")):
                self.write(address + i, 1, byte)

    def _at(self, address: int) -> Window | None:
        i = bisect_right(self._firsts, address) - 1
        return self._windows[i] if i >= 0 and address <= self._windows[i].last else None

    @staticmethod
    def _fits(window: Window, address: int, size: int) -> bool:
        return size <= window.width and address + size - 1 <= window.last

    def _nobody(self, address: int) -> int:
        self.unclaimed[address] = self.unclaimed.get(address, 0) + 1
        return 0xFF
