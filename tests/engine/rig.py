"""An engine with something to run: flat segments, an identity map, code and stack at fixed places."""

from __future__ import annotations

from functools import lru_cache

from hvemu.engine.engine import Engine
from hvemu.engine.second_level import LARGE
from hvemu.engine.traps import Kind, Stop
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import Descriptor
from hvemu.x86.state import AccessRights, Segment, TableRegister

RAM = 2 << 20
CODE, DATA, STACK, GDT, TSS = 0x1_0000, 0x3_0000, 0x5_0000, 0x6_0000, 0x7_0000
PML4, PDPT, PD = 0x8_0000, 0x8_1000, 0x8_2000
PE, ET, WP, PG = 1, 0x10, 1 << 16, 1 << 31
PAE, SMEP = 0x20, 1 << 20
LME, LMA, NXE = 0x100, 0x400, 0x800
P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63
TF, IF = 0x100, 0x200
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = list(Gpr)[:8]
BITS = (16, 32, 64)
REAL = AccessRights(type=3, s=1, p=1)


class Rig:
    """*engine* with all of its RAM mapped, and its *state* and *ram*."""

    def __init__(self, *, counted: bool = True) -> None:
        self.engine = Engine(RAM, counted=counted)
        self.state, self.ram = self.engine.state, self.engine.ram
        self._fresh = self.engine.snapshot()

    def reset(self, bits: int, cpl: int) -> Rig:
        """Start again in *bits*-bit code at *cpl* (16: real mode; 64: long mode), interrupts off."""
        engine, state = self.engine, self.state
        engine.restore(self._fresh)
        self.ram[:] = bytes(RAM)
        engine.flush_code()
        engine.second_level.clear()
        engine.second_level.map(0, 0, RAM)
        engine.arm(())
        engine.arm_registers(cr_read=0, cr_write=0, dr_read=0, dr_write=0)
        engine.open_window(False)
        engine.instructions = 0
        engine.write_cr(0, ET)  # leaves long mode
        state.efer, state.cr4, state.rflags = 0, 0, 2
        self._segments(bits, cpl)
        if bits == 64:
            self.word(PML4, PDPT | US | RW | P)
            self.word(PDPT, PD | US | RW | P)
            for n in range(RAM // LARGE):
                self.word(PD + 8 * n, n * LARGE | PS | US | RW | P)
            self.long_mode(PML4)
        for gpr in range(16):
            state.set_gpr(gpr, 0)
        state.set_gpr(RSP, STACK & 0xFFFF or 0x8000 if bits == 16 else STACK)
        state.rip = CODE if bits != 16 else 0
        engine.flush_tlb()
        return self

    def long_mode(self, cr3: int, *, efer: int = 0, cr4: int = 0) -> None:
        """Turn on 4-level paging with the table at *cr3*."""
        self.state.cr4, self.state.cr3, self.state.efer = PAE | cr4, cr3, LME | LMA | efer
        self.state.cr0 = PG | WP | ET | PE

    def _segments(self, bits: int, cpl: int) -> None:
        engine, state = self.engine, self.state
        state.gdtr = TableRegister(GDT, 0xFF)
        state.tr = Segment(0x98, TSS, 0xFFF, AccessRights(type=11, p=1))
        state.ldtr = Segment(0, 0, 0, AccessRights(unusable=1))
        if bits == 16:
            for sreg in Sreg:
                state.set_segment(sreg, Segment(0, 0, 0xFFFF, REAL))
            state.set_segment(Sreg.CS, Segment(CODE >> 4, CODE, 0xFFFF, REAL))
            return
        engine.write_cr(0, ET | PE)
        for level in range(4):
            self.word(GDT + 0x08 + 16 * level, descriptor(level, bits, code=True))
            self.word(GDT + 0x10 + 16 * level, descriptor(level, bits, code=False))
        for sreg in (Sreg.SS, Sreg.CS, Sreg.DS, Sreg.ES, Sreg.FS, Sreg.GS):
            selector = (0x08 if sreg is Sreg.CS else 0x10) + 17 * cpl
            state.set_segment(sreg, Descriptor(self.peek(GDT + (selector & ~7))).segment(selector))

    def word(self, hpa: int, value: int, size: int = 8) -> None:
        """Write a number to memory."""
        self.ram[hpa : hpa + size] = value.to_bytes(size, "little")

    def peek(self, hpa: int, size: int = 8) -> int:
        """Read a number from memory."""
        return int.from_bytes(self.ram[hpa : hpa + size], "little")

    def put(self, code: bytes, hpa: int = CODE) -> None:
        """Write code, as a loader does."""
        self.ram[hpa : hpa + len(code)] = code
        self.engine.code_changed(hpa, len(code))

    def run(self, code: bytes, limit: int = 1000) -> Stop:
        """Put *code* at CODE and run it from its start."""
        self.put(code)
        self.state.rip = self.start
        return self.engine.run(limit)

    @property
    def start(self) -> int:
        """RIP of the first byte at CODE."""
        return CODE - self.state.segs[Sreg.CS].base

    @property
    def offset(self) -> int:
        """Distance of RIP from CODE."""
        return self.state.rip - self.start

    def gpr(self, index: int, value: int) -> None:
        """Set a register."""
        self.state.set_gpr(index, value)


def descriptor(level: int, bits: int, *, code: bool) -> int:
    """Return a flat 4 GiB segment of DPL *level*."""
    long = code and bits == 64
    return Descriptor.make(0, 0xFFFFF, type=11 if code else 3, s=1, dpl=level, p=1, l=long, db=not long, g=1)


@lru_cache
def _rig(counted: bool) -> Rig:
    return Rig(counted=counted)


def rig(bits: int, cpl: int = 0, *, counted: bool = True) -> Rig:
    """Return the one rig of this clock, reset: an engine lives through all tests, as it does through a long run."""
    return _rig(counted).reset(bits, cpl)


def summary(stop: Stop) -> tuple[Kind, int]:
    """Return what a stop is about, without error code and address."""
    return stop.kind, stop.detail
