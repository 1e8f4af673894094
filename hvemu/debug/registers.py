"""Registers in words: as the guest believes them to be and, where that differs, as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hvemu.bits import Register
from hvemu.debug import descriptors
from hvemu.debug.session import Session
from hvemu.errors import InputError
from hvemu.x86.registers import Cr0, Cr4, Dr6, Dr7, Efer, Gpr, Rflags, Sreg
from hvemu.x86.segments import truncate
from hvemu.x86.state import CpuMode, CpuState, TableRegister, code_size, mode

_MODES = {
    CpuMode.REAL: "real-address mode",
    CpuMode.VM86: "virtual-8086 mode",
    CpuMode.PROTECTED: "protected mode",
    CpuMode.COMPATIBILITY: "compatibility mode",
    CpuMode.LONG64: "64-bit mode",
}
_HIDDEN = frozenset({"fixed1"})


def bit_names(register: Register) -> str:
    """Return the names of the bits that are 1, and the fields that are not 0, as the manual writes them."""
    names = []
    for name, field in register.fields.items():
        value = getattr(register, name)
        if value and name not in _HIDDEN:
            word = name.rstrip("_").upper()
            names.append(word if field.mask == 1 else f"{word}={int(value):#x}")
    return " ".join(names)


@dataclass(frozen=True, slots=True)
class Row:
    """One register: its *name* and its *text*."""

    name: str
    text: Callable[[CpuState], str]


def _plain(name: str) -> Row:
    return Row(name, lambda state: f"{getattr(state, name):#x}")


def _decoded(name: str, kind: type[Register]) -> Row:
    def text(state: CpuState) -> str:
        value = getattr(state, name)
        return f"{value:#x}  {bit_names(kind(value))}".rstrip()

    return Row(name, text)


def _segment(sreg: Sreg) -> Row:
    return Row(sreg.name.lower(), lambda state: descriptors.segment(state.segment(sreg), long=_long(state)))


def _system(name: str) -> Row:
    return Row(name, lambda state: descriptors.segment(getattr(state, name), long=_long(state)))


def _table(name: str) -> Row:
    def text(state: CpuState) -> str:
        table: TableRegister = getattr(state, name)
        return f"base {table.base:#x} limit {table.limit:#x}"

    return Row(name, text)


def _breakpoint(n: int) -> Row:
    return Row(f"dr{n}", lambda state: f"{state.dr(n):#x}")


def _long(state: CpuState) -> bool:
    return bool(Efer(state.efer).lma)


_ROWS = (
    Row("mode", lambda state: f"{_MODES[mode(state)]}, {code_size(state)}-bit code"),
    Row("cpl", lambda state: str(state.cpl)),
    _decoded("rflags", Rflags),
    _decoded("cr0", Cr0), _plain("cr2"), _plain("cr3"), _decoded("cr4", Cr4), _plain("cr8"), _decoded("efer", Efer),
    *(_segment(sreg) for sreg in (Sreg.CS, Sreg.SS, Sreg.DS, Sreg.ES, Sreg.FS, Sreg.GS)),
    _system("ldtr"), _system("tr"), _table("gdtr"), _table("idtr"),
    *(_breakpoint(n) for n in range(4)), _decoded("dr6", Dr6), _decoded("dr7", Dr7),
)  # fmt: skip
_RARE = frozenset({"cr8", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7"})
"""Shown when they are asked for."""
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_PER_LINE = 4


def registers(session: Session, wanted: str = "") -> Iterator[str]:
    """Yield all registers, or those whose names begin with *wanted*. Raises InputError when there is none."""
    lines = [*_general(session, wanted), *_special(session, wanted)]
    if not lines:
        raise InputError(f"{wanted}: no register's name begins like that")
    yield from lines


def _general(session: Session, wanted: str) -> Iterator[str]:
    """Yield general-purpose registers and RIP in columns, as wide as the mode has them."""
    view, wide = session.view, code_size(session.view) == 64
    size = 8 if wide else 4
    cells = []
    for name in _GENERAL if wide else _GENERAL[:8]:
        shown = name if wide else f"e{name[1:]}"
        if shown.startswith(wanted):
            cells.append(f"{shown:3} {truncate(view.gpr(Gpr[name.upper()]), size):#0{2 * size + 2}x}")
    for i in range(0, len(cells), _PER_LINE):
        yield "  ".join(cells[i : i + _PER_LINE])
    pointer = "rip" if wide else "eip"
    if pointer.startswith(wanted):
        yield f"{pointer} {view.rip:#0{2 * size + 2}x}{session.symbols.name(session.here)}"


def _special(session: Session, wanted: str) -> Iterator[str]:
    for row in _ROWS:
        if not row.name.startswith(wanted) or (not wanted and row.name in _RARE):
            continue
        believed, true = row.text(session.view), row.text(session.truth)
        yield f"{row.name:6} {believed}"
        if true != believed:
            yield f"       truth: {true}"
