"""Loading segment registers, LDTR and TR (SDM 3A "Segment Registers", "Memory-Management Registers")."""

from __future__ import annotations

from hvemu.cpu.linear import Linear
from hvemu.cpu.tables import (
    accessed,
    busy,
    canonical,
    long_mode,
    null_segment,
    read_descriptor,
    read_system_descriptor,
    require,
)
from hvemu.x86.registers import Sreg
from hvemu.x86.segments import Descriptor, Selector, SystemType, real_mode_segment, vm86_segment
from hvemu.x86.state import CpuMode, CpuState, mode
from hvemu.x86.vectors import Fault, Vector

_PARAGRAPHS = frozenset({CpuMode.REAL, CpuMode.VM86})


def paragraphs(state: CpuState) -> bool:
    """Whether a selector is a paragraph number: real-address and virtual-8086 mode."""
    return mode(state) in _PARAGRAPHS


def load_paragraph(state: CpuState, sreg: int, selector: int) -> None:
    """Load a segment register in real-address or virtual-8086 mode, where nothing can go wrong."""
    virtual = mode(state) is CpuMode.VM86
    state.set_segment(sreg, vm86_segment(selector) if virtual else real_mode_segment(selector, state.segment(sreg)))


def load_segment(state: CpuState, memory: Linear, sreg: int, selector: int) -> None:
    """Load ES, SS, DS, FS or GS as MOV, POP and LDS to LGS do. Raises #GP, #SS, #NP, #PF, with nothing changed.

    CS is never loaded this way; the shadow after MOV SS and POP SS is the caller's.
    """
    assert sreg != Sreg.CS
    if paragraphs(state):
        load_paragraph(state, sreg, selector)
    elif Selector(selector).null:
        _load_null(state, sreg, selector)
    else:
        check = _check_stack if sreg == Sreg.SS else _check_data
        descriptor = read_descriptor(state, memory, selector)
        check(state, selector, descriptor)
        state.set_segment(sreg, accessed(state, memory, selector, descriptor).segment(selector))


def _load_null(state: CpuState, sreg: int, selector: int) -> None:
    """A null selector is fine in a data segment; in SS in 64-bit mode only, below CPL 3, with RPL = CPL."""
    if sreg == Sreg.SS:
        allowed = mode(state) is CpuMode.LONG64 and state.cpl != 3 and Selector(selector).rpl == state.cpl
        require(allowed, Vector.GP)
        state.set_segment(sreg, null_segment(selector, state.cpl))
    else:
        state.set_segment(sreg, null_segment(selector))


def _check_stack(state: CpuState, selector: int, descriptor: Descriptor) -> None:
    kind = descriptor.code_or_data
    writable = kind is not None and kind.writable
    require(writable and Selector(selector).rpl == state.cpl == descriptor.dpl, Vector.GP, selector)
    require(descriptor.p, Vector.SS, selector)


def _check_data(state: CpuState, selector: int, descriptor: Descriptor) -> None:
    """SDM 3A "Privilege Level Checking When Accessing Data Segments"."""
    kind = descriptor.code_or_data
    require(kind is not None and kind.readable, Vector.GP, selector)
    conforming = kind is not None and kind.conforming
    require(conforming or max(Selector(selector).rpl, state.cpl) <= descriptor.dpl, Vector.GP, selector)
    require(descriptor.p, Vector.NP, selector)


def load_ldtr(state: CpuState, memory: Linear, selector: int) -> None:
    """LLDT. A null selector makes the LDT unusable. Raises #UD, #GP, #NP, #PF, with nothing changed."""
    _require_system_mode(state)
    if Selector(selector).null:
        state.ldtr = null_segment(selector)
        return
    descriptor = _system(state, memory, selector)
    require(descriptor.system_type == SystemType.LDT, Vector.GP, selector)
    _require_present(state, selector, descriptor)
    state.ldtr = descriptor.segment(selector)


def load_tr(state: CpuState, memory: Linear, selector: int) -> None:
    """LTR: the TSS becomes busy. Raises #UD, #GP, #NP, #PF, with nothing changed."""
    _require_system_mode(state)
    require(not Selector(selector).null, Vector.GP)
    descriptor = _system(state, memory, selector)
    available = {SystemType.TSS} if long_mode(state) else {SystemType.TSS, SystemType.TSS16}
    require(descriptor.system_type in available, Vector.GP, selector)
    _require_present(state, selector, descriptor)
    state.tr = busy(state, memory, selector, descriptor, now=True).segment(selector)


def _require_system_mode(state: CpuState) -> None:
    """LLDT and LTR exist in protected mode only, for CPL 0."""
    if paragraphs(state):
        raise Fault(Vector.UD)
    require(state.cpl == 0, Vector.GP)


def _system(state: CpuState, memory: Linear, selector: int) -> Descriptor:
    require(not Selector(selector).ti, Vector.GP, selector)
    return read_system_descriptor(state, memory, selector)


def _require_present(state: CpuState, selector: int, descriptor: Descriptor) -> None:
    require(descriptor.p, Vector.NP, selector)
    if long_mode(state):
        require(descriptor.upper_type_clear and canonical(state, descriptor.base), Vector.GP, selector)
