"""Whether a VMCS that a person wrote down would enter, and every clause of the manual that says no."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

from hvemu.vmx.checks import Check, CheckArea
from hvemu.vmx.clauses import failures, reading
from hvemu.vmx.dump import describe
from hvemu.vmx.fields import MASKS, Field
from hvemu.vmx.fix import Fix, fixes
from hvemu.vmx.msr_load import MsrFailure, Write, load_msrs
from hvemu.vmx.processor import ANY, HVEMU, Processor
from hvemu.vmx.reasons import ExitReason
from hvemu.vmx.template import minimal_vmcs
from hvemu.vmx.vmcs_file import Given, Kind
from hvemu.x86 import msrs
from hvemu.x86.cpuid import Offer
from hvemu.x86.registers import Cr4
from hvemu.x86.vectors import Fault, Vector

PROCESSORS = {"any": ANY, "hvemu": HVEMU}
_WIDTH = 120
_LA57 = 57
_NEUTRAL = {Field.VPID: 1, Field.TSC_MULTIPLIER: 1 << 48}
"""Values for what a file leaves out, where the 0 of the minimal VMCS could not be told from a mistake."""
_SAME_EVERYWHERE = frozenset(
    {msrs.SYSENTER_ESP, msrs.SYSENTER_EIP, msrs.PAT, msrs.LSTAR, msrs.CSTAR, msrs.KERNEL_GS_BASE}
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One clause that does not hold, and the smallest changes that would make it hold."""

    row: Check
    fixes: list[Fix]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What *on* would do with a VMCS. *assumed*: the fields that count and that the file does not give."""

    given: Given
    capabilities: str
    on: Processor
    values: Mapping[Field, int]
    assumed: tuple[Field, ...]
    violations: list[Violation]
    msr: MsrFailure | None

    @property
    def enters(self) -> bool:
        """Whether VM entry would succeed."""
        return not self.violations and self.msr is None

    @property
    def report(self) -> str:
        """What a real processor would say: controls come first, then host state, guest state, and MSRs."""
        if self.violations:
            return self.violations[0].row.report
        return self.msr.report if self.msr else "no error"


def judge(given: Given, capabilities: str | None = None) -> Verdict:
    """Judge what a file says by *capabilities*, a name of PROCESSORS; None: a KVM dump by any, all else by hvemu."""
    name = capabilities or ("any" if given.kind is Kind.DUMP else "hvemu")
    vmcs = minimal_vmcs()
    values = {f: vmcs[f] for f in Field} | _NEUTRAL | given.values
    on = _processor(name, values)
    assumed = tuple(f for f in Field if f not in given.values and _matters(f, values, on))
    rows = [*failures(values, on=on)]
    violations = [Violation(row, fixes(row, values, on, assumed=assumed)) for row in rows]
    return Verdict(given, name, on, values, assumed, violations, load_msrs(given.area, _writer(name)))


def _processor(name: str, values: Mapping[Field, int]) -> Processor:
    """Return the processor of that name; where a CR4 has LA57, any processor has linear addresses of 57 bits."""
    on = PROCESSORS[name]
    la57 = Cr4(values[Field.GUEST_CR4] | values[Field.HOST_CR4]).la57
    return replace(on, linear_address_width=_LA57) if on is ANY and la57 else on


def _matters(field: Field, values: Mapping[Field, int], on: Processor) -> bool:
    """Whether the verdict on any clause could depend on *field*, with all others as they are: extremes are tried."""
    ones = (1 << field.width.bits) - 1
    trial = dict(values)
    for value in (0, 1, ones >> 1, ones - (ones >> 1), ones):
        trial[field] = value
        if not all(row.passes(trial, on) for row in reading(field)):
            return True
    return False


def _writer(name: str) -> Write:
    """Return a WRMSR that keeps nothing, and raises the #GP that such a processor would."""
    offer = Offer(vmx=True, apic=True)
    rows = {row.index: row for row in msrs.ROWS if row.needs(offer)}

    def write(index: int, value: int) -> None:
        row = rows.get(index)
        if name == "any" and index not in _SAME_EVERYWHERE:
            return
        if row is None or row.rule(row.reset, value) is None:
            raise Fault(Vector.GP, 0)

    return write


# -- for people ------------------------------------------------------------------------------------------------------


def render(verdict: Verdict, name: str) -> Iterator[str]:
    """Yield the lines for a person; *name* is the file's."""
    remark = f" ({verdict.given.note})" if verdict.given.note else ""
    if verdict.enters:
        yield f"{name}{remark}: VM entry succeeds: every clause holds"
    else:
        count = len(verdict.violations) + (verdict.msr is not None)
        clauses = "1 clause does" if count == 1 else f"{count} clauses do"
        yield f"{name}{remark}: VM entry fails: {clauses} not hold"
        yield f"a real processor reports {verdict.report}"
    yield from _reported(verdict)
    for number, violation in enumerate(verdict.violations, start=1):
        yield ""
        yield from _violation(verdict, violation, number)
    if verdict.msr is not None:
        yield ""
        yield from _msr(verdict.msr, len(verdict.violations) + 1)
    yield from _assumptions(verdict)


def _reported(verdict: Verdict) -> Iterator[str]:
    """Yield what the processor had reported, where a dump says so."""
    reason = verdict.given.values.get(Field.VM_EXIT_REASON, 0)
    if reason & int(ExitReason(entry_failure=1)):
        qualification = verdict.given.values.get(Field.EXIT_QUALIFICATION, 0)
        number = reason & MASKS[Field.VPID]
        yield f"the exit reason in it is {reason:#x}, VM-entry failure {number}, qualification {qualification:#x}"
        if verdict.enters:
            yield "its cause is not among the fields: a control that the processor does not offer, or memory"


def _violation(verdict: Verdict, violation: Violation, number: int) -> Iterator[str]:
    row = violation.row
    yield f'{number}. {row.name}, SDM 3C "{row.sdm}"'
    yield from _part("rule", row.words(verdict.on))
    for field in row.reads:
        assumed = "  (assumed)" if field in verdict.assumed else ""
        yield from _part("field", f"{field.name} ({field:#06x}) = {describe(field, verdict.values[field])}{assumed}")
    for first, fix in enumerate(violation.fixes):
        yield f"   {'or     ' if first else 'fix    '}{fix}"
    yield from _part("report", row.report)


def _part(name: str, text: str) -> Iterator[str]:
    first, *rest = wrap(text, _WIDTH - 10, break_on_hyphens=False)
    yield f"   {name:7}{first}"
    yield from (f"          {line}" for line in rest)


def _msr(failure: MsrFailure, number: int) -> Iterator[str]:
    entry = failure.entry
    yield f'{number}. {failure.row.name}, SDM 3C "Loading MSRs"'
    yield from _part("rule", failure.row.clause)
    yield f"   entry  {failure.number} of the VM-entry MSR-load area: index {entry.index:#x}, data {entry.data:#x}"
    yield from _part("report", failure.report)


def _assumptions(verdict: Verdict) -> Iterator[str]:
    if verdict.assumed:
        yield ""
        shown = ", ".join(f"{f.name}={verdict.values[f]:#x}" for f in verdict.assumed)
        yield from wrap(f"assumed, for the file does not give them: {shown}", _WIDTH, subsequent_indent="  ")


# -- for scripts -----------------------------------------------------------------------------------------------------


def as_json(verdict: Verdict, name: str) -> dict[str, Any]:
    """Return the verdict as an object."""
    return {
        "file": name,
        "kind": verdict.given.kind.value,
        "capabilities": verdict.capabilities,
        "enters": verdict.enters,
        "report": verdict.report,
        "failures": [_failure(verdict, violation) for violation in verdict.violations],
        "msr_load": None if verdict.msr is None else _msr_json(verdict.msr),
        "assumed": {f.name: f"{verdict.values[f]:#x}" for f in verdict.assumed},
    }


_AREAS = {CheckArea.CONTROLS: "controls", CheckArea.HOST_STATE: "host", CheckArea.GUEST_STATE: "guest"}


def _failure(verdict: Verdict, violation: Violation) -> dict[str, Any]:
    row = violation.row
    return {
        "clause": row.name,
        "area": _AREAS[row.area],
        "section": row.sdm,
        "rule": row.words(verdict.on),
        "fields": [
            {
                "name": f.name,
                "encoding": f"{f:#06x}",
                "value": f"{verdict.values[f]:#x}",
                "decoded": describe(f, verdict.values[f]).partition("  ")[2],
                "assumed": f in verdict.assumed,
            }
            for f in row.reads
        ],
        "fixes": [{"field": fix.field.name, "value": f"{fix.new:#x}", "words": str(fix)} for fix in violation.fixes],
        "report": row.report,
    }


def _msr_json(failure: MsrFailure) -> dict[str, Any]:
    entry = failure.entry
    return {
        "entry": failure.number,
        "index": f"{entry.index:#x}",
        "value": f"{entry.data:#x}",
        "clause": failure.row.name,
        "rule": failure.row.clause,
        "report": failure.report,
    }
