"""A VMCS in words: each field with the names of its bits, area by area."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from hvemu.bits import Register
from hvemu.vmx.controls import Entry, EptPointer, Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import Area, Field
from hvemu.vmx.reasons import (
    EntryInterruption,
    ExitReason,
    IdtVectoring,
    Interruptibility,
    Interruption,
    PendingDebug,
)
from hvemu.x86.registers import Cr0, Cr4, Dr7, Efer, Rflags
from hvemu.x86.state import AccessRights

KINDS: dict[Field, type[Register]] = {
    Field.PIN_BASED_VM_EXECUTION_CONTROLS: PinBased,
    Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: PrimaryProcessorBased,
    Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: SecondaryProcessorBased,
    Field.VM_EXIT_CONTROLS: Exit,
    Field.VM_ENTRY_CONTROLS: Entry,
    Field.VM_ENTRY_INTERRUPTION_INFORMATION: EntryInterruption,
    Field.EPT_POINTER: EptPointer,
    Field.CR0_GUEST_HOST_MASK: Cr0,
    Field.CR0_READ_SHADOW: Cr0,
    Field.CR4_GUEST_HOST_MASK: Cr4,
    Field.CR4_READ_SHADOW: Cr4,
    Field.VM_EXIT_REASON: ExitReason,
    Field.VM_EXIT_INTERRUPTION_INFORMATION: Interruption,
    Field.IDT_VECTORING_INFORMATION: IdtVectoring,
    Field.GUEST_CR0: Cr0,
    Field.GUEST_CR4: Cr4,
    Field.GUEST_DR7: Dr7,
    Field.GUEST_RFLAGS: Rflags,
    Field.GUEST_IA32_EFER: Efer,
    Field.GUEST_INTERRUPTIBILITY_STATE: Interruptibility,
    Field.GUEST_PENDING_DEBUG_EXCEPTIONS: PendingDebug,
    Field.HOST_CR0: Cr0,
    Field.HOST_CR4: Cr4,
    Field.HOST_IA32_EFER: Efer,
    **{f: AccessRights for f in Field if f.name.endswith("ACCESS_RIGHTS")},
}
"""Fields whose bits have names."""
TITLES = {
    Area.GUEST: "guest-state area",
    Area.HOST: "host-state area",
    Area.CONTROL: "control fields",
    Area.EXIT_INFORMATION: "VM-exit information",
}
"""The headings, in the order of a dump."""


def describe(field: Field, value: int) -> str:
    """Return *value* in hex, with the names of the bits that are set where they have names."""
    kind = KINDS.get(field)
    if kind is None:
        return f"{value:#x}"
    try:
        names = repr(kind(value)).partition(": ")[2].removesuffix(")")
    except ValueError:  # a reserved value of an enumerated part: software may write anything
        return f"{value:#x}  reserved value"
    return f"{value:#x}  {names}".rstrip()


def _rows(values: Mapping[Field, int], *, zeros: bool) -> Iterator[tuple[str, list[tuple[Field, int]]]]:
    for area, title in TITLES.items():
        yield title, [(f, v) for f, v in values.items() if f.area is area and (v or zeros)]


def dump(values: Mapping[Field, int], *, zeros: bool) -> str:
    """Return one line per field under a line per area."""
    lines = []
    for title, rows in _rows(values, zeros=zeros):
        lines.append(title)
        lines += [f"  {f:#06x} {f.name:46} {describe(f, v)}" for f, v in rows]
    return "\n".join(lines)


def html(values: Mapping[Field, int]) -> str:
    """Return the same as an HTML table."""
    lines = []
    for title, rows in _rows(values, zeros=False):
        lines.append(f"<tr><th colspan=3>{escape(title)}</th></tr>")
        lines += [f"<tr><td>{f:#06x}<td>{f.name}<td>{escape(describe(f, v))}</tr>" for f, v in rows]
    return "<table>" + "".join(lines) + "</table>"
