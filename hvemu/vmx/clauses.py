"""All clauses of VM entry together, and which of them to run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

from hvemu.vmx import (
    checks_ept,
    checks_execution,
    checks_exit_entry,
    checks_guest,
    checks_guest_other,
    checks_guest_pending,
    checks_guest_segments,
    checks_guest_system_segments,
    checks_host,
)
from hvemu.vmx.checks import CHECKS, Check, CheckArea, Fields, Plan
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import HVEMU, UNKNOWN, Processor, Surroundings

MODULES = (
    checks_execution, checks_ept, checks_exit_entry, checks_host, checks_guest, checks_guest_segments,
    checks_guest_system_segments, checks_guest_other, checks_guest_pending,
)  # fmt: skip
"""Importing them fills CHECKS; each imports the one whose sections it continues."""


@cache
def plan() -> Plan:
    """Return the plan that runs every clause."""
    return Plan(CHECKS)


@lru_cache(maxsize=256)
def plan_for(written: frozenset[Field], *, around: bool = False) -> Plan:
    """Return the plan that runs the clauses that read any of the fields *written*, or look *around*."""
    return Plan(row for row in CHECKS if not written.isdisjoint(row.reads) or (around and row.looks_around))


@cache
def reading(field: Field) -> tuple[Check, ...]:
    """Return the clauses that read *field*."""
    return tuple(row for row in CHECKS if field in row.reads)


def failures(
    vmcs: Fields, area: CheckArea | None = None, on: Processor = HVEMU, around: Surroundings = UNKNOWN
) -> Iterator[Check]:
    """Yield the clauses that *vmcs* violates, of one *area* if given, in the order of the manual."""
    return (row for row in plan().failures(vmcs, on, around) if area is None or row.area is area)
