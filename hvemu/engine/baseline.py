"""What the engine is measured against: Unicorn without traps, and an exit of which nothing is made."""

from __future__ import annotations

import time

from unicorn import UC_ARCH_X86, UC_MODE_32, Uc

from hvemu.engine import native
from hvemu.engine.engine import Engine
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, Segment

_RAM, _CODE, _CPU_MODEL = 1 << 20, 0x1000, 26
# mov ecx, imm32; then a loop of eight instructions: add, xor, rol, sub, lea, and, dec ecx, jnz; hlt
_LOOP = b"\x01\xd8\x31\xc3\xc1\xc0\x05\x29\xd8\x8d\x54\x83\x04\x81\xe3\xff\x00\xff\x00\x49\x75\xea"
_PER_ROUND = 8
_CPUID_LOOP = b"\x0f\xa2\xeb\xfc"
_CPUID_LENGTH = 2


def _program(rounds: int) -> bytes:
    return b"\xb9" + rounds.to_bytes(4, "little") + _LOOP + b"\xf4"


def plain_speed(rounds: int) -> float:
    """Return the instructions per second of an arithmetic loop on Unicorn as it comes."""
    uc, code = Uc(UC_ARCH_X86, UC_MODE_32), _program(rounds)
    uc.ctl_set_cpu_model(_CPU_MODEL)
    uc.mem_map(0, _RAM)
    uc.mem_write(_CODE, code)
    begun = time.perf_counter()
    uc.emu_start(_CODE, _CODE + len(code) - 1)
    return rounds * _PER_ROUND / (time.perf_counter() - begun)


def armed_speed(rounds: int, *, counted: bool) -> float:
    """Return the instructions per second of the same loop with every trap armed."""
    engine = _engine(_program(rounds), counted=counted)
    begun = time.perf_counter()
    engine.run(2 * rounds * _PER_ROUND)
    return rounds * _PER_ROUND / (time.perf_counter() - begun)


def callback_floor(exits: int) -> float:
    """Return the seconds that one exit takes when a callback skips the instruction and the run goes on."""
    engine = _engine(_CPUID_LOOP)
    state, left = engine.state, exits
    handle, context = engine._h, engine._context  # noqa: SLF001 - what the raw calls need

    def skip(_code: int) -> None:
        nonlocal left
        native.context_save(handle, context)
        state.rip += _CPUID_LENGTH
        native.context_restore(handle, context)
        left -= 1
        if not left:
            native.emu_stop(handle)

    setattr(engine._hooks, "record", skip)  # noqa: B010, SLF001 - in place of the method, for this engine alone
    begun = time.perf_counter()
    engine.run(4 * exits)
    return (time.perf_counter() - begun) / exits


def stop_floor(exits: int) -> float:
    """Return the seconds that one exit takes when the engine stops, the instruction is skipped, and it starts again."""
    engine = _engine(_CPUID_LOOP)
    state, run = engine.state, engine.run
    begun = time.perf_counter()
    for _ in range(exits):
        run(_RAM)
        state.rip += _CPUID_LENGTH
    return (time.perf_counter() - begun) / exits


def _engine(code: bytes, *, counted: bool = True) -> Engine:
    """Return an engine in flat 32-bit code without paging, about to run *code*."""
    engine = Engine(_RAM, counted=counted)
    engine.second_level.map(0, 0, _RAM)
    engine.ram[_CODE : _CODE + len(code)] = code
    state = engine.state
    state.cr0, state.efer, state.cr4 = 0x11, 0, 0
    flat = AccessRights(s=1, p=1, db=1, g=1)
    for sreg in Sreg:
        kind = 11 if sreg is Sreg.CS else 3
        state.set_segment(sreg, Segment(8 * kind, 0, 0xFFFF_FFFF, flat.replace(type=kind)))
    state.rip = _CODE
    state.set_gpr(Gpr.RSP, _RAM)
    engine.flush_tlb()
    return engine
