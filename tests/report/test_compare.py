"""What two runs of one guest have in common, and where they part."""

from __future__ import annotations

import pytest

from hvemu.events import Ending, How
from hvemu.machine import Result
from hvemu.report.compare import Compared, Comparison, Divergence, Verdict, find_divergence

SUCCESS, FAILURE = Ending(How.EXITED, 0), Ending(How.EXITED, 1)
HALTED, CUT = Ending(How.HALTED, why="HLT"), Ending(How.EXITS, why="10 exits")
COLD = "it stopped for ever: HLT"


def result(console=b"", ending=SUCCESS):
    return Result(ending, console, instructions=0, exits=0, by_reason={}, cycles=0, host_seconds=0)


@pytest.mark.parametrize(
    ("reference", "here", "divergence"),
    [
        (b"", b"", None),
        (b"a\nb\n", b"a\nb\n", None),
        (b"a\nb\n", b"a\nc\n", Divergence(2, "b", "c")),
        (b"a\nb\n", b"a\n", Divergence(2, "b", None)),
        (b"a\n", b"a\nb\n", Divergence(2, None, "b")),
        (b"a\n", b"a", Divergence(1, "a", "a (no newline)")),
        (b"a\n\nb\n", b"a\nb\n", Divergence(2, "", "b")),
        (b"\x1b[1m\xff\n", b"\x07\n", Divergence(1, "\\x1b[1m\\xff", "\\x07")),
    ],
)
def test_the_first_line_that_differs_is_named(reference, here, divergence):
    assert find_divergence(result(reference), result(here)) == divergence


@pytest.mark.parametrize(
    ("reference", "here", "divergence"),
    [
        (SUCCESS, FAILURE, Divergence(None, "it ended with success", "it ended with failure: exit code 0x1")),
        (SUCCESS, HALTED, Divergence(None, "it ended with success", COLD)),
        (HALTED, Ending(How.HALTED, why="HLT elsewhere"), None),
        (SUCCESS, CUT, None),
        (CUT, CUT, None),
    ],
)
def test_with_the_same_console_the_ends_are_compared(reference, here, divergence):
    assert find_divergence(result(b"a\n", reference), result(b"a\n", here)) == divergence


@pytest.mark.parametrize(
    ("here", "divergence"),
    [
        (b"", None),
        (b"o", None),
        (b"one\n", None),
        (b"one\ntw", None),
        (b"one\nTW", None),  # not a whole line yet
        (b"uno\n", Divergence(1, "one", "uno")),
    ],
)
def test_after_a_budget_ran_out_only_whole_lines_that_are_there_are_compared(here, divergence):
    assert find_divergence(result(b"one\ntwo\n"), result(here, CUT)) == divergence


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([Verdict.SAME], 0),
        ([Verdict.SAME, Verdict.EXPECTED], 0),
        ([Verdict.SAME, Verdict.UNEXPECTED], 1),
        ([Verdict.MISSED], 1),
        ([Verdict.UNDECIDED, Verdict.SAME], 3),
        ([Verdict.UNDECIDED, Verdict.UNEXPECTED], 1),
    ],
)
def test_the_status_is_that_of_the_worst_pair(verdicts, status):
    runs = [Compared(("bare", "none"), result(), verdict) for verdict in (Verdict.REFERENCE, *verdicts)]
    assert Comparison("guest", "", tuple(runs)).status == status
