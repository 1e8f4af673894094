"""What the emulator calls during a run: callbacks record, the engine acts when the run has ended.

No Python exception may cross one of them, and none may walk page tables: see engine/code.py.
"""

from __future__ import annotations

from ctypes import c_size_t

from hvemu.engine import native
from hvemu.engine.code import Code, CodePages
from hvemu.engine.layout import STATE_OFFSET, RawState
from hvemu.engine.sites import Sites
from hvemu.engine.traps import GIF, VINTR, VMEXIT, Kind

SYSCALL, SYSENTER, PORT, STRING, HERE = range(0x10000, 0x10005)  # exit codes beside the emulator's own numbers
KINDS = {SYSCALL: Kind.SYSCALL, SYSENTER: Kind.SYSENTER, PORT: Kind.IO, STRING: Kind.IO, HERE: Kind.LIMIT}
BETWEEN = frozenset({STRING, HERE})
"""Recorded between two instructions, where the emulator itself would not have left its run."""
_INVALID_OPCODE = 6
WINDOW_EXIT = VMEXIT + VINTR


class Hooks:
    """The callbacks of one engine and what they recorded.

    *code* is the exit code, with the registers in the context; None when the run was ended for another reason: the
    limit, a new block with I/O in it (*rescan*: its gva and bytes), or *stale* sites. *chores* says that one of the
    last two waits to be done.
    """

    def __init__(self, handle: int, context: int, reader: Code, pages: CodePages, *, counted: bool) -> None:
        self._handle, self._context, self._reader, self._pages = handle, context, reader, pages
        self._state = RawState.from_address(context + STATE_OFFSET)
        self.sites = Sites(handle, counted=counted, on_string=lambda: self.record(STRING), on_stale=self._on_stale)
        self.counter = c_size_t()  # the engine puts the emulator's own count here, once it is found
        self.code: int | None = None
        self.count_at_port = 0
        self.rescan: tuple[int, bytes] | None = None
        self.stale = self.chores = False
        self._install()

    def _install(self) -> None:
        self._callbacks = (
            (native.HOOK_INTR, native.IntrCallback(self._on_interrupt)),
            (native.HOOK_INVALID, native.InvalidCallback(self._on_invalid)),
            (native.HOOK_EDGE, native.EdgeCallback(self._on_edge)),
            (native.HOOK_INSN, native.InsnCallback(lambda *_: self.record(SYSCALL)), native.INSN_SYSCALL),
            (native.HOOK_INSN, native.InsnCallback(lambda *_: self.record(SYSENTER)), native.INSN_SYSENTER),
            (native.HOOK_INSN, native.InCallback(self._on_port), native.INSN_IN),
            (native.HOOK_INSN, native.OutCallback(self._on_port), native.INSN_OUT),
        )
        for kind, callback, *instruction in self._callbacks:
            native.hook_add(self._handle, kind, callback, *instruction)

    def record(self, code: int) -> None:
        """Keep the registers and the exit *code*, unless there is one already, and end the run."""
        if self.code is None:
            native.context_save(self._handle, self._context)
            self.code = code
        native.emu_stop(self._handle)

    def _on_interrupt(self, _uc: int, number: int, _data: object) -> None:
        is_first = self.code is None
        self.record(number)
        if number == WINDOW_EXIT:
            self._close_window(for_good=is_first)

    def _close_window(self, *, for_good: bool) -> None:
        """Close the window now: the emulator would report it again before it looks at emu_stop."""
        state, flags = self._state, self._state.hflags2
        state.hflags2 = flags & ~GIF
        native.context_restore(self._handle, self._context)
        if not for_good:  # the run has stopped for another reason already, and the window is still to be reported
            state.hflags2 = flags

    def _on_invalid(self, *_: object) -> bool:
        """INT 6: Unicorn takes its vector for an invalid instruction."""
        self.record(_INVALID_OPCODE)
        return True

    def _on_port(self, *_: object) -> int:
        if self.code is None:
            self.count_at_port = self.counter.value
            self.sites.used()
        self.record(PORT)
        return 0

    def _on_stale(self) -> None:
        self.stale = self.chores = True
        native.emu_stop(self._handle)

    def _on_edge(self, _uc: int, current: object, _previous: object, _data: object) -> None:
        block, reader = current.contents, self._reader  # type: ignore[attr-defined]
        gva, size = block.pc, block.size
        for end in (gva, gva + size - 1):
            if (hpa := reader.hpa(end)) is not None:
                self._pages.add(hpa)
        code = reader.block(gva, size)
        if self.sites.suspicious(code) and self.sites.is_new(gva, code):
            self.rescan, self.chores = (gva, code), True
            native.emu_stop(self._handle)
