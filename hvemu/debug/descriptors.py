"""Segments, descriptor tables and gates in words (SDM 3A "Segment Descriptors", "IDT Descriptors")."""

from __future__ import annotations

from collections.abc import Iterator

from hvemu.debug.session import Session
from hvemu.x86.registers import Sreg
from hvemu.x86.segments import DESCRIPTOR, Descriptor, Gate, SegmentType, Selector, SystemType
from hvemu.x86.state import AccessRights, CpuMode, Segment, TableRegister, mode
from hvemu.x86.vectors import Vector

_SYSTEM = {
    SystemType.TSS16: "16-bit TSS, available", SystemType.LDT: "LDT", SystemType.TSS16_BUSY: "16-bit TSS, busy",
    SystemType.CALL_GATE16: "16-bit call gate", SystemType.TASK_GATE: "task gate",
    SystemType.INTERRUPT_GATE16: "16-bit interrupt gate", SystemType.TRAP_GATE16: "16-bit trap gate",
    SystemType.TSS: "TSS, available", SystemType.TSS_BUSY: "TSS, busy", SystemType.CALL_GATE: "call gate",
    SystemType.INTERRUPT_GATE: "interrupt gate", SystemType.TRAP_GATE: "trap gate",
}  # fmt: skip
_GATES = frozenset({
    SystemType.CALL_GATE16, SystemType.TASK_GATE, SystemType.INTERRUPT_GATE16, SystemType.TRAP_GATE16,
    SystemType.CALL_GATE, SystemType.INTERRUPT_GATE, SystemType.TRAP_GATE,
})  # fmt: skip
_NAMES = {int(vector): f"#{vector.name}" for vector in Vector} | {int(Vector.NMI): "NMI"}
_LONG = (CpuMode.LONG64, CpuMode.COMPATIBILITY)
_REAL_VECTOR = 4  # bytes: offset and segment


def attributes(rights: AccessRights, *, long: bool) -> str:
    """Return the attributes of a segment in words; *long*: system descriptors are those of IA-32e mode."""
    if rights.unusable:
        return "unusable"
    kind = _segment(rights) if rights.s else _system(rights.type, long=long)
    return f"{kind}, DPL {rights.dpl}{'' if rights.p else ', not present'}"


def _segment(rights: AccessRights) -> str:
    kind = SegmentType(rights.type)
    width = 64 if rights.l and kind.code else 32 if rights.db else 16
    if kind.code:
        text = f"{width}-bit code, {'execute/read' if kind.readable else 'execute only'}"
        text += ", conforming" if kind.conforming else ""
    else:
        text = f"{width}-bit data, {'read/write' if kind.writable else 'read only'}"
        text += ", expand-down" if kind.expand_down else ""
    return text + (", accessed" if kind.accessed else "")


def _system(kind: int, *, long: bool) -> str:
    name = _SYSTEM.get(SystemType(kind)) if kind in set(SystemType) else None
    if name is None:
        return f"reserved type {kind:#x}"
    width = "" if kind < SystemType.TSS else "64-bit " if long else "32-bit "
    return width + name


def segment(value: Segment, *, long: bool) -> str:
    """Return a segment register in words."""
    where = f"base {value.base:#x} limit {value.limit:#x}"
    return f"{value.selector:#06x}  {where}  {attributes(value.rights, long=long)}"


def _table(session: Session, table: TableRegister) -> bytes:
    """Return what is mapped of a descriptor table. Raises NotMappedError when nothing is."""
    return session.memory.linear(table.base, table.limit + 1)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def gdt(session: Session) -> Iterator[str]:
    """Yield the guest's GDT, entry by entry, without the empty ones. Raises NotMappedError."""
    view = session.view
    long = mode(view) in _LONG
    unused = "; real-address mode does not use it" if mode(view) is CpuMode.REAL else ""
    yield f"GDTR base {view.gdtr.base:#x} limit {view.gdtr.limit:#x}{unused}"
    for offset, entry in _descriptors(_table(session, view.gdtr), long=long):
        if entry:
            yield f"{offset:#06x}  {_descriptor(session, entry, long=long)}{_users(session, offset)}"


def _descriptors(data: bytes, *, long: bool) -> Iterator[tuple[int, Descriptor]]:
    """Yield (offset, descriptor); a system descriptor takes two entries in IA-32e mode."""
    offset = 0
    while offset + DESCRIPTOR <= len(data):
        entry = Descriptor(_number(data[offset : offset + DESCRIPTOR]))
        size = DESCRIPTOR
        if long and entry and not entry.s:
            size = 2 * DESCRIPTOR
            entry = Descriptor(_number(data[offset : offset + size]))
        yield offset, entry
        offset += size


def _descriptor(session: Session, entry: Descriptor, *, long: bool) -> str:
    if entry.system_type in _GATES:
        return _gate(session, Gate(entry), long=long)
    return f"base {entry.base:#x} limit {entry.limit:#x}  {attributes(entry.rights, long=long)}"


def _users(session: Session, offset: int) -> str:
    """Return which registers hold the selector of the entry at *offset*."""
    view = session.view
    held = {sreg.name: view.segment(sreg).selector for sreg in Sreg} | {
        "TR": view.tr.selector,
        "LDTR": view.ldtr.selector,
    }
    names = [
        name for name, selector in held.items() if not Selector(selector).ti and Selector(selector).offset == offset
    ]
    return f"  <- {' '.join(names)}" if names else ""


def _gate(session: Session, gate: Gate, *, long: bool) -> str:
    target = f"{gate.selector:#06x}:{gate.offset:#x}{session.symbols.name(gate.offset)}"
    if gate.type == SystemType.TASK_GATE:
        target = f"TSS {gate.selector:#06x}"
    ist = f", IST {gate.ist}" if long and gate.ist else ""
    absent = "" if gate.p else ", not present"
    return f"{target}  {_system(gate.type, long=long)}, DPL {gate.dpl}{ist}{absent}"


def idt(session: Session) -> Iterator[str]:
    """Yield the guest's IDT, vector by vector, without the empty entries. Raises NotMappedError."""
    view = session.view
    how, data = mode(view), _table(session, view.idtr)
    yield f"IDTR base {view.idtr.base:#x} limit {view.idtr.limit:#x}"
    size = _REAL_VECTOR if how is CpuMode.REAL else 2 * DESCRIPTOR if how in _LONG else DESCRIPTOR
    entries = [data[start : start + size] for start in range(0, len(data) - size + 1, size)]
    for vector, entry in enumerate(entries):
        if any(entry):
            yield f"{vector:#04x} {_NAMES.get(vector, ''):4} {_vector(session, entry, how)}"
    yield f"{sum(not any(entry) for entry in entries)} empty entries"


def _vector(session: Session, entry: bytes, how: CpuMode) -> str:
    if how is CpuMode.REAL:
        return f"{_number(entry[2:]):04x}:{_number(entry[:2]):04x}"
    return _gate(session, Gate(_number(entry)), long=how in _LONG)
