"""The engine, brought into a mode by poking its state: nothing that is under test takes part."""

from __future__ import annotations

from hvemu.engine.engine import Engine
from hvemu.x86.registers import Sreg
from hvemu.x86.state import AccessRights, Segment

CODE, STACK, ROOT, PDPT, DIRECTORY = 0x1000, 0x9000, 0x2000, 0x3000, 0x4000
RAM = 1 << 24
_DATA = Segment(0x10, 0, 0xFFFF_FFFF, AccessRights(type=3, s=1, p=1, db=1, g=1))


def poke(engine: Engine, hpa: int, value: int, size: int = 8) -> None:
    engine.ram[hpa : hpa + size] = value.to_bytes(size, "little")


def code_segment(*, long: bool) -> Segment:
    return Segment(0x08, 0, 0xFFFF_FFFF, AccessRights(type=11, s=1, p=1, l=long, db=not long, g=1))


def flat(engine: Engine, *, long: bool) -> None:
    for sreg in Sreg:
        engine.state.set_segment(sreg, _DATA)
    engine.state.set_segment(Sreg.CS, code_segment(long=long))


def protected() -> Engine:
    """Protected mode without paging, flat."""
    engine = Engine(RAM)
    engine.second_level.map(0, 0, RAM)
    state = engine.state
    state.cr0, state.efer, state.cr4 = 0x11, 0, 0
    state.set_gpr(4, STACK)
    flat(engine, long=False)
    engine.flush_tlb()
    return engine


def long(cr4: int = 0) -> Engine:
    """64-bit mode at CPL 0: 16 MiB mapped to themselves by 2 MiB pages of the supervisor, SSE and NXE and SCE on."""
    engine = protected()
    poke(engine, ROOT, PDPT | 3)
    poke(engine, PDPT, DIRECTORY | 3)
    for i in range(8):
        poke(engine, DIRECTORY + 8 * i, i << 21 | 0x83)
    state = engine.state
    state.cr4, state.cr3, state.efer = 0x620 | cr4, ROOT, 0x901
    state.cr0 = 0x8000_0013
    state.efer = 0xD01
    flat(engine, long=True)
    engine.flush_tlb()
    return engine


def place(engine: Engine, code: bytes) -> None:
    """Make *code* the next to run."""
    engine.ram[CODE : CODE + 64] = code.ljust(64, b"\x90")
    engine.flush_code()
    engine.state.rip = CODE
