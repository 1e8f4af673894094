"""The firmware configuration device of QEMU (its "Firmware Configuration Device" specification), without DMA."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from hvemu.devices.device import State

SIGNATURE, IDENTITY, UUID, RAM_SIZE, NOGRAPHIC, CPUS, BOOT_MENU, MAX_CPUS, FILES = 0, 1, 2, 3, 4, 5, 0xE, 0xF, 0x19
FIRST_FILE = 0x20
TRADITIONAL = 1
"""What the identity says: items are read through the data port, and in no other way."""
E820_RAM = 1


def directory(files: Mapping[str, bytes]) -> dict[int, bytes]:
    """Return *files* as items, by key, with the directory that lists them, sorted by name."""
    names = sorted(files)
    entries = [
        struct.pack(">IHH56s", len(files[name]), key, 0, name.encode()) for key, name in enumerate(names, FIRST_FILE)
    ]
    listing = struct.pack(">I", len(names)) + b"".join(entries)
    return {FILES: listing, **{key: files[name] for key, name in enumerate(names, FIRST_FILE)}}


class FwCfg:
    """Offset 0 selects an item by a 16-bit write, offset 1 reads its bytes, one after the other.

    *ram* is the size of memory in bytes, *cpus* how many processors there are, *files* more items by name.
    """

    SELECT, DATA = 0, 1

    def __init__(self, *, ram: int, cpus: int = 1, files: Mapping[str, bytes] | None = None) -> None:
        e820 = struct.pack("<QQI", 0, ram, E820_RAM)
        self._items = {
            SIGNATURE: b"QEMU",
            IDENTITY: struct.pack("<I", TRADITIONAL),
            UUID: bytes(16),
            RAM_SIZE: struct.pack("<Q", ram),
            NOGRAPHIC: struct.pack("<H", 0),
            CPUS: struct.pack("<H", cpus),
            BOOT_MENU: struct.pack("<H", 0),
            MAX_CPUS: struct.pack("<H", cpus),
            **directory({"etc/e820": e820, **(files or {})}),
        }
        self._selected = self._offset = 0

    def __repr__(self) -> str:
        return f"FwCfg(item={self._selected:#x} offset={self._offset:#x})"

    def state(self) -> State:
        """Return which item is read, and where, and all items."""
        items = {f"{key:#x}": data.hex() for key, data in self._items.items()}
        return {"selected": self._selected, "offset": self._offset, "items": items}

    @classmethod
    def from_state(cls, state: State) -> FwCfg:
        """Return a device as it was."""
        device = cls(ram=0)
        device._selected, device._offset = state["selected"], state["offset"]
        device._items = {int(key, 0): bytes.fromhex(data) for key, data in state["items"].items()}
        return device

    def read(self, offset: int, size: int) -> int:
        """Read the next byte of the item; after its end, and of an item that is not there, 0."""
        if offset != self.DATA or size != 1:
            return 0
        item = self._items.get(self._selected, b"")
        if self._offset >= len(item):
            return 0
        self._offset += 1
        return item[self._offset - 1]

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item, from its beginning. Items cannot be written."""
        if offset == self.SELECT and size == 2:
            self._selected, self._offset = value, 0
