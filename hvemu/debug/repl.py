"""The debugger's prompt: commands from a terminal, from the command line, from a script, or from a pipe."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output

from hvemu.debug.commands import COMMANDS, QuitDebugger, execute, report
from hvemu.debug.session import Session, Why
from hvemu.errors import HvemuError, InputError
from hvemu.machine import Machine
from hvemu.techniques.vm import Budget

PROMPT = "(hvemu) "
_BUDGET_STATUS = 3


def repl(
    machine: Machine,
    commands: Sequence[str] | None = None,
    script: str | Path | None = None,
    *,
    budget: Budget | None = None,
    output: TextIO | None = None,
) -> int:
    """Debug *machine*: run the lines of the file *script*, then *commands*, or else ask a person.

    *budget* bounds every command. Return the exit status: the guest's if it has ended, 3 after a budget ran out, or 0.
    Raises InputError for a script that cannot be read, and for the first bad command of a script or of *commands*.
    """
    session, out = Session(machine, budget=budget), output or sys.stdout
    lines = [*(_read(Path(script)) if script is not None else ()), *((None, line) for line in commands or ())]
    prompt = Prompt(session, out)
    prompt.greet()
    try:
        if script is not None or commands:
            prompt.run_script(lines)
        elif sys.stdin.isatty() and sys.stdout.isatty():
            prompt.ask()
        else:
            prompt.run_pipe(sys.stdin)
    except QuitDebugger:
        pass
    return _status(session)


def _read(path: Path) -> list[tuple[str | None, str]]:
    """Return the commands of a script, each with where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file") from error
    return [(f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), 1)]


def _status(session: Session) -> int:
    if session.ending is not None:
        return session.ending.status
    return _BUDGET_STATUS if session.pause.why is Why.BUDGET else 0


class Prompt:
    """*session* with its input and output: everything goes to *out*, line by line."""

    def __init__(self, session: Session, out: TextIO) -> None:
        self._session, self._out = session, out

    def greet(self) -> None:
        """Say what is being debugged, and where it stands."""
        session = self._session
        unit = (
            "step goes to the next VM exit" if session.has_exits else "there are no VM exits: step is one instruction"
        )
        technique = session.technique
        self._say(
            f"{session.machine.image.name} under {technique.name}+{technique.memory}; {unit}; help lists commands"
        )
        self._show(report(session, session.pause))

    def run_script(self, lines: Iterable[tuple[str | None, str]]) -> None:
        """Run commands of which the first bad one is the end. Raises InputError, QuitDebugger, KeyboardInterrupt."""
        for place, line in lines:
            if not _is_command(line):
                continue
            self._say(f"{PROMPT}{line.strip()}")
            try:
                self._execute(line)
            except HvemuError as error:
                if place is None:
                    raise
                raise InputError(f"{place}: {error}") from error
            if self._session.interrupted:
                raise KeyboardInterrupt

    def run_pipe(self, lines: Iterable[str]) -> None:
        """Run commands that come from a program, or from a person at a terminal that is none."""
        for line in lines:
            if _is_command(line):
                self._say(f"{PROMPT}{line.strip()}")
                self._try(line)

    def ask(self, *, source: Input | None = None, screen: Output | None = None) -> None:
        """Ask a person for commands until the end of input; an empty line repeats the last one."""
        asking: PromptSession[str] = PromptSession(completer=self._completer(), input=source, output=screen)
        last = ""
        while True:
            try:
                last = asking.prompt(PROMPT).strip() or last
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if _is_command(last):
                self._try(last)

    def _completer(self) -> Completer:
        return WordCompleter([*COMMANDS, *self._session.symbols.table])

    def _try(self, line: str) -> None:
        try:
            self._execute(line)
        except HvemuError as error:
            self._say(f"error: {error}")
        except KeyboardInterrupt:
            self._say("error: stopped inside the hypervisor: what it was doing is half done")

    def _execute(self, line: str) -> None:
        with interruptible(self._session):
            self._show(execute(self._session, line))

    def _show(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._say(line)

    def _say(self, line: str) -> None:
        self._out.write(f"{line}\n")
        self._out.flush()


def _is_command(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


@contextmanager
def interruptible(session: Session) -> Iterator[None]:
    """Let Ctrl-C stop the guest; a second one before it has stopped raises KeyboardInterrupt."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if session.interrupted:
            raise KeyboardInterrupt
        session.interrupt()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
