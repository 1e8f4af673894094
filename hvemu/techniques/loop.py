"""The run loop: enter the guest, find out why it came back, deal with it, again. All techniques share it."""

from __future__ import annotations

import time

from hvemu.cpu.cpu import STOP_CYCLES
from hvemu.events import Ending, ExitEvent, How
from hvemu.techniques.base import STOP, Shutdown
from hvemu.techniques.vm import SLICE, Budget, Vm
from hvemu.vmx.entry import EntryFailed
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fail import VmFail, VmxAbort
from hvemu.vmx.reasons import Reason
from hvemu.x86.registers import Rflags
from hvemu.x86.vectors import Fault, TripleFault

_NAMES = {reason: reason.name for reason in Reason}
_DEADLY = (TripleFault, Shutdown, VmFail, VmxAbort, EntryFailed)
_SLEEPS = 10_000
"""Deadlines that a halted guest sleeps through before nothing is expected to wake it."""


def run(vm: Vm, budget: Budget) -> Ending:
    """Run the guest of *vm* until it ends or *budget* does."""
    while True:
        exit_ = next_exit(vm, budget)
        if isinstance(exit_, Ending):
            return exit_
        ending = handle(vm, exit_)
        if ending is not None:
            return ending


def next_exit(vm: Vm, budget: Budget) -> VmExit | Ending:
    """Run the guest to its next VM exit, which is not handled yet, or to the end."""
    while True:
        happened = turn(vm, budget)
        if happened is not None:
            return happened


def turn(vm: Vm, budget: Budget) -> VmExit | Ending | None:
    """Run the guest until there is a VM exit, or an end, or something that the processor dealt with itself: None."""
    technique, clock = vm.technique, vm.clock
    try:
        ending = _ended(vm, budget)
        if ending is not None:
            return ending
        if technique.halted and not _sleep(vm):
            return Ending(How.HALTED, why=_why_halted(vm))
        deadline = vm.next_deadline()
        if deadline is not None and clock.now >= deadline:
            technique.tick()
        return technique.run(_limit(vm, budget))
    except _DEADLY as dead:
        return Ending(How.DIED, why=str(dead))


def handle(vm: Vm, exit_: VmExit) -> Ending | None:
    """Let the technique handle *exit_*, and keep the books. Return the end of the run, if this is it."""
    state, books = vm.cpu.state, vm.books
    before = (vm.clock.now, vm.instructions, state.rip, state.cpl) if vm.sink else None
    vm.clock.charge(STOP_CYCLES)
    books.exits += 1
    try:
        try:
            outcome = vm.technique.handle(exit_)
            if outcome.fault is not None:
                vm.technique.inject(outcome.fault)
        except Fault as fault:
            vm.technique.inject(fault)
            outcome = None
    except _DEADLY as dead:
        return Ending(How.DIED, why=str(dead))
    what = exit_.what or _NAMES[exit_.reason]
    books.by_reason[what] += 1
    if vm.sink is not None and before is not None:
        vm.sink(ExitEvent(books.exits, *before, what, exit_.detail))
    return Ending(How.STOPPED, why=f"{what}: a handler stopped the guest") if outcome is STOP else None


def _ended(vm: Vm, budget: Budget) -> Ending | None:
    code = vm.board.exit.value
    if code is not None:
        return Ending(How.EXITED, code)
    if budget.max_exits is not None and vm.books.exits >= budget.max_exits:
        return Ending(How.EXITS, why=f"{vm.books.exits} exits")
    if budget.max_instructions is not None and vm.instructions >= budget.max_instructions:
        return Ending(How.INSTRUCTIONS, why=f"{vm.instructions} instructions")
    if budget.timeout is not None and time.monotonic() - vm.started >= budget.timeout:
        return Ending(How.TIMEOUT, why=f"{budget.timeout:g} seconds")
    return None


def _limit(vm: Vm, budget: Budget) -> int:
    """Return how many instructions may run before the loop must look again."""
    limit, deadline = SLICE, vm.deadline
    if deadline is not None and (left := deadline - vm.clock.now) < limit:
        limit = max(1, left)
    if budget.max_instructions is not None:
        limit = min(limit, budget.max_instructions - vm.instructions)
    return limit


def _sleep(vm: Vm) -> bool:
    """Let time jump to the next deadline of a device. Return whether there is one, and it may wake the guest."""
    technique = vm.technique
    if vm.cpu.nmi_pending:
        technique.wake()
        return True
    if not Rflags(technique.view.rflags).if_:
        return False
    for _ in range(_SLEEPS):
        if vm.board.pic.pending():
            technique.wake()
            return True
        deadline = vm.next_deadline()
        if deadline is None:
            return False
        vm.clock.advance_to(deadline)
        vm.board.advance()
    return False


def _why_halted(vm: Vm) -> str:
    view = vm.technique.view
    if Rflags(view.rflags).if_:
        return f"HLT before {view.rip:#x}, and no device will ever interrupt it"
    return f"HLT before {view.rip:#x} with interrupts disabled"
