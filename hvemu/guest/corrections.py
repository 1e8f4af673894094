"""Statements that Keystone refuses or gets wrong without a word, said so that it gets them right.

In 32-bit code it puts an operand-size prefix before far jumps, LGDT and its family, IRET, PUSHF and PUSH of a segment
register; in 16-bit code before RET, CALL and PUSH. It gives PUSH of a label one byte. Such a statement is spelled out
in bytes, or, where it has a memory operand, assembled as INVLPG, which is encoded alike and comes out right, and put
right afterwards. Of two names in one address it forgets the second, and an option that it forgets to initialize makes
it read decimal numbers as hexadecimal ones at times: so constants in addresses are given as numbers, and all in hex.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hvemu.bits import Register, bits
from hvemu.guest.source import Statement

ALLOWED = frozenset(
    ".byte .word .short .long .int .quad .ascii .asciz .string .fill .skip .space .zero .align .balign .p2align .org"
    " .set .equ .code16 .code32 .code64".split()
)
"""The directives passed on. Others make Keystone crash, loop for ever, or are ignored by it."""
IGNORED = frozenset(".globl .global .text .intel_syntax .type .size".split())
"""What is true anyway, or has no meaning without a linker."""
CODE_SIZES = {".code16": 16, ".code32": 32, ".code64": 64}
_NASM = {
    "db": ".byte", "dw": ".word", "dd": ".long", "dq": ".quad", "resb": ".skip", "times": ".fill or .rept",
    "bits": "--mode, .code16, .code32 or .code64", "use16": ".code16", "use32": ".code32", "org": ".org",
    "section": "nothing: a guest is one piece", "segment": "nothing: a guest is one piece",
    "global": "nothing: every label is known", "extern": "nothing: there is no linker", "align": ".balign",
    "incbin": "nothing of the kind", "%define": ".set", "%assign": ".set", "%macro": ".macro", "%rep": ".rept",
    "%include": ".include", "%if": ".if", "equ": ".set NAME, value",
}  # fmt: skip
_INSTRUCTION = re.compile(r"[A-Za-z][A-Za-z0-9]*(\s.*)?", re.DOTALL)
_FAR = re.compile(r"(?:far\s+)?([^\[\]:,]+)[:,]([^\[\]:,]+)")
_POINTER = re.compile(r"^(?:[a-z]+\s+)?ptr\s+")
_TABLES = {"sgdt": 0, "sidt": 1, "lgdt": 2, "lidt": 3}
_FAR_OPCODES = {"ljmp": 0xEA, "jmp": 0xEA, "lcall": 0x9A, "call": 0x9A}
_PREFIXES = {"data16": (0x66, 32), "data32": (0x66, 16), "addr16": (0x67, 32), "addr32": (0x67, 16)}
_SEGMENTS = {
    "push": {"es": "0x06", "cs": "0x0e", "ss": "0x16", "ds": "0x1e"},
    "pop": {"es": "0x07", "ss": "0x17", "ds": "0x1f"},
}
_BYTES = {
    16: {"ret": "0xc3", "retf": "0xcb", "lret": "0xcb"},
    32: {"iret": "0xcf", "pushf": "0x9c", "popf": "0x9d", "lret": "0xcb"},
    64: {"iret": "0xcf", "pushf": "0x9c", "popf": "0x9d", "sysret": "0x0f, 0x07", "sysretq": "0x48, 0x0f, 0x07",
         "sysexit": "0x0f, 0x35", "sysexitq": "0x48, 0x0f, 0x35", "lret": "0xcb"},
}  # fmt: skip
_REGISTER = re.compile(r"(?:[re]?(?:[abcd]x|[sd]i|[sb]p)|r\d+[dwb]?|[c-gs]s|.*\bptr\b.*|.*\[.*)")
_NAME = re.compile(r"[A-Za-z_.$][\w.$]*")
_ADDRESS = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])')|(\[[^\]]*\])""")
_DECIMAL = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'|st\(\d\))|(?<![\w.$])(\d{1,20})(?![\w.$])""")


class ModRm(Register):
    """The operand byte of an instruction."""

    reg = bits(5, 3)


@dataclass(frozen=True, slots=True)
class Corrected:
    """What Keystone is given for one statement, and the ModRM.reg to be set in what it returns, if any."""

    text: str
    reg: int | None = None

    def patch(self, code: bytes) -> bytes:
        """Return *code* as it was meant."""
        opcode = b"\x0f\x01"
        if self.reg is None or opcode not in code:
            return code
        at = code.index(opcode) + len(opcode)
        return code[:at] + bytes([ModRm(code[at]).replace(reg=self.reg)]) + code[at + 1 :]


def correct(statement: Statement, mode: int, constants: Mapping[str, int]) -> Corrected:
    """Return what to give Keystone for *statement* in *mode*-bit code. Raises AssemblyError for another language."""

    def fold(address: re.Match[str]) -> str:
        return address[1] or _NAME.sub(lambda m: hex(constants[m[0]]) if m[0] in constants else m[0], address[2])

    corrected = _reworded(statement, mode)
    text = _ADDRESS.sub(fold, corrected.text)
    return replace(corrected, text=_DECIMAL.sub(lambda m: m[1] or hex(int(m[2])), text))


def _reworded(statement: Statement, mode: int) -> Corrected:
    word, rest = statement.word, statement.rest
    if statement.label or word in ALLOWED:
        return Corrected(statement.text)
    if word in IGNORED:
        return Corrected("")
    _check_language(statement)
    if word in _PREFIXES and rest:
        return _prefixed(statement, mode)
    return _instruction(statement, word.lower(), rest, mode)


def _check_language(statement: Statement) -> None:
    for word in (statement.word, statement.rest.split(" ")[0]):
        here = _NASM.get(word.lower())
        if here and (word == statement.word or word.lower() == "equ"):
            raise statement.error(f"`{word}` belongs to NASM; here it is {here}")
    if statement.word.startswith("."):
        raise statement.error(f"the directive {statement.word} is not known here")
    if not _INSTRUCTION.fullmatch(statement.text):
        raise statement.error("neither a label nor a directive nor an instruction")


def _prefixed(statement: Statement, mode: int) -> Corrected:
    """A size prefix written out: the instruction is corrected as if the code had the other size."""
    byte, only_in = _PREFIXES[statement.word]
    if mode != only_in:
        raise statement.error(f"{statement.word} changes nothing in {mode}-bit code")
    word, _, rest = statement.rest.partition(" ")
    inner = _instruction(statement, word.lower(), rest.strip(), mode, prefixed=byte == _PREFIXES["data32"][0])
    return Corrected(f".byte {byte:#x}\n{inner.text}", inner.reg)


def _instruction(statement: Statement, word: str, rest: str, mode: int, *, prefixed: bool = False) -> Corrected:
    far = _FAR.fullmatch(rest)
    if word in _FAR_OPCODES and far:
        if mode == 64:
            raise statement.error("64-bit code has no direct far transfer")
        size = ".word" if (mode == 16) != prefixed else ".long"
        return Corrected(f".byte {_FAR_OPCODES[word]:#x}\n{size} {far[2].strip()}\n.word {far[1].strip()}")
    if word in _TABLES:
        return Corrected(f"invlpg {_POINTER.sub('', rest)}", _TABLES[word])
    if word in _FAR_OPCODES and rest.startswith("fword ptr"):
        return Corrected(f"l{word.removeprefix('l')} {_POINTER.sub('', rest)}")
    if not rest and word in _BYTES[mode]:
        return Corrected(f".byte {_BYTES[mode][word]}")
    if mode == 32 and rest.lower() in (segments := _SEGMENTS.get(word, {})):
        return Corrected(f".byte {segments[rest.lower()]}")
    if mode == 16 and word in {"call", "push"} and not _REGISTER.fullmatch(rest):
        return Corrected(f".byte 0xe8\n.word {rest} - . - 2" if word == "call" else f".byte 0x68\n.word {rest}")
    if word == "push" and rest[:1].isalpha() and not _REGISTER.fullmatch(rest):
        return Corrected(f".byte 0x68\n.long {rest.removeprefix('offset ')}")
    return Corrected(re.sub(r"\boffset\s+", "", f"{word} {rest}"))
