"""A debugging session without input or output: scripts, the prompt, stubs and notebooks drive a machine through it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from hvemu.debug import words
from hvemu.debug.look import GuestMemory, NotMappedError
from hvemu.debug.symbols import Symbols
from hvemu.errors import InputError
from hvemu.events import BUDGETS, Ending
from hvemu.machine import Machine
from hvemu.techniques import loop
from hvemu.techniques.vm import Budget
from hvemu.vmx.exit import VmExit
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.decode import LONGEST, disassemble
from hvemu.x86.instruction import Instruction
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import truncate
from hvemu.x86.state import CpuState, code_size

_POINTERS, _CONTROL = ("rip", "eip"), ("cr0", "cr2", "cr3", "cr4", "cr8")
_GPRS = {gpr.name.lower(): (gpr, 8) for gpr in Gpr} | {
    f"e{gpr.name[1:].lower()}": (gpr, 4) for gpr in Gpr if gpr < Gpr.R8
}


_TEXT = (".ascii", ".asciz", ".string")


@dataclass(frozen=True, slots=True)
class CodeLine:
    """One line of a disassembly."""

    gva: int
    code: bytes
    text: str


class Why(Enum):
    """Why the guest is paused."""

    START = "nothing has run yet"
    EXIT = "a VM exit, which the hypervisor has not handled yet"
    INSTRUCTION = "one instruction was executed"
    REACHED = "the address is reached"
    BUDGET = "a budget ran out"
    INTERRUPTED = "interrupted"
    ENDED = "the guest has ended"


@dataclass(frozen=True, slots=True)
class Pause:
    """Where the guest stands still. *console* is what it printed since the pause before.

    *exit* is the VM exit in hand; *handled* what the hypervisor did about the one before, where that was the only one
    since the pause before. *ending* is set when a budget ran out or the guest ended.
    """

    why: Why
    exit: VmExit | None = None
    ending: Ending | None = None
    console: bytes = b""
    handled: str = ""


class Session:
    """*machine* under a debugger. A *budget* bounds every command that runs the guest, not the whole session.

    *exit* is the VM exit in hand, not handled yet; *ending* the end of the guest; *pause* the last thing that happened.
    *memory* and *symbols* look at the guest and change nothing. Raises InputError on a machine that does not count
    instructions.
    """

    def __init__(self, machine: Machine, *, budget: Budget | None = None) -> None:
        if not machine.vm.clock.counted:
            raise InputError("--clock free: a debugger needs the counted clock")
        self.machine, self.vm, self.technique = machine, machine.vm, machine.technique
        self.memory = GuestMemory(self.vm)
        self.symbols = Symbols(machine.image.symbols, self.register)
        self.exit: VmExit | None = None
        self.ending: Ending | None = None
        self.pause = Pause(Why.START)
        self._budget = budget or Budget(timeout=None)
        self._printed, self._handled, self._interrupted = 0, "", False
        listing = machine.image.program.listing if machine.image.program else ()
        self._texts = {line.address: line for line in listing if line.source.startswith(_TEXT) and line.code}
        self._longest = max([LONGEST, *(len(line.code) for line in self._texts.values())])

    # -- running ------------------------------------------------------------------------------------------------

    @property
    def has_exits(self) -> bool:
        """Whether there is a hypervisor to which the guest can exit."""
        return self.technique.name != "bare"

    def step(self) -> Pause:
        """Handle the exit in hand and run to the next one; on the bare machine, execute one instruction."""
        if not self.has_exits:
            return self.step_instruction()
        return self._paused(self._exit_or_why(self._start()))

    def run(self, count: int | None = None) -> Pause:
        """Take *count* steps, or all that there are: until the guest ends, a budget runs out, or `interrupt`."""
        budget, done = self._start(), 0
        while True:
            if self.has_exits:
                happened = self._exit_or_why(budget)
            else:
                happened = self._one_instruction(budget) if count is not None else self._turns(budget)
            done += 1
            if happened not in (Why.EXIT, Why.INSTRUCTION) or done == count:
                return self._paused(happened, many=done > 1)

    def step_instruction(self) -> Pause:
        """Execute one instruction, or let one event be delivered; stop before it where it makes a VM exit."""
        return self._paused(self._one_instruction(self._start()))

    def until(self, gva: int) -> Pause:
        """Run until the next instruction is the one at *gva*; exits on the way are handled."""
        budget = self._start()
        while True:
            happened = self._one_instruction(budget)
            if happened is Why.INSTRUCTION and self.here == gva:
                return self._paused(Why.REACHED, many=True)
            if happened not in (Why.EXIT, Why.INSTRUCTION):
                return self._paused(happened, many=True)

    def interrupt(self) -> None:
        """Let the command that runs the guest end soon. May be called from a signal handler or another thread."""
        self._interrupted = True

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called since the guest was last set running."""
        return self._interrupted

    def _start(self) -> Budget:
        """Return the bounds of the command that begins now. Raises InputError when the guest has ended."""
        if self.ending is not None:
            raise InputError("the guest has ended: registers and memory can be looked at, nothing can run")
        vm, given = self.vm, self._budget
        self._interrupted, vm.started = False, time.monotonic()
        return Budget(
            max_instructions=_later(vm.instructions, given.max_instructions),
            max_exits=_later(vm.books.exits, given.max_exits),
            timeout=given.timeout,
        )

    def _exit_or_why(self, budget: Budget) -> Why:
        """Handle the exit in hand, and run to the next one."""
        return self._handle() or self._turns(budget)

    def _turns(self, budget: Budget) -> Why:
        happened = None
        while happened is None:
            if self._interrupted:
                return Why.INTERRUPTED
            happened = loop.turn(self.vm, budget)
        return self._met(happened)

    def _one_instruction(self, budget: Budget) -> Why:
        before = self._place()
        ended = self._handle()
        if ended is not None:
            return ended
        limit = self.vm.instructions + 1
        one = Budget(_least(limit, budget.max_instructions), budget.max_exits, budget.timeout)
        while self._place() == before:
            if self._interrupted:
                return Why.INTERRUPTED
            happened = loop.turn(self.vm, one)
            if happened is not None:
                return self._met(happened)
        return Why.INSTRUCTION

    def _place(self) -> tuple[int, int]:
        return self.vm.instructions, self.technique.view.rip

    def _handle(self) -> Why | None:
        """Let the hypervisor handle the exit in hand, if there is one; return ENDED when that is the end."""
        exit_, self.exit = self.exit, None
        if exit_ is None:
            return None
        before = exit_.what, exit_.detail
        ending = self.machine.handle(exit_)
        found = [now for now, was in zip((exit_.what, exit_.detail), before, strict=True) if now != was]
        self._handled = ": ".join(found)
        return None if ending is None else self._met(ending)

    def _met(self, happened: VmExit | Ending) -> Why:
        if isinstance(happened, VmExit):
            self.exit = happened
            return Why.EXIT
        self._last = happened
        if happened.how in BUDGETS:
            return Why.BUDGET
        self.ending = happened
        return Why.ENDED

    def _paused(self, why: Why, *, many: bool = False) -> Pause:
        console, self._printed = bytes(self.vm.board.console[self._printed :]), len(self.vm.board.console)
        ending = self._last if why in (Why.BUDGET, Why.ENDED) else None
        self.pause = Pause(why, self.exit, ending, console, "" if many else self._handled)
        self._handled = ""
        return self.pause

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def view(self) -> CpuState:
        """The registers as the guest believes them to be."""
        return self.technique.view

    @property
    def truth(self) -> CpuState:
        """The registers as they are."""
        return self.vm.cpu.state

    @property
    def vmcs(self) -> Vmcs | None:
        """The current VMCS, under a technique that has one."""
        vmcs = getattr(self.technique, "vmcs", None)
        return vmcs if isinstance(vmcs, Vmcs) else None

    @property
    def here(self) -> int:
        """The gva of the next instruction."""
        return self.linear(Sreg.CS, self.view.rip)

    def linear(self, segment: Sreg, offset: int) -> int:
        """Return the gva of *offset* in *segment*, of which 64-bit mode ignores the base of all but FS and GS."""
        if code_size(self.view) == 64:
            return truncate(offset + (self.view.segment(segment).base if segment >= Sreg.FS else 0), 8)
        return truncate(self.view.segment(segment).base + offset, 4)

    def register(self, name: str) -> int | None:
        """Return the register *name* (eax, rax, eip, cr3 and so on) as the guest believes it, or None: no such one.

        RIP and RSP are gvas: the bases of their segments are added.
        """
        if name in _POINTERS:
            return self.here
        if name in _CONTROL:
            return int(getattr(self.view, name))
        gpr, size = _GPRS.get(name, (None, 0))
        if gpr is None:
            return None
        value = truncate(self.view.gpr(gpr), size)
        return self.linear(Sreg.SS, value) if gpr is Gpr.RSP else value

    def code(self, gva: int, count: int) -> list[CodeLine]:
        """Return up to *count* instructions from *gva*, in the current mode; text among them as the source has it.

        Raises NotMappedError.
        """
        data, bits, at = self.memory.linear(gva, count * self._longest), code_size(self.view), 0
        lines: list[CodeLine] = []
        while at < len(data) and len(lines) < count:
            text = self._texts.get(gva + at)
            if text is not None and data.startswith(text.code, at):
                lines.append(CodeLine(gva + at, text.code, text.source))
            else:
                one = disassemble(data[at : at + LONGEST], gva + at, bits)[0]
                lines.append(CodeLine(gva + at, one.code, str(one)))
            at += len(lines[-1].code)
        return lines

    def instruction(self) -> Instruction | None:
        """Return the next instruction, or None where no code is mapped."""
        try:
            return disassemble(self.memory.linear(self.here, LONGEST), self.here, code_size(self.view))[0]
        except NotMappedError:
            return None

    def words(self) -> str:
        """Return the exit in hand as one or two sentences, or nothing."""
        return words.explain(self.exit, self) if self.exit is not None else ""

    def __repr__(self) -> str:
        return f"Session({self.machine!r}, {self.pause.why.value}, at {self.here:#x}{self.symbols.name(self.here)})"


def _later(now: int, more: int | None) -> int | None:
    return None if more is None else now + more


def _least(limit: int, other: int | None) -> int:
    return limit if other is None else min(limit, other)
