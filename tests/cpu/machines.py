"""A processor on plain data: PlainState, a megabyte of linear memory, and tables at fixed places."""

from __future__ import annotations

import copy
from collections.abc import Callable

from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import Descriptor
from hvemu.x86.state import PlainState, Segment, TableRegister
from hvemu.x86.vectors import Fault, PageFaultCode, Vector

GDT, IDT, TSS, LDT = 0x1000, 0x4000, 0x6000, 0x7000


class Ram:
    """Linear memory that records accesses; pages in *missing* fault."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.data, self.missing, self.accesses = bytearray(size), set(), []

    def _touch(self, gva: int, size: int, user: bool, wr: bool) -> None:
        for at in range(gva, gva + size):
            if at // 0x1000 in self.missing:
                raise Fault(Vector.PF, int(PageFaultCode(wr=wr, us=user)), cr2=at)
        self.accesses.append((gva, size, user, wr))

    def read(self, gva: int, size: int, *, user: bool) -> int:
        return int.from_bytes(self.read_bytes(gva, size, user=user), "little")

    def read_bytes(self, gva: int, size: int, *, user: bool) -> bytes:
        self._touch(gva, size, user, False)
        assert gva + size <= len(self.data), f"{gva:#x}"
        return bytes(self.data[gva : gva + size])

    def write(self, gva: int, size: int, value: int, *, user: bool) -> None:
        self._touch(gva, size, user, True)
        self.poke(gva, size, value)

    def probe_write(self, gva: int, size: int, *, user: bool) -> None:
        self._touch(gva, size, user, True)

    def poke(self, gva: int, size: int, value: int) -> None:
        assert gva + size <= len(self.data), f"{gva:#x}"
        self.data[gva : gva + size] = value.to_bytes(size, "little")

    def peek(self, gva: int, size: int) -> int:
        return int.from_bytes(self.data[gva : gva + size], "little")

    def items(self, gva: int, size: int, count: int) -> list[int]:
        return [self.peek(gva + i * size, size) for i in range(count)]


class Machine:
    """*state*, *memory* and shorthands that write tables and registers."""

    def __init__(self) -> None:
        self.state, self.memory = PlainState(), Ram()
        self.state.idtr = TableRegister(0, 0x3FF)

    def gdt(self, selector: int, raw: int) -> int:
        """Write a descriptor at *selector*; return it."""
        self.memory.poke(GDT + (selector & ~7), 8 if raw < 1 << 64 else 16, raw)
        return selector

    def load(self, sreg: int, selector: int) -> None:
        """Load a segment register from the table without any check."""
        raw = self.memory.peek((LDT if selector & 4 else GDT) + (selector & ~7), 8)
        self.state.set_segment(sreg, Descriptor(raw).segment(selector))

    @property
    def sp(self) -> int:
        return self.state.gpr(Gpr.RSP)

    @sp.setter
    def sp(self, value: int) -> None:
        self.state.set_gpr(Gpr.RSP, value)

    @property
    def selectors(self) -> list[int]:
        return [segment.selector for segment in self.state.segments]

    def snapshot(self) -> PlainState:
        return copy.deepcopy(self.state)


# Descriptors as numbers, from the figures of SDM 3A "Segment Descriptors": flat 4 GiB, accessed, DPL in bits 46:45.
CODE32, DATA32, CODE64 = 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF
CODE16, DATA16 = 0x00009B000000FFFF, 0x000093000000FFFF
CONFORMING32 = 0x00CF9F000000FFFF


def dpl(raw: int, level: int) -> int:
    return raw | level << 45


def protected(level: int = 0) -> Machine:
    """Protected mode at CPL *level*: code 8+16n, data 16+16n for DPL n, a 32-bit TSS at 0x98 with a stack per level."""
    m = Machine()
    m.state.cr0 = 0x11
    m.state.gdtr, m.state.idtr = TableRegister(GDT, 0xFFF), TableRegister(IDT, 0x7FF)
    for n in range(4):
        m.gdt(0x08 + 16 * n, dpl(CODE32, n))
        m.gdt(0x10 + 16 * n, dpl(DATA32, n))
    m.gdt(0x98, 0x0000_8B00_6000_0FFF)  # a busy 32-bit TSS at 0x6000, limit 0xfff
    m.state.tr = Descriptor(m.memory.peek(GDT + 0x98, 8)).segment(0x98)
    for n in range(3):
        m.memory.poke(TSS + 4 + 8 * n, 4, 0x10000 + 0x1000 * (n + 1))
        m.memory.poke(TSS + 8 + 8 * n, 2, 0x10 + 16 * n + n)
    m.load(Sreg.CS, 0x08 + 16 * level + level)
    for sreg in (Sreg.SS, Sreg.DS, Sreg.ES, Sreg.FS, Sreg.GS):
        m.load(sreg, 0x10 + 16 * level + level)
    m.state.rip, m.state.rflags, m.sp = 0x5555, 0x246, 0x18000
    return m


def long(level: int = 0) -> Machine:
    """64-bit mode at CPL *level*: 64-bit code 8+16n, data 16+16n for DPL n, a 64-bit TSS at 0xa0."""
    m = protected(level)
    m.state.cr0, m.state.cr4, m.state.efer = 0x8000_0011, 0x20, 0x500
    m.state.idtr = TableRegister(IDT, 0xFFF)
    for n in range(4):
        m.gdt(0x08 + 16 * n, dpl(CODE64, n))
    m.load(Sreg.CS, 0x08 + 16 * level + level)
    m.memory.data[TSS : TSS + 0x68] = bytes(0x68)
    m.gdt(0xA0, 0x0000_8B00_6000_0067)
    m.state.tr = Descriptor(m.memory.peek(GDT + 0xA0, 16)).segment(0xA0)
    for n in range(3):
        m.memory.poke(TSS + 4 + 8 * n, 8, 0x10000 + 0x1000 * (n + 1))
    for n in range(7):
        m.memory.poke(TSS + 0x24 + 8 * n, 8, 0x20000 + 0x1000 * (n + 1))
    return m


def vm86(iopl: int = 3) -> Machine:
    """Virtual-8086 mode below the protected-mode kernel of `protected`."""
    m = protected(3)
    for sreg, selector in zip(Sreg, (0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666), strict=True):
        rights = m.state.segment(Sreg.SS).rights.replace(type=3, s=1, dpl=3, p=1, g=0, db=0)
        m.state.set_segment(sreg, Segment(selector, selector << 4, 0xFFFF, rights))
    m.state.rflags, m.state.rip, m.sp = 0x20202 | iopl << 12, 0x0100, 0xFFF0
    return m


def result(m: Machine, action: Callable[[], None]) -> Fault | None:
    """Return the fault that *action* raises, after which no register may differ, or None."""
    before = m.snapshot()
    try:
        action()
    except Fault as fault:
        if m.state != before:
            raise AssertionError(f"{fault} changed the registers") from fault
        return fault
    return None
