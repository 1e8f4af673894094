"""Every citation of the Intel manual names a section that docs/sdm.md lists, under its volume."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvemu.vmx.entry  # noqa: F401 - makes every table of checks register its rows
from hvemu.vmx.checks import CHECKS

ROOT = Path(__file__).parents[2]
CITATION = re.compile(r'SDM (?P<volume>\d[A-D]?),? (?P<titles>"[^"]+"(?:(?:,| and|, and) "[^"]+")*)')


def listed() -> set[tuple[str, str]]:
    """Return (volume, title) for every list item of docs/sdm.md."""
    volume, found = "", set()
    for line in (ROOT / "docs/sdm.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## Volume "):
            volume = line.removeprefix("## Volume ").split(":")[0]
        elif line.startswith("* "):
            found.add((volume, line.removeprefix("* ")))
    return found


def citations(source: str) -> Iterator[tuple[str, str]]:
    """Yield (volume, title); a citation may name several, and may be broken over lines, of a comment too."""
    joined = re.sub(r"\s*\n\s*(#\s*)?", " ", source)
    for match in CITATION.finditer(joined):
        for title in re.findall('"([^"]+)"', match["titles"]):
            if "{" not in title:  # the title of a row of a table, tested below
                yield match["volume"], title


LISTED = listed()


@pytest.mark.parametrize("path", sorted((ROOT / "hvemu").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_cited_titles_are_listed(path: Path) -> None:
    assert {*citations(path.read_text(encoding="utf-8"))} - LISTED == set()


def test_a_citation_broken_over_comment_lines_is_seen() -> None:
    assert [*citations('# as SDM 3A "Protected-Mode\n    # Interrupts" says')] == [("3A", "Protected-Mode Interrupts")]


def test_several_titles_of_one_volume_are_seen() -> None:
    assert [*citations('(SDM 1 "Input/Output", "I/O Port Addressing")')] == [
        ("1", "Input/Output"),
        ("1", "I/O Port Addressing"),
    ]


def test_the_titles_of_the_vm_entry_checks_are_listed() -> None:
    assert CHECKS
    assert {("3C", row.sdm) for row in CHECKS} - LISTED == set()


def test_titles_are_listed_once() -> None:
    lines = [x for x in (ROOT / "docs/sdm.md").read_text(encoding="utf-8").splitlines() if x.startswith("* ")]
    assert len(lines) == len(LISTED)
