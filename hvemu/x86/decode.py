"""Bytes to instructions. Capstone parses opcodes and operands; prefixes and what it gets wrong are handled here.

Capstone repeats no prefix rule of the processor: it drops REP on some string instructions, mistakes VMPTRLD for VMCLEAR
in 16-bit code, prints far pointers as near ones, and accepts LOCK, CR5 and MOV CS where the processor raises #UD.
So prefixes are read here, brought into one canonical form, and the operands of those instructions are put right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import capstone
from capstone import x86_const as cx

from hvemu.x86.instruction import Far, Imm, Instruction, Mem, Operand, Reg, RegKind, Rep, effective
from hvemu.x86.prefixes import OPERAND, REPE, SEGMENTS, Prefixes
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.vectors import Fault, Vector

__all__ = ["LONGEST", "Truncated", "decode", "disassemble", "effective", "skim"]

LONGEST = 15  # bytes; a longer instruction raises #GP(0) (SDM 2A "Instruction Format")
_LONGEST_BARE = 11  # without prefixes: opcode, ModRM, SIB, four bytes of displacement and four of immediate


class Truncated(Exception):  # noqa: N818 - a fact about the bytes, not an error of anyone
    """The bytes end inside the instruction: more must be fetched, which may fault."""


# -- names ----------------------------------------------------------------------------------------------------------

_STRINGS = ("ins", "outs", "movs", "stos", "lods", "scas", "cmps")
_FAMILY = {f"{name}{size}": name for name in _STRINGS for size in "bwdq"} | {
    "iretd": "iret", "iretq": "iret", "pushfd": "pushf", "pushfq": "pushf", "popfd": "popf", "popfq": "popf",
    "pushal": "pusha", "pushaw": "pusha", "popal": "popa", "popaw": "popa", "retfq": "retf",
    "sysretq": "sysret", "sysexitq": "sysexit", "movabs": "mov", "sal": "shl",
}  # fmt: skip
_REPEATS_COMPARE = frozenset({"scas", "cmps"})
_TABLES = frozenset({"lgdt", "lidt", "sgdt", "sidt"})
# 64-bit mode: these work on 8 bytes without REX.W, or on 2 with the operand-size prefix.
_STACK = frozenset({"push", "pop", "pushf", "popf", "enter", "leave"})
_ALWAYS_8 = frozenset({"call", "ret", "loop", "loope", "loopne", *_TABLES})  # and near jumps: 66 means nothing
_NATIVE = frozenset({"vmread", "vmwrite", "invept", "invvpid", "invpcid"})  # 4 bytes, in 64-bit mode 8
_LOCKABLE = frozenset(
    "adc add and btc btr bts cmpxchg cmpxchg8b cmpxchg16b dec inc neg not or sbb sub xadd xchg xor".split()
)
_PLAIN = frozenset({"vmread", "vmwrite", "vmptrst"})  # 66, F2 and F3 make another instruction of their opcode
_VMX_GROUP = {0: "vmptrld", OPERAND: "vmclear", REPE: "vmxon"}
_FAR_INDIRECT = {3: "lcall", 5: "ljmp"}
_LOAD_FAR = frozenset({"lds", "les", "lfs", "lgs", "lss"})
_MEMORY_SIZE = {
    mnemonic: size
    for size, mnemonics in (
        (2, ("lldt", "ltr", "lmsw", "sldt", "str", "smsw")),
        (8, ("vmptrld", "vmptrst", "vmclear", "vmxon", "cmpxchg8b")),
        (16, ("invept", "invvpid", "invpcid", "cmpxchg16b")),
        (512, ("fxsave", "fxrstor")),
    )
    for mnemonic in mnemonics
}
_HINTS = frozenset({0x0D, *range(0x18, 0x20)})
_MODRM_REG = 0x38
_WITHOUT_SSE_FORM = {bytes([n]) for n in (*range(4), *range(0x40, 0x50), *range(0x80, 0xAE), *range(0xAF, 0xB8),
                                          *range(0xBA, 0xBE), 0xC0, 0xC1, *range(0xC8, 0xD0))}  # fmt: skip
_ONLY_64 = frozenset({"swapgs", "rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase"})
_UNDEFINED = frozenset({"ud0", "ud1", "femms", "extrq", "insertq"})  # named by capstone all the same
_CONTROL_REGISTERS = frozenset({0, 2, 3, 4, 8})
_DEBUG_REGISTERS = range(8)


def _registers() -> dict[str, Reg]:
    """Return every register operand by its assembly name."""
    legacy = [name.lower()[1:] for name in Gpr.__members__][:8]
    table: dict[str, Reg] = {}
    for i, name in enumerate(legacy):
        table |= {f"r{name}": Reg(RegKind.GPR, i, 8), f"e{name}": Reg(RegKind.GPR, i, 4), name: Reg(RegKind.GPR, i, 2)}
    for i in range(8, 16):
        for suffix, size in ("", 8), ("d", 4), ("w", 2), ("b", 1):
            table[f"r{i}{suffix}"] = Reg(RegKind.GPR, i, size)
    for i, name in enumerate(("al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil")):
        table[name] = Reg(RegKind.GPR, i, 1)
    for i, name in enumerate(("ah", "ch", "dh", "bh")):
        table[name] = Reg(RegKind.GPR, i, 1, high=True)
    table |= {sreg.name.lower(): Reg(RegKind.SREG, sreg, 2) for sreg in Sreg}
    for kind, name, count, size in (
        (RegKind.CR, "cr{}", 16, 8), (RegKind.DR, "dr{}", 16, 8), (RegKind.X87, "st({})", 8, 10),
        (RegKind.MMX, "mm{}", 8, 8), (RegKind.XMM, "xmm{}", 16, 16),
    ):  # fmt: skip
        table |= {name.format(i): Reg(kind, i, size) for i in range(count)}
    return table


_REGISTERS = _registers()
_MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}


@lru_cache(maxsize=3)
def _parser(bits: int) -> Any:
    parser = capstone.Cs(capstone.CS_ARCH_X86, _MODES[bits])
    parser.detail = True
    return parser


# -- one instruction --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16384)
def decode(code: bytes, bits: int) -> Instruction:
    """Return the instruction at the start of *code*, bytes of a code segment whose default size is *bits* (16, 32, 64).

    Raises Fault(UD) for undefined bytes, Fault(GP, 0) beyond 15 bytes, Truncated where *code* ends too early.
    """
    return _decode(code[:LONGEST], bits, None)


def disassemble(code: bytes, address: int, mode: int) -> list[Instruction]:
    """Return all instructions of *code*, which lies at the gva *address* and is *mode* (16, 32, 64) bits.

    Branch targets in the text are addresses. A byte that starts no instruction becomes one named `db`.
    """
    found, offset = [], 0
    while offset < len(code):
        rest = code[offset : offset + LONGEST]
        try:
            instruction = _decode(rest, mode, address + offset)
        except (Fault, Truncated):
            instruction = _data(rest[:1], mode)
        found.append(instruction)
        offset += instruction.length
    return found


def skim(code: bytes, bits: int) -> list[tuple[int, str]] | None:
    """Return length and mnemonic (of one member of a family, such as insb) of all instructions of *code*.

    Twenty times as fast as decoding. None when the instructions, by capstone alone, do not end where *code* does.
    """
    found = [(size, mnemonic.split()[-1]) for _, size, mnemonic, _ in _parser(bits).disasm_lite(code, 0)]
    return found if sum(size for size, _ in found) == len(code) else None


def _data(code: bytes, bits: int) -> Instruction:
    size = bits // 8
    return Instruction(1, "db", (Imm(code[0], 1),), 1, size, None, False, Sreg.DS, code, f"db {code[0]:#04x}")


def _decode(code: bytes, bits: int, address: int | None) -> Instruction:
    prefixes = Prefixes(bits)
    for byte in code:
        if not prefixes.take(byte):
            break
    opcode = code[prefixes.length :]
    try:
        raw, size = _parse(prefixes, opcode, address)
    except Truncated:
        if len(code) >= LONGEST:
            raise Fault(Vector.GP, 0) from None
        raise
    return _build(raw, prefixes, code[: prefixes.length + size], opcode, relative=address is None)


def _parse(prefixes: Prefixes, opcode: bytes, address: int | None) -> tuple[Any, int]:
    """Return capstone's instruction, parsed as one at *address* so that branch targets are right, and its size in bytes
    without prefixes.
    """
    if prefixes.wide and opcode[:1] != b"\x0f":
        prefixes.operand = False  # REX.W wins; before a two-byte opcode 66 may still choose an SSE form
    if _is_vex(opcode, prefixes.bits):
        raise Fault(Vector.UD)
    opcode, raw, start = _hint_as_nop(opcode), None, b""
    for parser, start in _views(prefixes, opcode):
        at = (address or 0) + prefixes.length - len(start)
        if raw := next(parser.disasm(start + opcode, at, 1), None):
            break
    if raw is None and prefixes.rep and _ignores_rep(opcode):
        prefixes.rep = 0
        return _parse(prefixes, opcode, address)
    if raw is None:
        raise Truncated if _could_go_on(prefixes, opcode) else Fault(Vector.UD)
    if not _exists(raw.mnemonic, prefixes):
        raise Fault(Vector.UD)
    return raw, raw.size - len(start)


def _exists(name: str, prefixes: Prefixes) -> bool:
    """Whether there is an instruction *name* with these *prefixes*, where capstone is too generous."""
    if name in _ONLY_64:
        return prefixes.bits == 64
    return name not in _UNDEFINED and not (name in _PLAIN and (prefixes.rep or prefixes.operand))


def _views(prefixes: Prefixes, opcode: bytes) -> Iterator[tuple[Any, bytes]]:
    """Yield the parsers that may know the instruction, each with the prefixes to put before *opcode*.

    In 16-bit code capstone takes 66 for the operand size only and misses the two-byte opcodes that it selects. They are
    the same in 32-bit code, where 67 has the opposite meaning.
    """
    yield _parser(prefixes.bits), prefixes.canonical()
    if prefixes.bits == 16 and prefixes.operand and opcode[:1] == b"\x0f":
        yield _parser(32), replace(prefixes, bits=32, address=not prefixes.address).canonical()


def _hint_as_nop(opcode: bytes) -> bytes:
    """Return *opcode*, a reserved hint (0F 0D, 0F 18 to 0F 1F) in the one form of NOP that capstone knows."""
    if opcode[:1] == b"\x0f" and len(opcode) > 2 and opcode[1] in _HINTS:
        return bytes([0x0F, 0x1F, opcode[2] & ~_MODRM_REG]) + opcode[3:]
    return opcode


def _ignores_rep(opcode: bytes) -> bool:
    """Whether F2 and F3 mean nothing before *opcode*: one-byte opcodes, and two-byte ones that have no SSE form."""
    return bool(opcode) and (opcode[0] != 0x0F or opcode[1:2] in _WITHOUT_SSE_FORM)


def _is_vex(opcode: bytes, bits: int) -> bool:
    """Whether this is a VEX, EVEX or XOP encoding, none of which the processor has."""
    if opcode[:1] == b"\x8f":
        return len(opcode) > 1 and bool(opcode[1] & 0x38)
    return opcode[:1] in (b"\xc4", b"\xc5", b"\x62") and (bits == 64 or (len(opcode) > 1 and opcode[1] >= 0xC0))


def _could_go_on(prefixes: Prefixes, opcode: bytes) -> bool:
    """Whether some continuation makes an instruction that is longer than what is there."""
    if len(opcode) >= _LONGEST_BARE:
        return False
    return any(
        size > len(start + opcode)
        for parser, start in _views(prefixes, opcode)
        for byte in range(256)
        for _, size, _, _ in parser.disasm_lite((start + opcode + bytes([byte, *(0,) * LONGEST]))[:LONGEST], 0, 1)
    )


def _build(raw: Any, prefixes: Prefixes, code: bytes, opcode: bytes, *, relative: bool) -> Instruction:
    mnemonic = _mnemonic(raw, prefixes, opcode)
    operands = _operands(raw, mnemonic, prefixes)
    if prefixes.lock and not (mnemonic in _LOCKABLE and isinstance(operands[0], Mem)):
        raise Fault(Vector.UD)
    memory = [operand for operand in operands if isinstance(operand, Mem)]
    return Instruction(
        length=len(code),
        mnemonic=mnemonic,
        operands=operands,
        operand_size=_operand_size(mnemonic, operands, prefixes),
        address_size=prefixes.address_size,
        rep=_rep(mnemonic, prefixes.rep),
        lock=prefixes.lock,
        segment=next(
            (m.segment for m in memory if not _is_fixed(mnemonic, m)), memory[0].segment if memory else Sreg.DS
        ),
        code=code,
        text=_text(raw, mnemonic, operands, _rep(mnemonic, prefixes.rep), len(code) if relative else None),
    )


def _mnemonic(raw: Any, prefixes: Prefixes, opcode: bytes) -> str:
    name: str = raw.mnemonic.split()[-1]
    if opcode[0] == 0xFF:
        return _FAR_INDIRECT.get(opcode[1] >> 3 & 7, name)
    if name in _VMX_GROUP.values():
        return _VMX_GROUP[prefixes.rep or OPERAND * prefixes.operand]
    is_sse = name in ("movsd", "cmpsd") and opcode[0] == 0x0F
    return name if is_sse else _FAMILY.get(name, name)


def _rep(mnemonic: str, prefix: int) -> Rep | None:
    if not prefix or mnemonic not in _STRINGS:
        return None
    if mnemonic not in _REPEATS_COMPARE:
        return "rep"
    return "repe" if prefix == REPE else "repne"


def _operand_size(mnemonic: str, operands: tuple[Operand, ...], prefixes: Prefixes) -> int:
    size = prefixes.operand_size
    if any(isinstance(operand, Reg) and operand.kind in (RegKind.CR, RegKind.DR) for operand in operands):
        return 8 if prefixes.bits == 64 else 4
    if mnemonic in _NATIVE:
        return 8 if prefixes.bits == 64 else 4
    if prefixes.bits == 64 and (mnemonic in _ALWAYS_8 or mnemonic[0] == "j"):
        return 8
    if prefixes.bits == 64 and mnemonic in _STACK:
        return 2 if prefixes.operand and not prefixes.wide else 8
    if mnemonic in ("in", "out", "ins", "outs"):  # the accumulator or the memory operand, at most 4 bytes
        data = operands[mnemonic in ("out", "outs")]
        return min(data.size, 4)
    first = operands[0] if operands else None
    return 1 if isinstance(first, Reg | Mem) and first.size == 1 else size


# -- operands ---------------------------------------------------------------------------------------------------------


def _operands(raw: Any, mnemonic: str, prefixes: Prefixes) -> tuple[Operand, ...]:
    if raw.group(cx.X86_GRP_BRANCH_RELATIVE):
        return (_relative(raw),)
    listed = raw.operands
    if mnemonic in ("ljmp", "lcall") and len(listed) == 2:
        size = prefixes.operand_size
        return (Far(listed[0].imm & 0xFFFF, listed[1].imm & (1 << 8 * size) - 1, size),)
    built = tuple(_operand(raw, operand, mnemonic, prefixes) for operand in listed)
    return _checked_move(built, prefixes) if mnemonic == "mov" else built


def _relative(raw: Any) -> Imm:
    """Return the distance from the next instruction, which capstone has added to the address."""
    size = raw.operands[0].size
    half = 1 << (8 * size - 1)
    distance = raw.operands[0].imm - raw.address - raw.size
    return Imm((distance + half) % (2 * half) - half, size)


def _operand(raw: Any, operand: Any, mnemonic: str, prefixes: Prefixes) -> Operand:
    if operand.type == cx.X86_OP_REG:
        found = _REGISTERS.get(raw.reg_name(operand.reg))
        if found is None:
            raise Fault(Vector.UD)
        return found
    if operand.type == cx.X86_OP_IMM:
        return Imm(operand.imm & (1 << 8 * operand.size) - 1, operand.size)
    return _memory(raw, operand, mnemonic, prefixes)


def _memory(raw: Any, operand: Any, mnemonic: str, prefixes: Prefixes) -> Mem:
    mem = operand.mem
    name = raw.reg_name(mem.base) if mem.base else None
    base = _REGISTERS[name].index if name in _REGISTERS else None
    index_name = raw.reg_name(mem.index) if mem.index else None
    index = _REGISTERS[index_name].index if index_name in _REGISTERS else None
    segment = Sreg.SS if base in (Gpr.RSP, Gpr.RBP) else Sreg.DS
    if mnemonic in _STRINGS and base == Gpr.RDI:
        segment = Sreg.ES  # no override reaches the destination of a string instruction
    elif prefixes.segment:
        segment = SEGMENTS[prefixes.segment]
    size = _memory_size(mnemonic, operand.size, prefixes)
    return Mem(base, index, mem.scale, mem.disp, segment, name in ("rip", "eip"), size)


def _memory_size(mnemonic: str, stated: int, prefixes: Prefixes) -> int:
    if mnemonic in _TABLES:
        return 10 if prefixes.bits == 64 else 6
    if mnemonic in _LOAD_FAR or mnemonic in _FAR_INDIRECT.values():
        return 2 + prefixes.operand_size
    if mnemonic == "bound":
        return 2 * prefixes.operand_size
    return _MEMORY_SIZE.get(mnemonic, stated)


def _is_fixed(mnemonic: str, mem: Mem) -> bool:
    return mnemonic in _STRINGS and mem.base == Gpr.RDI


def _checked_move(operands: tuple[Operand, ...], prefixes: Prefixes) -> tuple[Operand, ...]:
    """Return the operands of a MOV with the sizes of the manual. Raises Fault(UD) for registers that do not exist."""
    special = next((o for o in operands if isinstance(o, Reg) and o.kind is not RegKind.GPR), None)
    if special is None:
        return operands
    legal = {RegKind.CR: _CONTROL_REGISTERS, RegKind.DR: _DEBUG_REGISTERS}
    is_load = operands[0] is special
    if special.index not in legal.get(special.kind, (special.index,)) or (is_load and special == _REGISTERS["cs"]):
        raise Fault(Vector.UD)
    if special.kind is RegKind.SREG:
        size = 2 if is_load else prefixes.operand_size
    else:
        size = 8 if prefixes.bits == 64 else 4
    return tuple(_resized(o, size, special) for o in operands)


def _resized(operand: Operand, size: int, special: Reg) -> Operand:
    if isinstance(operand, Reg):
        segment = operand is special and special.kind is RegKind.SREG
        return operand if segment else Reg(operand.kind, operand.index, size)
    if isinstance(operand, Mem):  # a segment register moves 2 bytes to and from memory
        return Mem(
            operand.base, operand.index, operand.scale, operand.displacement, operand.segment, operand.rip_relative, 2
        )
    return operand


def _text(raw: Any, mnemonic: str, operands: tuple[Operand, ...], rep: Rep | None, length: int | None) -> str:
    """Return the disassembly; *length* is given when the address is unknown: a branch shows `$` and the distance."""
    if length is not None and raw.group(cx.X86_GRP_BRANCH_RELATIVE):
        (operand,) = operands
        assert isinstance(operand, Imm)
        return f"{raw.mnemonic} ${operand.value + length:+#x}"
    if operands and isinstance(operands[0], Far):
        return f"{mnemonic} {operands[0].selector:#x}:{operands[0].offset:#x}"
    name = mnemonic if mnemonic in (*_FAR_INDIRECT.values(), *_VMX_GROUP.values()) else raw.mnemonic
    if rep:
        name = f"{rep} {name.split()[-1]}"
    return f"{name} {raw.op_str.removeprefix('ptr ')}".strip()
