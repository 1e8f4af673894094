"""Selectors, segment descriptors and gates (SDM 3A "Segment Descriptors", "System Descriptor Types")."""

from __future__ import annotations

from enum import IntEnum

from hvemu.bits import Register, bit, bits, field
from hvemu.x86.state import AccessRights, Segment

DESCRIPTOR = 8  # bytes; system descriptors and gates take two such slots in IA-32e mode
_DWORD, _QWORD = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
_LA48, _LA57 = 47, 56  # the highest linear-address bit that translation uses
_RIGHTS_SHIFT, _RIGHTS = 40, 0xF0FF
_UPPER_TYPE = 0x1F << (64 + 40)


class Selector(Register):
    """A segment selector (SDM 3A "Segment Selectors")."""

    rpl = bits(1, 0)
    ti = bit(2)
    index = bits(15, 3)

    @property
    def null(self) -> bool:
        """Whether this selects entry 0 of the GDT, which is no segment."""
        return not self.index and not self.ti

    @property
    def offset(self) -> int:
        """Distance in bytes of the descriptor from the base of its table."""
        return self.index * DESCRIPTOR


class ErrorCode(Register):
    """Error code of #TS, #NP, #SS and #GP (SDM 3A "Error Code")."""

    ext = bit(0)
    idt = bit(1)
    ti = bit(2)
    index = bits(15, 3)

    @classmethod
    def of(cls, selector: int, *, ext: bool = False) -> ErrorCode:
        """Return the error code that names *selector*; its RPL gives way to the EXT and IDT bits."""
        return cls(selector).replace(ext=ext, idt=0)

    @classmethod
    def of_vector(cls, vector: int, *, ext: bool = False) -> ErrorCode:
        """Return the error code that names entry *vector* of the IDT."""
        return cls(ext=ext, idt=1, index=vector)


class SystemType(IntEnum):
    """Types of system descriptors and gates. In IA-32e mode the 32-bit ones are 64-bit, the 16-bit ones illegal."""

    TSS16, LDT, TSS16_BUSY, CALL_GATE16, TASK_GATE, INTERRUPT_GATE16, TRAP_GATE16 = range(1, 8)
    TSS = 9
    TSS_BUSY = 11
    CALL_GATE = 12
    INTERRUPT_GATE, TRAP_GATE = range(14, 16)


class SegmentType(Register):
    """Type field of a code or data segment (SDM 3A "Code- and Data-Segment Descriptor Types")."""

    accessed = bit(0)
    rw = bit(1)  # code: readable; data: writable
    ce = bit(2)  # code: conforming; data: expand-down
    code = bit(3)

    @property
    def writable(self) -> bool:
        """A writable data segment."""
        return self.rw and not self.code

    @property
    def readable(self) -> bool:
        """Data, or readable code."""
        return self.rw or not self.code

    @property
    def conforming(self) -> bool:
        """Conforming code."""
        return self.code and self.ce

    @property
    def expand_down(self) -> bool:
        """Expand-down data."""
        return self.ce and not self.code


class Descriptor(Register):
    """A segment descriptor, or a system descriptor of 16 bytes, as it lies in the GDT or LDT."""

    limit_low = bits(15, 0)
    base_low = bits(39, 16)
    type = bits(43, 40)
    s = bit(44)
    dpl = bits(46, 45)
    p = bit(47)
    limit_high = bits(51, 48)
    avl = bit(52)
    l = bit(53)  # noqa: E741 - the manual's name
    db = bit(54)
    g = bit(55)
    base_high = bits(63, 56)
    base_upper = bits(95, 64)

    @property
    def base(self) -> int:
        """Base as a gva; the upper half counts in a descriptor of 16 bytes only."""
        return self.base_low | self.base_high << 24 | self.base_upper << 32

    @property
    def limit(self) -> int:
        """Limit in bytes, inclusive, granularity applied."""
        limit = self.limit_low | self.limit_high << 16
        return limit << 12 | 0xFFF if self.g else limit

    @property
    def rights(self) -> AccessRights:
        """Attributes in the form of a segment register's hidden part."""
        return AccessRights(self >> _RIGHTS_SHIFT & _RIGHTS)

    @property
    def code_or_data(self) -> SegmentType | None:
        """Type of a code or data segment, or None for a system descriptor."""
        return SegmentType(self.type) if self.s else None

    @property
    def system_type(self) -> int | None:
        """Type of a system descriptor or gate (a SystemType unless it is reserved), or None for a segment."""
        return None if self.s else self.type

    @property
    def upper_type_clear(self) -> bool:
        """Whether the type field of the second half of 16 bytes is 0, as it must be."""
        return not self & _UPPER_TYPE

    def segment(self, selector: int) -> Segment:
        """Return the segment register that loading *selector* gives."""
        return Segment(selector, self.base, self.limit, self.rights)

    @classmethod
    def make(cls, base: int, limit: int, **attributes: int) -> Descriptor:
        """Return a descriptor of *base* (gva) and the raw 20-bit *limit*, units of the g attribute."""
        return cls(
            limit_low=limit & 0xFFFF, limit_high=limit >> 16, base_low=base & 0xFFFFFF, base_high=base >> 24 & 0xFF,
            base_upper=base >> 32, **attributes,
        )  # fmt: skip


class Gate(Register):
    """A call, interrupt, trap or task gate (SDM 3A "IDT Descriptors", "Call Gates")."""

    offset_low = bits(15, 0)
    selector = field(31, 16, Selector)
    count = bits(36, 32)
    ist = bits(34, 32)
    type = bits(43, 40)
    s = bit(44)
    dpl = bits(46, 45)
    p = bit(47)
    offset_high = bits(63, 48)
    offset_upper = bits(95, 64)

    @property
    def offset(self) -> int:
        """Entry point; a 16-bit gate has no more than 16 bits."""
        if self.type in GATES16:
            return self.offset_low
        return self.offset_low | self.offset_high << 16 | self.offset_upper << 32

    @classmethod
    def make(cls, selector: int, offset: int, **attributes: int) -> Gate:
        """Return a gate to *selector*:*offset*."""
        return cls(
            offset_low=offset & 0xFFFF, offset_high=offset >> 16 & 0xFFFF, offset_upper=offset >> 32,
            selector=selector, **attributes,
        )  # fmt: skip


GATES16 = frozenset({SystemType.CALL_GATE16, SystemType.INTERRUPT_GATE16, SystemType.TRAP_GATE16})


def truncate(value: int, size: int) -> int:
    """Return the low *size* bytes of *value*."""
    return value & (1 << 8 * size) - 1


def replace_low(old: int, new: int, size: int) -> int:
    """Return *old* with its low *size* bytes taken from *new*; 4 bytes clear the upper half, as registers do."""
    return new & _DWORD if size == 4 else old & ~truncate(_QWORD, size) | truncate(new, size)


def is_canonical(gva: int, *, la57: bool = False) -> bool:
    """Whether all bits above the highest translated one equal it."""
    top = gva >> (_LA57 if la57 else _LA48)
    return top in (0, _QWORD >> (_LA57 if la57 else _LA48))


_REAL_BASE_SHIFT, _VM86_LIMIT, _VM86_RIGHTS = 4, 0xFFFF, AccessRights(type=3, s=1, dpl=3, p=1)


def real_mode_segment(selector: int, old: Segment) -> Segment:
    """Return *old* after loading *selector* as SDM 3B "Real-Address Mode" says: limit and attributes stay."""
    return Segment(selector, selector << _REAL_BASE_SHIFT, old.limit, old.rights)


def vm86_segment(selector: int) -> Segment:
    """Return what loading *selector* in virtual-8086 mode gives (SDM 3B "Virtual-8086 Mode")."""
    return Segment(selector, selector << _REAL_BASE_SHIFT, _VM86_LIMIT, _VM86_RIGHTS)
