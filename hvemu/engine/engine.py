"""Unicorn with its traps armed: run until something sensitive is about to happen, then say what.

Unicorn's x86 is QEMU's TCG, whose AMD-SVM intercepts are still compiled in. One VMRUN at start puts the emulated
processor into SVM guest mode; from then on sensitive instructions stop natively, before they execute, with precise
state and without a Python call per instruction. SVM ends in this package: above it, hvemu builds what it teaches.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterable

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc

from hvemu.engine import native
from hvemu.engine.boot import HIDDEN, HIDDEN_SIZE, TABLES, enter_guest_mode, verify
from hvemu.engine.layout import MSR_SLOTS, STATE_OFFSET, differs
from hvemu.engine.scan import io_sites, is_io, suspicious
from hvemu.engine.second_level import PAGE, SecondLevel
from hvemu.engine.state import EngineState
from hvemu.engine.traps import ALWAYS, BIT, VMEXIT, Kind, Stop, decode_table
from hvemu.x86.decode import LONGEST, Truncated
from hvemu.x86.vectors import Fault

_CPU_MODEL = 26  # Icelake-Server: decodes SYSENTER in 64-bit mode, as Intel does
_CR_REGISTERS = {0: 50, 3: 53, 4: 54}
_EFLAGS_REGISTER = 25
_GIF = 1
_NESTED_FAULT_ADDRESS = 0x80
_SENTINEL_COUNT = 0x5AFE_C0DE
_STRUCT_SEARCH = 0x2000
_SYSCALL_CODE, _SYSENTER_CODE, _IO_CODE = 0x10000, 0x10001, 0x10002  # beside the emulator's own numbers
_PAGE_FAULT = 14
_AFTER = frozenset({Kind.SOFTWARE_INT, Kind.WINDOW, Kind.LIMIT})


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Engine:
    """One emulated processor with *ram_size* bytes of host-physical memory.

    *state* is valid between runs; writes to it count at the next run. *ram* is the physical memory, indexed by hpa.
    *instructions* counts what retired natively (with the counted clock; the free clock leaves it at zero).
    Raises EngineError when the installed Unicorn is not the verified one.
    """

    def __init__(self, ram_size: int, *, counted: bool = True) -> None:
        self._uc = Uc(UC_ARCH_X86, UC_MODE_64)
        self._uc.ctl_set_cpu_model(_CPU_MODEL)
        self._h = self._uc._uch.value  # noqa: SLF001 - the handle that the raw calls need
        self.ram, self._hidden = mmap.mmap(-1, ram_size), mmap.mmap(-1, HIDDEN_SIZE)
        self._uc.mem_map_ptr(0, ram_size, 7, _address(self.ram))
        self._uc.mem_map_ptr(HIDDEN, HIDDEN_SIZE, 7, _address(self._hidden))
        self._uc.ctl_exits_enabled(True)
        context = ctypes.c_void_p()
        if native.library.uc_context_alloc(ctypes.c_void_p(self._h), ctypes.byref(context)):
            raise differs("the context")
        self._context: int = context.value or 0
        self.counted, self.instructions = counted, 0
        self._codes = decode_table()
        self._code: int | None = None
        self._sites: dict[int, int] = {}
        self._known: set[tuple[int, bytes]] = set()
        self._rescan: tuple[int, int] | None = None
        self._stale: int | None = None
        self._site = 0
        self._hook_callbacks()
        verify(self._uc, self._context)
        self.state = EngineState.from_address(self._context + STATE_OFFSET)
        self.state.write_cr, self.state.read_flags = self.write_cr, self._read_flags
        self.second_level = SecondLevel(self._hidden, HIDDEN, TABLES)
        self.second_level.map(HIDDEN, HIDDEN, TABLES)  # for the guest's first instruction only
        enter_guest_mode(self._uc, self.state, self._sync, self._hidden, self.second_level.root, self._start_raw)
        self._counter = self._find_counter()
        self._finish_arming()

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, limit: int) -> Stop:
        """Run at most *limit* instructions from the current state; return why it stopped.

        With the free clock *limit* is not counted: `interrupt` ends the run.
        """
        state, h, context = self.state, self._h, self._context
        left = limit
        while True:
            self._code = None
            native.context_restore(h, context)
            native.emu_start(h, state.rip, 0, 0, left if self.counted else 0)
            code = self._code
            ran = self._counter.value if self.counted else 0
            if code is not None and (code != _IO_CODE or self._is_io()):
                stop = self._stop(code)
                if stop.kind not in _AFTER:
                    ran -= 1
                self.instructions += ran
                return stop
            if code is None:
                native.context_save(h, context)
            else:
                ran -= 1
            ran = min(ran, left)  # the emulator counts one more when it stops at the limit
            self.instructions += ran
            left -= ran
            if not self._tend_sites() or (self.counted and left <= 0):
                return Stop(Kind.LIMIT)

    def step(self) -> Stop:
        """Run one instruction. Kind.LIMIT means that it retired."""
        return self.run(1)

    def interrupt(self) -> None:
        """End the current run at the next block boundary. May be called from another thread."""
        native.emu_stop(self._h)

    def _stop(self, code: int) -> Stop:
        kind_detail = self._codes.get(code)
        if kind_detail is None:
            assert code < VMEXIT, f"unexpected exit {code:#x}"
            self.state.exception_is_int = 0
            return Stop(Kind.SOFTWARE_INT, code)
        kind, detail = kind_detail
        if kind is Kind.EXCEPTION:
            return self._exception(detail)
        if kind is Kind.SECOND_LEVEL:
            gpa = struct.unpack_from("<Q", self._hidden, _NESTED_FAULT_ADDRESS)[0]
            return Stop(kind, 0, self.state.error_code & 0x1F, gpa)
        if kind is Kind.MSR:
            return Stop(kind, self.state.error_code & 1)
        if kind is Kind.WINDOW:
            self.open_window(False)
        return Stop(kind, detail)

    def _exception(self, vector: int) -> Stop:
        state = self.state
        if state.exception_is_int:  # INT n, INT3, INTO: sticky, or the next exit would report a stale RIP
            state.exception_is_int = 0
            return Stop(Kind.SOFTWARE_INT, vector)
        address = struct.unpack_from("<Q", self._hidden, _NESTED_FAULT_ADDRESS)[0] if vector == _PAGE_FAULT else 0
        return Stop(Kind.EXCEPTION, vector, state.error_code & 0xFFFF, address)

    # -- traps --------------------------------------------------------------------------------------------------

    def arm(self, kinds: Iterable[Kind]) -> None:
        """Stop at *kinds*, besides those that are always armed."""
        word = 0
        for kind in (*ALWAYS, *kinds):
            word |= BIT[kind]
        self.state.intercept = word

    def arm_registers(self, *, cr_read: int, cr_write: int, dr_read: int, dr_write: int) -> None:
        """Stop at accesses to control and debug registers; bit n of a mask stands for register n."""
        state = self.state
        state.intercept_cr_read, state.intercept_cr_write = cr_read, cr_write
        state.intercept_dr_read, state.intercept_dr_write = dr_read, dr_write

    def open_window(self, is_open: bool) -> None:
        """Stop with Kind.WINDOW as soon as an external interrupt could be delivered."""
        state = self.state
        state.hflags2 = state.hflags2 | _GIF if is_open else state.hflags2 & ~_GIF

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
        """Return to a `snapshot`, of this engine or another one."""
        ctypes.memmove(ctypes.addressof(self.state), registers, len(registers))
        self._sync()
        self.flush_tlb()

    # -- translation --------------------------------------------------------------------------------------------

    def flush_tlb(self) -> None:
        """Forget cached translations, first and second level."""
        native.library.uc_ctl(ctypes.c_void_p(self._h), native.CTL_TLB_FLUSH_WRITE)

    def flush_code(self) -> None:
        """Forget all translated blocks."""
        native.library.uc_ctl(ctypes.c_void_p(self._h), native.CTL_TB_FLUSH_WRITE)

    # -- callbacks: they record, `run` acts -----------------------------------------------------------------------

    def _hook_callbacks(self) -> None:
        h, save, stop = self._h, native.context_save, native.emu_stop
        context = self._context

        def on_interrupt(_uc: int, number: int, _data: object) -> None:
            if self._code is None:
                save(h, context)
                self._code = number
            stop(h)

        def on_syscall(_uc: int, _data: object) -> None:
            on_interrupt(0, _SYSCALL_CODE, None)

        def on_sysenter(_uc: int, _data: object) -> None:
            on_interrupt(0, _SYSENTER_CODE, None)

        self._codes |= {_SYSCALL_CODE: (Kind.SYSCALL, 0), _SYSENTER_CODE: (Kind.SYSENTER, 0), _IO_CODE: (Kind.IO, 0)}
        self._intr = native.IntrCallback(on_interrupt)
        self._syscall, self._sysenter = native.InsnCallback(on_syscall), native.InsnCallback(on_sysenter)
        self._io, self._edge = native.CodeCallback(self._on_io), native.EdgeCallback(self._on_edge)
        self._add_hook(native.HOOK_INTR, self._intr)
        self._add_hook(native.HOOK_INSN, self._syscall, native.INSN_SYSCALL)
        self._add_hook(native.HOOK_INSN, self._sysenter, native.INSN_SYSENTER)
        self._add_hook(native.HOOK_EDGE, self._edge)

    def _add_hook(self, kind: int, callback: object, *extra: int, begin: int = 1, end: int = 0) -> int:
        handle = ctypes.c_size_t()
        span = (ctypes.c_uint64(begin), ctypes.c_uint64(end))
        more = tuple(ctypes.c_int(e) for e in extra)
        h = ctypes.c_void_p(self._h)
        if native.library.uc_hook_add(h, ctypes.byref(handle), kind, callback, None, *span, *more):
            raise differs(f"hook {kind:#x}")
        return handle.value

    def fetch(self) -> bytes:
        """Return the code bytes at RIP as the processor would fetch them: 15, or fewer before an unmapped page."""
        return self._code_at((self.state.segs[1].base + self.state.rip) & self.state.linear_mask, LONGEST)

    def _code_at(self, gva: int, size: int) -> bytes:
        """Return up to *size* code bytes at *gva*, fewer where the next page is not mapped."""
        buffer = ctypes.create_string_buffer(size)
        if not native.vmem_read(self._h, gva, native.FETCH, buffer, size):
            return buffer.raw
        first = PAGE - gva % PAGE
        if first < size and not native.vmem_read(self._h, gva, native.FETCH, buffer, first):
            return buffer.raw[:first]
        return b""

    def _on_edge(self, _uc: int, current: object, _previous: object, _data: object) -> None:
        block = current.contents  # type: ignore[attr-defined]
        code = self._code_at(block.pc, block.size)
        if suspicious(code) and (block.pc, code) not in self._known:
            self._rescan = (block.pc, block.size)
            native.emu_stop(self._h)

    def _on_io(self, _uc: int, gva: int, _size: int, _data: object) -> None:
        if self._code is None:
            native.context_save(self._h, self._context)
            self._code, self._site = _IO_CODE, gva
            native.emu_stop(self._h)

    # -- I/O sites ------------------------------------------------------------------------------------------------

    def _is_io(self) -> bool:
        """Whether there is still an I/O instruction at the hook that stopped; if not, the hook is to go."""
        try:
            if is_io(self.fetch(), self.state.code_bits):
                return True
        except (Fault, Truncated):
            pass  # other bytes now, and not even an instruction: the processor will say so when it gets there
        self._stale = self._site
        return False

    def _tend_sites(self) -> bool:
        """Do what the callbacks asked for; return whether there was anything, so that the run goes on."""
        rescan, stale = self._rescan, self._stale
        self._rescan = self._stale = None
        if stale is not None:  # other code now: the hook and the blocks that call it go
            native.hook_del(self._h, self._sites.pop(stale))
            self._known.clear()
            self.flush_code()
        if rescan is not None:
            self._plant(*rescan)
        return rescan is not None or stale is not None

    def _plant(self, gva: int, size: int) -> None:
        """Put a hook on every I/O instruction of the block and have it translated again."""
        code = self._code_at(gva, size)
        self._known.add((gva, code))
        new = [site for site in io_sites(code, gva, self.state.code_bits) if site not in self._sites]
        for site in new:
            self._sites[site] = self._add_hook(native.HOOK_CODE, self._io, begin=site, end=site)
        if new:
            self._uc.ctl_remove_cache(gva, gva + size)

    # -- start ----------------------------------------------------------------------------------------------------

    def _start_raw(self, rip: int) -> int | None:
        self._code = None
        native.emu_start(self._h, rip, 0, 0, 0)
        return self._code

    def _find_counter(self) -> ctypes.c_size_t:
        """Return the live count of executed instructions: the word before the limit that a sentinel marks."""
        native.context_restore(self._h, self._context)
        native.emu_start(self._h, self.state.rip, 0, 0, _SENTINEL_COUNT)
        for offset in range(0, _STRUCT_SEARCH, 8):
            if ctypes.c_size_t.from_address(self._h + offset).value == _SENTINEL_COUNT:
                return ctypes.c_size_t.from_address(self._h + offset - 8)
        raise differs("the instruction counter")

    def _finish_arming(self) -> None:
        if not self.counted:  # one uncounted run drops the counting blocks
            native.context_restore(self._h, self._context)
            native.emu_start(self._h, self.state.rip, 0, 0, 0)
        self.second_level.unmap(HIDDEN, TABLES)
        self.flush_tlb()
        self.open_window(False)
        self.arm(())
