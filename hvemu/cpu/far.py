"""Far JMP and CALL: to code, through call gates, to other tasks (SDM 2A "CALL-Call Procedure").

Operand sizes are in bytes. Each function sets RIP itself and raises Fault with the registers unchanged, except for an
error that a task switch finds in the new task. Ending the instruction (RF, shadow, single step) is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.cpu.linear import Linear
from hvemu.cpu.load import load_paragraph, paragraphs
from hvemu.cpu.stack import Stack, inner_stack, inner_stack64
from hvemu.cpu.tables import accessed, canonical, long_mode, read_descriptor, read_system_descriptor, require
from hvemu.cpu.task import Nesting, switch_task, task_gate_target
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import GATES16, Descriptor, Gate, Selector, SystemType, truncate
from hvemu.x86.state import CpuState
from hvemu.x86.vectors import Vector

_TASKS = frozenset({SystemType.TSS, SystemType.TSS16})
_CALL_GATES = frozenset({SystemType.CALL_GATE, SystemType.CALL_GATE16})


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a far transfer in protected mode goes: *code* is what *selector* names, *level* the CPL there."""

    selector: int
    code: Descriptor
    offset: int
    level: int

    def check(self, state: CpuState) -> None:
        """Raise #GP(0) unless the offset is canonical in 64-bit code, within the limit elsewhere."""
        long64 = long_mode(state) and self.code.l
        require(canonical(state, self.offset) if long64 else self.offset <= self.code.limit, Vector.GP)

    def take(self, state: CpuState, memory: Linear) -> None:
        """Load CS and RIP."""
        code = accessed(state, memory, self.selector, self.code)
        state.set_segment(Sreg.CS, code.segment(int(Selector(self.selector).replace(rpl=self.level))))
        state.rip = self.offset


def far_jump(state: CpuState, memory: Linear, selector: int, offset: int, *, size: int, next_rip: int) -> None:
    """JMP *selector*:*offset*; *next_rip* is what a task switch saves. Raises #GP, #NP, #TS, #PF."""
    offset = truncate(offset, size)
    if paragraphs(state):
        require(offset <= state.segment(Sreg.CS).limit, Vector.GP)
        load_paragraph(state, Sreg.CS, selector)
        state.rip = offset
        return
    require(not Selector(selector).null, Vector.GP)
    target = read_descriptor(state, memory, selector)
    if target.s:
        _check_direct(state, selector, target)
        entry = Entry(selector, target, offset, state.cpl)
        entry.check(state)
        entry.take(state, memory)
    elif _is_call_gate(state, target):
        gate = _call_gate(state, memory, selector)
        entry = Entry(gate.selector, _gate_target(state, memory, gate, jump=True), gate.offset, state.cpl)
        entry.check(state)
        entry.take(state, memory)
    else:
        _to_task(state, memory, selector, target, Nesting.JUMP, next_rip=next_rip)


def far_call(state: CpuState, memory: Linear, selector: int, offset: int, *, size: int, next_rip: int) -> None:
    """CALL *selector*:*offset*; *next_rip* is the return address. Raises #GP, #NP, #SS, #TS, #PF."""
    offset = truncate(offset, size)
    frame = [state.segment(Sreg.CS).selector, next_rip]
    if paragraphs(state):
        stack = Stack.current(state, memory)
        stack.check(len(frame) * size, size)
        require(offset <= state.segment(Sreg.CS).limit, Vector.GP)
        stack.push(frame, size)
        stack.commit()
        load_paragraph(state, Sreg.CS, selector)
        state.rip = offset
        return
    require(not Selector(selector).null, Vector.GP)
    target = read_descriptor(state, memory, selector)
    if target.s:
        _check_direct(state, selector, target)
        entry = Entry(selector, target, offset, state.cpl)
        _call(state, memory, entry, Stack.current(state, memory), frame, size=size)
    elif _is_call_gate(state, target):
        _call_through_gate(state, memory, _call_gate(state, memory, selector), frame)
    else:
        _to_task(state, memory, selector, target, Nesting.NEST, next_rip=next_rip)


def _check_direct(state: CpuState, selector: int, code: Descriptor) -> None:
    """A direct transfer keeps the CPL: conforming code of the same or an inner level, or code of exactly this level."""
    kind = code.code_or_data
    good = kind is not None and kind.code and not (long_mode(state) and code.l and code.db)
    if kind is not None and kind.conforming:
        good = good and code.dpl <= state.cpl
    else:
        good = good and Selector(selector).rpl <= state.cpl == code.dpl
    require(good, Vector.GP, selector)
    require(code.p, Vector.NP, selector)


def _is_call_gate(state: CpuState, descriptor: Descriptor) -> bool:
    """Whether *descriptor* is a call gate; in IA-32e mode there are 64-bit ones only."""
    return descriptor.type == SystemType.CALL_GATE or (descriptor.type in _CALL_GATES and not long_mode(state))


def _call_gate(state: CpuState, memory: Linear, selector: int) -> Gate:
    """Return the call gate that *selector* names, if this CPL and RPL may use it (SDM 3A "Call Gates")."""
    raw = read_system_descriptor(state, memory, selector)
    gate = Gate(raw)
    usable = max(state.cpl, Selector(selector).rpl) <= gate.dpl
    require(usable and (not long_mode(state) or raw.upper_type_clear), Vector.GP, selector)
    require(gate.p, Vector.NP, selector)
    return gate


def _gate_target(state: CpuState, memory: Linear, gate: Gate, *, jump: bool) -> Descriptor:
    """Return the code segment of a call gate: JMP cannot change the CPL, CALL may go inward."""
    require(not gate.selector.null, Vector.GP)
    code = read_descriptor(state, memory, gate.selector)
    kind = code.code_or_data
    good = kind is not None and kind.code and code.dpl <= state.cpl
    if jump and kind is not None and not kind.conforming:
        good = good and code.dpl == state.cpl
    if long_mode(state):
        good = good and code.l and not code.db
    require(good, Vector.GP, gate.selector)
    require(code.p, Vector.NP, gate.selector)
    return code


def _call_through_gate(state: CpuState, memory: Linear, gate: Gate, frame: list[int]) -> None:
    """CALL through a gate: the gate decides on the operand size, and parameters move to the inner stack."""
    code = _gate_target(state, memory, gate, jump=False)
    kind = code.code_or_data
    level = state.cpl if kind is not None and kind.conforming else code.dpl
    long = long_mode(state)
    size = 8 if long else 2 if gate.type in GATES16 else 4
    if level == state.cpl:
        stack = Stack.current(state, memory, size=8 if long else None)
    else:
        outer = [state.segment(Sreg.SS).selector, state.gpr(Gpr.RSP)]
        stack = inner_stack64(state, memory, level) if long else inner_stack(state, memory, level)
        parameters = [] if long else Stack.current(state, memory).pop(gate.count, size)
        frame = [*outer, *reversed(parameters), *frame]
    _call(state, memory, Entry(gate.selector, code, gate.offset, level), stack, frame, size=size)


def _call(state: CpuState, memory: Linear, entry: Entry, stack: Stack, frame: list[int], *, size: int) -> None:
    """Push *frame*, *size* bytes an item, on *stack* and take *entry*."""
    stack.check(len(frame) * size, size)
    entry.check(state)
    stack.push(frame, size)
    entry.take(state, memory)
    state.set_segment(Sreg.SS, stack.segment)
    stack.commit()


def _to_task(
    state: CpuState, memory: Linear, selector: int, target: Descriptor, nesting: Nesting, *, next_rip: int
) -> None:
    """Switch tasks through a task gate or a TSS descriptor; anything else is #GP, and all of it in IA-32e mode."""
    switchable = target.type == SystemType.TASK_GATE or target.type in _TASKS
    require(switchable and not long_mode(state), Vector.GP, selector)
    require(max(state.cpl, Selector(selector).rpl) <= target.dpl, Vector.GP, selector)
    if target.type == SystemType.TASK_GATE:
        require(target.p, Vector.NP, selector)
        selector = int(Gate(target).selector)
    target = task_gate_target(state, memory, selector)
    switch_task(state, memory, selector, target, nesting, return_rip=next_rip, flags=state.rflags)
