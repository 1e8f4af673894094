"""The smallest change of one field that makes a clause of VM entry hold, found by trying.

From a value that satisfies the clause and breaks no other, every bit that may goes back to what it was; what remains
changed is needed. Changes that only switch off what the clause is about come last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hvemu.vmx.capabilities import CAPABILITIES
from hvemu.vmx.checks import Check
from hvemu.vmx.clauses import reading
from hvemu.vmx.controls import PrimaryProcessorBased
from hvemu.vmx.dump import KINDS
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import HVEMU, Processor
from hvemu.vmx.reasons import EntryInterruption
from hvemu.vmx.template import minimal_vmcs
from hvemu.x86.registers import Cr0, Cr4, Rflags
from hvemu.x86.state import AccessRights

Values = Mapping[Field, int]
_MOST, _ALTERNATIVES = 3, 2
_FEW = 4
"""The bits that a change may have to be told bit by bit."""


@dataclass(frozen=True, slots=True)
class Fix:
    """Write *new* into *field*, which holds *old*."""

    field: Field
    old: int
    new: int

    @property
    def bits(self) -> tuple[int, ...]:
        """The numbers of the bits that change."""
        return tuple(n for n in range(self.field.width.bits) if (self.old ^ self.new) >> n & 1)

    def __str__(self) -> str:
        changes = [self._change(value, verb) for verb, value in (("set", self.new), ("clear", self.old))]
        words = " and ".join(filter(None, changes)) if len(self.bits) <= _FEW else ""
        return f"{self.field.name} = {self.new:#x}" + (f": {words}" if words else "")

    def _change(self, having: int, verb: str) -> str:
        named = [f"{n}{_name(self.field, n)}" for n in self.bits if having >> n & 1]
        return f"{verb} bit{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else ""


def _name(field: Field, number: int) -> str:
    kind = KINDS.get(field)
    names = [] if kind is None else [n for n, f in kind.fields.items() if f.lo == number and f.mask == 1]
    return f" ({names[0]})" if names else ""


def fixes(row: Check, values: Values, on: Processor = HVEMU, *, assumed: Collection[Field] = ()) -> list[Fix]:
    """Return the smallest changes of *values* that make *row* hold and break nothing: equally good ones, at most three.

    Changes of the fields that are only *assumed* come after those of the others.
    """

    def rank(fix: Fix) -> tuple[bool, bool, int, int]:
        unnamed = sum(not _name(fix.field, n) for n in fix.bits) if fix.field in KINDS else 0
        return fix.field in assumed, _gives_up(fix, row), len(fix.bits), unnamed

    found = {fix: rank(fix) for field in row.reads for fix in _of_field(row, values, on, field)}
    best = min(found.values(), default=None)
    equal = [fix for fix, ranks in found.items() if ranks == best]
    return [fix for field in row.reads for fix in _telling([f for f in equal if f.field is field])][:_MOST]


_CONTROLS = {*CAPABILITIES, Field.VM_FUNCTION_CONTROLS}
_SWITCHES: dict[Field, int] = {
    Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: int(PrimaryProcessorBased(activate_secondary_controls=1)),
    Field.VM_ENTRY_INTERRUPTION_INFORMATION: int(EntryInterruption(valid=1)),
    Field.GUEST_CR0: int(Cr0(pg=1)),
    Field.GUEST_CR4: int(Cr4(pae=1)),
    Field.GUEST_RFLAGS: int(Rflags(vm=1)),
}
_UNUSABLE = int(AccessRights(unusable=1))


def _gives_up(fix: Fix, row: Check) -> bool:
    """Whether *fix* only switches off what *row* is about."""
    switched = fix.old & ~fix.new & _SWITCHES.get(fix.field, 0)
    if fix.field.name.endswith("ACCESS_RIGHTS"):
        switched |= fix.new & ~fix.old & _UNUSABLE
    emptied = fix.field.name.endswith("MSR_STORE_COUNT") or fix.field.name.endswith("MSR_LOAD_COUNT")
    return bool(switched) or emptied or (fix.field in _CONTROLS and not _CONTROLS.issuperset(row.reads))


def _telling(equal: list[Fix]) -> list[Fix]:
    """Return one or two of the changes of one field: of many, the one that a valid VMCS has, or the nearest."""
    if len(equal) <= _ALTERNATIVES:
        return sorted(equal, key=lambda fix: fix.new)
    return [min(equal, key=lambda fix: (fix.new != _VALID[fix.field], abs(fix.new - fix.old)))]


def _of_field(row: Check, values: Values, on: Processor, field: Field) -> list[Fix]:
    """Return the changes of *field* of which no part can be left out, those of the fewest bits."""
    trial, old = dict(values), values[field]
    kept = [row, *(r for r in reading(field) if r is not row and r.passes(trial, on))]

    def holds(value: int) -> bool:
        trial[field] = value
        return all(r.passes(trial, on) for r in kept)

    single = [Fix(field, old, old ^ 1 << n) for n in range(field.width.bits) if holds(old ^ 1 << n)]
    if single:
        return single
    guesses = dict.fromkeys(_guesses(field, old, [values[f] for f in row.reads]))
    found = dict.fromkeys(_needed(old, value, field, holds) for value in guesses if holds(value))
    smallest = min((len(fix.bits) for fix in found), default=0)
    return [fix for fix in found if len(fix.bits) == smallest]


def _needed(old: int, new: int, field: Field, holds: Callable[[int], bool]) -> Fix:
    for n in reversed(range(field.width.bits)):
        back = new & ~(1 << n) | old & (1 << n)
        if back != new and holds(back):
            new = back
    return Fix(field, old, new)


_VALID = minimal_vmcs()


_REAL_MODE_SHIFT = 4
_VM86 = (0xF3, 0xFFFF)
"""Access rights and limit of every segment in virtual-8086 mode."""


def _guesses(field: Field, old: int, others: Sequence[int]) -> Iterator[int]:
    """Yield values of *field* that are likely to be legal beside the *others* that a clause reads."""
    width = field.width.bits
    ones = (1 << width) - 1
    yield from (value & ones for value in (_VALID[field], 0, 1, *_VM86, ones))
    yield from (value << _REAL_MODE_SHIFT & ones for value in others)
    yield from (value >> _REAL_MODE_SHIFT & ones for value in others)
    yield from (old | ones & ~(ones >> n) for n in range(1, width))
    yield from (old & ones >> n for n in range(1, width))
