"""IN, OUT, INS, OUTS in the bytes of a block."""

from __future__ import annotations

from collections.abc import Iterator

from hvemu.x86.decode import Truncated, decode, disassemble
from hvemu.x86.vectors import Fault

_STRING = frozenset(b"\x6c\x6d\x6e\x6f")
_PORT = frozenset(b"\xe4\xe5\xe6\xe7\xec\xed\xee\xef")
_NOT_STRING = bytes(b for b in range(256) if b not in _STRING)
_NEITHER = bytes(b for b in range(256) if b not in _STRING | _PORT)
_STRINGS, _PORTS = frozenset({"ins", "outs"}), frozenset({"in", "out"})


def may_have_string_io(code: bytes) -> bool:
    """Whether *code* contains a byte that could be the opcode of INS or OUTS. Cheap: most blocks end here."""
    return bool(code.translate(None, _NOT_STRING))


def may_have_io(code: bytes) -> bool:
    """Whether *code* contains a byte that could be the opcode of IN, OUT, INS or OUTS."""
    return bool(code.translate(None, _NEITHER))


def string_io(code: bytes, gva: int, bits: int) -> Iterator[int]:
    """Yield the linear address of every INS and OUTS in a block of *bits*-bit code at *gva*."""
    for instruction in disassemble(code, gva, bits):
        if instruction.mnemonic in _STRINGS:
            yield gva
        gva += instruction.length


def after_io(code: bytes, gva: int, bits: int) -> Iterator[int]:
    """Yield the linear address behind every IN, OUT, INS and OUTS in a block of *bits*-bit code at *gva*."""
    for instruction in disassemble(code, gva, bits):
        gva += instruction.length
        if instruction.mnemonic in _STRINGS | _PORTS:
            yield gva


def is_string_io(code: bytes, bits: int) -> bool:
    """Whether the first instruction of *code* is INS or OUTS."""
    try:
        return may_have_string_io(code) and decode(code, bits).mnemonic in _STRINGS
    except (Fault, Truncated):
        return False
