"""Far RET and IRET (SDM 2A "IRET/IRETD/IRETQ-Interrupt Return"). Operand sizes are in bytes.

Each function sets RIP itself and raises Fault with the registers unchanged, except for an error that a task switch
finds in the new task.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.cpu.far import Entry
from hvemu.cpu.linear import Linear
from hvemu.cpu.load import load_paragraph, paragraphs
from hvemu.cpu.stack import Stack, width
from hvemu.cpu.tables import accessed, long_mode, null_segment, read_descriptor, require
from hvemu.cpu.task import VALID_FLAGS, return_to_previous_task
from hvemu.x86.registers import Gpr, Rflags, Sreg
from hvemu.x86.segments import SegmentType, Selector, replace_low, truncate, vm86_segment
from hvemu.x86.state import CpuMode, CpuState, Segment, mode
from hvemu.x86.vectors import Vector

_DATA = (Sreg.ES, Sreg.FS, Sreg.GS, Sreg.DS)
_ALWAYS = ("cf", "pf", "af", "zf", "sf", "tf", "df", "of", "nt")
_WIDE = ("rf", "ac", "id")  # with an operand of more than 16 bits
_WIDE_SUPERVISOR = ("vif", "vip")
_VM86_ORDER = (Sreg.ES, Sreg.DS, Sreg.FS, Sreg.GS)
_IOPL_FOR_IRET = 3


@dataclass(frozen=True, slots=True)
class _NewStack:
    """The stack that a return switches to."""

    segment: Segment
    pointer: int


def far_return(state: CpuState, memory: Linear, *, size: int, release: int = 0) -> None:
    """RETF, dropping *release* bytes of parameters on both stacks. Raises #GP, #NP, #SS, #PF.

    Ending the instruction (RF, shadow, single step) is the caller's.
    """
    stack = Stack.current(state, memory)
    rip, selector = stack.pop(2, size)
    selector = truncate(selector, 2)
    if paragraphs(state):
        require(rip <= state.segment(Sreg.CS).limit, Vector.GP)
        load_paragraph(state, Sreg.CS, selector)
        state.rip = rip
        stack.release(release)
        stack.commit()
        return
    entry = _return_entry(state, memory, selector, rip)
    stack.release(release)
    if entry.level > state.cpl:
        _return_to_stack(state, memory, entry, _popped_stack(state, memory, stack, entry, size), release)
    else:
        entry.check(state)
        entry.take(state, memory)
        stack.commit()


def interrupt_return(state: CpuState, memory: Linear, *, size: int, next_rip: int) -> None:
    """IRET; *next_rip* is what a return to the previous task saves for this one. Raises #GP, #NP, #SS, #TS, #PF.

    RFLAGS, RF included, and the end of the STI and MOV SS shadow are part of it; unblocking NMIs is the caller's.
    """
    match mode(state):
        case CpuMode.REAL:
            _from_paragraphs(state, memory, size)
        case CpuMode.VM86:
            require(Rflags(state.rflags).iopl == _IOPL_FOR_IRET, Vector.GP)
            _from_paragraphs(state, memory, size)
        case _ if Rflags(state.rflags).nt:
            require(not long_mode(state), Vector.GP)
            return_to_previous_task(state, memory, next_rip)
        case _:
            _from_protected(state, memory, size)
    state.blocking_by_sti_or_mov_ss = False


def _from_paragraphs(state: CpuState, memory: Linear, size: int) -> None:
    """IRET in real-address mode, and in virtual-8086 mode at IOPL 3."""
    stack = Stack.current(state, memory)
    rip, selector, flags = stack.pop(3, size)
    require(rip <= state.segment(Sreg.CS).limit, Vector.GP)
    flags = _returned_flags(state, flags, size)
    load_paragraph(state, Sreg.CS, truncate(selector, 2))
    state.rip, state.rflags = rip, flags
    stack.commit()


def _from_protected(state: CpuState, memory: Linear, size: int) -> None:
    """IRET in protected and IA-32e mode with NT clear."""
    stack = Stack.current(state, memory)
    rip, selector, image = stack.pop(3, size)
    selector = truncate(selector, 2)
    if Rflags(image).vm and size == 4 and state.cpl == 0 and not long_mode(state):
        _to_vm86(state, stack, rip, selector, image)
        return
    entry = _return_entry(state, memory, selector, rip)
    flags = _returned_flags(state, image, size)
    if entry.level > state.cpl or mode(state) is CpuMode.LONG64:
        _return_to_stack(state, memory, entry, _popped_stack(state, memory, stack, entry, size))
    else:
        entry.check(state)
        entry.take(state, memory)
        stack.commit()
    state.rflags = flags


def _to_vm86(state: CpuState, stack: Stack, rip: int, selector: int, image: int) -> None:
    """IRETD at CPL 0 with VM set in the image (SDM 3B "Virtual-8086 Mode")."""
    pointer, ss, *data = stack.pop(2 + len(_VM86_ORDER), 4)
    code = vm86_segment(selector)
    require(rip <= code.limit, Vector.GP)
    state.rflags = int(Rflags(image & VALID_FLAGS).replace(fixed1=1))
    state.set_segment(Sreg.CS, code)
    state.set_segment(Sreg.SS, vm86_segment(truncate(ss, 2)))
    for sreg, value in zip(_VM86_ORDER, data, strict=True):
        state.set_segment(sreg, vm86_segment(truncate(value, 2)))
    state.set_gpr(Gpr.RSP, pointer)
    state.rip = rip


def _return_entry(state: CpuState, memory: Linear, selector: int, rip: int) -> Entry:
    """Return where a return goes: code of this or an outer level, never of an inner one."""
    chosen = Selector(selector)
    require(not chosen.null, Vector.GP)
    code = read_descriptor(state, memory, selector)
    kind = code.code_or_data
    good = kind is not None and kind.code and chosen.rpl >= state.cpl
    good = good and (code.dpl <= chosen.rpl if kind is not None and kind.conforming else code.dpl == chosen.rpl)
    good = good and not (long_mode(state) and code.l and code.db)
    require(good, Vector.GP, selector)
    require(code.p, Vector.NP, selector)
    return Entry(selector, code, rip, chosen.rpl)


def _popped_stack(state: CpuState, memory: Linear, stack: Stack, entry: Entry, size: int) -> _NewStack:
    """Pop the stack pointer and SS of a return that changes stacks, and check SS."""
    pointer, popped = stack.pop(2, size)
    selector, level = Selector(truncate(popped, 2)), entry.level
    if selector.null:  # 64-bit code needs no SS below ring 3
        require(long_mode(state) and entry.code.l and selector.rpl == level != 3, Vector.GP)
        return _NewStack(null_segment(int(selector), level), pointer)
    descriptor = read_descriptor(state, memory, selector)
    kind = descriptor.code_or_data
    good = kind is not None and kind.writable and selector.rpl == level == descriptor.dpl
    require(good, Vector.GP, selector)
    require(descriptor.p, Vector.SS, selector)
    return _NewStack(accessed(state, memory, selector, descriptor).segment(int(selector)), pointer)


def _return_to_stack(state: CpuState, memory: Linear, entry: Entry, new: _NewStack, release: int = 0) -> None:
    """Load CS, RIP, SS and RSP, and drop the data segments that an outer level may not use."""
    entry.check(state)
    outward, old = entry.level > state.cpl, state.gpr(Gpr.RSP)
    moving = 8 if long_mode(state) and entry.code.l else width(new.segment)
    entry.take(state, memory)
    state.set_segment(Sreg.SS, new.segment)
    pointer = replace_low(old, new.pointer, moving)
    state.set_gpr(Gpr.RSP, replace_low(pointer, pointer + release, moving))
    for sreg in _DATA if outward else ():
        if not _may_keep(state.segment(sreg), entry.level):
            state.set_segment(sreg, null_segment())


def _may_keep(segment: Segment, level: int) -> bool:
    """Whether a data segment register stays valid at the outer privilege *level*."""
    if Selector(segment.selector).null or segment.rights.unusable:
        return True
    return SegmentType(segment.rights.type).conforming or segment.rights.dpl >= level


def _returned_flags(state: CpuState, image: int, size: int) -> int:
    """Return RFLAGS after IRET: what may change depends on the operand size, CPL and IOPL before the return."""
    old, new = Rflags(state.rflags), Rflags(image)
    names = [*_ALWAYS]
    if size > 2:
        names += _WIDE
    if state.cpl <= old.iopl:
        names.append("if_")
    if state.cpl == 0:
        names.append("iopl")
        if size > 2 and not paragraphs(state):
            names += _WIDE_SUPERVISOR
    return int(old.replace(**{name: getattr(new, name) for name in names}))
