"""All clauses of VM entry together, and which of them to run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

from hvemu.vmx import checks_controls, checks_guest, checks_guest_segments, checks_host
from hvemu.vmx.checks import CHECKS, Check, CheckArea, Plan
from hvemu.vmx.fields import Field
from hvemu.vmx.vmcs import Vmcs

MODULES = (checks_controls, checks_host, checks_guest, checks_guest_segments)
"""Importing them fills CHECKS."""


@cache
def plan() -> Plan:
    """Return the plan that runs every clause."""
    return Plan(CHECKS)


@lru_cache(maxsize=256)
def plan_for(written: frozenset[Field]) -> Plan:
    """Return the plan that runs the clauses that read any of the fields *written*."""
    return Plan(row for row in CHECKS if not written.isdisjoint(row.reads))


def failures(vmcs: Vmcs, area: CheckArea) -> Iterator[Check]:
    """Yield the clauses of *area* that *vmcs* violates, in the order of the manual."""
    return (row for row in plan().failures(vmcs) if row.area is area)
