"""Every citation of the Intel manual names a section that docs/sdm.md lists, under its volume."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CITATION = re.compile(r'SDM (?P<volume>\d[A-D]?),? "(?P<title>[^"]+)"')


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
    """Yield (volume, title); a citation may be broken over lines, of a comment too."""
    joined = re.sub(r"\s*\n\s*(#\s*)?", " ", source)
    for match in CITATION.finditer(joined):
        yield match["volume"], match["title"]


LISTED = listed()


@pytest.mark.parametrize("path", sorted((ROOT / "hvemu").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_cited_titles_are_listed(path: Path) -> None:
    assert {*citations(path.read_text(encoding="utf-8"))} - LISTED == set()


def test_a_citation_broken_over_comment_lines_is_seen() -> None:
    assert [*citations('# as SDM 3A "Protected-Mode\n    # Interrupts" says')] == [("3A", "Protected-Mode Interrupts")]


def test_titles_are_listed_once() -> None:
    lines = [x for x in (ROOT / "docs/sdm.md").read_text(encoding="utf-8").splitlines() if x.startswith("* ")]
    assert len(lines) == len(LISTED)
