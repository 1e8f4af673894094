"""The page walker: one for every paging mode (SDM 3A "Hierarchical Paging Structures: an Overview").

PAE paging: the PDPTEs are read from memory at each walk, where the processor would use the registers that MOV to CR3
loaded; a reserved bit in one is found here, as a page fault, not at MOV to CR3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from hvemu.x86.paging import Entry, Paging, PagingMode, Pte, mask
from hvemu.x86.vectors import Fault, PageFaultCode, Vector

Read = Callable[[int, int], int]
"""(gpa, size in bytes) -> integer."""
Write = Callable[[int, int, int], None]
"""(gpa, size in bytes, integer)."""

# Where all formats that have these bits have them.
_P, _RW, _US, _D, _G, _XD = (mask(f) for f in (Pte.p, Pte.rw, Pte.us, Pte.d, Pte.g, Pte.xd))


@dataclass(frozen=True, slots=True)
class Access:
    """What is about to be done. *user*: a user-mode access, as all at CPL 3 are but the implicit supervisor ones.

    *implicit_supervisor*: to a system structure (descriptor tables, TSS), for which *ac*, EFLAGS.AC, does not count.
    """

    write: bool = False
    fetch: bool = False
    user: bool = False
    implicit_supervisor: bool = False
    ac: bool = False


class Meaning(Enum):
    """What an entry does in a walk. All but TABLE end it."""

    TABLE = "refers to the next table"
    PAGE = "maps the page"
    NOT_PRESENT = "is not present"
    RESERVED = "has reserved bits set"


class Step(NamedTuple):
    """One entry on the way. *span*: bytes of linear address space that it maps; *reserved*: its offending bits."""

    level: int
    entry_gpa: int
    entry: Entry
    entry_size: int
    span: int
    meaning: Meaning
    reserved: int

    def __str__(self) -> str:
        where = f" at {self.entry.gpa:#x}" if self.meaning in (Meaning.TABLE, Meaning.PAGE) else ""
        bits = f": {self.reserved:#x}" if self.reserved else ""
        return f"level {self.level}, gpa {self.entry_gpa:#x}: {self.entry!r} {self.meaning.value}{where}{bits}"


@dataclass(frozen=True, slots=True)
class Walk:
    """A translation. *page_size* in bytes; *writable*, *user* and *executable* are the rights of all levels together.

    *dirty* and *global_page* are the D and G bits of the leaf; *steps*, top first, hold the entries as the access left
    them. Without paging there are no steps, and every right; the page is the address space.
    """

    gpa: int
    page_size: int
    writable: bool
    user: bool
    executable: bool
    dirty: bool
    global_page: bool
    steps: tuple[Step, ...]


def explain(paging: Paging, read: Read, gva: int) -> tuple[Step, ...]:
    """Walk as far as the tables lead, without access checks and side effects; the last step tells why it ends there."""
    table, size, rules, steps = paging.root, paging.geometry.entry_size, paging.reserved, []
    for level in paging.levels:
        entry_gpa = table + gva // level.span % level.entries * size
        raw = read(entry_gpa, size)
        kind = level.format(raw)
        entry, reserved = kind(raw), 0
        if not raw & _P:
            meaning = Meaning.NOT_PRESENT
        elif reserved := raw & rules[kind]:
            meaning = Meaning.RESERVED
        else:
            meaning = Meaning.PAGE if kind is level.leaf else Meaning.TABLE
        steps.append(Step(level.number, entry_gpa, entry, size, level.span, meaning, reserved))
        if meaning is not Meaning.TABLE:
            break
        table = entry.gpa
    return tuple(steps)


def walk(paging: Paging, read: Read, gva: int, access: Access, write: Write | None = None) -> Walk:
    """Translate *gva* for *access*. With *write*, set the accessed and dirty bits that the access sets.

    *gva* wraps at the width of a linear address. Raises Fault(#PF), and Fault(#GP) for a gva that is not canonical.
    """
    gva &= paging.geometry.linear
    if paging.mode is PagingMode.NONE:
        return Walk(gva, paging.geometry.linear + 1, True, True, True, False, False, ())
    if not paging.canonical(gva):
        raise Fault(Vector.GP, 0)
    steps = explain(paging, read, gva)
    end = steps[-1].meaning
    if end is not Meaning.PAGE:
        raise page_fault(paging, gva, access, end)
    writable, user, executable = _rights(steps)
    if not permitted(paging, access, writable=writable, user=user, executable=executable):
        raise page_fault(paging, gva, access, end)
    if write is not None:
        steps = _mark(steps, write, dirty=access.write)
    leaf, span = steps[-1].entry, steps[-1].span
    return Walk(leaf.gpa + gva % span, span, writable, user, executable, bool(leaf & _D), bool(leaf & _G), steps)


def _rights(steps: tuple[Step, ...]) -> tuple[bool, bool, bool]:
    """Return (writable, user, executable): what every entry grants."""
    every, some = -1, 0
    for step in steps:
        every &= step.entry | step.entry.ASSUMED
        some |= step.entry
    return bool(every & _RW), bool(every & _US), not some & _XD


def permitted(paging: Paging, access: Access, *, writable: bool, user: bool, executable: bool) -> bool:
    """Whether the rights of a translation allow *access* (SDM 3A "Determination of Access Rights")."""
    if access.user and not user:
        return False
    if access.fetch:
        return executable and not (paging.smep and user and not access.user)
    if paging.smap and user and not access.user and (access.implicit_supervisor or not access.ac):
        return False
    return not access.write or writable or not (access.user or paging.wp)


def page_fault(paging: Paging, gva: int, access: Access, end: Meaning) -> Fault:
    """Return the #PF of a walk whose last step means *end* (SDM 3A "Page-Fault Exceptions")."""
    code = PageFaultCode(
        p=end is not Meaning.NOT_PRESENT, wr=access.write, us=access.user, rsvd=end is Meaning.RESERVED,
        id=access.fetch and (paging.nxe or paging.smep),
    )  # fmt: skip
    return Fault(Vector.PF, int(code), cr2=gva)


def _mark(steps: tuple[Step, ...], write: Write, *, dirty: bool) -> tuple[Step, ...]:
    """Set A in every entry, and D in the last for *dirty* (SDM 3A "Accessed and Dirty Flags")."""
    marked = []
    for step in steps:
        flags = step.entry.ACCESSED | (_D if dirty and step is steps[-1] else 0)
        if flags & ~step.entry:
            step = step._replace(entry=type(step.entry)(step.entry | flags))  # noqa: PLW2901
            write(step.entry_gpa, step.entry_size, int(step.entry))
        marked.append(step)
    return tuple(marked)
