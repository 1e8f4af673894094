"""EPT misconfigurations as rows, one per clause of the manual (SDM 3C "EPT Misconfigurations").

A row's clause is the docstring of its predicate. Its two entries differ in one bit: *legal* passes every row, *breaks*
violates this one alone. Rows hold for present entries; one that is not present is never misconfigured.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hvemu.memory.ept import (
    PDE,
    PDPTE,
    PML4E,
    PTE,
    EptEntry,
    EptPage,
    EptPage1G,
    EptPage2M,
    EptPaging,
    EptTableEntry,
    Level,
    MemoryType,
)
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH

Predicate = Callable[[EptEntry, Level, EptPaging], bool]
_RULES, _FORMATS = "EPT Misconfigurations", "EPT Translation Mechanism"
_MEMORY_TYPES = frozenset(MemoryType)


@dataclass(frozen=True, slots=True)
class Misconfiguration:
    """One clause. *given* are the attributes of EptPaging, other than the defaults, under which *breaks* breaks it."""

    name: str
    clause: str
    sdm: str
    level: Level
    legal: int
    breaks: int
    holds: Predicate
    given: Mapping[str, bool] = field(default_factory=dict)

    def __str__(self) -> str:
        return f'{self.name}: {self.clause} [SDM 3C "{self.sdm}"]'


MISCONFIGURATIONS: list[Misconfiguration] = []
"""Every clause, in the order of the manual."""


def misconfigured(entry: EptEntry, level: Level, ept: EptPaging) -> Misconfiguration | None:
    """Return the first clause that a present *entry* violates, if any."""
    return next((row for row in MISCONFIGURATIONS if not row.holds(entry, level, ept)), None)


def _row(sdm: str, level: Level, *, legal: int, breaks: int, **given: bool) -> Callable[[Predicate], Predicate]:
    def register(holds: Predicate) -> Predicate:
        clause = " ".join((inspect.getdoc(holds) or "").split())
        MISCONFIGURATIONS.append(Misconfiguration(holds.__name__, clause, sdm, level, legal, breaks, holds, given))
        return holds

    return register


@_row(_RULES, PML4E, legal=0x3, breaks=0x2)
def write_needs_read(entry: EptEntry, _level: Level, _ept: EptPaging) -> bool:
    """If bit 0 (read access) is 0, bit 1 (write access) must be 0."""
    return entry.read or not entry.write


@_row(_RULES, PML4E, legal=0x5, breaks=0x4)
def execute_only_is_offered(entry: EptEntry, _level: Level, ept: EptPaging) -> bool:
    """If bit 0 is 0 and the processor does not support execute-only translations, bit 2 (execute access) must be 0."""
    return entry.read or ept.execute_only or not entry.execute


@_row(_RULES, PML4E, legal=0x401, breaks=0x400, mode_based_execute=True)
def user_execute_only_is_offered(entry: EptEntry, _level: Level, ept: EptPaging) -> bool:
    """Under mode-based execute control, the same holds for bit 10 (execute access for user-mode linear addresses)."""
    return entry.read or ept.execute_only or not (ept.mode_based_execute and entry.user_execute)


@_row(_FORMATS, PML4E, legal=0x1, breaks=0x9)
def table_entry_reserved_bits(entry: EptEntry, _level: Level, _ept: EptPaging) -> bool:
    """Bits 6:3 of an entry that references another EPT paging structure must be 0."""
    return not (isinstance(entry, EptTableEntry) and entry.reserved)


@_row(_FORMATS, PML4E, legal=0x1, breaks=0x81)
def pml4e_maps_no_page(entry: EptEntry, level: Level, _ept: EptPaging) -> bool:
    """Bit 7 of an EPT PML4E must be 0."""
    return not (level is PML4E and entry.large_page)


@_row(_FORMATS, PDPTE, legal=0x1, breaks=0x81, pages_1g=False)
def page_size_is_offered(entry: EptEntry, level: Level, ept: EptPaging) -> bool:
    """Bit 7 of an EPT PDPTE (PDE) must be 0 if the processor does not support 1-GByte (2-MByte) pages with EPT."""
    offered = {PDPTE.name: ept.pages_1g, PDE.name: ept.pages_2m}
    return not entry.large_page or offered.get(level.name, True)


@_row(_FORMATS, PDE, legal=0x81, breaks=0x1081)
def page_is_aligned(entry: EptEntry, _level: Level, _ept: EptPaging) -> bool:
    """Bits 29:12 of an EPT PDPTE that maps a 1-GByte page, 20:12 of a PDE that maps a 2-MByte page, must be 0."""
    return not (isinstance(entry, EptPage2M | EptPage1G) and entry.reserved)


@_row(_RULES, PML4E, legal=0x1, breaks=1 << PHYSICAL_ADDRESS_WIDTH | 0x1)
def address_fits_physical_address_width(entry: EptEntry, _level: Level, ept: EptPaging) -> bool:
    """Bits 51:12 beyond the processor's physical-address width must be 0."""
    return not entry.hpa >> ept.maxphyaddr


@_row(_RULES, PTE, legal=0x1, breaks=0x11)
def memory_type_is_not_reserved(entry: EptEntry, _level: Level, _ept: EptPaging) -> bool:
    """The EPT memory type (bits 5:3) of an entry that maps a page must not be 2, 3 or 7."""
    return not isinstance(entry, EptPage) or entry.memory_type in _MEMORY_TYPES
