"""One guest under every legal pair: whether it can tell where it runs, and what each pair costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from hvemu.errors import InputError
from hvemu.events import BUDGETS
from hvemu.guest.image import load
from hvemu.guest.manifest import Pair, load_manifest
from hvemu.machine import PAIRS, Result
from hvemu.report.attend import attend
from hvemu.report.outcome import explain
from hvemu.report.setup import Setup, legal_pairs

REFERENCE: Pair = ("bare", "none")
"""The machine without a hypervisor, whose guest sees what there is to see."""


class Verdict(Enum):
    """What was found about a pair, next to the reference."""

    REFERENCE = "reference"
    SAME = "same"
    EXPECTED = "expected divergence"
    UNEXPECTED = "unexpected divergence"
    MISSED = "expected divergence did not come"
    UNDECIDED = "undecided: a budget ran out"


_STATUS = {Verdict.UNEXPECTED: 1, Verdict.MISSED: 1, Verdict.UNDECIDED: 3}


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first thing that is not the same: *line* of the console, from 1, or None when only the ends differ.

    *reference* and *here* are what each shows there; None where the console has ended.
    """

    line: int | None
    reference: str | None
    here: str | None


@dataclass(frozen=True, slots=True)
class Compared:
    """A run of the guest under *pair*. *reason* is why guests.toml expects a divergence, or ''."""

    pair: Pair
    result: Result
    verdict: Verdict
    divergence: Divergence | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs of *guest*, the reference first. *about* is one line from guests.toml, or ''."""

    guest: str
    about: str
    runs: tuple[Compared, ...]

    @property
    def status(self) -> int:
        """Exit status: 0 all is as it should be, 1 it is not, 3 a budget ran out before that was known."""
        found = {_STATUS.get(run.verdict, 0) for run in self.runs}
        return 1 if 1 in found else max(found)


def compare(guest: str, setup: Setup, before: Callable[[str], None] = lambda _: None) -> Comparison:
    """Run *guest*, as `load` finds it, under every legal pair; *before* hears what is about to run.

    Raises InputError.
    """
    pairs, about, expected = _plan(guest, setup)
    runs: list[Compared] = []
    for pair in pairs:
        before(f"{guest} under {'+'.join(pair)}")
        result = attend(setup.under(pair).machine(guest), setup.budget(guest))
        if not runs:
            runs.append(Compared(pair, result, Verdict.REFERENCE))
            continue
        reason = expected.get(pair, "")
        divergence = find_divergence(runs[0].result, result)
        verdict = _verdict(runs[0].result, result, divergence, expected=bool(reason))
        runs.append(Compared(pair, result, verdict, divergence, reason))
    return Comparison(guest, about, tuple(runs))


def _plan(guest: str, setup: Setup) -> tuple[tuple[Pair, ...], str, Mapping[Pair, str]]:
    """Return the pairs, the reference first; what guests.toml says of the guest; where it expects a divergence."""
    known = load_manifest().get(guest)
    if known is None:
        image = load(guest, mode=setup.mode, ram=setup.ram, cmdline=setup.append, initrd=setup.initrd)
        return legal_pairs(image.mode), "", {}
    pairs = [pair for pair in PAIRS if pair in known.pairs]
    if REFERENCE not in pairs:
        raise InputError(f"{guest}: guests.toml does not let it run on the bare machine: nothing to compare with")
    return tuple(sorted(pairs, key=REFERENCE.__ne__)), known.about, known.expected_divergence


def find_divergence(reference: Result, here: Result) -> Divergence | None:
    """Return the first thing that a guest showed in one run and not in the other, or None.

    After a budget ran out, nothing is said about what is missing.
    """
    cut = not {reference.ending.how, here.ending.how}.isdisjoint(BUDGETS)
    ours, theirs = (result.console.split(b"\n") for result in (reference, here))
    if cut:
        shorter = min(len(ours), len(theirs)) - 1  # the last line may not be whole
        ours, theirs = [*ours[:shorter], b""], [*theirs[:shorter], b""]
    length = max(len(ours), len(theirs))
    for number in range(length):
        one, other = _line(ours, number), _line(theirs, number)
        if one != other:
            return Divergence(number + 1, one, other)
    ends = [(result.ending.how, result.ending.code) for result in (reference, here)]
    if not cut and ends[0] != ends[1]:
        return Divergence(None, explain(reference.ending), explain(here.ending))
    return None


def _line(lines: list[bytes], number: int) -> str | None:
    """Return a line as text, what cannot be printed escaped. After the last newline there is no line."""
    last = number == len(lines) - 1
    if number >= len(lines) or (last and not lines[number]):
        return None
    text = lines[number].decode(errors="backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"{shown} (no newline)" if last else shown


def _verdict(reference: Result, here: Result, divergence: Divergence | None, *, expected: bool) -> Verdict:
    if divergence is not None:
        return Verdict.EXPECTED if expected else Verdict.UNEXPECTED
    if reference.ending.how in BUDGETS or here.ending.how in BUDGETS:
        return Verdict.UNDECIDED
    return Verdict.MISSED if expected else Verdict.SAME
