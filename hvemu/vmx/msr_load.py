"""The MSR-load area of VM entry: what makes the processing of an entry fail (SDM 3C "Loading MSRs").

The clauses are rows, as those on the fields are; the one that fails is reported with the number of the entry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hvemu.bits import Register, bits
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import Read
from hvemu.x86 import msrs
from hvemu.x86.vectors import Fault

ENTRY_SIZE: Final = 16
Write = Callable[[int, int], None]
"""WRMSR at CPL 0, from an index and a value; raises Fault."""


class MsrEntry(Register):
    """One entry of an MSR area, 16 bytes."""

    index = bits(31, 0)
    reserved = bits(63, 32)
    data = bits(127, 64)


@dataclass(frozen=True, slots=True)
class MsrCheck:
    """One clause. *breaks* is an entry that violates it."""

    name: str
    clause: str
    breaks: MsrEntry
    holds: Callable[[MsrEntry, Write], bool]


@dataclass(frozen=True, slots=True)
class MsrFailure:
    """Entry *number*, counted from 1, violates *row*."""

    number: int
    entry: MsrEntry
    row: MsrCheck

    @property
    def report(self) -> str:
        """What a real processor says."""
        return f"VM exit with reason 34, VM-entry failure due to MSR loading, qualification {self.number}"

    def explain(self) -> str:
        """Return, for a person, the clause, the entry that violates it, and what a real processor says."""
        entry = self.entry
        values = f"index {entry.index:#x}, bits 63:32 {entry.reserved:#x}, data {entry.data:#x}"
        first = f'{self.row.name}: {self.row.clause} [SDM 3C "Loading MSRs"]'
        return (
            f"{first}\n  entry {self.number} of the MSR-load area: {values}\n  a real processor reports {self.report}"
        )


MSR_CHECKS: list[MsrCheck] = []
"""Every clause, in the order of the manual."""
_X2APIC = range(0x800, 0x900)
_SMM_MONITOR_CTL, _BIOS_UPDT_TRIG, _BIOS_SIGN_ID = 0x9B, 0x79, 0x8B


def _clause(breaks: MsrEntry) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def register(holds: Callable[..., bool]) -> Callable[..., bool]:
        clause = " ".join((inspect.getdoc(holds) or "").split())
        MSR_CHECKS.append(MsrCheck(holds.__name__, clause, breaks, holds))
        return holds

    return register


@_clause(MsrEntry(index=msrs.GS_BASE))
def is_not_a_segment_base(entry: MsrEntry, _write: Write) -> bool:
    """The index must not be C0000100H (IA32_FS_BASE) or C0000101H (IA32_GS_BASE): the guest-state area has fields."""
    return entry.index not in {msrs.FS_BASE, msrs.GS_BASE}


@_clause(MsrEntry(index=0x80B))
def is_not_an_apic_register(entry: MsrEntry, _write: Write) -> bool:
    """Bits 31:8 of the index must not be 000008H: registers of the local APIC in x2APIC mode."""
    return entry.index not in _X2APIC


@_clause(MsrEntry(index=_SMM_MONITOR_CTL))
def is_writable_outside_smm(entry: MsrEntry, _write: Write) -> bool:
    """The index must not be that of an MSR that can be written only in system-management mode: IA32_SMM_MONITOR_CTL."""
    return entry.index != _SMM_MONITOR_CTL


@_clause(MsrEntry(index=_BIOS_SIGN_ID))
def is_loadable(entry: MsrEntry, _write: Write) -> bool:
    """The index must not be that of an MSR that VM entry never loads: IA32_BIOS_UPDT_TRIG, IA32_BIOS_SIGN_ID."""
    return entry.index not in {_BIOS_UPDT_TRIG, _BIOS_SIGN_ID}


@_clause(MsrEntry(index=msrs.STAR, reserved=1))
def has_no_reserved_bits(entry: MsrEntry, _write: Write) -> bool:
    """Bits 63:32 of the entry must be 0."""
    return entry.reserved == 0


@_clause(MsrEntry(index=msrs.LSTAR, data=1 << 63))
def can_be_written(entry: MsrEntry, write: Write) -> bool:
    """Writing the data to the MSR by WRMSR at CPL 0 must not cause a general-protection exception."""
    try:
        write(entry.index, entry.data)
    except Fault:
        return False
    return True


def entries(values: dict[int, int], read: Read) -> Iterator[MsrEntry]:
    """Yield the entries of the VM-entry MSR-load area that *values* place in the memory that *read* reads."""
    start, count = values[Field.VM_ENTRY_MSR_LOAD_ADDRESS], values[Field.VM_ENTRY_MSR_LOAD_COUNT]
    for hpa in range(start, start + count * ENTRY_SIZE, ENTRY_SIZE):
        yield MsrEntry(int.from_bytes(read(hpa, ENTRY_SIZE), "little"))


def load_msrs(area: Iterable[MsrEntry], write: Write) -> MsrFailure | None:
    """Load the MSRs of *area* in order, up to the first entry that fails; return that failure, if any."""
    for number, entry in enumerate(area, start=1):
        for row in MSR_CHECKS:
            if not row.holds(entry, write):
                return MsrFailure(number, entry, row)
    return None
