"""The debugger's commands: one function each, found by any unambiguous beginning of its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hvemu.debug import descriptors, registers, walks
from hvemu.debug.session import Pause, Session, Why
from hvemu.errors import InputError
from hvemu.report import outcome
from hvemu.report.words import in_words
from hvemu.x86.decode import LONGEST
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import truncate
from hvemu.x86.state import code_size

LARGEST = 0x10000
"""Bytes, instructions or words that one command shows at most."""
_ROW = 16


class QuitDebugger(Exception):  # noqa: N818 - a person's wish, not an error
    """Leave the debugger."""


Action = Callable[..., Iterator[str]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command. *usage* begins with its name; *about* is one sentence; *more* has the rest, with an example."""

    name: str
    usage: str
    short: tuple[str, ...]
    about: str
    more: str
    action: Action

    def run(self, session: Session, arguments: list[str]) -> Iterator[str]:
        """Yield the lines of the answer. Raises InputError, QuitDebugger."""
        try:
            inspect.signature(self.action).bind(session, *arguments)
        except TypeError:
            raise InputError(f"usage: {self.usage}") from None
        return self.action(session, *arguments)


COMMANDS: dict[str, Command] = {}


def command(usage: str, *short: str) -> Callable[[Action], Action]:
    """Make the decorated function the command that *usage* shows, also under the names *short*."""

    def register(action: Action) -> Action:
        about, _, more = inspect.cleandoc(action.__doc__ or "").partition("\n")
        name = usage.split(maxsplit=1)[0]
        COMMANDS[name] = Command(name, usage, short, about, more.strip(), action)
        return action

    return register


def find(word: str) -> Command:
    """Return the command that *word* means. Raises InputError when there is none, or more than one."""
    for entry in COMMANDS.values():
        if word == entry.name or word in entry.short:
            return entry
    found = [entry for entry in COMMANDS.values() if entry.name.startswith(word)]
    if not found:
        raise InputError(f"{word}: no such command; help lists them")
    if len(found) > 1:
        raise InputError(f"{word}: {' or '.join(entry.name for entry in found)}?")
    return found[0]


def execute(session: Session, line: str) -> Iterator[str]:
    """Yield the answer to one command *line*, as it comes. Raises InputError, QuitDebugger."""
    word, *arguments = line.split()
    yield from find(word).run(session, arguments)


def _count(text: str, most: int | None = None) -> int:
    """Return the positive number that *text* is, at *most* so large."""
    try:
        value = int(text, 0)
    except ValueError:
        value = 0
    if value <= 0 or (most is not None and value > most):
        raise InputError(f"{text}: not a number from 1{f' to {most:#x}' if most else ' on'}")
    return value


# -- running ----------------------------------------------------------------------------------------------------------


@command("step [N]", "s")
def step(session: Session, count: str = "1") -> Iterator[str]:
    """Let the hypervisor handle the VM exit in hand, and run to the next one, N times.

    Each exit is shown before it is handled. The bare machine has no exits: there, each step is one instruction.

    Example: step 3
    """
    for _ in range(_count(count)):
        pause = session.step()
        yield from report(session, pause)
        if pause.why not in (Why.EXIT, Why.INSTRUCTION):
            return


@command("instruction [N]", "si")
def instruction(session: Session, count: str = "1") -> Iterator[str]:
    """Execute one instruction, N times, and show where that led.

    An instruction that causes a VM exit takes two: up to the exit, and its handling.

    Example: instruction 5
    """
    for _ in range(_count(count)):
        pause = session.step_instruction()
        yield from report(session, pause)
        if pause.why not in (Why.EXIT, Why.INSTRUCTION):
            return


@command("continue [N]", "c")
def run(session: Session, count: str | None = None) -> Iterator[str]:
    """Run to the end of the guest, or through N exits and show the last one; Ctrl-C stops it.

    On the bare machine N counts instructions.

    Example: continue 100
    """
    yield from report(session, session.run(None if count is None else _count(count)))


@command("until ADDRESS", "u")
def until(session: Session, *address: str) -> Iterator[str]:
    """Run until the instruction at ADDRESS is next; VM exits on the way are handled.

    ADDRESS is a gva: a label, a register, a number, or a sum of them.

    Example: until main
    """
    yield from report(session, session.until(session.symbols.address(_needed(address, "until ADDRESS"))))


def _needed(words: tuple[str, ...], usage: str) -> str:
    if not words:
        raise InputError(f"usage: {usage}")
    return " ".join(words)


# -- looking ----------------------------------------------------------------------------------------------------------


@command("where", "info")
def where(session: Session) -> Iterator[str]:
    """Show again where the guest stands, and the VM exit in hand.

    Example: where
    """
    yield from report(session, Pause(session.pause.why, session.exit, session.pause.ending))


@command("registers [NAME]", "r", "regs")
def show_registers(session: Session, name: str = "") -> Iterator[str]:
    """Show the registers as the guest believes them to be and, where it is deceived, the truth.

    NAME chooses those whose names begin like that; debug registers and CR8 are shown only when they are asked for.

    Example: registers cr
    """
    yield from registers.registers(session, name.lower())


@command("disassemble [ADDRESS [N]]", "d")
def disassemble(session: Session, address: str | None = None, count: str = "8") -> Iterator[str]:
    """Show N instructions from ADDRESS, or from the next one; the mode is the current one.

    Example: disassemble main 4
    """
    gva = session.here if address is None else session.symbols.address(address)
    for line in session.code(gva, _count(count, LARGEST)):
        for label in session.symbols.at(line.gva):
            yield f"{label}:"
        mark = "=>" if line.gva == session.here else "  "
        shown = line.code.hex(" ") if len(line.code) <= LONGEST else f"{len(line.code)} bytes"
        yield f"{mark} {line.gva:#010x}  {shown:30}  {session.symbols.annotate(line.text)}"


@command("memory ADDRESS [LENGTH]", "m", "x")
def memory(session: Session, address: str, length: str = "64") -> Iterator[str]:
    """Show LENGTH bytes in hexadecimal and as characters, by gva or, with gpa:ADDRESS, by gpa.

    Nothing changes by looking: no accessed bit is set and no device is read. Outside RAM, bytes are ff.

    Example: memory gpa:0x100000 32
    """
    size = _count(length, LARGEST)
    _, physical, place = address.rpartition("gpa:")
    start = session.symbols.address(place.removeprefix("gva:"))
    data = session.memory.physical(start, size) if physical else session.memory.linear(start, size)
    for offset in range(0, len(data), _ROW):
        row = data[offset : offset + _ROW]
        text = "".join(chr(byte) if chr(byte).isascii() and chr(byte).isprintable() else "." for byte in row)
        yield f"{start + offset:#010x}  {row.hex(' '):{3 * _ROW - 1}}  {text}"
    if len(data) < size:
        yield f"gva {start + len(data):#x} is not mapped"


@command("walk GVA", "w")
def walk(session: Session, gva: str) -> Iterator[str]:
    """Show every page-table entry on the way from GVA to its gpa and, under EPT, the way to each hpa.

    Example: walk esp
    """
    yield from walks.walk(session, session.symbols.address(gva))


@command("stack [N]")
def stack(session: Session, count: str = "8") -> Iterator[str]:
    """Show N words from the top of the stack, with the labels that they may point to.

    Example: stack 4
    """
    view = session.view
    bits = code_size(view)
    top = truncate(view.gpr(Gpr.RSP), 8 if bits == 64 else 4 if view.segment(Sreg.SS).rights.db else 2)
    gva, size = session.linear(Sreg.SS, top), bits // 8
    data = session.memory.linear(gva, size * _count(count, LARGEST))
    for offset in range(0, len(data) - size + 1, size):
        value = int.from_bytes(data[offset : offset + size], "little")
        yield f"{gva + offset:#010x}  {value:#0{2 * size + 2}x}{session.symbols.name(value)}"


@command("gdt", "g")
def gdt(session: Session) -> Iterator[str]:
    """Show the guest's global descriptor table, decoded.

    Example: gdt
    """
    yield from descriptors.gdt(session)


@command("idt")
def idt(session: Session) -> Iterator[str]:
    """Show the guest's interrupt descriptor table, decoded; in real-address mode, the interrupt vectors.

    Example: idt
    """
    yield from descriptors.idt(session)


@command("vmcs [WORD]", "v")
def vmcs(session: Session, word: str = "") -> Iterator[str]:
    """Show the VMCS, or its fields whose names contain WORD; fields that are 0 are left out.

    Example: vmcs cr0
    """
    current = session.vmcs
    if current is None:
        raise InputError(f"{session.technique.name} has no VMCS: --technique hardware has one")
    lines = current.dump(zeros=bool(word)).splitlines()
    if word:
        lines = [line for line in lines if line.startswith(" ") and word.upper() in line.split()[1]]
    if not lines:
        raise InputError(f"{word}: no field of the VMCS has that in its name")
    yield from lines


@command("exits", "e")
def exits(session: Session) -> Iterator[str]:
    """Show how often each VM exit was handled so far, and what the run has cost.

    Example: exits
    """
    books = session.vm.books
    for what, number in sorted(books.by_reason.items(), key=lambda item: (-item[1], item[0])):
        yield f"{number:8} {what:22} {in_words(what)}"
    yield f"{books.exits:8} exits, {session.vm.instructions} instructions, {session.vm.clock.now} cycles"


@command("console")
def console(session: Session) -> Iterator[str]:
    """Show all that the guest has printed.

    Example: console
    """
    text = bytes(session.vm.board.console)
    yield from _printed(text) if text else ("the guest has printed nothing",)


@command("help [COMMAND]", "h", "?")
def help_(session: Session, word: str = "") -> Iterator[str]:  # noqa: ARG001 - all commands have one signature
    """Show all commands, or one with an example.

    Any beginning of a name that fits no other command will do.

    Example: help walk
    """
    if word:
        entry = find(word)
        also = f"  (also: {', '.join(entry.short)})" if entry.short else ""
        yield from (f"{entry.usage}{also}", entry.about, *entry.more.splitlines())
        return
    for entry in COMMANDS.values():
        yield f"{entry.usage:27} {entry.about}"


@command("quit", "q", "exit")
def quit_(session: Session) -> Iterator[str]:  # noqa: ARG001 - all commands have one signature
    """Leave the debugger.

    Example: quit
    """
    raise QuitDebugger


# -- where the guest stands -------------------------------------------------------------------------------------------


def report(session: Session, pause: Pause) -> Iterator[str]:
    """Yield what a person wants to know at a *pause*: output, what the hypervisor did, the exit, the instruction."""
    yield from _printed(pause.console)
    if pause.handled:
        yield f"handled: {pause.handled}"
    if pause.exit is not None:
        yield f"exit {session.vm.books.exits + 1}: {session.words()}"
    elif pause.ending is not None:
        yield f"end: {outcome.explain(pause.ending)}"
    elif pause.why is Why.INTERRUPTED:
        yield "stopped: interrupted"
    yield place(session)


def place(session: Session) -> str:
    """Return where the guest is, with the instruction that is next."""
    one = session.instruction()
    text = session.symbols.annotate(str(one)) if one else "(no code is mapped here)"
    return f"=> {session.here:#x}{session.symbols.name(session.here)}: {text}"


def _printed(text: bytes) -> Iterator[str]:
    """Yield what the guest printed, line by line."""
    for line in outcome.text(text).splitlines():
        yield f"guest| {line}"
