"""The guest's code as the processor would fetch it, and the physical pages where translated code lies.

The emulator's own read of virtual memory is safe only while the TLB holds the page: on a miss it walks the tables, and
a second-level fault on that walk, outside a run, ends the host process. So a page is brought into the TLB first, by the
one call that survives such a fault.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable

from hvemu.engine import native
from hvemu.engine.boot import FAULT_ADDRESS
from hvemu.engine.second_level import PAGE
from hvemu.engine.state import EngineState
from hvemu.x86.decode import LONGEST, Truncated, decode
from hvemu.x86.segments import is_canonical
from hvemu.x86.vectors import Fault

_UNTOUCHED = struct.pack("<Q", 0x5EED_5EED_5EED_5EED)  # not canonical, so no fault has this address
_LA57 = 1 << 12
_CPL = 3
_GRANULE, _GRANULES = 0x1_0000, 256


class Code:
    """Reads code at linear addresses (gva), through the translations of the stopped processor."""

    def __init__(self, handle: int, hidden: mmap.mmap, ram: mmap.mmap) -> None:
        self._handle, self._hidden, self._ram = handle, hidden, ram
        self._buffer = ctypes.create_string_buffer(LONGEST)
        self._hpa = ctypes.c_uint64()
        self._pages: dict[tuple[int, bool], int] = {}  # (gva of a page, whether for users): hpa
        self._cr3 = 0

    # -- remembered, until something flushes the TLB ----------------------------------------------------------------

    def forget(self) -> None:
        """Note that the TLB is flushed."""
        self._pages.clear()

    def remembered(self, state: EngineState) -> bytes:
        """Return 15 bytes at RIP, or none unless they lie in a page from which code was read lately."""
        offset = state.linear_rip % PAGE
        hpa = self._pages.get(self._key(state))
        if hpa is None or offset > PAGE - LONGEST:
            return b""
        return self._ram[hpa + offset : hpa + offset + LONGEST]

    def _key(self, state: EngineState) -> tuple[int, bool]:
        if state.cr[3] != self._cr3:  # a task switch flushes too
            self._cr3 = state.cr[3]
            self.forget()
        return state.linear_rip // PAGE, state.hflags & _CPL == _CPL

    # -- as the emulator sees it ------------------------------------------------------------------------------------

    @staticmethod
    def is_canonical(gva: int, cr4: int) -> bool:
        """Whether *gva* can be translated at all."""
        return is_canonical(gva, la57=bool(cr4 & _LA57))

    def reach(self, gva: int, cr4: int) -> bool:
        """Whether the processor can fetch from the page of *gva*; if so, the page is in the TLB."""
        if not self.is_canonical(gva, cr4):
            return False
        hidden, where = self._hidden, slice(FAULT_ADDRESS, FAULT_ADDRESS + 8)
        old, hidden[where] = hidden[where], _UNTOUCHED
        last = gva | PAGE - 1
        native.remove_blocks(self._handle, last, last + 1)
        is_there = hidden[where] == _UNTOUCHED
        hidden[where] = old
        return is_there

    def instruction(self, state: EngineState, sync: Callable[[], None]) -> bytes:
        """Return the bytes at RIP: 15, or fewer before the end of a page where the instruction does not cross it.

        *sync* gives the emulator the registers of *state*.
        """
        sync()
        gva, cr4 = state.linear_rip, state.cr[4]
        first = min(LONGEST, PAGE - gva % PAGE)
        code = self._read(gva, first) if self.reach(gva, cr4) else b""
        if code and (hpa := self.hpa(gva)) is not None and hpa < len(self._ram):
            self._pages[self._key(state)] = hpa - gva % PAGE
        if code and first < LONGEST and not is_whole(code, state.code_bits):
            following = (gva + first) & state.linear_mask
            if self.reach(following, cr4):
                code += self._read(following, LONGEST - first)
        return code

    def _read(self, gva: int, size: int) -> bytes:
        failed = native.vmem_read(self._handle, gva, native.FETCH, self._buffer, size)
        return b"" if failed else self._buffer.raw[:size]

    def block(self, gva: int, size: int) -> bytes:
        """Return the bytes of a block that has just been translated: its pages are in the TLB."""
        buffer = ctypes.create_string_buffer(size)
        failed = native.vmem_read(self._handle, gva, native.FETCH, buffer, size)
        return b"" if failed else buffer.raw

    def hpa(self, gva: int) -> int | None:
        """Return where the code at *gva* lies, for a page that is in the TLB."""
        failed = native.vmem_translate(self._handle, gva, native.FETCH, ctypes.byref(self._hpa))
        return None if failed else self._hpa.value


def is_whole(code: bytes, bits: int) -> bool:
    """Whether *code* holds all of its first instruction, or enough of it to know that it is none."""
    try:
        decode(code, bits)
    except Truncated:
        return False
    except Fault:
        return True
    return True


class CodePages:
    """The physical pages that hold translated code.

    The emulator notices a store to such a page, except through a mapping that cannot be executed: after its first store
    it takes that mapping for data. A page with a memory hook it never takes for data. So where code lies there is a
    hook, for a kind of access that cannot happen. Stores near code are as slow then as through an executable mapping.
    """

    def __init__(self, handle: int) -> None:
        self._handle, self._pages = handle, set[int]()
        self._granules: dict[int, int] | None = {}
        self._callback = native.MemoryCallback(lambda *_: False)

    def add(self, hpa: int) -> None:
        """Note that a block was translated at *hpa*."""
        self._pages.add(hpa // PAGE)
        if self._granules is not None and (granule := hpa // _GRANULE) not in self._granules:
            self._watch(self._granules, granule)
            native.flush_tlb(self._handle)  # some mapping of this page may have been taken for data already

    def _watch(self, granules: dict[int, int], granule: int) -> None:
        """Hook one more granule; beyond a certain number the emulator's list of hooks is slower than slow stores."""
        first = granule * _GRANULE
        if len(granules) < _GRANULES:
            end = first + _GRANULE - 1
            granules[granule] = native.hook_add(
                self._handle, native.HOOK_FETCH_PROT, self._callback, begin=first, end=end
            )
            return
        native.hook_add(self._handle, native.HOOK_FETCH_PROT, self._callback)
        for hook in granules.values():
            native.hook_del(self._handle, hook)
        self._granules = None

    def hold(self, hpa: int, size: int) -> bool:
        """Whether translated code may lie in the *size* bytes from *hpa*."""
        return not self._pages.isdisjoint(range(hpa // PAGE, (hpa + size - 1) // PAGE + 1))

    def forget(self) -> None:
        """Note that no block is left."""
        self._pages.clear()
