"""Descriptor tables in memory: find, check, and mark descriptors (SDM 3A "Segment Descriptor Tables")."""

from __future__ import annotations

from hvemu.cpu.linear import Linear
from hvemu.x86.registers import Cr4, Efer
from hvemu.x86.segments import DESCRIPTOR, Descriptor, ErrorCode, Selector, SystemType, is_canonical, truncate
from hvemu.x86.state import AccessRights, CpuState, Segment
from hvemu.x86.vectors import Fault, Vector

_TYPE_BYTE = 5  # of a descriptor: type, S, DPL, P
_TSS_BUSY_BIT = SystemType.TSS_BUSY ^ SystemType.TSS


def require(holds: bool, vector: Vector, selector: int = 0, *, ext: bool = False) -> None:
    """Raise the fault whose error code names *selector* unless the condition *holds*."""
    if not holds:
        raise Fault(vector, int(ErrorCode.of(selector, ext=ext)))


def long_mode(state: CpuState) -> bool:
    """Whether IA-32e mode is active: 64-bit or compatibility mode."""
    return Efer(state.efer).lma


def canonical(state: CpuState, gva: int) -> bool:
    """Whether *gva* is canonical under the paging mode of *state*."""
    return is_canonical(gva, la57=Cr4(state.cr4).la57)


def table_gva(state: CpuState, gva: int) -> int:
    """Return a gva inside a system table as the mode forms it: it wraps at 4 GiB outside IA-32e mode."""
    return truncate(gva, 8 if long_mode(state) else 4)


def null_segment(selector: int = 0, dpl: int = 0) -> Segment:
    """Return a segment register that holds a null selector. SS keeps the CPL as its *dpl*."""
    return Segment(selector, 0, 0, AccessRights(unusable=1, dpl=dpl))


def descriptor_gva(
    state: CpuState, selector: int, vector: Vector = Vector.GP, *, size: int = DESCRIPTOR, ext: bool = False
) -> int:
    """Return the gva of the descriptor of *size* bytes that *selector* names.

    Raises Fault(*vector*, selector) when it is outside its table.
    """
    chosen = Selector(selector)
    if chosen.ti:
        table, usable = state.ldtr, not state.ldtr.rights.unusable
        base, limit = table.base, table.limit
    else:
        base, limit, usable = state.gdtr.base, state.gdtr.limit, True
    require(usable and chosen.offset + size - 1 <= limit, vector, selector, ext=ext)
    return table_gva(state, base + chosen.offset)


def read_descriptor(
    state: CpuState, memory: Linear, selector: int, vector: Vector = Vector.GP, *, ext: bool = False
) -> Descriptor:
    """Read the 8-byte descriptor that *selector* names. Raises Fault(*vector*, selector), Fault(#PF)."""
    gva = descriptor_gva(state, selector, vector, ext=ext)
    return Descriptor(memory.read(gva, DESCRIPTOR, user=False))


def read_system_descriptor(
    state: CpuState, memory: Linear, selector: int, vector: Vector = Vector.GP, *, ext: bool = False
) -> Descriptor:
    """Read a system descriptor, which takes 16 bytes in IA-32e mode. Raises as read_descriptor does."""
    size = 2 * DESCRIPTOR if long_mode(state) else DESCRIPTOR
    gva = descriptor_gva(state, selector, vector, size=size, ext=ext)
    return Descriptor(int.from_bytes(memory.read_bytes(gva, size, user=False), "little"))


def accessed(state: CpuState, memory: Linear, selector: int, descriptor: Descriptor) -> Descriptor:
    """Return a code or data *descriptor* with its accessed bit, which is set in the table if it was clear."""
    return _retype(state, memory, selector, descriptor, descriptor.type | 1)


def busy(state: CpuState, memory: Linear, selector: int, descriptor: Descriptor, now: bool) -> Descriptor:
    """Return the TSS *descriptor* made busy or available, in the table too."""
    changed = descriptor.type | _TSS_BUSY_BIT if now else descriptor.type & ~_TSS_BUSY_BIT
    return _retype(state, memory, selector, descriptor, changed)


def _retype(state: CpuState, memory: Linear, selector: int, descriptor: Descriptor, to: int) -> Descriptor:
    changed = descriptor.replace(type=to)
    if changed != descriptor:
        gva = table_gva(state, descriptor_gva(state, selector) + _TYPE_BYTE)
        memory.write(gva, 1, truncate(changed.rights, 1), user=False)
    return changed
