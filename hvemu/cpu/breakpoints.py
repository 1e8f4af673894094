"""The breakpoints of the debug registers: on instructions, on data and on ports (SDM 3B "Debug Registers").

The engine's emulator has none on data, and forgets the others when registers are loaded by anything but a MOV. So while
DR7 enables one, the processor runs one instruction at a time and asks here, before it and after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from hvemu.cpu.accesses import Access, accesses, loads_ss, outer_accesses
from hvemu.cpu.linear import Linear
from hvemu.cpu.port_io import describe
from hvemu.x86.instruction import Instruction
from hvemu.x86.registers import BreakOn, Cr4, Dr6, Dr7, Gpr, Rflags
from hvemu.x86.segments import truncate
from hvemu.x86.state import CpuState
from hvemu.x86.vectors import Fault, Vector

_ON_DATA = (BreakOn.WRITE, BreakOn.ACCESS)
_PORT_IO = frozenset({"in", "out", "ins", "outs"})
_SIZES = (1, 2, 8, 4)  # bytes, by the LEN field
_LOADS_FLAGS = frozenset({"iret", "ljmp", "lcall"})  # RF too: from the stack, or with a task


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """Breakpoint *number*, which is enabled, on *size* bytes."""

    number: int
    on: BreakOn
    size: int


@lru_cache
def enabled(dr7: int) -> tuple[Breakpoint, ...]:
    """Return the breakpoints that *dr7* enables (SDM 3B "Debug Control Register (DR7)")."""
    control = Dr7(dr7)
    return tuple(
        Breakpoint(n, getattr(control, f"rw{n}"), _SIZES[getattr(control, f"len{n}")])
        for n in range(4)
        if getattr(control, f"l{n}") or getattr(control, f"g{n}")
    )


_ENABLES = int(Dr7(enables=0xFF))


class Breakpoints:
    """The breakpoints of the processor of *state*.

    *pending* holds the bits of DR6 of a debug trap that the next boundary between instructions takes.
    """

    def __init__(self, state: CpuState) -> None:
        self._state, self.pending = state, 0
        self._data: list[Access] = []
        self._outer: list[Access] = []
        self._ports: list[Access] = []
        self._instruction: Instruction | None = None
        self._after_ss = False
        self._before = (0, 0, 0)

    @property
    def armed(self) -> bool:
        """Whether DR7 enables any."""
        return bool(self._state.dr7 & _ENABLES)

    def check_trap(self) -> None:
        """Raise Fault(#DB) for what the last instruction accessed, unless a load of SS holds it back."""
        if self.pending and not self._in_shadow():
            self.take()
            raise Fault(Vector.DB)

    def take(self, *, step: bool = False) -> None:
        """Report in DR6 what is pending, and a single *step* (SDM 3B "Debug Status Register (DR6)")."""
        dr6 = Dr6(self._state.dr6)
        self._state.dr6 = int(dr6.replace(b=self.pending, bs=step or dr6.bs))
        self.pending = 0

    def check_fetch(self, gva: int) -> None:
        """Raise Fault(#DB) for a breakpoint on the instruction at RIP, which is at *gva*.

        SDM 3B "Instruction-Breakpoint Exception Condition".
        """
        state = self._state
        if Rflags(state.rflags).rf or self._in_shadow():
            return
        hits = self._hits((BreakOn.EXECUTE,), [Access(gva, 1, write=False)])
        if hits:
            state.dr6 = int(Dr6(state.dr6).replace(b=hits))
            raise Fault(Vector.DB)

    def begin(self, instruction: Instruction | None) -> None:
        """Note what *instruction*, which is about to run, will access; None, when it cannot be fetched: nothing."""
        state = self._state
        self._before = state.rip, state.cpl, state.dr6
        self._instruction, self._data, self._outer, self._ports = instruction, [], [], []
        if instruction is None:
            return
        kinds = {breakpoint_.on for breakpoint_ in enabled(state.dr7)}
        if not kinds.isdisjoint(_ON_DATA):
            self._data, self._outer = accesses(state, instruction), outer_accesses(state, instruction)
        if BreakOn.IO in kinds and instruction.mnemonic in _PORT_IO:
            access = describe(state, instruction)
            self._ports = [Access(access.port, access.size, write=True)]

    @property
    def exhausted(self) -> bool:
        """Whether the last iteration of a repeated instruction has just run, and RIP is still on it."""
        instruction, state = self._instruction, self._state
        if instruction is None or instruction.rep is None or state.rip != self._before[0]:
            return False
        return not truncate(state.gpr(Gpr.RCX), instruction.address_size)

    def retired(self) -> None:
        """Note that the instruction, or an iteration of it, has retired: what it accessed counts."""
        state, instruction = self._state, self._instruction
        if instruction is None:
            return
        rip, cpl, _ = self._before
        if state.cpl > cpl:
            self._data += self._outer
        self.pending |= self._data_hits(self._data)
        if Cr4(state.cr4).de:
            self.pending |= self._hits((BreakOn.IO,), self._ports)
        self._after_ss, self._instruction = loads_ss(instruction), None
        repeats = instruction.rep is not None and state.rip == rip
        if instruction.mnemonic not in _LOADS_FLAGS:
            state.rflags = int(Rflags(state.rflags).replace(rf=repeats))

    def stepped(self) -> None:
        """Note that the engine took a single-step trap; what it put into DR6 does not count."""
        self._state.dr6 = self._before[2]
        self.retired()
        self.take(step=True)

    def drop(self) -> None:
        """Forget the instruction that was about to run: an event took its place."""
        self._instruction = None

    def watching(self, memory: Linear) -> Linear:
        """Return *memory* with an eye on what is written there while an event is delivered."""
        return _Watched(memory, self) if self.armed else memory

    def written(self, gva: int, size: int) -> None:
        """Note a write."""
        self.pending |= self._data_hits([Access(gva, size, write=True)])

    def _in_shadow(self) -> bool:
        return self._after_ss and self._state.blocking_by_sti_or_mov_ss

    def _data_hits(self, touched: Iterable[Access]) -> int:
        touched = list(touched)
        writes = [access for access in touched if access.write]
        return self._hits((BreakOn.ACCESS,), touched) | self._hits((BreakOn.WRITE,), writes)

    def _hits(self, kinds: tuple[BreakOn, ...], touched: Iterable[Access]) -> int:
        """Return the bits of DR6 of breakpoints whose bytes are among those *touched*.

        The low bits of the address do not count, as many as LEN makes it aligned.
        """
        found = 0
        for breakpoint_ in enabled(self._state.dr7):
            if breakpoint_.on in kinds:
                size = breakpoint_.size
                first = self._state.dr(breakpoint_.number) // size * size
                if any(first < access.gva + access.size and access.gva < first + size for access in touched):
                    found |= _BITS[breakpoint_.number]
        return found


_BITS = (1, 2, 4, 8)


class _Watched:
    """Linear memory whose writes the breakpoints see."""

    def __init__(self, memory: Linear, breakpoints: Breakpoints) -> None:
        self.read, self.read_bytes, self.probe_write = memory.read, memory.read_bytes, memory.probe_write
        self._memory, self._breakpoints = memory, breakpoints

    def write(self, gva: int, size: int, value: int, *, user: bool) -> None:
        """Write an integer of *size* bytes."""
        self._memory.write(gva, size, value, user=user)
        self._breakpoints.written(gva, size)
