"""Which linear address an access was after that stopped in the second dimension of the walk.

The engine reports the guest-physical address alone; the exit qualification of an EPT violation also wants the linear
one, and whether it is the page itself or a paging structure on the way to it (SDM 3C "EPT Violations").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvemu.cpu.accesses import Access, accesses, outer_accesses
from hvemu.cpu.operand import operand_gva
from hvemu.memory.ept_walk import EptMisconfiguration, EptViolation
from hvemu.memory.walk import Meaning, Read, Step, explain
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.decode import Truncated
from hvemu.x86.instruction import Instruction, Mem
from hvemu.x86.paging import PAGE, Paging
from hvemu.x86.registers import Cr0, Sreg
from hvemu.x86.state import CpuMode, CpuState, Segment, TableRegister, mode
from hvemu.x86.vectors import Fault

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu


@dataclass(frozen=True, slots=True)
class Reached:
    """The access was to *gva*: to the byte that it names (*final*), or to an entry that translates it."""

    gva: int
    final: bool


def reach(cpu: Cpu, gpa: int, *, fetch: bool) -> Reached | None:
    """Return what the access to *gpa* was after; None when nothing that the instruction at RIP uses leads there."""
    for gva in _candidates(cpu, fetch=fetch):
        found = _on_the_way(cpu, gva, gpa)
        if found is not None:
            return found
    return None


def sets_flags(cpu: Cpu, gva: int) -> bool:
    """Whether translating *gva* has to set an accessed flag, so that it writes to a paging structure."""
    try:
        steps = _steps(cpu, gva)
    except (EptViolation, EptMisconfiguration):
        return False  # it does not even come to read the entry
    return any(not step.entry & step.entry.ACCESSED for step in steps if step.meaning is not _ABSENT)


_ABSENT = Meaning.NOT_PRESENT


def _candidates(cpu: Cpu, *, fetch: bool) -> Iterator[int]:
    """Yield the gvas that the instruction at RIP may touch: its own, its operands', the stack's, the tables'."""
    state = cpu.state
    code = (_base(state, Sreg.CS) + state.rip) & state.linear_mask
    yield code
    yield (code // PAGE + 1) * PAGE
    if fetch:
        return
    try:
        instruction = cpu.instruction()
    except (Fault, Truncated):
        return
    for access in _touched(cpu, instruction):
        yield access.gva
        yield (access.gva // PAGE + 1) * PAGE
    for table in (state.gdtr, state.ldtr, state.tr):
        yield from _pages(table)


def _base(state: CpuState, sreg: Sreg) -> int:
    """Return what the segment adds to an offset: nothing in 64-bit mode, but for FS and GS."""
    return 0 if mode(state) is CpuMode.LONG64 else state.segment(sreg).base


def _touched(cpu: Cpu, instruction: Instruction) -> Iterator[Access]:
    yield from accesses(cpu.state, instruction)
    yield from outer_accesses(cpu.state, instruction)
    for operand in instruction.operands:
        if isinstance(operand, Mem):  # also those that are no data, as INVLPG's, or have no fixed size
            yield Access(operand_gva(cpu.state, instruction, operand), operand.size, write=False)


def _pages(table: TableRegister | Segment) -> Iterator[int]:
    """Yield the first gva of each page where a descriptor table or a TSS lies."""
    end = table.base + min(table.limit, 0xFFFF)
    yield table.base
    yield from range((table.base // PAGE + 1) * PAGE, end + 1, PAGE)


def _read(cpu: Cpu) -> Read:
    """Return how the processor's page walker reads."""
    return getattr(cpu.physical, "read_entry", cpu.physical.read)


def _steps(cpu: Cpu, gva: int) -> tuple[Step, ...]:
    return explain(Paging.of(cpu.state, PHYSICAL_ADDRESS_WIDTH), _read(cpu), gva)


def _on_the_way(cpu: Cpu, gva: int, gpa: int) -> Reached | None:
    """Return how translating or using *gva* comes to the page of *gpa*, or None."""
    page = gpa // PAGE
    if not Cr0(cpu.state.cr0).pg:
        return Reached(_exactly(gva, gpa), final=True) if gva // PAGE == page else None
    try:
        steps = _steps(cpu, gva)
    except (EptViolation, EptMisconfiguration) as miss:
        return Reached(gva, final=False) if miss.gpa // PAGE == page else None
    if any(step.entry_gpa // PAGE == page for step in steps):
        return Reached(gva, final=False)
    last = steps[-1]
    if last.meaning is not Meaning.PAGE or (last.entry.gpa + gva % last.span) // PAGE != page:
        return None
    return Reached(_exactly(gva, gpa), final=True)


def _exactly(gva: int, gpa: int) -> int:
    """Return the gva of *gpa*, which lies in the page of *gva*."""
    return gva // PAGE * PAGE + gpa % PAGE
