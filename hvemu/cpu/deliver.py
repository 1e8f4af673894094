"""Interrupt and exception delivery in every mode (SDM 3A "Exception- or Interrupt-Handler Procedures").

All checks come before any change of the registers: a Fault leaves them as they were, except that CR2 of a #PF is set,
and except for errors that a task switch finds in the new task, which belong to that task.

CPUID does not offer CR4.VME, so INT n in virtual-8086 mode follows the rule without it: #GP(0) unless IOPL is 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from hvemu.cpu.linear import Linear
from hvemu.cpu.stack import Stack, aligned64, inner_stack, inner_stack64
from hvemu.cpu.tables import accessed, canonical, long_mode, null_segment, read_descriptor, require, table_gva
from hvemu.cpu.task import Nesting, switch_task, task_gate_target
from hvemu.x86.registers import Gpr, Rflags, Sreg
from hvemu.x86.segments import GATES16, Descriptor, ErrorCode, Gate, SystemType, real_mode_segment, truncate
from hvemu.x86.state import CpuMode, CpuState, mode
from hvemu.x86.vectors import FACTS, Fault, Kind, TripleFault, Vector, combine

_IVT_ENTRY = 4  # bytes: IP, CS
_INTERRUPT_GATES = frozenset({SystemType.INTERRUPT_GATE, SystemType.INTERRUPT_GATE16})
_GATES_LONG = frozenset({SystemType.INTERRUPT_GATE, SystemType.TRAP_GATE})
_GATES = _INTERRUPT_GATES | _GATES_LONG | {SystemType.TRAP_GATE16, SystemType.TASK_GATE}
_VM86_NULLED = (Sreg.GS, Sreg.FS, Sreg.DS, Sreg.ES)  # in the order in which they are pushed
_IOPL_FOR_INT_N = 3


class Source(Enum):
    """Where an event comes from; it decides on the DPL check, the EXT bit and the double-fault rule."""

    EXTERNAL = auto()
    NMI = auto()
    EXCEPTION = auto()
    SOFTWARE_INT = auto()  # INT n
    SOFTWARE_EXCEPTION = auto()  # INT3, INTO
    PRIVILEGED = auto()  # INT1 (ICEBP)


_FAULTS = frozenset(int(vector) for vector, facts in FACTS.items() if facts.kind is Kind.FAULT)
_SOFTWARE = frozenset({Source.SOFTWARE_INT, Source.SOFTWARE_EXCEPTION})


@dataclass(frozen=True, slots=True)
class Event:
    """An event to deliver. *return_rip* is pushed: for software interrupts and traps that of the next instruction.

    *error_code* is None when none is pushed; *cr2* is the faulting gva of a #PF.
    """

    vector: int
    source: Source
    error_code: int | None
    return_rip: int
    cr2: int | None = None

    @classmethod
    def exception(cls, fault: Fault, return_rip: int) -> Event:
        """Return *fault* as an event."""
        return cls(fault.vector, Source.EXCEPTION, fault.error_code, return_rip, fault.cr2)

    @property
    def fault(self) -> Fault | None:
        """The exception that this is, or None for an interrupt, which the double-fault rule counts as benign."""
        if self.source is not Source.EXCEPTION or self.vector not in FACTS:
            return None
        return Fault(Vector(self.vector), self.error_code, cr2=self.cr2)

    @property
    def software(self) -> bool:
        """Whether the gate's DPL is checked, and EXT stays clear, because the program asked for the event."""
        return self.source in _SOFTWARE

    def flags_image(self, rflags: int) -> int:
        """Return RFLAGS as pushed: faults set RF (SDM 3B "Instruction-Breakpoint Exception Condition")."""
        faulted = self.source is Source.EXCEPTION and self.vector in _FAULTS
        return int(Rflags(rflags).replace(rf=1)) if faulted else rflags


def deliver(state: CpuState, memory: Linear, event: Event) -> None:
    """Deliver *event*: push its frame and enter its handler. *state*.rip is the instruction that was interrupted.

    Raises Fault for what goes wrong on the way; Fault(#DB) after a switch to a task whose T flag is set. DR6 and DR7 of
    a #DB event, and NMI blocking, are the caller's.
    """
    if event.cr2 is not None:
        state.cr2 = event.cr2
    if mode(state) is CpuMode.REAL:
        _through_ivt(state, memory, event)
        return
    gate = _gate(state, memory, event)
    if gate.type == SystemType.TASK_GATE:
        _through_task_gate(state, memory, event, gate)
    else:
        _through_gate(state, memory, event, gate)


def deliver_or_escalate(
    state: CpuState, memory: Linear, event: Event, before: Callable[[Event, Event], None] | None = None
) -> tuple[Fault, ...]:
    """Deliver *event*, or what its delivery turns into (SDM 3A "Interrupt 8-Double Fault Exception (#DF)").

    *before*, if any, sees each exception that arises, then the #DF that it makes, and with each the event whose
    delivery met it; it may raise.

    Return every exception on the way, oldest first: none for an interrupt that went well, one for such an exception.
    Raises TripleFault with that chain.
    """
    first = event.fault
    chain = [] if first is None else [first]
    while True:
        try:
            deliver(state, memory, event)
        except Fault as second:
            chain.append(second)
            met, event = event, Event.exception(second, state.rip)
            if before is not None:
                before(event, met)
            if second.cr2 is not None:  # written when a page fault is detected, even if #DF takes its place
                state.cr2 = second.cr2
            try:
                first = combine(first, second)
            except TripleFault:
                raise TripleFault(tuple(chain)) from None
            if first != second:
                chain.append(first)
                event = Event.exception(first, state.rip)
                if before is not None:
                    before(event, met)
        else:
            return tuple(chain)


def _through_ivt(state: CpuState, memory: Linear, event: Event) -> None:
    """SDM 3B "Interrupt and Exception Handling in Real-Address Mode": no error code, 16-bit frame."""
    entry = event.vector * _IVT_ENTRY
    if entry + _IVT_ENTRY - 1 > state.idtr.limit:
        raise Fault(Vector.GP, int(ErrorCode.of_vector(event.vector, ext=not event.software)))
    gva = table_gva(state, state.idtr.base + entry)
    ip, selector = memory.read(gva, 2, user=False), memory.read(table_gva(state, gva + 2), 2, user=False)
    cs = state.segment(Sreg.CS)
    stack = Stack.current(state, memory)
    frame = (event.flags_image(state.rflags), cs.selector, event.return_rip)
    stack.check(len(frame) * 2, 2)
    require(ip <= cs.limit, Vector.GP)
    stack.push(frame, 2)
    state.set_segment(Sreg.CS, real_mode_segment(selector, cs))
    state.rflags = int(Rflags(state.rflags).replace(if_=0, tf=0, ac=0, rf=0))
    _enter(state, stack, ip)


def _gate(state: CpuState, memory: Linear, event: Event) -> Gate:
    """Return the gate of *event* after the checks that concern the IDT alone."""
    if event.source is Source.SOFTWARE_INT and mode(state) is CpuMode.VM86:
        require(Rflags(state.rflags).iopl == _IOPL_FOR_INT_N, Vector.GP)
    long = long_mode(state)
    size = 16 if long else 8
    code = int(ErrorCode.of_vector(event.vector, ext=not event.software))
    entry = event.vector * size
    if entry + size - 1 > state.idtr.limit:
        raise Fault(Vector.GP, code)
    gate = Gate(
        int.from_bytes(memory.read_bytes(table_gva(state, state.idtr.base + entry), size, user=False), "little")
    )
    if gate.s or gate.type not in (_GATES_LONG if long else _GATES):
        raise Fault(Vector.GP, code)
    if event.software and gate.dpl < state.cpl:
        raise Fault(Vector.GP, code)
    if not gate.p:
        raise Fault(Vector.NP, code)
    return gate


def _through_task_gate(state: CpuState, memory: Linear, event: Event, gate: Gate) -> None:
    """SDM 3A "Interrupt Tasks": the error code goes on the stack of the new task."""
    ext = not event.software
    target = task_gate_target(state, memory, gate.selector, ext=ext)
    switch_task(
        state, memory, gate.selector, target, Nesting.NEST, return_rip=event.return_rip,
        flags=event.flags_image(state.rflags), error_code=event.error_code, ext=ext,
    )  # fmt: skip


def _through_gate(state: CpuState, memory: Linear, event: Event, gate: Gate) -> None:
    """Enter the procedure behind an interrupt or trap gate, on an inner stack where privilege changes."""
    ext = not event.software
    code = _handler_segment(state, memory, gate, ext=ext)
    virtual8086 = mode(state) is CpuMode.VM86
    level = state.cpl if code.code_or_data and code.code_or_data.conforming else code.dpl
    stack = _handler_stack(state, memory, gate, level, ext=ext)
    size = 8 if long_mode(state) else 2 if gate.type in GATES16 else 4
    frame = _frame(state, event, outer=level != state.cpl or size == 8)
    stack.check(len(frame) * size, size)
    in_limits = canonical(state, gate.offset) if size == 8 else gate.offset <= code.limit
    require(in_limits, Vector.GP, ext=ext)
    code = accessed(state, memory, gate.selector, code)
    stack.push(frame, size)

    flags = Rflags(state.rflags).replace(tf=0, nt=0, vm=0, rf=0)
    state.rflags = int(flags.replace(if_=0) if gate.type in _INTERRUPT_GATES else flags)
    if virtual8086:
        for sreg in _VM86_NULLED:
            state.set_segment(sreg, null_segment())
    state.set_segment(Sreg.CS, code.segment(int(gate.selector.replace(rpl=level))))
    state.set_segment(Sreg.SS, stack.segment)
    _enter(state, stack, gate.offset)


def _handler_segment(state: CpuState, memory: Linear, gate: Gate, *, ext: bool) -> Descriptor:
    """Return the code segment of *gate* (SDM 3A "Protection of Exception- and Interrupt-Handler Procedures")."""
    require(not gate.selector.null, Vector.GP, ext=ext)
    code = read_descriptor(state, memory, gate.selector, ext=ext)
    kind = code.code_or_data
    good = kind is not None and kind.code and code.dpl <= state.cpl
    if long_mode(state):
        good = good and code.l and not code.db
    require(good, Vector.GP, gate.selector, ext=ext)
    require(code.p, Vector.NP, gate.selector, ext=ext)
    if mode(state) is CpuMode.VM86:  # the handler must run at CPL 0, and not by virtue of a conforming segment
        require(code.dpl == 0 and kind is not None and not kind.conforming, Vector.GP, gate.selector, ext=ext)
    return code


def _handler_stack(state: CpuState, memory: Linear, gate: Gate, level: int, *, ext: bool) -> Stack:
    """Return the stack for a handler at privilege *level*."""
    if long_mode(state):
        if level != state.cpl or gate.ist:
            return aligned64(inner_stack64(state, memory, level, ist=gate.ist, ext=ext))
        return aligned64(Stack.current(state, memory, ext=ext, size=8))
    return inner_stack(state, memory, level, ext=ext) if level != state.cpl else Stack.current(state, memory, ext=ext)


def _frame(state: CpuState, event: Event, *, outer: bool) -> list[int]:
    """Return what is pushed, first pushed first; *outer*: with the interrupted stack."""
    frame = []
    if mode(state) is CpuMode.VM86:
        frame += [state.segment(sreg).selector for sreg in _VM86_NULLED]
    if outer:
        frame += [state.segment(Sreg.SS).selector, state.gpr(Gpr.RSP)]
    frame += [event.flags_image(state.rflags), state.segment(Sreg.CS).selector, event.return_rip]
    return frame if event.error_code is None else [*frame, event.error_code]


def _enter(state: CpuState, stack: Stack, rip: int) -> None:
    stack.commit()
    state.rip = truncate(rip, stack.size if stack.size == 8 else 4)
    state.blocking_by_sti_or_mov_ss = False
