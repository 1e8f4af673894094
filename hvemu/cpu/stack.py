"""A stack while a frame is pushed to it or popped from it: checked first, kept apart from the state until committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvemu.cpu.linear import Linear
from hvemu.cpu.tables import accessed, canonical, null_segment, read_descriptor, require, table_gva
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import ErrorCode, SegmentType, Selector, SystemType, replace_low, truncate
from hvemu.x86.state import CpuMode, CpuState, Segment, mode
from hvemu.x86.tss import TSS16, TSS32, TSS64_IST, TSS64_RSP, TssLayout
from hvemu.x86.vectors import Fault, Vector

_ALIGNMENT = 16  # of RSP before a 64-bit interrupt frame


@dataclass(slots=True)
class Stack:
    """A stack segment and its pointer.

    *size* is the width in bytes of the pointer that moves: 2 or 4 by SS.B, 8 in 64-bit mode, where there is no limit.
    A frame that does not fit raises #SS with *error_code*.
    """

    state: CpuState
    memory: Linear
    segment: Segment
    pointer: int
    size: int
    user: bool
    error_code: int = 0

    @classmethod
    def current(cls, state: CpuState, memory: Linear, *, ext: bool = False, size: int | None = None) -> Stack:
        """Return the stack in use; *size* 8 treats it as that of 64-bit mode, which is about to be entered."""
        segment = state.segment(Sreg.SS)
        if size is None:
            size = 8 if mode(state) is CpuMode.LONG64 else width(segment)
        return cls(state, memory, segment, state.gpr(Gpr.RSP), size, state.cpl == 3, int(ErrorCode(ext=ext)))

    def check(self, nbytes: int, size: int) -> None:
        """Raise #SS unless *nbytes*, in items of *size* bytes, can be pushed."""
        for n in range(size, nbytes + 1, size):
            self._check_item(truncate(self.pointer - n, self.size), size)

    def push(self, values: Sequence[int], size: int) -> None:
        """Push *values* in order, *size* bytes each; nothing is written unless the whole frame is within the limits."""
        self.check(len(values) * size, size)
        for value in values:
            pointer = replace_low(self.pointer, self.pointer - size, self.size)
            self.memory.write(self._gva(truncate(pointer, self.size)), size, truncate(value, size), user=self.user)
            self.pointer = pointer

    def pop(self, count: int, size: int) -> list[int]:
        """Pop *count* items of *size* bytes. Raises #SS when one lies outside the limits."""
        values = []
        for _ in range(count):
            offset = truncate(self.pointer, self.size)
            self._check_item(offset, size)
            values.append(self.memory.read(self._gva(offset), size, user=self.user))
            self.release(size)
        return values

    def release(self, nbytes: int) -> None:
        """Drop *nbytes* without looking at them."""
        self.pointer = replace_low(self.pointer, self.pointer + nbytes, self.size)

    def commit(self) -> None:
        """Make the pointer the state's stack pointer."""
        self.state.set_gpr(Gpr.RSP, self.pointer)

    def _gva(self, offset: int) -> int:
        return offset if self.size == 8 else truncate(self.segment.base + offset, 4)

    def _check_item(self, offset: int, size: int) -> None:
        last = offset + size - 1
        if self.size == 8:
            good = canonical(self.state, offset) and canonical(self.state, last)
        else:
            good = not self.segment.rights.unusable and inside(self.segment, offset, last)
        if not good:
            raise Fault(Vector.SS, self.error_code)


def width(segment: Segment) -> int:
    """Return the width in bytes of the stack pointer that a stack segment uses outside 64-bit mode."""
    return 4 if segment.rights.db else 2


def inside(segment: Segment, first: int, last: int) -> bool:
    """Whether the offsets *first*..*last* are within the limits of *segment*, expand-down ones too."""
    if segment.rights.s and SegmentType(segment.rights.type).expand_down:
        return segment.limit < first and last == truncate(last, width(segment))
    return last <= segment.limit


def tss_layout(segment_type: int) -> TssLayout:
    """Return the layout that a TSS of *segment_type* (SystemType) has outside IA-32e mode."""
    return TSS16 if segment_type in (SystemType.TSS16, SystemType.TSS16_BUSY) else TSS32


def inner_stack(state: CpuState, memory: Linear, level: int, *, ext: bool = False) -> Stack:
    """Return the stack that the current 16-bit or 32-bit TSS holds for privilege *level* (SDM 3A "Stack Switching").

    Raises #TS, #SS, #PF.
    """
    layout = tss_layout(state.tr.rights.type)
    sp_at, ss_at = layout.stacks[level]
    require(ss_at + 1 <= state.tr.limit, Vector.TS, state.tr.selector, ext=ext)
    pointer = memory.read(table_gva(state, state.tr.base + sp_at), layout.width, user=False)
    selector = Selector(memory.read(table_gva(state, state.tr.base + ss_at), 2, user=False))
    require(not selector.null, Vector.TS, ext=ext)
    descriptor = read_descriptor(state, memory, selector, Vector.TS, ext=ext)
    kind = descriptor.code_or_data
    fits = selector.rpl == level == descriptor.dpl and kind is not None and kind.writable
    require(fits, Vector.TS, selector, ext=ext)
    require(descriptor.p, Vector.SS, selector, ext=ext)
    segment = accessed(state, memory, selector, descriptor).segment(int(selector))
    code = int(ErrorCode.of(selector, ext=ext))
    return Stack(state, memory, segment, pointer, width(segment), level == 3, code)


def inner_stack64(state: CpuState, memory: Linear, level: int, *, ist: int = 0, ext: bool = False) -> Stack:
    """Return the stack of privilege *level* or of *ist* from the 64-bit TSS; SS becomes null unless *level* is the CPL.

    Raises #TS when the TSS is too short, #PF.
    """
    at = TSS64_IST[ist] or TSS64_RSP[level]
    require(at + 7 <= state.tr.limit, Vector.TS, state.tr.selector, ext=ext)
    pointer = memory.read(table_gva(state, state.tr.base + at), 8, user=False)
    segment = state.segment(Sreg.SS) if level == state.cpl else null_segment(level, level)
    return Stack(state, memory, segment, pointer, 8, level == 3, int(ErrorCode(ext=ext)))


def aligned64(stack: Stack) -> Stack:
    """Align *stack* for a 64-bit interrupt frame (SDM 3A "64-Bit Mode Stack Frame")."""
    stack.pointer -= stack.pointer % _ALIGNMENT
    return stack
