"""Files and functions stay small, and nothing is left for later."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES = 400, 50
LEFTOVER = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X)\b")  # written so that this file passes its own test
SUFFIXES = {".py", ".md", ".asm", ".inc", ".toml"}
MODULES = sorted((ROOT / "hvemu").rglob("*.py"))
TEXTS = sorted(
    path
    for folder in ("hvemu", "guests", "docs", "examples", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in SUFFIXES
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_file_holds_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_functions_fit_on_a_screen(path: Path) -> None:
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert {node.name: length(node) for node in functions if length(node) > FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_nothing_is_left_for_later(path: Path) -> None:
    assert LEFTOVER.findall(path.read_text(encoding="utf-8")) == []
