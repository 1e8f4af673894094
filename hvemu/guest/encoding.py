"""Whether bytes are what a statement says: the assembler's answer, disassembled and compared.

Keystone is wrong at times and does not say so: it forgets the second label of `[ecx + a - b]`, takes 300 for a byte,
drops a `.word` that does not fit, prefers another operand size. So nothing that it returns is taken on trust.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hvemu.guest.corrections import ALLOWED
from hvemu.guest.expression import ExpressionError, Lookup, evaluate, names
from hvemu.guest.source import Statement, split_arguments
from hvemu.x86.decode import disassemble
from hvemu.x86.instruction import Far, Imm, Instruction, Mem, Operand, Reg, RegKind
from hvemu.x86.registers import Gpr, Sreg

_CONDITIONS = {"z": "e", "nz": "ne", "c": "b", "nae": "b", "nc": "ae", "nb": "ae", "na": "be", "nbe": "a", "pe": "p",
               "po": "np", "nge": "l", "nl": "ge", "ng": "le", "nle": "g"}  # fmt: skip
_STRINGS = ("ins", "outs", "movs", "stos", "lods", "scas", "cmps")
_SUFFIXES = {"b": 1, "w": 2, "d": 4, "q": 8}
_SIZED = {f"{name}{s}": (name, size) for name in _STRINGS for s, size in _SUFFIXES.items()} | {
    f"{name}{s}": (name, size)
    for name in ("iret", "pushf", "popf", "pusha", "popa", "sysret", "sysexit", "retf")
    for s, size in (("d", 4), ("q", 8))
}
_ALIASES = {f"{family}{a}": f"{family}{b}" for family in ("j", "set", "cmov") for a, b in _CONDITIONS.items()} | {
    "sal": "shl", "icebp": "int1", "lret": "retf", "retn": "ret", "xlat": "xlatb", "fwait": "wait", "movabs": "mov",
    "loopz": "loope", "loopnz": "loopne",
}  # fmt: skip
_PREFIXES = frozenset("lock rep repe repz repne repnz data16 data32 addr16 addr32".split())
_SWAPPABLE = frozenset({"xchg", "test"})
_ANY_SIZE = frozenset("ltr lldt str sldt smsw lmsw verr verw lar lsl".split())
# Without a register or a size in the statement, these take the size of the code; in 64-bit code the second row takes 4.
_STACK = frozenset("call ret jmp push pop pushf popf enter leave".split())
_DEFAULT = frozenset("iret retf ljmp lcall pusha popa sysret sysexit".split())
_TABLES = frozenset({"lgdt", "lidt", "sgdt", "sidt"})
_DATA = {".byte": 1, ".word": 2, ".short": 2, ".long": 4, ".int": 4, ".quad": 8}
_POINTER = re.compile(r"(?:(byte|word|dword|qword|fword|tbyte|xmmword)\s+)?ptr\s+", re.IGNORECASE)
_POINTER_SIZES = {"byte": 1, "word": 2, "dword": 4, "fword": 6, "qword": 8, "tbyte": 10, "xmmword": 16}
_SEGMENT = re.compile(r"([c-gs]s)\s*:\s*(?=\S)")
_LEADING = re.compile(r"^(?:offset|short|near|far)\s+")


def _registers() -> dict[str, Reg]:
    """Return the registers that an operand may name."""
    found = {s.name.lower(): Reg(RegKind.SREG, s, 2) for s in Sreg} | {"rip": Reg(RegKind.GPR, -1, 8)}
    for gpr in Gpr:
        long = gpr.name.lower()
        if long[1:].isdigit():
            found |= {f"{long}{s}": Reg(RegKind.GPR, gpr, size) for s, size in (("", 8), ("d", 4), ("w", 2), ("b", 1))}
            continue
        low = long[1:].replace("x", "") + "l"
        found |= {long: Reg(RegKind.GPR, gpr, 8), f"e{long[1:]}": Reg(RegKind.GPR, gpr, 4)}
        found |= {long[1:]: Reg(RegKind.GPR, gpr, 2), low: Reg(RegKind.GPR, gpr, 1)}
    found |= {f"{name}h": Reg(RegKind.GPR, i, 1, high=True) for i, name in enumerate("acdb")}
    found |= {f"cr{i}": Reg(RegKind.CR, i, 0) for i in range(16)} | {f"dr{i}": Reg(RegKind.DR, i, 0) for i in range(8)}
    return found


_REGISTERS = _registers()


def is_register(name: str) -> bool:
    """Return whether *name* cannot be a label, because in an operand it is a register."""
    return name.lower() in {*_REGISTERS, "eip", "ip"}


def mistake(statement: Statement, code: bytes, address: int, mode: int, lookup: Lookup) -> str | None:
    """Return what is wrong with *code*, *mode*-bit code for *statement* at *address*, or None.

    *lookup* gives the value of labels and constants.
    """

    def here(name: str) -> int | None:
        return address if name == "." else lookup(name)

    if statement.word in _DATA:
        return _data(statement, code, here)
    if statement.label or statement.word in ALLOWED:
        return None
    instructions = disassemble(code, address, mode)
    if len(instructions) != 1 or instructions[0].mnemonic == "db":
        return f"assembled as {'; '.join(i.text for i in instructions) or 'nothing'}"
    return _Check(statement, instructions[0], address, mode, here).mistake()


def _data(statement: Statement, code: bytes, lookup: Lookup) -> str | None:
    size, values = _DATA[statement.word], split_arguments(statement.rest)
    if len(code) != size * len(values):
        return f"{len(values)} values of {size} bytes became {len(code)} bytes: does each value fit?"
    for i, text in enumerate(values):
        try:
            value = evaluate(text, lookup)
        except ExpressionError:
            continue  # Keystone knows more forms than are needed in conditions
        found = int.from_bytes(code[i * size : (i + 1) * size], "little")
        if not _fits(value, size) or value % 256**size != found:
            return f"`{text}` is {value:#x} and became {found:#x}: use parentheses, or a value that fits"
    return None


def _fits(value: int, size: int) -> bool:
    limit: int = 256**size
    return -limit // 2 <= value < limit


class _Check:
    """One statement beside one decoded instruction."""

    def __init__(self, statement: Statement, found: Instruction, address: int, mode: int, lookup: Lookup) -> None:
        self.found, self.mode, self.lookup = found, mode, lookup
        self.next = address + found.length
        words = statement.text.lower().split()
        self.prefixes = [*_leading(words)]
        self.word = words[len(self.prefixes)]
        self.operands = split_arguments(statement.text.split(None, len(self.prefixes))[-1][len(self.word) :])

    def mistake(self) -> str | None:
        name, size = _SIZED.get(self.word, (_ALIASES.get(self.word, self.word), 0))
        if name != self.found.mnemonic and not (name in {"jmp", "call"} and self.found.mnemonic == f"l{name}"):
            return f"assembled as `{self.found.text}`"
        size = size or self.default_size()
        if size and size != self.found.operand_size:
            return f"assembled with a {8 * self.found.operand_size}-bit operand, not a {8 * size}-bit one"
        operands = self.found.operands
        if len(operands) != len(self.operands):  # implied ones: `stosd`, `imul eax, 5`
            return None
        problem = self.compare(operands)
        if problem and self.found.mnemonic in _SWAPPABLE:
            problem = self.compare(operands[::-1])
        return problem and f"assembled as `{self.found.text}`: {problem}"

    def default_size(self) -> int:
        """Return the operand size in bytes of an instruction that does not name one, or 0 where any is right."""
        explicit = any(_POINTER.match(text) or self.register(text) for text in self.operands)
        name, mode = self.found.mnemonic, self.mode
        if "data16" in self.prefixes or "data32" in self.prefixes:
            mode = {16: 32, 32: 16}[mode]
        if name in _STACK and not explicit:
            return mode // 8
        if name in _STACK and any(isinstance(o, Reg) and o.kind is RegKind.SREG for o in self.found.operands):
            return mode // 8
        if name in _TABLES | _DEFAULT and mode != 64:
            return mode // 8
        return 4 if name in _DEFAULT else 0

    def register(self, text: str) -> Reg | None:
        return _REGISTERS.get(text.lower())

    def compare(self, found: Sequence[Operand]) -> str | None:
        return next(filter(None, map(self.operand, self.operands, found)), None)

    def operand(self, text: str, found: Operand) -> str | None:
        """Return what differs between the operand *text* and what was *found*, or None."""
        pointer = _POINTER.match(text)
        text = text[pointer.end() :] if pointer else _LEADING.sub("", text)
        segment = _SEGMENT.match(text) if "[" in text else None
        text = text[segment.end() :] if segment else text
        if isinstance(found, Reg):
            return self.same_register(text, found)
        try:
            if isinstance(found, Mem):
                if segment and found.segment is not Sreg[segment[1].upper()]:
                    return f"no {segment[1]}"
                size = _POINTER_SIZES[pointer[1].lower()] if pointer and pointer[1] else 0
                if size and found.size and size != found.size and self.found.mnemonic not in _TABLES:
                    return f"{found.size} bytes of memory"
                return self.same_place(text, found)
            if isinstance(found, Imm):
                return self.same_value(text, found)
        except ExpressionError as error:
            return str(error)
        assert isinstance(found, Far)
        selector, _, offset = text.partition(":")
        same = (self.value(selector), self.value(offset)) == (found.selector, found.offset)
        return None if same else "another target"

    def same_register(self, text: str, found: Reg) -> str | None:
        wanted = self.register(text)
        if wanted is None:  # x87, MMX and SSE: Keystone spells them as the decoder does
            return None if text.replace(" ", "") in self.found.text.replace(" ", "") else f"no `{text}`"
        segment = any(isinstance(o, Reg) and o.kind is RegKind.SREG for o in self.found.operands)
        any_size = segment or self.found.mnemonic in _ANY_SIZE or not wanted.size
        same = (wanted.kind, wanted.index, wanted.high) == (found.kind, found.index, found.high)
        return None if same and (any_size or wanted.size == found.size) else f"no `{text}`"

    def value(self, text: str) -> int:
        return evaluate(text, self.lookup)

    def same_place(self, text: str, found: Mem) -> str | None:
        """The address is linear in its registers: find the constant part, then what each register contributes."""
        inner = text.replace("][", "+").replace("[", "(").replace("]", ")")
        used = {name for name in names(inner) if self.register(name)}

        def at(one: str) -> int:
            return evaluate(inner, lambda n: int(n == one) if n in used else self.lookup(n))

        constant = at("")
        displacement = found.displacement + (self.next if found.rip_relative else 0)
        if (displacement - constant) % 256**self.found.address_size:
            return f"its displacement is {displacement:#x}, not {constant:#x}"
        wanted = {_REGISTERS[n.lower()].index: at(n) - constant for n in used if n.lower() != "rip"}
        have: dict[int, int] = {}
        for index, factor in ((found.base, 1), (found.index, found.scale)):
            if index is not None:
                have[index] = have.get(index, 0) + factor
        return None if have == wanted else "other registers in the address"

    def same_value(self, text: str, found: Imm) -> str | None:
        wanted = self.value(text)
        name = self.found.mnemonic
        if name in {"jmp", "call", "jcxz", "jecxz", "jrcxz"} or name.startswith(("loop", "j")):
            target = self.next + found.value
            return None if target == wanted else f"its target is {target:#x}, not {wanted:#x}"
        same = _fits(wanted, found.size) and (wanted - found.value) % 256**found.size == 0
        return None if same else f"its immediate is {found.value:#x}, not {wanted:#x}"


def _leading(words: Sequence[str]) -> Sequence[str]:
    count = next((i for i, word in enumerate(words) if word not in _PREFIXES), 0)
    return words[:count]
