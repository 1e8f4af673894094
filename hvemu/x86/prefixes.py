"""The prefixes of one instruction, and what they say about its sizes (SDM 2A "Instruction Prefixes")."""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.x86.registers import Sreg

SEGMENTS = {0x26: Sreg.ES, 0x2E: Sreg.CS, 0x36: Sreg.SS, 0x3E: Sreg.DS, 0x64: Sreg.FS, 0x65: Sreg.GS}
LOCK, REPNE, REPE, OPERAND, ADDRESS = 0xF0, 0xF2, 0xF3, 0x66, 0x67
_LEGACY = frozenset({*SEGMENTS, LOCK, REPNE, REPE, OPERAND, ADDRESS})
_REX = range(0x40, 0x50)
_REX_W = 8


@dataclass(slots=True)
class Prefixes:
    """The prefixes of one instruction. *length* counts all of them, repeated ones too."""

    bits: int
    length: int = 0
    lock: bool = False
    rep: int = 0
    segment: int = 0
    operand: bool = False
    address: bool = False
    rex: int = 0

    def take(self, byte: int) -> bool:
        """Note *byte*; return whether it was a prefix. REX counts only right before the opcode."""
        if self.bits == 64 and byte in _REX:
            self.rex = byte
        elif byte not in _LEGACY:
            return False
        else:
            self.rex = 0
            self._take_legacy(byte)
        self.length += 1
        return True

    def _take_legacy(self, byte: int) -> None:
        if byte in SEGMENTS:
            if self.bits != 64 or SEGMENTS[byte] >= Sreg.FS:  # 64-bit mode ignores the other four
                self.segment = byte
        elif byte == LOCK:
            self.lock = True
        elif byte == OPERAND:
            self.operand = True
        elif byte == ADDRESS:
            self.address = True
        else:
            self.rep = byte

    def canonical(self) -> bytes:
        """Return the prefixes that count, each once."""
        lock, operand, address = LOCK * self.lock, OPERAND * self.operand, ADDRESS * self.address
        return bytes(byte for byte in (lock, self.segment, address, operand, self.rep, self.rex) if byte)

    @property
    def wide(self) -> bool:
        """Whether REX.W makes the operands 8 bytes wide."""
        return bool(self.rex & _REX_W)

    @property
    def operand_size(self) -> int:
        """Size of the operands in bytes, for instructions without a default of their own."""
        return 8 if self.wide else 2 if self.operand != (self.bits == 16) else 4

    @property
    def address_size(self) -> int:
        """Size of addresses in bytes."""
        return {16: (2, 4), 32: (4, 2), 64: (8, 4)}[self.bits][self.address]
