"""Every example prints what lies beside it, with nothing but the public names."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import hvemu

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
LONGEST = 50


def names(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", EXAMPLES, ids=names)
def test_an_example_prints_what_lies_beside_it(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out == path.with_suffix(".out").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EXAMPLES, ids=names)
def test_an_example_uses_public_names_only(path):
    imported = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Import)]
    assert not [alias.name for node in imported for alias in node.names if alias.name.startswith("hvemu")]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hvemu"):
            assert node.module == "hvemu"
            assert {alias.name for alias in node.names} <= {*hvemu.__all__}


@pytest.mark.parametrize("path", EXAMPLES, ids=names)
def test_an_example_is_short_and_begins_with_its_idea(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    assert ast.get_docstring(ast.parse(text))


def test_examples_are_numbered_without_gaps_and_nothing_else_is_there():
    assert [int(path.stem[:2]) for path in EXAMPLES] == [*range(1, len(EXAMPLES) + 1)]
    kept = [p for p in FOLDER.iterdir() if p.name not in {"README.md", "__pycache__"}]
    assert sorted(kept) == sorted([*EXAMPLES, *(path.with_suffix(".out") for path in EXAMPLES)])


def test_an_example_runs_from_anywhere(tmp_path):
    shown = subprocess.run(
        [sys.executable, str(EXAMPLES[0])], cwd=tmp_path, env={"PYTHONPATH": str(FOLDER.parent)}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert shown == EXAMPLES[0].with_suffix(".out").read_text(encoding="utf-8")
