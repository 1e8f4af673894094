"""Which linear address an access was after that stopped in the second dimension of the walk.

The engine reports the guest-physical address alone; the exit qualification of an EPT violation also wants the linear
one, and whether it is the page itself or a paging structure on the way to it (SDM 3C "EPT Violations").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvemu.cpu.operand import operand_gva
from hvemu.memory.ept_walk import EptMisconfiguration, EptViolation
from hvemu.memory.walk import Meaning, explain
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.decode import Truncated
from hvemu.x86.instruction import Instruction, Mem
from hvemu.x86.paging import Paging
from hvemu.x86.registers import Cr0, Gpr, Sreg
from hvemu.x86.vectors import Fault

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_PAGE, _LARGEST_PUSH = 0x1000, 64


def reach(cpu: Cpu, gpa: int, *, fetch: bool) -> tuple[int | None, bool]:
    """Return (gva, whether *gpa* is the page that it names); (None, False) when no operand leads to *gpa*."""
    for gva in _candidates(cpu, fetch=fetch):
        found = _on_the_way(cpu, gva, gpa)
        if found is not None:
            return gva, found
    return None, False


def _candidates(cpu: Cpu, *, fetch: bool) -> Iterator[int]:
    """Yield what the instruction at RIP may touch: itself, its operands, the stack."""
    state = cpu.state
    code = (state.segment(Sreg.CS).base + state.rip) & state.linear_mask
    yield code
    yield (code // _PAGE + 1) * _PAGE
    if fetch:
        return
    try:
        instruction = cpu.instruction()
    except (Fault, Truncated):
        return
    for gva in _operands(cpu, instruction):
        yield gva
        yield (gva // _PAGE + 1) * _PAGE
    stack = state.segment(Sreg.SS).base + state.gpr(Gpr.RSP)
    yield stack & state.linear_mask
    yield (stack - _LARGEST_PUSH) & state.linear_mask


def _operands(cpu: Cpu, instruction: Instruction) -> Iterator[int]:
    for operand in instruction.operands:
        if isinstance(operand, Mem):
            yield operand_gva(cpu.state, instruction, operand)


def _on_the_way(cpu: Cpu, gva: int, gpa: int) -> bool | None:
    """Whether *gpa* is the page of *gva* (True) or holds an entry that translates it (False); None: neither."""
    page = gpa // _PAGE
    if not Cr0(cpu.state.cr0).pg:
        return True if gva // _PAGE == page else None
    try:
        steps = explain(Paging.of(cpu.state, PHYSICAL_ADDRESS_WIDTH), cpu.physical.read, gva)
    except (EptViolation, EptMisconfiguration) as miss:
        return False if miss.gpa // _PAGE == page else None
    if any(step.entry_gpa // _PAGE == page for step in steps):
        return False
    last = steps[-1]
    if last.meaning is not Meaning.PAGE:
        return None
    return True if (last.entry.gpa + gva % last.span) // _PAGE == page else None
