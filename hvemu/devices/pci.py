"""PCI configuration mechanism 1, and the two bridges of a PC with Intel's 440FX chipset (their data sheets).

No function has a base address: nothing is found behind the bridges but the devices of the board.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hvemu.bits import Register, bit, bits
from hvemu.devices.device import Device, State

SPACE = 256
"""Bytes of configuration space that mechanism 1 reaches."""


class Address(Register):
    """CONFIG_ADDRESS."""

    register = bits(7, 2)
    function = bits(10, 8)
    device = bits(15, 11)
    bus = bits(23, 16)
    enable = bit(31)

    @property
    def place(self) -> tuple[int, int, int]:
        """Bus, device and function."""
        return self.bus, self.device, self.function


ADDRESS_BITS = int(Address(register=0x3F, function=7, device=0x1F, bus=0xFF, enable=1))


@dataclass(frozen=True, slots=True)
class Function:
    """A function's configuration space: the bytes that are not 0, and which bits of which bytes software can write."""

    values: Mapping[int, bytes]
    writable: Mapping[int, bytes]

    def space(self) -> bytearray:
        """Return the space as firmware leaves it."""
        return _filled(self.values)

    def masks(self) -> bytes:
        """Return the bits that can be written."""
        return bytes(_filled(self.writable))


def _filled(parts: Mapping[int, bytes]) -> bytearray:
    space = bytearray(SPACE)
    for offset, data in parts.items():
        space[offset : offset + len(data)] = data
    return space


def _words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2, "little") for number in numbers)


_VENDOR, _SUBSYSTEM = 0x8086, _words(0x1AF4, 0x1100)
_COMMAND = {0x04: _words(0x0103), 0x3C: b"\xff"}
"""I/O and memory decoding and SERR#, and the interrupt line."""
HOST_BRIDGE = Function(
    {
        0x00: _words(_VENDOR, 0x1237, 0x0103, 0x0000, 0x0002, 0x0600),
        0x2C: _SUBSYSTEM,
        0x57: bytes.fromhex("10 00 10 11 11 11 11 11 33"),  # DRAM timing, and the memory attributes of 0xc0000-0xfffff
        0x72: b"\x0a",
    },
    {0x04: _words(0x0103)},
)
ISA_BRIDGE = Function(
    {
        0x00: _words(_VENDOR, 0x7000, 0x0103, 0x0200, 0x0000, 0x0601),
        0x0E: b"\x80",
        0x2C: _SUBSYSTEM,
        0x4C: b"\x4d\x00\x03",
        0x60: b"\x0a\x0a\x0b\x0b",
        0x69: b"\x02",
        0x70: b"\x80",
        0x76: b"\x0c\x0c\x02",
        0xA0: b"\x08",
        0xA8: b"\x0f",
    },
    {0x04: _words(0x0103), 0x60: b"\x8f\x8f\x8f\x8f"},
)
FUNCTIONS = {(0, 0, 0): HOST_BRIDGE, (0, 1, 0): ISA_BRIDGE}
"""What is there, by bus, device and function."""


class PciHost:
    """Offsets 0-3 are CONFIG_ADDRESS, 4-7 CONFIG_DATA.

    CONFIG_ADDRESS takes 32-bit accesses alone; all others go on to the bus, where *reset_control* answers at offset 1.
    """

    ADDRESS, RESET_CONTROL, DATA = 0, 1, 4

    def __init__(self, *, reset_control: Device) -> None:
        self._reset_control = reset_control
        self._address = Address(0)
        self._spaces = {place: function.space() for place, function in FUNCTIONS.items()}
        self._masks = {place: function.masks() for place, function in FUNCTIONS.items()}

    def __repr__(self) -> str:
        return f"PciHost({self._address!r})"

    def state(self) -> State:
        """Return the address and the configuration spaces, by place."""
        spaces = {"{}:{}.{}".format(*place): space.hex() for place, space in self._spaces.items()}
        return {"address": int(self._address), "spaces": spaces}

    @classmethod
    def from_state(cls, state: State, *, reset_control: Device) -> PciHost:
        """Return a host bridge as it was."""
        host = cls(reset_control=reset_control)
        host._address = Address(state["address"])
        for place, space in host._spaces.items():
            space[:] = bytes.fromhex(state["spaces"]["{}:{}.{}".format(*place)])
        return host

    def read(self, offset: int, size: int) -> int:
        """Read the address, or data of the function that it names. Where nothing is there are all ones."""
        ones = int.from_bytes(b"\xff" * size, "little")
        if offset >= self.DATA:
            space, register = self._chosen(offset)
            return ones if space is None else int.from_bytes(space[register : register + size], "little")
        if size == 4:
            return int(self._address)
        if size == 1 and offset == self.RESET_CONTROL:
            return self._reset_control.read(0, 1)
        return ones

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the address, or data of the function that it names."""
        if offset >= self.DATA:
            self._put(offset, value.to_bytes(size, "little"))
        elif size == 4:
            self._address = Address(value & ADDRESS_BITS)
        elif size == 1 and offset == self.RESET_CONTROL:
            self._reset_control.write(0, 1, value)

    def _put(self, offset: int, data: bytes) -> None:
        space, register = self._chosen(offset)
        if space is not None:
            for i, byte in enumerate(data, register):
                mask = self._masks[self._address.place][i]
                space[i] = space[i] & ~mask | byte & mask

    def _chosen(self, offset: int) -> tuple[bytearray | None, int]:
        """Return the space that CONFIG_ADDRESS names, if it is there, and the register in it."""
        space = self._spaces.get(self._address.place) if self._address.enable else None
        return space, int(Address(register=self._address.register)) + offset - self.DATA
