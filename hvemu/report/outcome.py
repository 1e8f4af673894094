"""How a run ended and what it cost: in words, and as one object for scripts."""

from __future__ import annotations

from typing import Any

from hvemu.events import Ending, How
from hvemu.machine import Machine, Result

_WORDS = {
    How.EXITED: "it ended with failure: exit code {code}",
    How.HALTED: "it stopped for ever: {why}",
    How.STOPPED: "{why}",
    How.DIED: "the guest died: {why}",
    How.INSTRUCTIONS: "its budget ran out after {why} (--max-instructions)",
    How.EXITS: "its budget ran out after {why} (--max-exits)",
    How.TIMEOUT: "its budget ran out after {why} (--timeout)",
}


def explain(ending: Ending) -> str:
    """Return in words how a run ended."""
    if ending.success:
        return "it ended with success"
    code = None if ending.code is None else f"{ending.code:#x}"
    return _WORDS[ending.how].format(code=code, why=ending.why)


def headline(machine: Machine, result: Result) -> str:
    """Return one line: what ran, and how it ended."""
    technique = machine.technique
    return f"{machine.image.name} under {technique.name}+{technique.memory}: {explain(result.ending)}"


def costs(result: Result) -> str:
    """Return what a run cost."""
    return (
        f"{result.exits:,} exits, {result.instructions:,} instructions, {result.cycles:,} modelled cycles, "
        f"{result.host_seconds:.2f} s"
    )


def text(console: bytes) -> str:
    r"""Return what a guest printed as text; a byte that is not UTF-8 becomes \xNN."""
    return console.decode(errors="backslashreplace")


def as_json(machine: Machine, result: Result) -> dict[str, Any]:
    """Return the object that `run --json` writes."""
    technique = machine.technique
    return {
        "guest": machine.image.name,
        "technique": technique.name,
        "memory": technique.memory,
        **run_fields(result),
    }


def run_fields(result: Result) -> dict[str, Any]:
    """Return what a run came to, for an object that says which run it was."""
    return {
        "console": text(result.console),
        "stop": {"reason": result.ending.how.value, "code": result.ending.code},
        "instructions": result.instructions,
        "exits": {"total": result.exits, "by_reason": result.by_reason},
        "modelled_cycles": result.cycles,
        "host_seconds": round(result.host_seconds, 6),
    }
