"""Port I/O: the emulator neither checks nor intercepts it, so the engine makes it stop.

* IN and OUT call a hook of the emulator before they take effect. There the engine records the processor, and asks to
  stop. With the counted clock every instruction ends with a look at that request. With the free clock only blocks do,
  so a code hook goes behind each instruction: its callback does nothing, but there the emulator looks too.
* INS and OUTS access memory before they call that hook, so a code hook goes on each, and the engine stops there.

Each newly translated block is looked at once. If it needs hooks, it is translated again with them.
"""

from __future__ import annotations

from collections.abc import Callable

from hvemu.engine import native, scan

_KNOWN = 1 << 16
_IDLE = 64


class Sites:
    """The code hooks of one engine. Sites are linear addresses (gva), whatever is mapped there now.

    *on_string* is called when a string I/O instruction is about to run, *on_stale* when other code lies behind the
    sites now, which runs through their hooks and does no I/O.
    """

    def __init__(
        self, handle: int, *, counted: bool, on_string: Callable[[], None], on_stale: Callable[[], None]
    ) -> None:
        self._handle, self._counted, self._on_stale = handle, counted, on_stale
        self.suspicious = scan.may_have_string_io if counted else scan.may_have_io
        self._known: set[tuple[int, bytes]] = set()
        self._strings: dict[int, int] = {}
        self._after: dict[int, int] = {}
        self._idle = 0
        self._on_string = native.CodeCallback(lambda *_: on_string())
        self._on_after = native.CodeCallback(self._pass)

    def is_new(self, gva: int, code: bytes) -> bool:
        """Whether a suspicious block has not been planted yet."""
        return (gva, code) not in self._known

    def plant(self, gva: int, code: bytes, bits: int) -> bool:
        """Put the hooks that the block *code* needs; return whether there were new ones: then translate again."""
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known.add((gva, code))
        count = len(self._strings) + len(self._after)
        for site, after, is_string in scan.io_instructions(code, gva, bits):
            if is_string:
                self._hook(self._strings, site, self._on_string)
            if not self._counted:
                self._hook(self._after, after, self._on_after)
        return len(self._strings) + len(self._after) > count

    def _hook(self, sites: dict[int, int], gva: int, callback: object) -> None:
        if gva not in sites:
            sites[gva] = native.hook_add(self._handle, native.HOOK_CODE, callback, begin=gva, end=gva)

    def hold(self, gva: int) -> bool:
        """Whether there is a hook at *gva*."""
        return gva in self._after or gva in self._strings

    def used(self) -> None:
        """Note that port I/O is going on."""
        self._idle = 0

    def _pass(self, *_: object) -> None:
        self._idle += 1
        if self._idle == _IDLE:
            self._on_stale()

    def clear(self) -> None:
        """Remove every hook. The caller has all blocks translated again."""
        for hook in (*self._strings.values(), *self._after.values()):
            native.hook_del(self._handle, hook)
        self._strings.clear()
        self._after.clear()
        self._known.clear()
        self._idle = 0
