"""Small pieces of real guest code on the bare machine: one engine for all tests, everything else new for each.

Memory, the same in every mode: CODE_16 or CODE the code, HANDLERS one HLT for each vector, tables at fixed places. A
gate leads to the HLT of its vector unless a test says otherwise, and closes the interrupt flag: so a run that meets an
event ends there, and its stack holds the frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from hvemu.cpu.clock import NANOSECONDS_PER_CYCLE, CountedClock
from hvemu.cpu.control import Rules
from hvemu.cpu.cpu import Cpu
from hvemu.cpu.mmio import Mmio
from hvemu.cpu.msr_file import MsrFile
from hvemu.devices.board import Board
from hvemu.engine.engine import Engine
from hvemu.events import Ending, How
from hvemu.guest.asm import assemble
from hvemu.guest.boot import boot
from hvemu.guest.image import ORIGINS, Image
from hvemu.guest.program import Program
from hvemu.memory.frames import Frames
from hvemu.memory.physical import Ram
from hvemu.techniques import loop
from hvemu.techniques.bare import Bare
from hvemu.techniques.vm import Budget, Vm
from hvemu.vmx.capabilities import MSRS
from hvemu.x86.cpuid import Offer
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import Descriptor
from hvemu.x86.state import AccessRights, Segment, TableRegister

RAM, EXTRA = 4 << 20, 1 << 20
HANDLERS = 0x600
"""One HLT for each vector, in all modes."""
GDT, IDT, TSS, TSS_DF, PAGES = 0x8000, 0x9000, 0xA000, 0xC400, 0x1000
DATA, STACK, KERNEL, USER, IST = 0x3_0000, 0x7000, 0x2_0000, 0x2_8000, 0x4_0000
"""Stacks grow down: STACK is where a test starts, KERNEL that of ring 0 in the TSS, IST + 0x1000 * n the others."""
CS0, DS0, CS3, DS3, CS16, DS16, CS64, TR = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x30, 0x38, 0x50
"""Selectors; in long mode CS0 and CS3 are 64-bit code, and CS64 is 32-bit code of ring 0."""
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = list(Gpr)[:8]
CF, TF, IF, DF, NT, RF, VM, AC, IOPL3 = 1, 0x100, 0x200, 0x400, 0x4000, 0x1_0000, 0x2_0000, 0x4_0000, 0x3000
REQUEST = 0x80
"""The port where an OUT requests an interrupt."""
INT32, TRAP32, TASK, INT16 = 14, 15, 5, 6
BS, BD, BT = 1 << 14, 1 << 13, 1 << 15


class Pins:
    """An interrupt controller with nothing behind it: *waiting* are vectors, next first.

    It is all there is on the bus as well: an OUT requests its value as a vector, an IN reads the port's own number.
    *accesses* are (port, size, value), with None for reads.
    """

    def __init__(self, waiting: Iterable[int]) -> None:
        self.waiting, self.accesses = list(waiting), []  # type: ignore[var-annotated]

    def pending(self) -> bool:
        return bool(self.waiting)

    def acknowledge(self) -> int:
        return self.waiting.pop(0)

    def read(self, port: int, size: int) -> int:
        self.accesses.append((port, size, None))
        return port * 0x10001 & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        self.accesses.append((port, size, value))
        if port == REQUEST:
            self.waiting.append(value)


def program(mode: int, source: str) -> Program:
    """Assemble all snippets of a test file in one call; labels are their names."""
    return assemble(source, mode=mode, origin=ORIGINS[mode], name=f"snippets{mode}")


def raw(mode: int, snippets: dict[str, bytes]) -> Program:
    """Return the same of bytes; each snippet ends with HLT."""
    code, symbols = b"", {}
    for name, part in snippets.items():
        symbols[name] = ORIGINS[mode] + len(code)
        code += part + b"\xf4"
    return Program(code, ORIGINS[mode], mode, symbols, ())


class Silicon:
    """The bare machine. *vm*, *cpu*, *state*, *board*, *engine*; memory by `peek` and `poke`."""

    def __init__(self) -> None:
        self.engine = Engine(RAM + EXTRA)
        self._fresh = self.engine.snapshot()
        self.state = self.engine.state

    def reset(self, code: Program, mode: int, ring: int) -> Silicon:
        """Start again in *mode* (16, 32, 64) at *ring*, with *code* in memory."""
        engine, self.code, self.mode = self.engine, code, mode
        engine.restore(self._fresh)
        engine.write_cr(0, 0x10)
        engine.ram[:RAM] = bytes(RAM)
        engine.flush_code()
        engine.instructions = 0
        ram = Ram(engine.ram, 0, RAM)
        self.clock = CountedClock(engine)
        self.board = Board(lambda: self.clock.now * NANOSECONDS_PER_CYCLE)
        self.cpu = Cpu(
            engine, physical=ram, ports=self.board, mmio=Mmio(RAM, RAM),
            msrs=MsrFile(engine.state, engine, lambda: self.clock.now, offer=Offer(vmx=True), constants=MSRS),
            clock=self.clock, interrupts=self.board.pic,
        )  # fmt: skip
        self.cpu.msrs.start_as_firmware_does()
        self.cpu.rules = Rules(Offer(vmx=True))
        bare = Bare()
        self.vm = Vm(
            engine=engine, cpu=self.cpu, board=self.board, clock=self.clock, technique=bare, ram=ram,
            frames=Frames(RAM + 0x1000, EXTRA - 0x1000),
        )  # fmt: skip
        started = boot(Image("test", mode, ((code.origin, code.code),), code.origin), ram=RAM)
        for gpa, data in started.memory:
            ram.write_bytes(gpa, data)
        bare.install(self.vm, started.state)
        engine.ram[HANDLERS : HANDLERS + 256] = b"\xf4" * 256
        self._tables(ring)
        for gpr in Gpr:
            self.state.set_gpr(gpr, STACK if gpr is Gpr.RSP else 0)
        return self

    def wire(self, pins: Pins) -> Silicon:
        """Put *pins* in the place of the devices."""
        self.pins = self.cpu.interrupts = self.cpu.ports = pins
        self.board.pic.write(1, 1, 0xFF)
        self.board.next_deadline = lambda: None  # type: ignore[method-assign]
        return self

    def request(self, *vectors: int) -> Silicon:
        """Request interrupts between two instructions."""
        self.pins.waiting.extend(vectors)
        self.cpu.attention = True
        return self

    # -- tables -------------------------------------------------------------------------------------------------

    def _tables(self, ring: int) -> None:
        if self.mode == 16:
            for vector in range(256):
                self.gate(vector)
            return
        long = self.mode == 64
        code, user = descriptor(0, long=long), descriptor(3, long=long)
        for selector, entry in (
            (CS0, code), (DS0, descriptor(0, code=False)), (CS3, user), (DS3, descriptor(3, code=False)),
            (CS16, 0x0000_9B00_0000_FFFF), (DS16, 0x0000_9300_0000_FFFF), (CS64, descriptor(0)),
            (TR, 0x8B00_0000_0000 | TSS << 16 | 0x20FF), (TR + 8, 0),
        ):  # fmt: skip
            self.poke(GDT + (selector & ~7), 8, entry)
        self.state.gdtr, self.state.idtr = TableRegister(GDT, 0xFF), TableRegister(IDT, 0xFFF)
        self.state.tr = Segment(TR, TSS, 0x20FF, AccessRights(type=11, p=1))
        self.poke(TSS + 102, 2, 0x80)  # the bitmap of ports: none is allowed
        self.engine.ram[TSS + 0x80 : TSS + 0x2100] = b"\xff" * 0x2080
        if long:
            self.poke(TSS + 4, 8, KERNEL)
            for n in range(1, 8):
                self.poke(TSS + 0x1C + 8 * n, 8, IST + 0x1000 * n)
            for level in range(2):
                self.poke(PAGES + 0x1000 * level, 8, self.peek(PAGES + 0x1000 * level, 8) | 4)
            for n in range(4):
                self.poke(PAGES + 0x2000 + 8 * n, 8, self.peek(PAGES + 0x2000 + 8 * n, 8) | 4)
        else:
            self.poke(TSS + 4, 4, KERNEL)
            self.poke(TSS + 8, 2, DS0)
        for vector in range(256):
            self.gate(vector)
        if ring:
            self.ring3()

    def ring3(self) -> None:
        """Enter ring 3, as IRET would."""
        for sreg in Sreg:
            selector = CS3 if sreg is Sreg.CS else DS3
            entry = Descriptor(self.peek(GDT + (selector & ~7), 8))
            self.state.set_segment(sreg, entry.segment(selector))

    def vm86(self, iopl: int = 3) -> Silicon:
        """Enter virtual-8086 mode, all segments at 0, with a stack at STACK."""
        self.state.rflags = VM | iopl << 12 | 2
        for sreg in Sreg:
            self.state.set_segment(sreg, Segment(0, 0, 0xFFFF, AccessRights(type=3, s=1, dpl=3, p=1)))
        return self

    def code16(self) -> Silicon:
        """Enter 16-bit code of ring 0 in protected mode, with a 16-bit stack."""
        for sreg, selector in ((Sreg.CS, CS16), (Sreg.SS, DS16)):
            self.state.set_segment(sreg, Descriptor(self.peek(GDT + selector, 8)).segment(selector))
        return self

    def gate(self, vector: int, to: str | int | None = None, **bits: int) -> None:
        """Let *vector* lead to a label or address; without one, to its own HLT."""
        offset = HANDLERS + vector if to is None else self.code.symbols[to] if isinstance(to, str) else to
        selector, kind = bits.get("selector", CS0), bits.get("kind", INT32)
        if self.mode == 16:
            self.poke(4 * vector, 4, offset)
            return
        high = offset & 0xFFFF0000 | bits.get("p", 1) << 15 | bits.get("dpl", 0) << 13 | kind << 8 | bits.get("ist", 0)
        size = 16 if self.mode == 64 else 8
        self.poke(IDT + size * vector, size, high << 32 | selector << 16 | offset & 0xFFFF)

    # -- memory and registers -----------------------------------------------------------------------------------

    def poke(self, gpa: int, size: int, value: int) -> None:
        self.engine.ram[gpa : gpa + size] = value.to_bytes(size, "little")

    def peek(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.engine.ram[gpa : gpa + size], "little")

    def gpr(self, index: int, value: int) -> Silicon:
        self.state.set_gpr(index, value)
        return self

    def reg(self, index: int) -> int:
        return self.state.gpr(index)

    def flags(self, value: int) -> Silicon:
        self.state.rflags = value | 2
        return self

    @property
    def word(self) -> int:
        """Bytes of an item of an interrupt frame."""
        return {16: 2, 32: 4, 64: 8}[self.mode]

    def frame(self, count: int, size: int | None = None) -> list[int]:
        """The top *count* items of the stack."""
        size, base = size or self.word, self.state.segment(Sreg.SS).base
        sp = self.reg(RSP)
        return [self.peek(base + sp + size * n, size) for n in range(count)]

    def at(self, name: str) -> int:
        """The address of a label."""
        return self.code.symbols[name]

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, start: str | None = None, limit: int = 1000) -> Ending:
        """Run from a label, or on."""
        if start is not None:
            self.state.rip, self.cpu.halted = self.at(start), False
        return loop.run(self.vm, Budget(self.engine.instructions + limit, timeout=10.0))

    def halts(self, start: str | None = None, limit: int = 1000) -> Silicon:
        """Run to a HLT with nothing to wake it."""
        ending = self.run(start, limit)
        assert ending.how is How.HALTED, (ending, hex(self.state.rip))
        return self

    def vector(self, start: str | None = None, limit: int = 1000) -> int | None:
        """Run; return the vector in whose handler the machine stands, or None."""
        self.halts(start, limit)
        found = self.state.rip - 1 - HANDLERS
        return found if 0 <= found < 256 else None

    def step(self, count: int = 1) -> int:
        """Let *count* turns of the processor pass, of one instruction each; return RIP."""
        for _ in range(count):
            self.cpu.run(1)
        return self.state.rip

    @property
    def retired(self) -> int:
        return self.engine.instructions


def descriptor(dpl: int, *, code: bool = True, long: bool = False) -> int:
    """A flat segment of 4 GiB: the figures of SDM 3A "Segment Descriptors"."""
    kind = 0x00AF_9B00_0000_FFFF if long else 0x00CF_9B00_0000_FFFF if code else 0x00CF_9300_0000_FFFF
    return kind | dpl << 45


@lru_cache
def _silicon() -> Silicon:
    return Silicon()


def silicon(code: Program, ring: int = 0, *, mode: int | None = None, pins: Iterable[int] = ()) -> Silicon:
    """Return the machine with *code* in it, in *mode* or that of the code, at *ring*.

    *pins*: vectors that wait for the processor. There are no other devices that interrupt.
    """
    return _silicon().reset(code, mode or code.mode, ring).wire(Pins(pins))


def with_board(code: Program, ring: int = 0) -> Silicon:
    """Return the same with the devices of a PC."""
    return _silicon().reset(code, code.mode, ring)
