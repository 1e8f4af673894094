"""The walk from gva to gpa to hpa in words, entry by entry (SDM 3A "Hierarchical Paging Structures: an Overview")."""

from __future__ import annotations

from collections.abc import Iterator

from hvemu.debug.registers import bit_names
from hvemu.debug.session import Session
from hvemu.memory.ept import EptPage
from hvemu.memory.walk import Meaning, Step
from hvemu.x86.paging import PagingMode


def walk(session: Session, gva: int) -> Iterator[str]:
    """Yield every entry that translates *gva*, under EPT with the walk to the entry itself. Raises NotMappedError."""
    memory = session.memory
    paging = memory.paging
    gva &= paging.geometry.linear
    if paging.mode is PagingMode.NONE:
        yield f"gva {gva:#x}: the guest uses no paging, gva and gpa are equal"
        yield from _second(session, gva, "")
        return
    steps = memory.steps(gva)
    yield f"gva {gva:#x}: {paging.mode.value}, the first table is at gpa {paging.root:#x}"
    for step in steps:
        yield from _second(session, step.entry_gpa, "    ")
        yield _entry(step)
    if steps[-1].meaning is Meaning.PAGE:
        gpa = memory.translate(gva)
        yield f"gpa {gpa:#x}"
        yield from _second(session, gpa, "")


def _entry(step: Step) -> str:
    target = f" at gpa {step.entry.gpa:#x}" if step.meaning in (Meaning.TABLE, Meaning.PAGE) else ""
    reserved = f": {step.reserved:#x}" if step.reserved else ""
    span = f" of {_size(step.span)}" if step.meaning is Meaning.PAGE else ""
    flags = _flags(bit_names(step.entry))
    return (
        f"level {step.level}  gpa {step.entry_gpa:#x}: {int(step.entry):#x}{flags}  {type(step.entry).__name__} "
        f"{step.meaning.value}{span}{target}{reserved}"
    )


def _flags(names: str) -> str:
    """Return the bits in brackets, without the address, which is told elsewhere."""
    bits = [name for name in names.split() if not name.startswith("FRAME")]
    return f" [{' '.join(bits)}]" if bits else ""


def _second(session: Session, gpa: int, indent: str) -> Iterator[str]:
    """Yield the EPT entries from *gpa* to its hpa, where there is EPT."""
    found = session.memory.ept(gpa)
    if found is None:
        return
    steps, hpa = found
    for step in steps:
        kind = f" maps {_size(step.level.size)}" if isinstance(step.entry, EptPage) and step.entry.rights else ""
        target = f"{kind} at hpa {step.entry.hpa:#x}" if step.entry.rights else " is not present"
        entry = f"{int(step.entry):#x}{_flags(bit_names(step.entry))}"
        yield f"{indent}{step.level.name:9}  hpa {step.hpa:#x}: {entry} {target.strip()}"
    yield f"{indent}hpa {hpa:#x}" if hpa is not None else f"{indent}EPT does not translate gpa {gpa:#x}"


def _size(span: int) -> str:
    """Return a power of two in KiB, MiB or GiB."""
    for unit in ("KiB", "MiB", "GiB"):
        span //= _KIB
        if span < _KIB:
            return f"{span} {unit}"
    return f"{span // _KIB} TiB"


_KIB = 1024
