"""The monitor's copies of the guest's descriptor tables, which the processor reads instead of them.

Kernel segments are put into ring 1. What the processor must not use by itself is marked not present, so that it traps:
gates and other system descriptors, and segments whose accessed bit it would have to set in the guest's own table.
"""

from __future__ import annotations

from hvemu.memory.physical import Physical
from hvemu.memory.shadow_tree import PAGE
from hvemu.techniques.ring import KERNEL_RING
from hvemu.x86.segments import DESCRIPTOR, Descriptor

TABLE = 0x10000
"""Bytes of the largest descriptor table."""
PAGES = TABLE // PAGE


def shadow(raw: int) -> Descriptor:
    """Return what stands in the monitor's table for the guest's 8-byte descriptor *raw*."""
    guest = Descriptor(raw)
    kind = guest.code_or_data
    return guest.replace(dpl=max(guest.dpl, KERNEL_RING), p=guest.p and kind is not None and kind.accessed)


class ShadowTable:
    """A copy in the *pages* (hpa) of *host* memory. *guest*: the bytes that it was made from."""

    def __init__(self, host: Physical, pages: list[int]) -> None:
        assert len(pages) == PAGES, pages
        self._host, self.pages = host, pages
        self.guest, self._copied = b"", bytearray(TABLE)

    def refresh(self, guest: bytes) -> None:
        """Follow the *guest*'s table: copy every descriptor that differs from what was there before."""
        if guest == self.guest:
            return
        self.guest, old = guest, self._copied
        for at in range(0, len(guest) - len(guest) % DESCRIPTOR, DESCRIPTOR):
            raw = guest[at : at + DESCRIPTOR]
            if raw != old[at : at + DESCRIPTOR]:
                copy = shadow(int.from_bytes(raw, "little"))
                self._host.write(self.pages[at // PAGE] + at % PAGE, DESCRIPTOR, copy)
                old[at : at + DESCRIPTOR] = raw
