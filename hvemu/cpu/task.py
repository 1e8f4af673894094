"""Task switches by task gate, CALL, JMP and IRET (SDM 3A "Task Switching"). Outside IA-32e mode only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from hvemu.cpu.linear import Linear
from hvemu.cpu.stack import Stack, tss_layout
from hvemu.cpu.tables import (
    accessed,
    busy,
    null_segment,
    read_descriptor,
    require,
    table_gva,
)
from hvemu.x86.registers import Cr0, Dr6, Dr7, Gpr, Rflags, Sreg
from hvemu.x86.segments import Descriptor, Selector, SystemType, vm86_segment
from hvemu.x86.state import CpuState
from hvemu.x86.tss import LINK, TSS16, TssLayout
from hvemu.x86.vectors import Fault, Vector

_AVAILABLE = frozenset({SystemType.TSS, SystemType.TSS16})
_BUSY = frozenset({SystemType.TSS_BUSY, SystemType.TSS16_BUSY})
_DATA = (Sreg.ES, Sreg.DS, Sreg.FS, Sreg.GS)
VALID_FLAGS = Rflags(**{name: flag.mask for name, flag in Rflags.fields.items()})
_NO_UPPER_HALF = 0xFFFF_0000  # of a general register that a 16-bit TSS fills: the manual leaves it undefined


class Nesting(Enum):
    """How the old and the new task relate: NEST for CALL and interrupts, JUMP for JMP, RETURN for IRET."""

    NEST = auto()
    JUMP = auto()
    RETURN = auto()


@dataclass(frozen=True, slots=True)
class _Image:
    """What a TSS holds of a task."""

    ip: int
    flags: int
    gprs: dict[Gpr, int]
    segments: dict[Sreg, int]
    ldt: int
    cr3: int | None
    trap: bool


def task_gate_target(state: CpuState, memory: Linear, selector: int, *, ext: bool = False) -> Descriptor:
    """Return the available TSS that a task gate names. Raises #GP, #NP, #PF."""
    require(not Selector(selector).ti, Vector.GP, selector, ext=ext)
    target = read_descriptor(state, memory, selector, ext=ext)
    require(target.system_type in _AVAILABLE, Vector.GP, selector, ext=ext)
    require(target.p, Vector.NP, selector, ext=ext)
    return target


def return_to_previous_task(state: CpuState, memory: Linear, next_rip: int) -> None:
    """IRET with NT set: switch to the task that the back link names. Raises #TS, #NP and what switch_task does."""
    selector = memory.read(table_gva(state, state.tr.base + LINK), 2, user=False)
    require(not Selector(selector).ti, Vector.TS, selector)
    target = read_descriptor(state, memory, selector, Vector.TS)
    require(target.system_type in _BUSY, Vector.TS, selector)
    require(target.p, Vector.NP, selector)
    switch_task(state, memory, selector, target, Nesting.RETURN, return_rip=next_rip, flags=state.rflags)


def switch_task(
    state: CpuState,
    memory: Linear,
    selector: int,
    target: Descriptor,
    nesting: Nesting,
    *,
    return_rip: int,
    flags: int,
    error_code: int | None = None,
    ext: bool = False,
) -> None:
    """Switch to the task of the TSS *target*, which *selector* names and whose type and presence were checked.

    *return_rip* and *flags* are saved for the old task; *error_code* goes on the stack of the new one. A Fault before
    the commit point leaves the registers as they were; one after it belongs to the new task, as does Fault(#DB), with
    DR6.BT, that ends a switch to a task whose T flag is set.
    """
    layout, old_layout = tss_layout(target.type), tss_layout(state.tr.rights.type)
    require(target.limit >= layout.minimum_limit, Vector.TS, selector, ext=ext)
    require(state.tr.limit >= old_layout.minimum_limit, Vector.TS, state.tr.selector, ext=ext)

    saved = Rflags(flags).replace(nt=0) if nesting is Nesting.RETURN else flags
    _save(state, memory, old_layout, return_rip, saved)
    image = _read(state, memory, layout, target.base)
    if nesting is Nesting.NEST:
        memory.write(table_gva(state, target.base + LINK), 2, state.tr.selector, user=False)
    else:
        busy(state, memory, state.tr.selector, read_descriptor(state, memory, state.tr.selector), now=False)
    target = busy(state, memory, selector, target, now=True)

    state.tr = target.segment(selector)
    _commit(state, image, nested=nesting is Nesting.NEST)
    _load_segments(state, memory, image, ext=ext)
    _begin(state, memory, image, layout, error_code, ext=ext)


def _save(state: CpuState, memory: Linear, layout: TssLayout, rip: int, flags: int) -> None:
    """Write the registers of the old task to its TSS; CR3 and LDTR are never saved."""
    fields = {layout.ip: rip, layout.flags: flags}
    fields |= {at: state.gpr(gpr) for gpr, at in layout.gprs.items()}
    for at, value in fields.items():
        size = layout.width
        memory.write(table_gva(state, state.tr.base + at), size, value % 256**size, user=False)
    for sreg, at in layout.segments.items():
        memory.write(table_gva(state, state.tr.base + at), 2, state.segment(sreg).selector, user=False)


def _read(state: CpuState, memory: Linear, layout: TssLayout, base: int) -> _Image:
    """Read the TSS at the gva *base*."""

    def field(at: int, size: int = layout.width) -> int:
        return memory.read(table_gva(state, base + at), size, user=False)

    upper = _NO_UPPER_HALF if layout is TSS16 else 0
    return _Image(
        ip=field(layout.ip),
        flags=field(layout.flags) & VALID_FLAGS,
        gprs={gpr: field(at) | upper for gpr, at in layout.gprs.items()},
        segments=dict.fromkeys(Sreg, 0) | {sreg: field(at, 2) for sreg, at in layout.segments.items()},
        ldt=field(layout.ldt, 2),
        cr3=None if layout.cr3 is None else field(layout.cr3),
        trap=layout.trap is not None and bool(field(layout.trap, 2) % 2),
    )


def _commit(state: CpuState, image: _Image, *, nested: bool) -> None:
    """Load every register that needs no check; segments hold bare selectors until they are checked."""
    cr0 = Cr0(state.cr0)
    state.cr0 = int(cr0.replace(ts=1))
    if image.cr3 is not None and cr0.pg:
        state.cr3 = image.cr3
    flags = Rflags(image.flags).replace(fixed1=1)
    flags = flags.replace(nt=1) if nested else flags
    state.rflags, state.rip = int(flags), image.ip
    for gpr, value in image.gprs.items():
        state.set_gpr(gpr, value)
    state.dr7 = int(Dr7(state.dr7).replace(l0=0, l1=0, l2=0, l3=0, le=0))
    state.ldtr = null_segment(image.ldt)
    level = Selector(image.segments[Sreg.CS]).rpl
    for sreg, selector in image.segments.items():
        state.set_segment(sreg, vm86_segment(selector) if flags.vm else null_segment(selector, level))
    state.blocking_by_sti_or_mov_ss = False


def _load_segments(state: CpuState, memory: Linear, image: _Image, *, ext: bool) -> None:
    """Check and load LDTR and the segment registers; an error is one of the new task."""
    if not Selector(image.ldt).null:
        _load_ldt(state, memory, image.ldt, ext=ext)
    if Rflags(state.rflags).vm:
        return
    selectors = image.segments
    level = Selector(selectors[Sreg.CS]).rpl
    state.set_segment(Sreg.CS, _code(state, memory, selectors[Sreg.CS], ext=ext).segment(selectors[Sreg.CS]))
    state.set_segment(Sreg.SS, _stack(state, memory, selectors[Sreg.SS], level, ext=ext).segment(selectors[Sreg.SS]))
    for sreg in _DATA:
        if not Selector(selectors[sreg]).null:
            data = _data(state, memory, selectors[sreg], level, ext=ext)
            state.set_segment(sreg, data.segment(selectors[sreg]))


def _load_ldt(state: CpuState, memory: Linear, selector: int, *, ext: bool) -> None:
    require(not Selector(selector).ti, Vector.TS, selector, ext=ext)
    ldt = read_descriptor(state, memory, selector, Vector.TS, ext=ext)
    require(ldt.system_type == SystemType.LDT and ldt.p, Vector.TS, selector, ext=ext)
    state.ldtr = ldt.segment(selector)


def _code(state: CpuState, memory: Linear, selector: int, *, ext: bool) -> Descriptor:
    descriptor, rpl = _descriptor(state, memory, selector, ext=ext), Selector(selector).rpl
    kind = descriptor.code_or_data
    good = kind is not None and kind.code
    good = good and (descriptor.dpl <= rpl if kind and kind.conforming else descriptor.dpl == rpl)
    require(good, Vector.TS, selector, ext=ext)
    require(descriptor.p, Vector.NP, selector, ext=ext)
    return accessed(state, memory, selector, descriptor)


def _stack(state: CpuState, memory: Linear, selector: int, level: int, *, ext: bool) -> Descriptor:
    descriptor = _descriptor(state, memory, selector, ext=ext)
    kind = descriptor.code_or_data
    good = kind is not None and kind.writable and Selector(selector).rpl == level == descriptor.dpl
    require(good, Vector.TS, selector, ext=ext)
    require(descriptor.p, Vector.SS, selector, ext=ext)
    return accessed(state, memory, selector, descriptor)


def _data(state: CpuState, memory: Linear, selector: int, level: int, *, ext: bool) -> Descriptor:
    descriptor = _descriptor(state, memory, selector, ext=ext)
    kind = descriptor.code_or_data
    good = kind is not None and kind.readable
    good = good and (bool(kind and kind.conforming) or descriptor.dpl >= max(level, Selector(selector).rpl))
    require(good, Vector.TS, selector, ext=ext)
    require(descriptor.p, Vector.NP, selector, ext=ext)
    return accessed(state, memory, selector, descriptor)


def _descriptor(state: CpuState, memory: Linear, selector: int, *, ext: bool) -> Descriptor:
    require(not Selector(selector).null, Vector.TS, selector, ext=ext)
    return read_descriptor(state, memory, selector, Vector.TS, ext=ext)


def _begin(
    state: CpuState, memory: Linear, image: _Image, layout: TssLayout, error_code: int | None, *, ext: bool
) -> None:
    """Push the error code, check the entry point, and take the debug trap of the new task."""
    if error_code is not None:
        stack = Stack.current(state, memory, ext=ext)
        stack.push([error_code], layout.width)
        stack.commit()
    require(image.ip <= state.segment(Sreg.CS).limit, Vector.GP, ext=ext)
    if image.trap:
        state.dr6 = int(Dr6(state.dr6).replace(bt=1))
        raise Fault(Vector.DB)
