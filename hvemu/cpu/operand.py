"""Where the memory operand of an instruction lies, and whether its segment lets the access pass."""

from __future__ import annotations

from hvemu.cpu.stack import inside
from hvemu.cpu.tables import canonical, require
from hvemu.x86.instruction import Instruction, Mem, effective
from hvemu.x86.registers import Cr0, Rflags, Sreg
from hvemu.x86.segments import SegmentType, truncate
from hvemu.x86.state import CpuMode, CpuState, Segment, mode
from hvemu.x86.vectors import Fault, Vector

_PARAGRAPHS = frozenset({CpuMode.REAL, CpuMode.VM86})
_ALIGNED = frozenset({2, 4, 8})


def _next_rip(state: CpuState, instruction: Instruction) -> int:
    """Return the address of the instruction after *instruction*, which is at RIP."""
    return truncate(state.rip + instruction.length, 8 if mode(state) is CpuMode.LONG64 else 4)


def operand_gva(state: CpuState, instruction: Instruction, mem: Mem | None = None) -> int:
    """Return the gva of the memory operand, or of *mem* if there are two, without any check, as VM exits report it."""
    mem = mem or instruction.memory
    assert mem is not None, instruction
    offset = effective(mem, state.gpr, _next_rip(state, instruction), instruction.address_size)
    base = state.segment(mem.segment).base
    if mode(state) is not CpuMode.LONG64:
        return truncate(base + offset, 4)
    return truncate(offset + base if mem.segment >= Sreg.FS else offset, 8)  # the other four have no base there


def checked_gva(state: CpuState, instruction: Instruction, size: int, *, write: bool) -> int:
    """Return the gva of the memory operand of *size* bytes, which is read or written.

    Raises #GP(0), or #SS(0) for SS, when the segment forbids the access or the gva is not canonical; #AC(0)
    (SDM 3A "Limit Checking", "Type Checking").
    """
    gva, mem = operand_gva(state, instruction), instruction.memory
    assert mem is not None, instruction
    vector = Vector.SS if mem.segment == Sreg.SS else Vector.GP
    if mode(state) is CpuMode.LONG64:
        require(canonical(state, gva) and canonical(state, truncate(gva + size - 1, 8)), vector)
    else:
        segment = state.segment(mem.segment)
        offset = effective(mem, state.gpr, _next_rip(state, instruction), instruction.address_size)
        if mode(state) not in _PARAGRAPHS:
            _check_type(segment, vector, write=write)
        require(inside(segment, offset, offset + size - 1), vector)
    _check_alignment(state, gva, size)
    return gva


def _check_type(segment: Segment, unusable: Vector, *, write: bool) -> None:
    """Null segments hold nothing, code is never written and not always readable, data is not always writable."""
    kind = SegmentType(segment.rights.type)
    require(not segment.rights.unusable, unusable)
    require(kind.writable if write else kind.readable, Vector.GP)


def _check_alignment(state: CpuState, gva: int, size: int) -> None:
    checked = state.cpl == 3 and Cr0(state.cr0).am and Rflags(state.rflags).ac
    if checked and size in _ALIGNED and gva % size:
        raise Fault(Vector.AC, 0)
