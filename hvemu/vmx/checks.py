"""The checks of VM entry as rows, one per clause of the manual.

A row's clause is the docstring of its predicate; the predicate's parameters are the fields that it reads, by their
names in lower case or by SHORT names, wrapped in the type that annotates them. So a row knows by itself what it depends
on, and it is run again only after one of these fields was written.

Clauses about features that the processor does not offer have no row: the control that turns the feature on is
reserved, and the row for reserved bits refuses it.
"""

from __future__ import annotations

import inspect
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import get_type_hints

from hvemu.vmx.dump import describe
from hvemu.vmx.fields import Field
from hvemu.vmx.guest_state import PARTS, segment_field
from hvemu.vmx.reasons import EntryFailure
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH

Predicate = Callable[..., bool]
Register = Callable[[Predicate], Predicate]
SHORT: dict[str, Field] = {
    "pin": Field.PIN_BASED_VM_EXECUTION_CONTROLS,
    "primary": Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    "secondary": Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    "exits": Field.VM_EXIT_CONTROLS,
    "entry": Field.VM_ENTRY_CONTROLS,
    "event": Field.VM_ENTRY_INTERRUPTION_INFORMATION,
    "blocking": Field.GUEST_INTERRUPTIBILITY_STATE,
    "activity": Field.GUEST_ACTIVITY_STATE,
}


class CheckArea(Enum):
    """What a clause constrains; the value says how a real processor reports that it does not hold."""

    CONTROLS = "VM-instruction error 7"
    HOST_STATE = "VM-instruction error 8"
    GUEST_STATE = "VM exit with reason 33, VM-entry failure due to invalid guest state"


@dataclass(frozen=True, slots=True)
class Check:
    """One clause. *breaks* is the smallest edit of the minimal VMCS that violates it; *clause* is the rule in words."""

    area: CheckArea
    name: str
    clause: str
    sdm: str
    breaks: Mapping[Field, int]
    reads: tuple[Field, ...]
    kinds: tuple[type[int], ...]
    holds: Predicate
    qualification: EntryFailure = EntryFailure.OTHER

    def passes(self, values: Mapping[Field, int]) -> bool:
        """Whether *values*, at least of the fields that it reads, satisfy the clause."""
        return self.holds(*[kind(values[f]) for f, kind in zip(self.reads, self.kinds, strict=True)])

    def explain(self, vmcs: Vmcs) -> str:
        """Return, for a person, the clause, the values that violate it, and what a real processor says."""
        report = self.area.value
        if self.area is CheckArea.GUEST_STATE:
            report += f", qualification {self.qualification.value}"
        values = [f"  {f.name} = {describe(f, vmcs[f])}" for f in self.reads]
        return "\n".join([str(self), *values, f"  a real processor reports {report}"])

    def __str__(self) -> str:
        return f'{self.name}: {self.clause} [SDM 3C "{self.sdm}"]'


CHECKS: list[Check] = []
"""Every clause, controls first, then host state, then guest state."""
_RANK = {area: rank for rank, area in enumerate(CheckArea)}


def _register(row: Check) -> None:
    insort(CHECKS, row, key=lambda c: _RANK[c.area])


def check(
    area: CheckArea, sdm: str, breaks: Mapping[Field, int], qualification: EntryFailure = EntryFailure.OTHER
) -> Register:
    """Register the decorated predicate as a clause of the section *sdm*."""

    def register(holds: Predicate) -> Predicate:
        reads = tuple(_field(p) for p in inspect.signature(holds).parameters)
        kinds = _kinds(holds)
        _register(Check(area, holds.__name__, _clause(holds), sdm, breaks, reads, kinds, holds, qualification))
        return holds

    return register


def check_segments(registers: Iterable[str], sdm: str, breaks: Mapping[str, int]) -> Register:
    """Register one clause of guest state for each of *registers*.

    The predicate's parameters may also be the parts of a segment register: selector, base, limit, rights. A name in
    *breaks* is such a part, or a field. {register} in the docstring stands for the register's name.
    """

    def resolve(register: str, name: str) -> Field:
        return segment_field(register, name) if name in PARTS else _field(name)

    def register_all(holds: Predicate) -> Predicate:
        for register in registers:
            reads = tuple(resolve(register, p) for p in inspect.signature(holds).parameters)
            edit = {resolve(register, name): value for name, value in breaks.items()}
            name = f"{register.lower()}_{holds.__name__}"
            clause = _clause(holds).format(register=register)
            _register(Check(CheckArea.GUEST_STATE, name, clause, sdm, edit, reads, _kinds(holds), holds))
        return holds

    return register_all


def _field(parameter: str) -> Field:
    return SHORT.get(parameter) or Field[parameter.upper()]


def _clause(holds: Predicate) -> str:
    return " ".join((inspect.getdoc(holds) or "").split())


def _kinds(holds: Predicate) -> tuple[type[int], ...]:
    hints = get_type_hints(holds)
    return tuple(hints[p] for p in inspect.signature(holds).parameters)


class Plan:
    """Some clauses, in the order of the manual, and the fields that they read.

    Clauses look at nothing but their fields, so values that have just passed pass again: a handler that injects the
    same exception a thousand times pays once.
    """

    __slots__ = ("_fields", "_passed", "_rows")

    def __init__(self, rows: Iterable[Check]) -> None:
        self._rows = tuple(rows)
        self._fields = tuple(dict.fromkeys(f for row in self._rows for f in row.reads))
        self._passed: list[int] = []

    def failures(self, vmcs: Vmcs) -> Iterator[Check]:
        """Yield the clauses that *vmcs* violates."""
        values = dict(zip(self._fields, map(vmcs.__getitem__, self._fields), strict=True))
        return (row for row in self._rows if not row.passes(values))

    def first_failure(self, vmcs: Vmcs) -> Check | None:
        """Return the first clause that *vmcs* violates, if any."""
        values = [vmcs[f] for f in self._fields]
        if values == self._passed:
            return None
        named = dict(zip(self._fields, values, strict=True))
        for row in self._rows:
            if not row.passes(named):
                return row
        self._passed = values
        return None


def is_canonical(gva: int) -> bool:
    """Whether bits 63:47 are all equal (48-bit linear addresses)."""
    return gva >> 47 in {0, 0x1FFFF}


def fits_physical(hpa: int) -> bool:
    """Whether no bit above the physical-address width is set."""
    return not hpa >> PHYSICAL_ADDRESS_WIDTH


def is_aligned(hpa: int, alignment: int) -> bool:
    """Whether *hpa* is a multiple of *alignment*, in bytes, and a physical address."""
    return not hpa & (alignment - 1) and fits_physical(hpa)


def is_pat(value: int) -> bool:
    """Whether each byte is a memory type that IA32_PAT may hold: UC, WC, WT, WP, WB or UC-."""
    return all(byte in {0, 1, 4, 5, 6, 7} for byte in value.to_bytes(8, "little"))
