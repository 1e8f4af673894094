"""IN, OUT, INS, OUTS in the bytes of a block."""

from __future__ import annotations

from collections.abc import Iterator

from hvemu.x86.decode import Truncated, decode, disassemble, skim
from hvemu.x86.vectors import Fault

_STRING = frozenset(b"\x6c\x6d\x6e\x6f")
_PORT = frozenset(b"\xe4\xe5\xe6\xe7\xec\xed\xee\xef")
_NOT_STRING = bytes(b for b in range(256) if b not in _STRING)
_NEITHER = bytes(b for b in range(256) if b not in _STRING | _PORT)
_STRINGS = frozenset({"ins", "outs", *(name + size for name in ("ins", "outs") for size in "bwd")})
_PORTS = frozenset({"in", "out"})


def may_have_string_io(code: bytes) -> bool:
    """Whether *code* contains a byte that could be the opcode of INS or OUTS. Cheap: most blocks end here."""
    return bool(code.translate(None, _NOT_STRING))


def may_have_io(code: bytes) -> bool:
    """Whether *code* contains a byte that could be the opcode of IN, OUT, INS or OUTS."""
    return bool(code.translate(None, _NEITHER))


def io_instructions(code: bytes, gva: int, bits: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the gva of each IN, OUT, INS and OUTS in a block of *bits*-bit code at *gva*.

    With it, the gva of the next instruction, and whether this one is INS or OUTS.
    """
    instructions = skim(code, bits)
    if instructions is None:
        instructions = [(found.length, found.mnemonic) for found in disassemble(code, gva, bits)]
    offset = 0
    for length, mnemonic in instructions:
        here, offset = offset, offset + length
        if mnemonic in _PORTS or (mnemonic in _STRINGS and is_string_io(code[here:offset], bits)):
            yield gva + here, gva + offset, mnemonic in _STRINGS


def is_string_io(code: bytes, bits: int) -> bool:
    """Whether the first instruction of *code* is INS or OUTS, one that does not raise #UD for its LOCK prefix."""
    try:
        return may_have_string_io(code) and decode(code, bits).mnemonic in _STRINGS
    except (Fault, Truncated):
        return False
