"""The checks of VM entry as rows, one per clause of the manual.

A row's clause is the docstring of its predicate, with values of the processor in braces. The predicate's parameters are
the fields that it reads, by their names in lower case or by SHORT names, wrapped in the type that annotates them; a
parameter of type Processor or Surroundings gets that. So a row knows by itself what it depends on, and it is run again
only after one of these fields was written.
"""

from __future__ import annotations

import inspect
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, partial
from typing import Protocol, get_type_hints

from hvemu.vmx.controls import PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.dump import describe
from hvemu.vmx.fields import Field
from hvemu.vmx.guest_state import PARTS, segment_field
from hvemu.vmx.processor import HVEMU, UNKNOWN, Processor, Surroundings
from hvemu.vmx.reasons import EntryFailure

Predicate = Callable[..., bool]
Register = Callable[[Predicate], Predicate]
_PRIMARY = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_SECONDARY = Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
SHORT: dict[str, Field] = {
    "pin": Field.PIN_BASED_VM_EXECUTION_CONTROLS,
    "primary": _PRIMARY,
    "secondary": _SECONDARY,
    "exits": Field.VM_EXIT_CONTROLS,
    "entry": Field.VM_ENTRY_CONTROLS,
    "event": Field.VM_ENTRY_INTERRUPTION_INFORMATION,
    "blocking": Field.GUEST_INTERRUPTIBILITY_STATE,
    "activity": Field.GUEST_ACTIVITY_STATE,
}
ACTIVE = "active"
"""The parameter that stands for the secondary controls as they act: all 0 unless they are activated."""


class CheckArea(Enum):
    """What a clause constrains; the value says how a real processor reports that it does not hold."""

    CONTROLS = "VM-instruction error 7, VM entry with invalid control field(s)"
    HOST_STATE = "VM-instruction error 8, VM entry with invalid host-state field(s)"
    GUEST_STATE = "VM exit with reason 33, VM-entry failure due to invalid guest state"


class Section(Enum):
    """The manual's sections on the checks, in its order: what they constrain, the title, and a part without one."""

    EXECUTION_CONTROLS = (CheckArea.CONTROLS, "Checks on VMX Controls", "VM-execution control fields")
    EXIT_CONTROLS = (CheckArea.CONTROLS, "Checks on VMX Controls", "VM-exit control fields")
    ENTRY_CONTROLS = (CheckArea.CONTROLS, "Checks on VMX Controls", "VM-entry control fields")
    HOST_REGISTERS = (CheckArea.HOST_STATE, "Checks on Host Control Registers, MSRs, and SSP", "")
    HOST_SEGMENTS = (CheckArea.HOST_STATE, "Checks on Host Segment and Descriptor-Table Registers", "")
    ADDRESS_SPACE = (CheckArea.HOST_STATE, "Checks Related to Address-Space Size", "")
    GUEST_REGISTERS = (CheckArea.GUEST_STATE, "Checks on Guest Control Registers, Debug Registers, and MSRs", "")
    GUEST_SEGMENTS = (CheckArea.GUEST_STATE, "Checks on Guest Segment Registers", "")
    GUEST_TABLES = (CheckArea.GUEST_STATE, "Checks on Guest Descriptor-Table Registers", "")
    GUEST_RIP = (CheckArea.GUEST_STATE, "Checks on Guest RIP, RFLAGS, and SSP", "")
    GUEST_OTHER = (CheckArea.GUEST_STATE, "Checks on Guest Non-Register State", "")
    GUEST_PDPTES = (CheckArea.GUEST_STATE, "Checks on Guest Page-Directory-Pointer-Table Entries", "")

    def __init__(self, area: CheckArea, title: str, part: str) -> None:
        self.area, self.title, self.part = area, title, part


class Fields(Protocol):
    """Values by field: a Vmcs or a mapping."""

    def __getitem__(self, field: Field, /) -> int:
        """Return the value of *field*."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Argument:
    """One argument of a predicate: the fields it is made of, and how. Rows share those that are alike."""

    fields: tuple[Field, ...]
    make: Callable[[Fields, Processor, Surroundings], object]


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """One clause.

    *breaks* is the smallest edit of the minimal VMCS that violates it, where needed in the surroundings *near*;
    *clause* is the rule in words.
    """

    section: Section
    name: str
    clause: str
    breaks: Mapping[Field, int]
    reads: tuple[Field, ...]
    arguments: tuple[Argument, ...]
    holds: Predicate
    looks_around: bool
    qualification: EntryFailure = EntryFailure.OTHER
    near: Surroundings = UNKNOWN

    @property
    def area(self) -> CheckArea:
        """What the clause constrains."""
        return self.section.area

    @property
    def sdm(self) -> str:
        """The title of the manual's section."""
        return self.section.title

    @property
    def report(self) -> str:
        """What a real processor says when the clause does not hold."""
        detail = f", qualification {self.qualification.value}" if self.area is CheckArea.GUEST_STATE else ""
        return f"{self.area.value}{detail}"

    def passes(self, values: Fields, on: Processor = HVEMU, around: Surroundings = UNKNOWN) -> bool:
        """Whether *values*, at least of the fields that it reads, satisfy the clause."""
        return self.holds(*[argument.make(values, on, around) for argument in self.arguments])

    def words(self, on: Processor = HVEMU) -> str:
        """Return the rule in words, with the values of the processor."""
        return self.clause.format(on=on)

    def explain(self, values: Fields, on: Processor = HVEMU) -> str:
        """Return, for a person, the clause, the values that violate it, and what a real processor says."""
        lines = [f"  {f.name} = {describe(f, values[f])}" for f in self.reads]
        first = f'{self.name}: {self.words(on)} [SDM 3C "{self.sdm}"]'
        return "\n".join([first, *lines, f"  a real processor reports {self.report}"])

    def __str__(self) -> str:
        return f'{self.name}: {self.words()} [SDM 3C "{self.sdm}"]'


CHECKS: list[Check] = []
"""Every clause, in the order of the manual."""
_RANK = {section: rank for rank, section in enumerate(Section)}


def check(
    section: Section,
    breaks: Mapping[Field, int],
    qualification: EntryFailure = EntryFailure.OTHER,
    near: Surroundings = UNKNOWN,
) -> Register:
    """Register the decorated predicate as a clause of *section*, after those that it has already."""

    def register(holds: Predicate) -> Predicate:
        row = _row(section, holds.__name__, _clause(holds), breaks, _arguments(holds), holds)
        _register(replace(row, qualification=qualification, near=near))
        return holds

    return register


def check_segments(registers: Iterable[str], section: Section, breaks: Mapping[str, int]) -> Register:
    """Register one clause of guest state for each of *registers*.

    The predicate's parameters may also be the parts of a segment register: selector, base, limit, rights. A name in
    *breaks* is such a part, or a field. {register} in the docstring stands for the register's name.
    """

    def resolve(register: str, name: str) -> Field:
        return segment_field(register, name) if name in PARTS else _field(name)

    def register_all(holds: Predicate) -> Predicate:
        for register in registers:
            edit = {resolve(register, name): value for name, value in breaks.items()}
            name, clause = f"{register.lower()}_{holds.__name__}", _clause(holds).replace("{register}", register)
            _register(_row(section, name, clause, edit, _arguments(holds, partial(resolve, register)), holds))
        return holds

    return register_all


def check_each(
    section: Section,
    fields: Iterable[str],
    value: int,
    breaks: Mapping[Field, int] | None = None,
    qualification: EntryFailure = EntryFailure.OTHER,
) -> Register:
    """Register one clause for each of *fields*, which *value* breaks, after the edit *breaks*.

    The predicate's parameter `value` is the field, and {field} in the docstring its name.
    """

    def register_all(holds: Predicate) -> Predicate:
        for field in map(_field, fields):
            arguments = _arguments(holds, partial(_field_or, field))
            name, clause = f"{field.name.lower()}_{holds.__name__}", _clause(holds).replace("{field}", field.name)
            row = _row(section, name, clause, {**(breaks or {}), field: value}, arguments, holds)
            _register(replace(row, qualification=qualification))
        return holds

    return register_all


def check_addresses(
    section: Section, fields: Iterable[str], breaks: Mapping[Field, int], *, alignment: int = 4096
) -> Register:
    """Register two clauses for each of *fields*, physical addresses: it is aligned, and a physical address.

    They apply where the decorated predicate says so; its docstring is the condition, *breaks* makes it true.
    """
    low = alignment.bit_length() - 2

    def register_all(applies: Predicate) -> Predicate:
        condition = _clause(applies).removesuffix(".")
        for field in map(_field, fields):
            arguments = (_PROCESSOR, _plain(field), *_arguments(applies))
            for name, rule, value, fits in (
                ("is_aligned", f"bits {low}:0 of {field.name} must be 0.", alignment >> 1, _multiple_of(alignment)),
                ("is_physical", f"{field.name} must not set bits from {_WIDTH} on.", 1 << 52, Processor.is_physical),
            ):
                clause, edit = f"{condition}, {rule}", {**breaks, field: value}
                name_ = f"{field.name.lower()}_{name}"
                _register(_row(section, name_, clause, edit, arguments, _where(applies, fits)))
        return applies

    return register_all


_WIDTH = "{on.physical_address_width}"
_PROCESSOR = Argument((), lambda _values, on, _around: on)
Fits = Callable[[Processor, int], bool]


def _multiple_of(alignment: int) -> Fits:
    return lambda _on, hpa: not hpa % alignment


def _where(applies: Predicate, fits: Fits) -> Predicate:
    return lambda on, hpa, *rest: not applies(*rest) or fits(on, hpa)


def _row(
    section: Section, name: str, clause: str, breaks: Mapping[Field, int], arguments: tuple[Argument, ...],
    holds: Predicate,
) -> Check:  # fmt: skip
    reads = tuple(dict.fromkeys(f for argument in arguments for f in argument.fields))
    looks_around = any(argument is _AROUND for argument in arguments)
    return Check(section, name, clause, breaks, reads, arguments, holds, looks_around)


def _register(row: Check) -> None:
    insort(CHECKS, row, key=lambda c: _RANK[c.section])


def _field(parameter: str) -> Field:
    return SHORT.get(parameter) or Field[parameter.upper()]


def _field_or(value: Field, parameter: str) -> Field:
    return value if parameter == "value" else _field(parameter)


def _arguments(holds: Predicate, resolve: Callable[[str], Field] = _field) -> tuple[Argument, ...]:
    hints = get_type_hints(holds)
    return tuple(_argument(p, hints[p], resolve) for p in inspect.signature(holds).parameters)


_AROUND = Argument((), lambda _values, _on, around: around)


def _argument(parameter: str, kind: type, resolve: Callable[[str], Field]) -> Argument:
    if kind is Processor:
        return _PROCESSOR
    if kind is Surroundings:
        return _AROUND
    if parameter == ACTIVE:
        return _ACTIVE
    return _plain(resolve(parameter), kind)


@cache
def _plain(field: Field, kind: type = int) -> Argument:
    return Argument((field,), lambda values, _on, _around: kind(values[field]))


_ACTIVE = Argument((_PRIMARY, _SECONDARY), lambda values, _on, _around: active_secondary(values))


def _clause(holds: Predicate) -> str:
    return " ".join((inspect.getdoc(holds) or "").split())


_NONE = SecondaryProcessorBased()
_ACTIVATE = int(PrimaryProcessorBased(activate_secondary_controls=1))


def active_secondary(values: Fields) -> SecondaryProcessorBased:
    """Return the secondary controls as they act: all 0 unless "activate secondary controls" is 1."""
    return SecondaryProcessorBased(values[_SECONDARY]) if values[_PRIMARY] & _ACTIVATE else _NONE


class Plan:
    """Some clauses, in the order of the manual, and the fields that they read.

    Clauses look at nothing but their fields, unless the surroundings are known, so values that have just passed pass
    again: a handler that injects the same exception a thousand times pays once.
    """

    __slots__ = ("_arguments", "_fields", "_passed", "_rows")

    def __init__(self, rows: Iterable[Check]) -> None:
        rows = tuple(rows)
        self._fields = tuple(dict.fromkeys(f for row in rows for f in row.reads))
        self._arguments = tuple(dict.fromkeys(argument for row in rows for argument in row.arguments))
        at = {argument: n for n, argument in enumerate(self._arguments)}
        self._rows = tuple((row, row.holds, tuple(at[argument] for argument in row.arguments)) for row in rows)
        self._passed: tuple[Processor, list[int]] | None = None

    def failures(self, vmcs: Fields, on: Processor = HVEMU, around: Surroundings = UNKNOWN) -> Iterator[Check]:
        """Yield the clauses that *vmcs* violates."""
        return self._failures([vmcs[f] for f in self._fields], on, around)

    def first_failure(self, vmcs: Fields, on: Processor = HVEMU, around: Surroundings = UNKNOWN) -> Check | None:
        """Return the first clause that *vmcs* violates, if any."""
        values = [vmcs[f] for f in self._fields]
        if around is UNKNOWN and self._passed is not None and self._passed[0] is on and self._passed[1] == values:
            return None
        failure = next(self._failures(values, on, around), None)
        if failure is None:
            self._passed = on, values
        return failure

    def _failures(self, values: list[int], on: Processor, around: Surroundings) -> Iterator[Check]:
        named = dict(zip(self._fields, values, strict=True))
        made = [argument.make(named, on, around) for argument in self._arguments]
        for row, holds, at in self._rows:
            if not holds(*[made[n] for n in at]):
                yield row


def is_pat(value: int) -> bool:
    """Whether each byte is a memory type that IA32_PAT may hold: UC, WC, WT, WP, WB or UC-."""
    return all(byte in {0, 1, 4, 5, 6, 7} for byte in value.to_bytes(8, "little"))
