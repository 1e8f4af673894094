"""docs/reading-order.md takes a reader through every module once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# * [x86/paging.py](../hvemu/x86/paging.py): one sentence.
ENTRY = re.compile(r"^\d+\. \[(?P<label>\S+\.py)\]\(\.\./(?P<path>hvemu/\S+)\): (?P<text>.+)$", re.MULTILINE)
TEXT = (ROOT / "docs/reading-order.md").read_text(encoding="utf-8")
ENTRIES = [*ENTRY.finditer(TEXT)]


def only_a_docstring(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return path.name == "__init__.py" and all(isinstance(n, ast.Expr) for n in body)


MODULES = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "hvemu").rglob("*.py")) if not only_a_docstring(p)]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_listed_once(module: str) -> None:
    assert [entry["path"] for entry in ENTRIES].count(module) == 1


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["label"])
def test_every_entry_is_a_module_and_one_sentence(entry: re.Match[str]) -> None:
    assert (ROOT / entry["path"]).is_file()
    assert entry["path"] == f"hvemu/{entry['label']}"
    assert entry["text"].endswith(".")
    assert ". " not in entry["text"]


def test_no_line_of_the_list_is_malformed() -> None:
    assert len(re.findall(r"^\d+\.", TEXT, re.MULTILINE)) == len(ENTRIES)
