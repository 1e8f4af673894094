"""Which bytes of memory an instruction reads and writes as data, told before it runs.

Operands come from the decoder; what is implicit is in the tables. Descriptor tables, the TSS and the stack of an inner
ring, which a CALL through a gate enters, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hvemu.cpu.operand import operand_gva
from hvemu.cpu.stack import width
from hvemu.x86.instruction import Imm, Instruction, Mem, Operand, Reg, RegKind
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import truncate
from hvemu.x86.state import CpuMode, CpuState, mode


@dataclass(frozen=True, slots=True)
class Access:
    """*size* bytes at *gva*; *write* also for what is read first."""

    gva: int
    size: int
    write: bool


_UNTOUCHED = frozenset("lea nop invlpg clflush clflushopt clwb".split())
_READ_ONLY = frozenset(
    "bt call cmp cmps div fxrstor fxrstor64 idiv imul jmp lcall ldmxcsr lgdt lidt ljmp lldt lmsw ltr mul outs push "
    "scas test verr verw".split()
)
"""Instructions that only read their first operand; those of the x87 are told apart by what they store."""
_X87_STORES = frozenset("fst fstp fist fistp fisttp fbstp fnstcw fnstsw fnstenv fnsave fxsave fxsave64".split())
_WORD = 2
_X87_STATE = {"fnstenv": (14, 28), "fldenv": (14, 28), "fnsave": (94, 108), "frstor": (94, 108)}
_BIT_STRINGS = frozenset({"bt", "bts", "btr", "btc"})
_PUSHES = {"push": 1, "pushf": 1, "pusha": 8, "call": 1, "lcall": 2, "enter": 1}
_POPS = {"pop": 1, "popf": 1, "popa": 8, "ret": 1, "retf": 2, "iret": 3}
_OUTER = 2
"""Items more, SS and SP, that a return to an outer ring pops."""
_POPA_SKIPS = 3  # the image of SP
_IMPLICIT = {
    "xlatb": (Gpr.RBX, Gpr.RAX, 1, False),
    "maskmovq": (Gpr.RDI, None, 8, True),
    "maskmovdqu": (Gpr.RDI, None, 16, True),
}


def accesses(state: CpuState, instruction: Instruction) -> list[Access]:
    """Return what *instruction*, which is at RIP, accesses: of a repeated one, in a single iteration."""
    if instruction.rep is not None and not truncate(state.gpr(Gpr.RCX), instruction.address_size):
        return []
    return [*_operands(state, instruction), *_implicit(state, instruction), *_stack(state, instruction)]


def outer_accesses(state: CpuState, instruction: Instruction) -> list[Access]:
    """Return what IRET or a far RET, which is at RIP, reads besides when it returns to an outer ring."""
    if instruction.mnemonic not in ("iret", "retf") or _is_long(state):
        return []
    size = instruction.operand_size
    release = next((operand.value for operand in instruction.operands if isinstance(operand, Imm)), 0)
    return [_item(state, _POPS[instruction.mnemonic] * size + release, size * _OUTER, write=False)]


def _operands(state: CpuState, instruction: Instruction) -> Iterator[Access]:
    name = instruction.mnemonic
    if name in _UNTOUCHED:
        return
    for n, operand in enumerate(instruction.operands):
        if isinstance(operand, Mem) and operand.size:
            gva = operand_gva(state, instruction, _located(state, instruction, operand))
            write = name == "xchg" or (n == 0 and _writes(name, operand))
            yield Access(gva, _size(instruction, operand), write)


def _size(instruction: Instruction, operand: Mem) -> int:
    """Return the bytes of *operand*: the x87's state is shorter in 16-bit form."""
    if instruction.mnemonic not in _X87_STATE:
        return operand.size
    return _X87_STATE[instruction.mnemonic][instruction.operand_size != _WORD]


def _writes(name: str, operand: Operand) -> bool:
    """Whether the instruction *name* writes *operand*, its first."""
    if name[0] == "f" and isinstance(operand, Mem):
        return name in _X87_STORES
    return name not in _READ_ONLY


def _located(state: CpuState, instruction: Instruction, mem: Mem) -> Mem:
    """Return *mem* moved to where the processor accesses it, when that is not where it points."""
    if instruction.mnemonic == "pop" and mem.base == Gpr.RSP:  # computed after the stack pointer has moved
        return replace(mem, displacement=mem.displacement + instruction.operand_size)
    index = instruction.operands[-1]
    if instruction.mnemonic in _BIT_STRINGS and isinstance(index, Reg):  # SDM 2A "BT-Bit Test"
        bits = 8 * index.size
        half = 2 ** (bits - 1)
        distance = (state.gpr(index.index) + half) % (2 * half) - half
        return replace(mem, displacement=mem.displacement + distance // bits * index.size)
    return mem


def _implicit(state: CpuState, instruction: Instruction) -> Iterator[Access]:
    """Yield what is accessed through registers that the instruction does not name."""
    if instruction.memory is None and instruction.mnemonic in _IMPLICIT:
        base, index, size, write = _IMPLICIT[instruction.mnemonic]
        offset = 0 if index is None else truncate(state.gpr(index), 1)
        mem = Mem(base, None, 1, offset, instruction.segment, False, size)
        yield Access(operand_gva(state, instruction, mem), size, write)


# -- the stack --------------------------------------------------------------------------------------------------------


def _stack(state: CpuState, instruction: Instruction) -> Iterator[Access]:
    name, size = instruction.mnemonic, instruction.operand_size
    for n in range(1, _PUSHES.get(name, 0) + 1):
        yield _item(state, -n * size, size, write=True)
    for n in range(_popped(state, name)):
        if not (name == "popa" and n == _POPA_SKIPS):
            yield _item(state, n * size, size, write=False)
    if name == "leave":
        yield _item(state, 0, size, write=False, base=Gpr.RBP)
    if name == "enter":
        yield from _frames(state, instruction)


def _popped(state: CpuState, name: str) -> int:
    return _POPS.get(name, 0) + (_OUTER if name == "iret" and _is_long(state) else 0)


def _frames(state: CpuState, instruction: Instruction) -> Iterator[Access]:
    """Yield the frame pointers that ENTER copies, and the new one, below the old one that it pushed first."""
    level, size = instruction.operands[1], instruction.operand_size
    assert isinstance(level, Imm), instruction
    levels = level.value % _LEVELS
    for n in range(1, levels):
        yield _item(state, -n * size, size, write=False, base=Gpr.RBP)
    for n in range(1, levels + 1):
        yield _item(state, -(n + 1) * size, size, write=True)


_LEVELS = 32


def _item(state: CpuState, distance: int, size: int, *, write: bool, base: Gpr = Gpr.RSP) -> Access:
    """Return the *size* bytes at *distance* from a stack pointer."""
    stack = state.segment(Sreg.SS)
    if mode(state) is CpuMode.LONG64:
        return Access(truncate(state.gpr(base) + distance, 8), size, write)
    offset = truncate(state.gpr(base) + distance, width(stack))
    return Access(truncate(stack.base + offset, 4), size, write)


def _is_long(state: CpuState) -> bool:
    return mode(state) is CpuMode.LONG64


def loads_ss(instruction: Instruction) -> bool:
    """Whether *instruction* is MOV SS or POP SS, which hold back what would come between them and the next one."""
    if instruction.mnemonic not in ("mov", "pop"):
        return False
    first = instruction.operands[0]
    return isinstance(first, Reg) and first.kind is RegKind.SREG and first.index == Sreg.SS
