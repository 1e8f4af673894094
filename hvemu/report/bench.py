"""What things cost, as ratios: measured together, on one host, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hvemu.engine.baseline import armed_speed, callback_floor, plain_speed, stop_floor
from hvemu.guest.image import from_source
from hvemu.machine import Machine, Result, technique_for
from hvemu.techniques.vm import Budget

MICRO, MILLION = 1e6, 1e6
AVAILABLE_BIT = 0x200
"""A bit of a page-table entry that the processor ignores."""
_ROUNDS, _TURNS, _EXITS, _WRITES = 3_000_000, 60, 30_000, 3_000
_CPUID = """
start:
    xor eax, eax
    cpuid
    jmp start
"""
# One PTE is written over and over, each time with a new value; its page is used in between, or its shadow would go.
_PTE_WRITES = """
.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/paging.inc"
main:
    PAGING_ON
    MAP 0x40000000, 0x00300007
    mov ecx, {count}
again:
    {write}
    mov eax, [0x40000000]
    dec ecx
    jnz again
    EXIT 0
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: *value* in *unit*, and its *ratio* to what *against* names.

    *target* is what it should be, *met* whether it is.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
    against: str = ""
    target: str = ""
    met: bool | None = None


def bench(progress: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Measure everything; *progress* is told what is next."""
    rows: list[Row] = []
    for title, measure in (("translation", _speed), ("exits", _exits), ("page-table writes", _shadow)):
        progress(title)
        rows += measure()
    return rows


def _best(measure: Callable[[], float], times: int = 3) -> float:
    """Return the largest of several measurements: what the host does when nothing disturbs it."""
    return max(measure() for _ in range(times))


def _speed() -> list[Row]:
    # In turns, and many: whatever else the host does in one of them must not fall on one side alone.
    turns = [(plain_speed(_ROUNDS), armed_speed(_ROUNDS, counted=False)) for _ in range(_TURNS)]
    plain, free = (max(speeds) for speeds in zip(*turns, strict=True))
    counted = _best(lambda: armed_speed(_ROUNDS // 3, counted=True))
    ratio = free / plain
    return [
        Row("arithmetic loop, Unicorn without traps", plain / MILLION, "MIPS"),
        Row("  all traps armed, free clock", free / MILLION, "MIPS", ratio, "no traps", ">= 0.95", ratio >= 0.95),
        Row("  all traps armed, counted clock", counted / MILLION, "MIPS", counted / plain, "no traps"),
    ]


def _exits() -> list[Row]:
    floor = -_best(lambda: -callback_floor(_EXITS))
    stop = -_best(lambda: -stop_floor(_EXITS))
    full = -_best(lambda: -_cpuid_exit())
    ratio, rate = full / floor, 1 / full
    return [
        Row("CPUID: callback that skips it, the floor", floor * MICRO, "us"),
        Row("  stop of the engine and new start", stop * MICRO, "us", stop / floor, "the floor"),
        Row("  VM exit, handler, VM entry", full * MICRO, "us", ratio, "the floor", "<= 3", ratio <= 3),
        Row("  the same, as a rate", rate, "exits/s", None, "", ">= 100000", rate >= 100_000),
    ]


def _cpuid_exit() -> float:
    """Return the seconds of one CPUID through VM exit, handler and VM entry."""
    machine = _machine("cpuid", _CPUID, "hardware", "ept")
    machine.run(Budget(max_exits=1_000))
    begun = time.perf_counter()
    machine.run(Budget(max_exits=1_000 + _EXITS))
    return (time.perf_counter() - begun) / _EXITS


def _shadow() -> list[Row]:
    """Page-table writes under each kind of memory, less what the same loop costs without them."""
    rows = []
    for technique, memory in (("bare", "none"), ("hardware", "ept"), ("deprivilege", "shadow")):
        writes = _run(technique, memory, f"xor dword ptr [edi], {AVAILABLE_BIT:#x}")
        nothing = _run(technique, memory, "nop")
        name = f"  {technique}+{memory}"
        cost = (writes.host_seconds - nothing.host_seconds) / _WRITES
        cycles = (writes.cycles - nothing.cycles) / _WRITES
        exits = (writes.exits - nothing.exits) / _WRITES
        rows.append(Row(f"{name}: host time", max(cost, 0.0) * MICRO, "us"))
        rows.append(Row(f"{name}: virtual time, exits", cycles, "cycles", exits, "writes"))
    return [Row("page-table writes", float(_WRITES), "writes"), *rows]


def _run(technique: str, memory: str, write: str) -> Result:
    source = _PTE_WRITES.format(count=_WRITES, write=write)
    return _machine("pte-writes", source, technique, memory).run()


def _machine(name: str, source: str, technique: str, memory: str) -> Machine:
    return Machine(from_source(source, path=f"{name}.asm"), technique_for(technique, memory))


def render(rows: list[Row]) -> str:
    """Return the rows as a table for a person."""
    lines = []
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:8.2f} x {row.against}"
        verdict = "" if row.met is None else f"  target {row.target}: {'met' if row.met else 'missed'}"
        lines.append(f"{row.name:44} {row.value:12,.2f} {row.unit:8}{ratio}{verdict}".rstrip())
    return "\n".join(lines)


def document(rows: list[Row]) -> dict[str, Any]:
    """Return the rows for a script."""
    return {"rows": [asdict(row) for row in rows]}
