"""A comparison as tables for people, and as one object for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from textwrap import fill
from typing import Any

from hvemu.report.compare import Compared, Comparison, Verdict
from hvemu.report.outcome import explain, run_fields
from hvemu.report.table import table
from hvemu.report.words import reasons

WIDTH = 80
_HEADS = ("pair", "same?", "exits", "instructions", "modelled cycles", "host s")
_SAME = {
    Verdict.REFERENCE: "(reference)",
    Verdict.SAME: "yes",
    Verdict.EXPECTED: "no, expected",
    Verdict.UNEXPECTED: "NO",
    Verdict.MISSED: "YES",
    Verdict.UNDECIDED: "?",
}
_NOTHING = "(nothing: the console has ended)"


def render(comparison: Comparison, *, breakdown: bool = True) -> Iterator[str]:
    """Yield the lines: a table of the pairs, what differs and why, and, with *breakdown*, the exits by reason."""
    yield fill(f"{comparison.guest}: {comparison.about}" if comparison.about else comparison.guest, WIDTH)
    yield from table(_HEADS, [_row(run) for run in comparison.runs])
    for run in comparison.runs:
        yield from _remarks(run)
    if breakdown:
        yield from _breakdown([run for run in comparison.runs if run.result.exits])
    yield ""


def _row(run: Compared) -> tuple[str | int, ...]:
    result, seconds = run.result, f"{run.result.host_seconds:6.2f}"
    return pair(run), _SAME[run.verdict], result.exits, result.instructions, result.cycles, seconds


def pair(run: Compared) -> str:
    """Return technique+memory."""
    return "+".join(run.pair)


def _remarks(run: Compared) -> Iterator[str]:
    """Yield what a person must know about a pair besides its numbers."""
    name, divergence = pair(run), run.divergence
    if divergence is not None:
        where = "how the run ends" if divergence.line is None else f"line {divergence.line} of the console"
        yield f"{name} differs first in {where}:"
        yield f"    bare+none: {_NOTHING if divergence.reference is None else divergence.reference}"
        yield f"    here:      {_NOTHING if divergence.here is None else divergence.here}"
    if run.verdict is Verdict.EXPECTED:
        yield _indented(f"expected: {run.reason}")
    elif run.verdict is Verdict.UNEXPECTED:
        yield _indented("NOT EXPECTED: the technique should have hidden this")
    elif run.verdict is Verdict.MISSED:
        yield f"{name}: guests.toml expects a divergence, and there is none:"
        yield _indented(run.reason)
    elif run.verdict is Verdict.UNDECIDED:
        yield f"{name}: no verdict, for the guest did not end: {explain(run.result.ending)}"
    if run.verdict in _ENDED_BADLY and run.result.ending.why:
        yield f"{name}: {explain(run.result.ending)}"


_ENDED_BADLY = (Verdict.REFERENCE, Verdict.EXPECTED, Verdict.UNEXPECTED)


def _indented(text: str) -> str:
    return fill(text, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _breakdown(runs: Sequence[Compared]) -> Iterator[str]:
    if not runs:
        return
    counts = [reasons(run.result.by_reason) for run in runs]
    total = sum(counts, Counter[str]())
    rows = [(words, *(c[words] or None for c in counts)) for words in sorted(total, key=lambda w: (-total[w], w))]
    yield ""
    yield from table(("why the guest was left", *map(pair, runs)), rows)


def render_total(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield what all *comparisons* together have shown."""
    found: Counter[Verdict] = Counter(
        run.verdict for c in comparisons for run in c.runs if run.verdict is not Verdict.REFERENCE
    )
    counted = ", ".join(f"{found[verdict]} {verdict.value}" for verdict in Verdict if found[verdict])
    yield f"{len(comparisons)} guests, {found.total()} comparisons with the bare machine: {counted}"
    yield "`hvemu compare GUEST` also shows what each technique left the guest for"


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the object that `compare --json` writes. *status* is the command's for this guest."""
    return {"guests": [_guest(c) for c in comparisons]}


def _guest(comparison: Comparison) -> dict[str, Any]:
    runs = [
        {
            "technique": run.pair[0],
            "memory": run.pair[1],
            "verdict": run.verdict.name.lower(),
            "divergence": run.divergence and asdict(run.divergence),
            "reason": run.reason,
            **run_fields(run.result),
        }
        for run in comparison.runs
    ]
    return {"guest": comparison.guest, "status": comparison.status, "runs": runs}
