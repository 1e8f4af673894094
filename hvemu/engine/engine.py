"""Unicorn with its traps armed: run until something sensitive is about to happen, then say what.

Unicorn's x86 is QEMU's TCG, whose AMD-SVM intercepts are still compiled in. One VMRUN at start puts the emulated
processor into SVM guest mode; from then on sensitive instructions stop natively, before they execute, with precise
state and without a Python call per instruction. SVM ends in this package: above it, hvemu builds what it teaches.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Iterable
from threading import get_ident

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc

from hvemu.engine import native
from hvemu.engine.boot import (
    HIDDEN,
    HIDDEN_SIZE,
    TABLES,
    enter_guest_mode,
    find_counter,
    require_version,
    verify,
)
from hvemu.engine.code import Code, CodePages
from hvemu.engine.hooks import HERE, STRING, Hooks
from hvemu.engine.layout import MSR_SLOTS, STATE_OFFSET, differs
from hvemu.engine.scan import is_string_io
from hvemu.engine.second_level import PAGE, SecondLevel
from hvemu.engine.single_step import SingleStep
from hvemu.engine.state import EngineState
from hvemu.engine.stops import Stops
from hvemu.engine.traps import ALWAYS, BIT, GIF, Kind, Stop
from hvemu.x86.decode import Truncated, decode
from hvemu.x86.vectors import Fault, Vector

_CPU_MODEL = 26  # Icelake-Server: decodes SYSENTER in 64-bit mode, as Intel does
_CR_REGISTERS = {0: 50, 3: 53, 4: 54}
_EFLAGS_REGISTER = 25
_JUMPS = ("j", "ljmp")  # JMP, Jcc and the far one
_RETRY = 0.0005  # seconds between two attempts to end a run


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Engine:
    """One emulated processor with *ram_size* bytes of host-physical memory.

    *state* is valid between runs; writes to it count at the next run. *ram* is the physical memory, indexed by hpa: say
    `code_changed` after writing where code may lie. *instructions* counts what retired natively (with the counted
    clock; the free clock leaves it at zero). Raises EngineError when the installed Unicorn is not the verified one.
    """

    def __init__(self, ram_size: int, *, counted: bool = True) -> None:
        require_version()
        self._uc = Uc(UC_ARCH_X86, UC_MODE_64)
        self._uc.ctl_set_cpu_model(_CPU_MODEL)
        self._h = self._uc._uch.value  # noqa: SLF001 - the handle that the raw calls need
        self.ram, self._hidden = mmap.mmap(-1, ram_size), mmap.mmap(-1, HIDDEN_SIZE)
        self._uc.mem_map_ptr(0, ram_size, 7, _address(self.ram))
        self._uc.mem_map_ptr(HIDDEN, HIDDEN_SIZE, 7, _address(self._hidden))
        self._uc.ctl_exits_enabled(True)
        context = ctypes.c_void_p()
        if native.context_alloc(self._h, ctypes.byref(context)):
            raise differs("the context")
        self._context: int = context.value or 0
        self.counted, self.instructions = counted, 0
        self._interrupted, self._runner = False, 0
        self._reader, self._pages = Code(self._h, self._hidden, self.ram), CodePages(self._h)
        self._hooks = Hooks(self._h, self._context, self._reader, self._pages, counted=counted)
        verify(self._uc, self._context)
        self.state = EngineState.from_address(self._context + STATE_OFFSET)
        self.state.write_cr, self.state.read_flags = self.write_cr, self._read_flags
        self.second_level = self.machine_level = SecondLevel(self._hidden, HIDDEN, TABLES, HIDDEN_SIZE // 2)
        self.guest_level = SecondLevel(self._hidden, HIDDEN, HIDDEN_SIZE // 2, HIDDEN_SIZE)
        self._arm_traps()
        self._stops = Stops(self.state, self._hooks, self._reader, self._hidden, fetch=self.fetch, counted=counted)
        self._single = SingleStep(
            self._h, self.state, run=lambda: self._run(1, heed=False), fetch=self.fetch, flush=self.flush_code,
            here=lambda: self._hooks.record(HERE),
        )  # fmt: skip

    def _arm_traps(self) -> None:
        """Enter guest mode, by one VMRUN of a few instructions in hidden memory."""
        self.second_level.map(HIDDEN, HIDDEN, TABLES)
        enter_guest_mode(self._uc, self.state, self._sync, self._hidden, self.second_level.root, self._start)
        native.context_restore(self._h, self._context)
        self._hooks.counter, self._budget = find_counter(self._h, self.state.rip)
        if not self.counted:
            self._start(self.state.rip)  # one run without a limit drops the blocks that count
        self.second_level.unmap(HIDDEN, TABLES)
        self.flush_tlb()
        self._pages.forget()
        self.open_window(False)
        self.arm(())

    def _start(self, rip: int) -> int | None:
        self._hooks.code = None
        native.emu_start(self._h, rip, 0, 0, 0)
        return self._hooks.code

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, limit: int) -> Stop:
        """Run at most *limit* instructions from the current state; return why it stopped.

        With the free clock *limit* is not counted: only a stop or `interrupt` ends the run.
        """
        return self._run(limit, heed=True)

    def step(self) -> Stop:
        """Run one instruction, or one iteration of a repeated one; Kind.LIMIT means that it retired.

        `interrupt` does not end a step. Kind.WINDOW may come before or after the instruction.
        """
        if not self.counted:
            return self._single.step()
        state, before = self.state, self.instructions
        rip, registers = state.linear_rip, bytes(state.regs)
        stop = self._run(1, heed=False)
        if stop.kind is Kind.LIMIT and state.linear_rip == rip and bytes(state.regs) == registers and self._stores():
            # A store into its own block: the emulator drops the block, counts the store, and begins anew. Let it.
            stop = self._run(2, heed=False)
            self.instructions = before + (stop.kind is Kind.LIMIT or state.linear_rip != rip)
        return Stop(Kind.LIMIT) if state.linear_rip != rip and self._is_about_the_next(stop) else stop

    def _is_about_the_next(self, stop: Stop) -> bool:
        """Whether an instruction retired, and the next one cannot be fetched."""
        is_fault = stop.kind is Kind.SECOND_LEVEL or (stop.kind is Kind.EXCEPTION and stop.detail != Vector.DB)
        return is_fault and self._stops.ran > 0

    def _stores(self) -> bool:
        """Whether the instruction at RIP is no jump to itself, so that it has not run if nothing has changed."""
        try:
            return not decode(self.fetch(), self.state.code_bits).mnemonic.startswith(_JUMPS)
        except (Fault, Truncated):
            return False

    def step_through(self, gpa: int, hpa: int) -> Stop:
        """Step one instruction while the page at *gpa* is the writable page at *hpa*; then put the old mapping back.

        Raises MemoryError when the second level is full.
        """
        old = self.second_level.lookup(gpa)
        self.second_level.map(gpa, hpa, PAGE)
        self.flush_tlb()
        try:
            return self.step()
        finally:
            if old is None:
                self.second_level.unmap(gpa, PAGE)
            else:
                self.second_level.map(gpa, old.hpa + gpa % old.size, PAGE, writable=old.writable)
            self.flush_tlb()

    def interrupt(self) -> None:
        """End the current run, or the next one if there is none, with Kind.LIMIT.

        May be called from any thread, where it returns when the run has ended, and from a signal handler.
        """
        self._interrupted = True
        if self._runner == get_ident():
            threading.Thread(target=self.interrupt, daemon=True).start()  # this thread cannot wait for itself
            return
        while self._interrupted and self._runner:  # again and again: the emulator forgets it while it is starting
            if self.counted:
                self._budget.value = 0
            else:
                native.emu_stop(self._h)
            time.sleep(_RETRY)

    def _run(self, limit: int, *, heed: bool) -> Stop:
        """Run; *heed* interrupts, or leave them to the next run."""
        h, context, hooks, stops, state, left = self._h, self._context, self._hooks, self._stops, self.state, limit
        self._runner = get_ident()
        try:
            while (left > 0 or not self.counted) and not (heed and self._interrupted):
                hooks.code = None
                native.context_restore(h, context)
                error = native.emu_start(h, state.rip, 0, 0, left if self.counted else 0)
                assert not error, f"the emulator reports error {error}"
                code = hooks.code
                if code is None or hooks.chores or code == STRING:
                    code, ran = self._do_chores(code)
                if code is not None:
                    stop, ran = stops.explain(code), stops.ran
                    if stop is not None:
                        self.instructions += ran
                        return stop
                self.instructions += ran
                left -= ran
            stops.end_shadow()
            if heed:
                self._interrupted = False
        finally:
            self._runner = 0
        return Stop(Kind.LIMIT)

    def _do_chores(self, code: int | None) -> tuple[int | None, int]:
        """Do what the callbacks asked for; return the exit that is left, and what ran if there is none."""
        hooks = self._hooks
        if code is None:
            native.context_save(self._h, self._context)
        if code == STRING and not is_string_io(self.fetch(), self.state.code_bits):
            code, hooks.stale = None, True
        rescan, stale = hooks.rescan, hooks.stale
        hooks.rescan, hooks.stale, hooks.chores = None, False, False
        if stale:
            hooks.sites.clear()
            self.flush_code()
        if rescan is not None and hooks.sites.plant(*rescan, self.state.code_bits):
            self.flush_code()  # in any address space: a hook is in every block at its address, or in none
        if code is None:
            self.state.settle(lazy=True)
        if not self.counted:
            return code, 0
        # the count includes the instruction before which it stopped, if that had begun
        return code, hooks.counter.value - (rescan is None)

    # -- traps --------------------------------------------------------------------------------------------------

    def arm(self, kinds: Iterable[Kind]) -> None:
        """Stop at *kinds*, besides those that are always armed."""
        word = 0
        for kind in (*ALWAYS, *kinds):
            word |= BIT[kind]
        self.state.intercept = word

    def use_level(self, table: SecondLevel) -> None:
        """Let physical addresses be translated by *table*: `machine_level` or `guest_level`."""
        self.second_level = table
        self.state.nested_cr3 = table.root
        self.flush_tlb()

    def disarm(self) -> None:
        """Let everything pass that the emulator can do itself, until `arm` and `arm_registers`: for a single step."""
        self.arm(())
        self.state.intercept &= ~BIT[Kind.INVLPG]
        self.arm_registers(cr_read=0, cr_write=0, dr_read=0, dr_write=0)

    def arm_registers(self, *, cr_read: int, cr_write: int, dr_read: int, dr_write: int) -> None:
        """Stop at accesses to control and debug registers; bit n of a mask stands for register n."""
        state = self.state
        state.intercept_cr_read, state.intercept_cr_write = cr_read, cr_write
        state.intercept_dr_read, state.intercept_dr_write = dr_read, dr_write

    def open_window(self, is_open: bool) -> None:
        """Stop with Kind.WINDOW as soon as an external interrupt could be delivered."""
        state = self.state
        state.hflags2 = state.hflags2 | GIF if is_open else state.hflags2 & ~GIF

    # -- state --------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        native.context_restore(self._h, self._context)

    def write_cr(self, number: int, value: int) -> None:
        """Write CR0, CR3 or CR4. The caller has checked *value*: what is stored is what is given."""
        self._sync()
        native.reg_write(self._h, _CR_REGISTERS[number], ctypes.byref(ctypes.c_uint64(value)))
        native.context_save(self._h, self._context)
        self.state.cr[number] = value
        self.state.refresh()
        self._reader.forget()

    def _read_flags(self) -> int:
        value = ctypes.c_uint64()
        native.context_reg_read(self._context, _EFLAGS_REGISTER, ctypes.byref(value))
        return value.value

    def read_msr(self, index: int) -> int:
        """Read an MSR that the emulator itself consults (see layout.MSR_SLOTS). Raises KeyError for others."""
        return ctypes.c_uint64.from_address(self._context + MSR_SLOTS[index]).value

    def write_msr(self, index: int, value: int) -> None:
        """Write an MSR that the emulator itself consults. Raises KeyError for others."""
        ctypes.c_uint64.from_address(self._context + MSR_SLOTS[index]).value = value

    def snapshot(self) -> bytes:
        """Return the registers, hidden ones included. RAM is the caller's."""
        return ctypes.string_at(ctypes.addressof(self.state), ctypes.sizeof(self.state))

    def restore(self, registers: bytes) -> None:
        """Return to a `snapshot`, of this engine or another one. The emulator's own breakpoints stay as they are."""
        pointers = bytes(self.state.breakpoints)
        ctypes.memmove(ctypes.addressof(self.state), registers, len(registers))
        ctypes.memmove(self.state.breakpoints, pointers, len(pointers))
        self._sync()
        self.flush_tlb()

    # -- translation --------------------------------------------------------------------------------------------

    def flush_tlb(self) -> None:
        """Forget cached translations, first and second level."""
        self._reader.forget()
        native.flush_tlb(self._h)

    def flush_code(self) -> None:
        """Forget all translated blocks."""
        native.flush_blocks(self._h)
        self._pages.forget()

    def code_changed(self, hpa: int, size: int) -> None:
        """Take note that the host wrote the *size* bytes at *hpa*: blocks that were translated from them are void."""
        if self._pages.hold(hpa, size):
            self.flush_code()

    def fetch(self) -> bytes:
        """Return the code bytes at RIP as the processor would fetch them.

        15 bytes, or fewer before the end of a page unless the instruction crosses it; none where it cannot fetch.
        """
        return self._reader.remembered(self.state) or self._reader.instruction(self.state, self._sync)
