"""The walk from gpa to hpa, and the two ways in which it leaves the guest (SDM 3C "EPT-Induced VM Exits")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvemu.bits import Register, bit
from hvemu.errors import GuestVisible
from hvemu.memory.ept import (
    ALL_RIGHTS,
    ENTRY_SIZE,
    GPA_WIDTH,
    LEVELS,
    NO_RIGHTS,
    EptEntry,
    EptPage,
    EptPaging,
    EptRights,
    Level,
    MemoryType,
)
from hvemu.memory.ept_rules import Misconfiguration, misconfigured

Read = Callable[[int, int], int]
"""Read (hpa, size) an integer of host-physical memory."""
Write = Callable[[int, int, int], object]
"""Write (hpa, size, value)."""


class EptAccess(Register):
    """What is done at a gpa; none of the three is a look that needs no right.

    *user*: the linear address is a user-mode address, which matters to fetches under mode-based execute control.
    *paging*: the processor's page walker reads or updates an entry of a guest paging structure there.
    """

    read = bit(0)
    write = bit(1)
    fetch = bit(2)
    user = bit(3)
    paging = bit(4)

    def under(self, ept: EptPaging) -> EptAccess:
        """Return the access as EPT counts it: with accessed and dirty flags, one to a paging structure also writes."""
        return self.replace(read=1, write=1) if self.paging and ept.accessed_dirty else self

    def needs(self, ept: EptPaging) -> EptRights:
        """Return the rights that every entry must give (SDM 3C "EPT Violations")."""
        user = self.fetch and self.user and ept.mode_based_execute
        return EptRights(read=self.read, write=self.write, execute=self.fetch and not user, user_execute=user)


LOOK = EptAccess()
READ, WRITE, FETCH = EptAccess(read=1), EptAccess(write=1), EptAccess(fetch=1)
PAGING_READ, PAGING_WRITE = EptAccess(read=1, paging=1), EptAccess(read=1, write=1, paging=1)  # which sets flags


@dataclass(frozen=True, slots=True)
class EptStep:
    """One entry of a walk: its level, its hpa, and its contents as the access left them."""

    level: Level
    hpa: int
    entry: EptEntry

    def __str__(self) -> str:
        return f"{self.level} at hpa {self.hpa:#x}: {self.entry!r}"


@dataclass(frozen=True, slots=True)
class EptWalk:
    """A translation that the access may use: *rights* are what all entries allow."""

    gpa: int
    hpa: int
    rights: EptRights
    page: EptPage
    steps: tuple[EptStep, ...]

    @property
    def page_size(self) -> int:
        """Bytes of the page."""
        return self.steps[-1].level.size

    @property
    def memory_type(self) -> MemoryType:
        """The EPT memory type; the guest's PAT also counts unless page.ignore_pat."""
        return MemoryType(self.page.memory_type)


class EptViolation(GuestVisible):
    """A VM exit that the hypervisor sees: an entry is not present, or the entries together do not allow the access.

    *access* as EPT counts it and *rights* are what the exit qualification reports. *steps* end at the entry that is not
    present, or at the page; *culprit* is that entry, or the first that lacks a right. There are none when the gpa has
    more bits than the levels translate. Whoever knows sets *gva*, the linear address that led there, and *final*: the
    gpa is that of the gva itself, and not of an entry that translates it.
    """

    gva: int | None = None
    final = False

    def __init__(
        self, gpa: int, access: EptAccess, rights: EptRights, steps: tuple[EptStep, ...], culprit: EptStep | None
    ) -> None:
        super().__init__(gpa, access, rights, steps, culprit)
        self.gpa, self.access, self.rights, self.steps, self.culprit = gpa, access, rights, steps, culprit

    def __str__(self) -> str:
        why = f"more than {GPA_WIDTH} bits" if self.culprit is None else str(self.culprit)
        return f"EPT violation at gpa {self.gpa:#x}: {self.access!r}, {self.rights!r}: {why}"


class EptMisconfiguration(GuestVisible):
    """A VM exit that the hypervisor sees: the last of *steps* is an entry that breaks *rule*."""

    gva: int | None = None
    final = False

    def __init__(self, gpa: int, rule: Misconfiguration, steps: tuple[EptStep, ...]) -> None:
        super().__init__(gpa, rule, steps)
        self.gpa, self.rule, self.steps = gpa, rule, steps
        self.culprit = steps[-1]

    def __str__(self) -> str:
        return f"EPT misconfiguration at gpa {self.gpa:#x}: {self.culprit}\n{self.rule}"


def walk_ept(ept: EptPaging, read: Read, gpa: int, access: EptAccess, write: Write | None = None) -> EptWalk:
    """Translate *gpa* for *access*. With *write*, set accessed and dirty flags if they are enabled.

    The rights are judged last: a misconfigured entry at any level wins over a right that is missing above it (SDM 3C
    "Prioritization of EPT Misconfigurations and EPT Violations"). Flags change only when the access is allowed.

    Raises EptViolation, EptMisconfiguration.
    """
    access = access.under(ept)
    steps = _steps(ept, read, gpa)
    rights = ALL_RIGHTS if steps else NO_RIGHTS
    for step in steps:
        rights &= ept.rights(step.entry)
    needs = access.needs(ept)
    if not steps or not ept.rights(steps[-1].entry) or needs & ~rights:
        raise EptViolation(gpa, access, rights, steps, _culprit(ept, steps, needs))
    if write and ept.accessed_dirty:
        steps = tuple(_marked(step, write, dirty=access.write) for step in steps)
    page = steps[-1].entry
    assert isinstance(page, EptPage), page
    return EptWalk(gpa, page.hpa + gpa % steps[-1].level.size, rights, page, steps)


def _steps(ept: EptPaging, read: Read, gpa: int) -> tuple[EptStep, ...]:
    """Return the entries that translate *gpa*, up to the page or to an entry that is not present."""
    steps: tuple[EptStep, ...] = ()
    if gpa >> GPA_WIDTH:
        return steps
    table = ept.root
    for level in LEVELS:
        hpa = level.slot(table, gpa)
        entry = level.decode(read(hpa, ENTRY_SIZE))
        steps += (EptStep(level, hpa, entry),)
        if not ept.rights(entry):
            break
        if rule := misconfigured(entry, level, ept):
            raise EptMisconfiguration(gpa, rule, steps)
        if isinstance(entry, EptPage):
            break
        table = entry.hpa
    return steps


def _culprit(ept: EptPaging, steps: tuple[EptStep, ...], needs: EptRights) -> EptStep | None:
    """Return the step that is not present, or else the first that does not give what the access *needs*."""
    absent = [step for step in steps if not ept.rights(step.entry)]
    lacking = [step for step in steps if needs & ~ept.rights(step.entry)]
    return next(iter(absent or lacking), None)


def _marked(step: EptStep, write: Write, *, dirty: bool) -> EptStep:
    """Set the accessed flag, and a page's flag *dirty* (SDM 3C "Accessed and Dirty Flags for EPT"), in memory too."""
    dirtied = {"dirty": 1} if dirty and isinstance(step.entry, EptPage) else {}
    entry = step.entry.replace(accessed=1, **dirtied)
    if entry == step.entry:
        return step
    write(step.hpa, ENTRY_SIZE, entry)
    return EptStep(step.level, step.hpa, entry)
