"""IN, OUT, INS, OUTS: the emulator neither checks nor stops at them, so the engine finds them before they run.

Each newly translated block is looked at once. Where it holds an I/O instruction, a code hook bounded to that address
goes in and the block is translated again: from then on the engine stops exactly before the instruction, and code
without I/O runs at full speed.
"""

from __future__ import annotations

from hvemu.x86.decode import decode, disassemble

_IO = frozenset(b"\xe4\xe5\xe6\xe7\xec\xed\xee\xef\x6c\x6d\x6e\x6f")
_NOT_IO = bytes(b for b in range(256) if b not in _IO)
_MNEMONICS = frozenset({"in", "out", "ins", "outs"})


def suspicious(code: bytes) -> bool:
    """Whether *code* contains a byte that could be an I/O opcode. Cheap: most blocks end here."""
    return bool(code.translate(None, _NOT_IO))


def io_sites(code: bytes, gva: int, bits: int) -> list[int]:
    """Return the linear address of every I/O instruction in a block of *bits*-bit code at *gva*."""
    found = []
    for instruction in disassemble(code, gva, bits):
        if instruction.mnemonic in _MNEMONICS:
            found.append(gva)
        gva += instruction.length
    return found


def is_io(code: bytes, bits: int) -> bool:
    """Whether the first instruction of *code* does port I/O."""
    return suspicious(code) and decode(code, bits).mnemonic in _MNEMONICS
