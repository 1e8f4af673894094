"""From the emulator's exit code to a stop: what happened, how many instructions retired, and the flags."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable

from hvemu.engine.boot import FAULT_ADDRESS
from hvemu.engine.code import Code, is_whole
from hvemu.engine.hooks import BETWEEN, KINDS, PORT, Hooks
from hvemu.engine.second_level import PAGE, SecondLevelCode
from hvemu.engine.state import EFLAGS_WHOLE, EngineState
from hvemu.engine.traps import GIF, Kind, Stop, decode_table
from hvemu.x86.decode import LONGEST, Truncated, decode
from hvemu.x86.instruction import Mem, effective
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.vectors import Fault, PageFaultCode, Vector

_AFTER = frozenset({Kind.SOFTWARE_INT, Kind.WINDOW, Kind.LIMIT})
_FLUSHING = frozenset({Kind.CR_WRITE, Kind.INVLPG})  # what flushes the TLB is always armed
_DETAILED = _FLUSHING | {
    Kind.WINDOW, Kind.MSR, Kind.WBINVD, Kind.IO, Kind.SOFTWARE_INT, Kind.SECOND_LEVEL, Kind.EXCEPTION
}  # fmt: skip
_WIDEST = 512  # bytes that one operand can have: FXRSTOR
_FETCH_FAULTS = (Stop(Kind.SECOND_LEVEL), Stop(Kind.EXCEPTION, Vector.PF))
_TF, _INHIBIT = 1 << 8, 1 << 3


class Stops:
    """Explains the exits of one engine. *fetch* returns the code at RIP.

    *ran* counts what retired in the run that the last stop ended, with the counted clock.
    """

    def __init__(
        self,
        state: EngineState,
        hooks: Hooks,
        reader: Code,
        hidden: mmap.mmap,
        fetch: Callable[[], bytes],
        *,
        counted: bool,
    ) -> None:
        self._state, self._hooks, self._reader, self._hidden = state, hooks, reader, hidden
        self._fetch, self._counted = fetch, counted
        self._table = {
            code: (Stop(kind, detail), kind not in _AFTER, kind in _DETAILED)
            for code, (kind, detail) in (decode_table() | {code: (kind, 0) for code, kind in KINDS.items()}).items()
        }
        self._alone, self._presumed_hook = -1, False
        self.ran = 0

    def explain(self, code: int) -> Stop | None:
        """Return the stop for the exit *code*, and settle the flags.

        None: run on, for it was about an instruction to come.
        """
        stop, begun, is_detailed = self._table[code]
        state = self._state
        if self._counted:
            self.ran = self._hooks.counter.value - begun
            lazy = not begun or code in BETWEEN  # every instruction has a code hook
        else:
            lazy = state.cc_op != EFLAGS_WHOLE and (not begun or code in BETWEEN or not self._is_hooked())
        state.settle(lazy=lazy)
        self._presumed_hook = not lazy
        if is_detailed and self._is_premature(stop):
            if self._presumed_hook:
                self._not_begun()
            return None
        if self._alone >= 0:
            self.end_shadow()
        return self._detailed(stop, code) if is_detailed else stop

    def _is_hooked(self) -> bool:
        return self._hooks.sites.hold(self._state.linear_rip)

    def _detailed(self, stop: Stop, code: int) -> Stop:
        """Return the stop for the kinds that say more, or that do not count as the others do."""
        state, kind = self._state, stop.kind
        if kind is Kind.EXCEPTION:
            return self._exception(stop.detail)
        if kind is Kind.SECOND_LEVEL:
            return self._second_level_fault()
        if kind is Kind.MSR:
            return Stop(kind, state.error_code & 1)
        if kind is Kind.WINDOW:
            state.hflags2 &= ~GIF
        elif kind is Kind.WBINVD and self._is_invd():
            return Stop(Kind.INVD)  # the emulator reports both as WBINVD
        elif kind is Kind.IO and code == PORT and self._counted:
            self.ran = self._hooks.count_at_port - 1
        elif kind is Kind.SOFTWARE_INT:
            state.exception_is_int = 0  # sticky, or the next exit would report a stale RIP
            state.rip = state.exception_next_rip
            state.hflags &= ~_INHIBIT
        elif kind in _FLUSHING:
            self._reader.forget()
        return stop

    def _is_invd(self) -> bool:
        try:
            return decode(self._fetch(), self._state.code_bits).mnemonic == "invd"
        except (Fault, Truncated):  # a prefix that the emulator lets pass: for the CPU model to refuse
            return False

    def _second_level_fault(self) -> Stop:
        code, gpa = SecondLevelCode(self._state.error_code & 0x1F), self._fault_address()
        if self._presumed_hook and (code.id or not self._can_fetch()):
            self._not_begun()
        return Stop(Kind.SECOND_LEVEL, 0, int(code), gpa)

    def _exception(self, vector: int) -> Stop:
        state = self._state
        gva = self._fault_address() if vector == Vector.PF else 0
        if self._presumed_hook and self._precedes_hook(vector, gva):
            self._not_begun()
        return Stop(Kind.EXCEPTION, vector, state.error_code & 0xFFFF, gva)

    def _not_begun(self) -> None:
        """Correct the count and the flags: the code hook of the instruction at RIP has not run."""
        self.ran += self._counted
        self._state.settle(lazy=True)

    def _fault_address(self) -> int:
        address: int = struct.unpack_from("<Q", self._hidden, FAULT_ADDRESS)[0]
        return address

    def _precedes_hook(self, vector: int, gva: int) -> bool:
        """Whether the hook of the instruction at RIP has not run: it cannot be fetched, or the last one trapped."""
        state = self._state
        if vector == Vector.PF:
            near = (gva - state.linear_rip) & state.linear_mask < LONGEST
            return self._is_read() and near and not self._can_fetch()
        return vector == Vector.DB or (
            vector == Vector.GP and not self._reader.is_canonical(state.linear_rip, state.cr[4])
        )

    def _is_read(self) -> bool:
        return not PageFaultCode(self._state.error_code & 0xFFFF).wr

    def _can_fetch(self) -> bool:
        return is_whole(self._fetch(), self._state.code_bits)

    # -- faults of instructions to come ---------------------------------------------------------------------------

    def _is_premature(self, stop: Stop) -> bool:
        """Whether a fault may be about an instruction behind the one at RIP.

        The emulator translates a block to its end before it runs the first instruction of it, into the next page too,
        and a fault there comes at once. Then the instruction at RIP is to run in a block of its own: an instruction in
        an STI shadow does, so here is one. `end_shadow` takes it back.
        """
        if stop not in _FETCH_FAULTS:
            return False
        state, rip = self._state, self._state.linear_rip
        if rip == self._alone or state.hflags & _INHIBIT or state.eflags & _TF:
            return False
        if stop.kind is Kind.SECOND_LEVEL:
            possible = SecondLevelCode(state.error_code & 0x1F).id and self._can_fetch()
        else:
            gva = self._fault_address()
            possible = self._is_read() and not gva % PAGE and 0 < gva - rip < PAGE and not self._reads(gva)
        if possible:
            state.hflags |= _INHIBIT
            self._alone = rip
        return bool(possible)

    def _reads(self, gva: int) -> bool:
        """Whether the instruction at RIP itself may read at *gva*: an operand, or its stack."""
        state = self._state
        try:
            instruction = decode(self._fetch(), state.code_bits)
        except (Fault, Truncated):
            return False
        next_rip = state.rip + instruction.length
        places = [
            state.segs[mem.segment].base + effective(mem, state.gpr, next_rip, instruction.address_size)
            for mem in instruction.operands
            if isinstance(mem, Mem)
        ]
        places.append(state.segs[Sreg.SS].base + state.gpr(Gpr.RSP))
        return any((gva - place) & state.linear_mask < _WIDEST for place in places)

    def end_shadow(self) -> None:
        """Take back the shadow that is not the guest's, if its instruction has not run."""
        if self._state.linear_rip == self._alone:
            self._state.hflags &= ~_INHIBIT
        self._alone = -1
