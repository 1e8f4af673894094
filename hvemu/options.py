"""Options that commands share, and what their values mean."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import click

from hvemu.machine import PAIRS
from hvemu.report.setup import Setup

Command = Callable[..., Any]
Option = Callable[[Command], Command]
_SIZE = re.compile(r"(\d{1,15})(?:([KMG])(?:iB)?)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_CLOCKS = ("counted", "free")


def size(text: str) -> int:
    """Return the bytes that *text* means: a number, or a number of KiB, MiB or GiB."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size: write 64M, 16MiB or a number of bytes")
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def seconds(text: str) -> float:
    """Return the seconds that *text* means, finite and not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds")
    return value


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a command writes, or the standard output."""

    stream: BinaryIO
    is_stdout: bool

    def write_json(self, document: Mapping[str, Any]) -> None:
        """Write *document* as one object."""
        self.stream.write(json.dumps(document, indent=2).encode() + b"\n")
        self.stream.flush()


def output(path: str) -> Output:
    """Return where *path* leads, open: a file that cannot be written is found out before a guest has run."""
    if path == "-":
        return Output(sys.stdout.buffer, is_stdout=True)
    try:
        stream = Path(path).open("wb")  # noqa: SIM115 - closed with the command
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}") from error
    click.get_current_context().call_on_close(stream.close)
    return Output(stream, is_stdout=False)


def _one_of(values: list[str]) -> click.Choice[str]:
    return click.Choice([*dict.fromkeys(values)])


COUNT = click.IntRange(min=0)
PAIR: tuple[Option, ...] = (
    click.option("--technique", type=_one_of([t for t, _ in PAIRS]), help="How the processor is virtualized."),
    click.option("--memory", type=_one_of([m for _, m in PAIRS]), help="How memory is virtualized."),
)
GUEST: tuple[Option, ...] = (
    click.option("--mode", type=click.Choice(["16", "32", "64"]), help="Code size in which the guest starts."),
    click.option("--ram", type=size, metavar="SIZE", help="The guest's memory: 64M, 16MiB, or bytes."),
    click.option("--append", metavar="CMDLINE", help="Command line of a Multiboot kernel."),
    click.option("--initrd", metavar="FILE", help="First module of a Multiboot kernel."),
)
BUDGET: tuple[Option, ...] = (
    click.option("--max-instructions", type=COUNT, metavar="N", help="End after N instructions, with status 3."),
    click.option("--max-exits", type=COUNT, metavar="N", help="End after N VM exits, with status 3."),
    click.option("--timeout", type=seconds, metavar="SECONDS", help="End after this long, with status 3."),
)
CLOCK: tuple[Option, ...] = (
    click.option(
        "--clock",
        type=click.Choice(_CLOCKS),
        help="Time is instructions, the same in every run; or the host's, faster.",
    ),
)
JSON = click.option("--json", "json_", type=output, metavar="FILE|-", help="Write one object for a script.")
TRACE = click.option("--trace", type=output, metavar="FILE|-", help="Write one line for each VM exit.")
MACHINE = (*PAIR, *GUEST, *BUDGET, *CLOCK)
"""All that describes how a guest is run."""


def setup_from(*options: Option) -> Callable[[Command], Command]:
    """Give a command these *options*, and their values as one argument *setup*."""
    chosen = {f.name for f in fields(Setup)} | {"clock"}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_setup(**values: Any) -> Any:
            given = {name: values.pop(name) for name in chosen & values.keys()}
            return command(setup=_setup(**{name: v for name, v in given.items() if v is not None}), **values)

        wrapped: Command = with_setup
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def _setup(*, clock: str = _CLOCKS[0], mode: str | None = None, **values: Any) -> Setup:
    return Setup(counted=clock == _CLOCKS[0], mode=None if mode is None else int(mode), **values)
