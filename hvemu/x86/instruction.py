"""One decoded instruction: plain values, no decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from hvemu.x86.registers import Sreg


class RegKind(StrEnum):
    """Which register file a register operand belongs to."""

    GPR, SREG, CR, DR, X87, MMX, XMM = "gpr", "sreg", "cr", "dr", "x87", "mmx", "xmm"


@dataclass(frozen=True, slots=True)
class Reg:
    """A register operand. *size* is in bytes; *high* marks AH, CH, DH, BH, whose *index* is that of AX, CX, DX, BX."""

    kind: RegKind
    index: int
    size: int
    high: bool = False


@dataclass(frozen=True, slots=True)
class Mem:
    """A memory operand. *base* and *index* are Gpr numbers; *size* is in bytes, 0 without a fixed size."""

    base: int | None
    index: int | None
    scale: int
    displacement: int
    segment: Sreg
    rip_relative: bool
    size: int


@dataclass(frozen=True, slots=True)
class Imm:
    """An immediate, sign-extended to the operand as the instruction does, then as an unsigned number of *size* bytes.

    Of a relative branch: the signed distance from the next instruction.
    """

    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Far:
    """The operand of a direct far JMP or CALL."""

    selector: int
    offset: int
    size: int


Operand = Reg | Mem | Imm | Far
Rep = Literal["rep", "repe", "repne"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """What one instruction does and to what.

    *mnemonic* is the manual's name in lower case with neither prefix nor size: `movs`, `ins`, `iret`, `pushf`, `retf`,
    `sysret` carry their size in *operand_size* (bytes; 1, 2, 4, 8). Far transfers are `ljmp` and `lcall`; F1 is `int1`.
    *address_size* is in bytes. *rep* is set on string instructions only. *segment* is the segment of the memory operand
    that an override applies to. *code* holds exactly the bytes of the instruction, *text* its disassembly.
    """

    length: int
    mnemonic: str
    operands: tuple[Operand, ...]
    operand_size: int
    address_size: int
    rep: Rep | None
    lock: bool
    segment: Sreg
    code: bytes
    text: str

    @property
    def memory(self) -> Mem | None:
        """The first memory operand: the destination where an instruction has two."""
        return next((operand for operand in self.operands if isinstance(operand, Mem)), None)

    def __str__(self) -> str:
        return self.text


def effective(mem: Mem, gpr: Callable[[int], int], next_rip: int, address_size: int) -> int:
    """Return the offset of *mem* in its segment (SDM 1 "Operand Addressing"), wrapped at *address_size* bytes.

    *gpr* reads all 64 bits of a register; *next_rip* is the address of the following instruction.
    """
    offset = mem.displacement
    if mem.rip_relative:
        offset += next_rip
    mask = (1 << 8 * address_size) - 1
    if mem.base is not None:
        offset += gpr(mem.base)
    if mem.index is not None:
        offset += gpr(mem.index) * mem.scale
    return offset & mask
