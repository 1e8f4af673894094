"""The import graph points one way, and each native library has one owner."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "hvemu"
LAYERS = [
    "bits", "errors", "events", "x86", "memory", "vmx", "engine", "cpu", "devices", "guest",
    "techniques", "machine", "report", "debug", "lab", "options", "cli", "__init__", "__main__",
]  # fmt: skip
OWNERS = {"unicorn": "engine/", "capstone": "x86/decode.py", "keystone": "guest/asm.py"}


def imports(source: str, here: Path) -> Iterator[str]:
    """Yield the absolute name of every module that *source*, the file at *here* below hvemu/, imports."""
    package = ("hvemu", *here.parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            if module == "hvemu":
                yield from (f"hvemu.{a.name}" for a in node.names if a.name in LAYERS)


def layer(name: str) -> int:
    return LAYERS.index(name.removesuffix(".py"))


def violations(source: str, here: Path) -> list[str]:
    """Return what *source* imports from above its layer, or from a library that another file owns."""
    found = []
    for name in imports(source, here):
        top, _, rest = name.partition(".")
        if top in OWNERS and not here.as_posix().startswith(OWNERS[top]):
            found.append(f"{name}: only {OWNERS[top]} may")
        if top == "hvemu" and rest and layer(rest.split(".")[0]) > layer(here.parts[0]):
            found.append(f"{name}: a higher layer")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), path.relative_to(ROOT)) == []


@pytest.mark.parametrize(
    ("here", "source"),
    [
        ("x86/paging.py", "import hvemu.memory.walk"),
        ("x86/paging.py", "from hvemu.memory import walk"),
        ("x86/paging.py", "from ..memory import walk"),
        ("memory/walk.py", "from hvemu import machine"),
        ("bits.py", "from hvemu import errors"),
        ("cpu/cpu.py", "import unicorn"),
        ("cpu/cpu.py", "from unicorn.x86_const import UC_X86_REG_EAX"),
        ("x86/paging.py", "import capstone"),
        ("guest/image.py", "def f():\n    import keystone"),
    ],
)
def test_the_rule_sees_a_violation(here: str, source: str) -> None:
    assert violations(source, Path(here))


@pytest.mark.parametrize(
    ("here", "source"),
    [
        ("memory/walk.py", "from hvemu.x86 import paging"),
        ("memory/walk.py", "from .tlb import Tlb"),
        ("engine/engine.py", "import unicorn"),
        ("x86/decode.py", "import capstone"),
        ("guest/asm.py", "import keystone"),
    ],
)
def test_the_rule_lets_the_rest_pass(here: str, source: str) -> None:
    assert violations(source, Path(here)) == []
