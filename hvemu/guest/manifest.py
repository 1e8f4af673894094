"""guests.toml: what each guest is, where it may run, and what it must show."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import hvemu
from hvemu.errors import InputError

Pair = tuple[str, str]
"""Technique and memory, as in `deprivilege+shadow`."""


@dataclass(frozen=True, slots=True)
class Guest:
    """One entry. *source* is a file beside the manifest, *about* one line.

    *pairs* is where it runs. *console* is all that it prints and *exit_code* what it writes to the exit port.
    *limits* bounds a run: `instructions` and `exits`. *expected_divergence* gives the reason for each pair under which
    the guest sees something else than on the bare machine.
    """

    name: str
    source: Path
    mode: int
    about: str
    pairs: tuple[Pair, ...]
    console: str
    exit_code: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)
    expected_divergence: Mapping[Pair, str] = field(default_factory=dict)


def guests_dir() -> Path:
    """Return the directory of guests.toml: inside an installed package, or at the top of a checkout."""
    package = Path(hvemu.__file__).parent
    installed = package / "guests"
    return installed if installed.is_dir() else package.parent / "guests"


def load_manifest(path: Path | None = None) -> dict[str, Guest]:
    """Return the guests by name, in the order of the file *path* (default: the guests that come with hvemu).

    Raises InputError, with the entry and the key, when the file says something that is not known.
    """
    path = path or guests_dir() / "guests.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    return {name: _guest(name, entry, path) for name, entry in document.items()}


def _guest(name: str, entry: dict[str, Any], path: Path) -> Guest:
    known = {f.name for f in fields(Guest)} - {"name"}
    required = ("source", "mode", "about", "pairs", "console")
    problems = [f"unknown key {key!r}" for key in entry if key not in known]
    problems += [f"no {key!r}" for key in required if key not in entry]
    if entry.get("mode", 32) not in {16, 32, 64}:
        problems.append(f"mode {entry['mode']!r} is not 16, 32 or 64")
    if problems:
        raise InputError(f"{path}: [{name}]: {', '.join(problems)}")
    special: dict[str, Any] = {
        "source": path.parent / entry["source"],
        "pairs": tuple(pair(text) for text in entry["pairs"]),
        "expected_divergence": {pair(t): why for t, why in entry.get("expected_divergence", {}).items()},
    }
    return Guest(name=name, **{**entry, **special})


def pair(text: str) -> Pair:
    """Return the (technique, memory) that `technique+memory` means."""
    technique, plus, memory = text.partition("+")
    if not plus:
        raise InputError(f"{text!r} is not a pair: write technique+memory, as in hardware+ept")
    return technique, memory
