"""One instruction on the free clock, where nothing counts: with the trap flag, borrowed from the guest.

With TF set the emulator raises #DB after one instruction, and the guest must see nothing of it: TF is put back, and the
#DB is dropped. When the guest had TF set itself, the #DB is the guest's. Some instructions show or change TF, or put
off the trap. They run without it, up to a code hook:

* PUSHF, POPF, and loads of SS (no trap follows them): the hook is on the instruction behind.
* SYSRET (the trap depends on the new TF) and what may switch tasks (TF would be saved in the TSS): where they lead is
  not known, so every instruction is hooked, and all blocks are translated again. This is slow, and rare.

IRET is fit for TF: the trap depends on the old TF, and the flags that it loads are the guest's.
"""

from __future__ import annotations

from collections.abc import Callable

from hvemu.engine import native
from hvemu.engine.code import is_whole
from hvemu.engine.state import EngineState
from hvemu.engine.traps import Kind, Stop
from hvemu.x86.decode import Truncated, decode
from hvemu.x86.instruction import Instruction, Reg, RegKind
from hvemu.x86.registers import Sreg
from hvemu.x86.vectors import Fault, Vector

_TF, _NT, _VM, _BS = 1 << 8, 1 << 14, 1 << 17, 1 << 14
_PE, _LMA = 1 << 7, 1 << 14
_FLAGS = frozenset({"pushf", "popf"})
_SS_LOADS = frozenset({"mov", "pop"})
_FAR = frozenset({"ljmp", "lcall"})
_EVERYWHERE = (1, 0)


class SingleStep:
    """Steps the free clock of one engine.

    *run* runs until something stops, *fetch* returns the code at RIP, *here* is what a hook calls to stop before its
    instruction with Kind.LIMIT, *flush* forgets all blocks.
    """

    def __init__(
        self,
        handle: int,
        state: EngineState,
        *,
        run: Callable[[], Stop],
        fetch: Callable[[], bytes],
        here: Callable[[], None],
        flush: Callable[[], None],
    ) -> None:
        self._handle, self._state, self._run, self._fetch, self._flush = handle, state, run, fetch, flush
        self._here, self._start = here, 0
        self._callback = native.CodeCallback(self._on_code)

    def step(self) -> Stop:
        """Run one instruction. Kind.LIMIT means that it retired."""
        instruction = self._instruction()
        if instruction is not None:
            if _is_straight(instruction):
                return self._run_to_next(instruction)
            if self._leads_anywhere(instruction):
                self._flush()
                stop = self._run_to_hook(*_EVERYWHERE)
                self._flush()
                return stop
        if self._state.eflags & _TF:
            return self._run()
        return self._run_with_trap(loads_flags=instruction is not None and instruction.mnemonic == "iret")

    def _instruction(self) -> Instruction | None:
        """Return the instruction at RIP, or None when it will fault."""
        try:
            return decode(self._fetch(), self._state.code_bits)
        except (Fault, Truncated):
            return None

    def _leads_anywhere(self, instruction: Instruction) -> bool:
        state, name = self._state, instruction.mnemonic
        if name == "sysret":
            return True
        if state.hflags & _LMA or not state.hflags & _PE or state.eflags & _VM:
            return False
        return name in _FAR or (name == "iret" and bool(state.eflags & _NT))

    def _run_to_next(self, instruction: Instruction) -> Stop:
        state = self._state
        begin = state.linear_rip
        end = (begin + instruction.length) & state.linear_mask
        native.remove_blocks(self._handle, begin, begin + 1)
        native.remove_blocks(self._handle, end, end + 1)
        return self._run_to_hook(end, end)

    def _run_to_hook(self, begin: int, end: int) -> Stop:
        self._start = self._state.linear_rip
        start = self._start
        hook = native.hook_add(self._handle, native.HOOK_CODE, self._callback, begin=begin, end=end)
        try:
            stop = self._run()
        finally:
            native.hook_del(self._handle, hook)
        return Stop(Kind.LIMIT) if self._state.linear_rip != start and self._is_about_the_next(stop) else stop

    def _is_about_the_next(self, stop: Stop) -> bool:
        """Whether a stop that is not where the step began is about the next instruction, which is not to run."""
        if stop.kind is Kind.IO:  # its own hook was called before ours
            return True
        is_fault = stop.kind is Kind.SECOND_LEVEL or (stop.kind is Kind.EXCEPTION and stop.detail != Vector.DB)
        return is_fault and not is_whole(self._fetch(), self._state.code_bits)

    def _on_code(self, _uc: int, gva: int, _size: int, _data: object) -> None:
        if gva == self._start:
            self._start = -1  # the instruction itself
        else:
            self._here()

    def _run_with_trap(self, *, loads_flags: bool) -> Stop:
        state = self._state
        dr6 = state.raw_dr[6]
        state.raw_dr[6] = dr6 & ~_BS
        state.eflags |= _TF
        stop = self._run()
        stepped = stop.kind is Kind.EXCEPTION and stop.detail == Vector.DB and bool(state.raw_dr[6] & _BS)
        if not (stepped and loads_flags):
            state.eflags &= ~_TF
        if not stepped:
            state.raw_dr[6] |= dr6 & _BS
            return stop
        state.raw_dr[6] = dr6
        return Stop(Kind.LIMIT)


def _is_straight(instruction: Instruction) -> bool:
    if instruction.mnemonic in _FLAGS:
        return True
    first = instruction.operands[0] if instruction.mnemonic in _SS_LOADS else None
    return isinstance(first, Reg) and first.kind is RegKind.SREG and first.index == Sreg.SS
