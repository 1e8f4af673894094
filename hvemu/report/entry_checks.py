"""The page of the documentation that lists every clause of VM entry, printed from the rows.

To print it anew: `python -m hvemu.report.entry_checks > docs/vm-entry-checks.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from hvemu.vmx.checks import CHECKS, Check, CheckArea, Section
from hvemu.vmx.checks_guest_segments import VM86
from hvemu.vmx.clauses import plan
from hvemu.vmx.fields import Field
from hvemu.vmx.msr_load import MSR_CHECKS
from hvemu.vmx.processor import HVEMU, UNKNOWN
from hvemu.vmx.template import minimal_vmcs

_INTRODUCTION = """\
# The checks of VM entry

VMLAUNCH and VMRESUME check the current VMCS before they enter the guest. Every clause of the manual's chapter
"VM Entries" (SDM 3C) is one row here, with the name by which hvemu reports it, and the smallest edit of a minimal VMCS
that breaks it. `hvemu vmcs check FILE` says which clauses a VMCS of yours violates: see [vmcs-check.md](vmcs-check.md).
This page is printed from the rows that the processor itself uses.

| where a clause does not hold | what a real processor reports |
|---|---|
| controls | VMfailValid: VM-instruction error 7, VM entry with invalid control field(s) |
| host state | VMfailValid: VM-instruction error 8, VM entry with invalid host-state field(s) |
| guest state | a VM exit with reason 33 (80000021H with its bit 31) and the qualification given below |
| the MSR-load area | a VM exit with reason 34 (80000022H), qualified by the number of the entry, from 1 |

The rows are in the order of the manual, and hvemu reports the first that does not hold. A real processor may check
controls and host state in any order, and guest state in any order after them.

A dash under "here" means that the processor that hvemu models never gets there: it does not offer the control or the
feature, and the row on reserved bits refuses it first, or it offers all that the clause speaks of. The command above
judges these rows all the same with `--capabilities any`. "memory" means that the row reads memory, or needs to know in
which mode the hypervisor runs, or where the VMCS lies.
"""
_CONTROLS = (
    "reserved bits of the tertiary processor-based and the secondary VM-exit controls",
    "IPI virtualization",
    "HLAT, EPT paging-write control, guest-paging verification",
    "PASID translation",
    "Intel PT that is on (IA32_RTIT_CTL.TraceEn)",
    "addresses of 32 bits (IA32_VMX_BASIC[48])",
    "what holds inside system-management mode",
)
_ABSENT = {
    "Checks on VMX Controls": _CONTROLS,
    "Checks on Host Control Registers, MSRs, and SSP": ("reserved bits of IA32_PERF_GLOBAL_CTRL", "FRED"),
    "Checks on Guest Control Registers, Debug Registers, and MSRs": (
        "reserved bits of IA32_PERF_GLOBAL_CTRL, IA32_RTIT_CTL and IA32_LBR_CTL",
        "FRED",
    ),
    "Checks on Guest Non-Register State": ("entry to system-management mode, and the executive-VMCS pointer",),
}
_ABSENT_INTRODUCTION = """\
## Clauses without a row

The processor that hvemu models does not offer these features: their controls are reserved, and the row on reserved bits
of the group covers them.

| section | clauses on |
|---|---|"""


def reached(row: Check) -> bool:
    """Whether the modelled processor can come to report *row*."""
    vmcs = minimal_vmcs()
    for field, value in row.breaks.items():
        vmcs[field] = value
    return plan().first_failure(vmcs, HVEMU, row.near) is row


def edit(breaks: Mapping[Field, int]) -> str:
    """Return an edit of the minimal VMCS in words."""
    vm86 = {Field[name.upper()]: value for name, value in VM86.items()}
    known = vm86 if vm86.keys() <= breaks.keys() else {}
    parts = ["a virtual-8086 guest"] if known else []
    parts += [f"{f.name} = {value:#x}" for f, value in breaks.items() if known.get(f) != value]
    return ", ".join(parts) or "none"


def _here(row: Check) -> str:
    if not reached(row):
        return "-"
    return "yes" if row.near is UNKNOWN else "memory"


def _section(section: Section) -> Iterator[str]:
    part = f": {section.part}" if section.part else ""
    yield f"## {section.title}{part}"
    yield ""
    guest = section.area is CheckArea.GUEST_STATE
    yield f"| clause | rule | smallest edit that breaks it |{' qualification |' if guest else ''} here |"
    yield f"|---|---|---|{'---|' if guest else ''}---|"
    for row in CHECKS:
        if row.section is section:
            qualification = f" {row.qualification.value} |" if guest else ""
            yield f"| {row.name} | {row.words()} | {edit(row.breaks)} |{qualification} {_here(row)} |"
    yield ""


def _msrs() -> Iterator[str]:
    yield "## Loading MSRs"
    yield ""
    yield "| clause | rule | smallest entry that breaks it |"
    yield "|---|---|---|"
    for row in MSR_CHECKS:
        parts = {"index": row.breaks.index, "bits 63:32": row.breaks.reserved, "data": row.breaks.data}
        entry = ", ".join(f"{name} {value:#x}" for name, value in parts.items() if value)
        yield f"| {row.name} | {row.clause} | {entry} |"
    yield ""


def _absent() -> Iterator[str]:
    yield _ABSENT_INTRODUCTION
    for title, clauses in _ABSENT.items():
        yield f'| SDM 3C "{title}" | {"; ".join(clauses)} |'
    yield ""


def page() -> str:
    """Return the page, as Markdown."""
    lines = [_INTRODUCTION]
    for section in Section:
        lines += _section(section)
    return "\n".join([*lines, *_msrs(), *_absent()])


if __name__ == "__main__":
    sys.stdout.write(page())
