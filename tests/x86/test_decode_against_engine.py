"""Lengths, compared with what the engine makes of the same bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from hvemu.engine.engine import Engine
from hvemu.engine.traps import Kind
from hvemu.x86.decode import Truncated, decode
from hvemu.x86.instruction import Instruction
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, Segment
from hvemu.x86.vectors import Fault

RAM, ROOT, DATA, CODE, SLOT, SLOTS = 1 << 21, 0x1000, 0x5000, 0x8000, 32, 512
TRIES = 2000
LEAVE = {
    "jmp",
    "call",
    "ret",
    "retf",
    "loop",
    "loope",
    "loopne",
    "ljmp",
    "lcall",
    "iret",
    "int",
    "xbegin",
    "int3",
    "into",
}
PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"


def ready(bits: int) -> Engine:
    """Return an engine in 16-bit or 32-bit protected mode without paging, or in 64-bit mode, SSE on."""
    engine = Engine(RAM)
    engine.second_level.map(0, 0, RAM)
    for hpa, entry in ((ROOT, ROOT + 0x1003), (ROOT + 0x1000, ROOT + 0x2003), (ROOT + 0x2000, 0x83)):
        engine.ram[hpa : hpa + 8] = entry.to_bytes(8, "little")
    state, long = engine.state, bits == 64
    state.cr4, state.cr3, state.efer = 0x620, ROOT, 0x100 * long
    state.cr0 = 0x8000_0011 if long else 0x11
    state.efer = 0x500 * long
    for sreg in Sreg:
        rights = AccessRights(
            type=11 if sreg == Sreg.CS else 3, s=1, p=1, g=1, db=bits == 32, l=long and sreg == Sreg.CS
        )
        state.set_segment(sreg, Segment(8 if sreg == Sreg.CS else 16, 0, 0xFFFF_FFFF, rights))
    for gpr in Gpr:
        state.set_gpr(gpr, DATA + 0x100 * gpr)
    engine.flush_tlb()
    return engine


def encodings(bits: int) -> Iterator[bytes]:
    """Yield random bytes in the shape of instructions, most of whose displacements stay near the registers."""
    draw = random.Random(bits)
    while True:
        code = bytes(draw.choices(PREFIXES, k=draw.choice((0, 0, 0, 1, 1, 2, 3))))
        code += bytes([0x40 | draw.randrange(16)]) if bits == 64 and draw.random() < 0.4 else b""
        escape = draw.choices((b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"), (11, 7, 1, 1))[0]
        code += escape + draw.randbytes(3) + bytes([draw.randrange(64), 0, 0]) + draw.randbytes(14)
        yield code[:SLOT]


def decoded(code: bytes, bits: int) -> Instruction | None:
    """Return what *code* is, if it is anything and always goes on to the next instruction."""
    try:
        instruction = decode(code, bits)
    except (Fault, Truncated):
        return None
    branches = instruction.mnemonic in LEAVE or instruction.mnemonic[0] == "j"
    return None if branches or instruction.rep else instruction


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_lengths_are_the_engines(bits: int) -> None:
    engine, compared, mnemonics = ready(bits), 0, set()
    start = engine.snapshot()
    for number, code in zip(range(TRIES), encodings(bits), strict=False):
        if number % SLOTS == 0:  # the slots are written for the second time
            engine.flush_code()
        instruction = decoded(code, bits)
        if instruction is None:
            continue
        hpa = CODE + SLOT * (number % SLOTS)
        engine.ram[hpa : hpa + SLOT] = code.ljust(SLOT, b"\x90")
        engine.restore(start)
        engine.state.rip = hpa
        stop = engine.step()
        if stop.kind is Kind.LIMIT and engine.state.rip != hpa:  # RIP stays when the store hits the block itself
            assert engine.state.rip - hpa == instruction.length, f"{code.hex()} {instruction}"
            compared, mnemonics = compared + 1, mnemonics | {instruction.mnemonic}
    assert compared > TRIES // 3
    assert len(mnemonics) > 150
