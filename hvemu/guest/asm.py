"""The assembler: GNU's language with Intel's operands, encoded by Keystone, every encoding checked.

Keystone can loop for ever or crash on a bad source, so it runs in a child process that is given a few seconds. It knows
neither line numbers nor symbol tables: each statement goes in behind a label of our own, and after the last one comes a
table of all these labels, which tells afterwards where each statement begins.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from hvemu.guest.corrections import CODE_SIZES, IGNORED, Corrected, correct
from hvemu.guest.encoding import is_register, mistake
from hvemu.guest.expression import ExpressionError, Lookup, evaluate, names
from hvemu.guest.program import Line, Program, render_listing
from hvemu.guest.source import AssemblyError, Statement, flatten, split_arguments

__all__ = ["AssemblyError", "Line", "Program", "assemble", "render_listing"]

TIMEOUT = 5.0
"""Seconds of host time for one run of Keystone, which needs milliseconds."""
LARGEST = 2**24
"""Bytes that one `.fill` or `.org` may produce."""
_MARK = ".Lhvemu_"
_FILL = frozenset({".fill", ".skip", ".space", ".zero"})
_SILENT = frozenset({*CODE_SIZES, *IGNORED, *_FILL, ".align", ".balign", ".p2align", ".org", ".ascii", ".set", ".equ"})
_OK = "ok "
_CONSTANTS = frozenset({".set", ".equ"})


def assemble(source: str, *, mode: int, origin: int, name: str, include_dirs: Sequence[Path] = ()) -> Program:
    """Return the program that *source*, the text of the file *name*, stands for in *mode*-bit code (16, 32, 64).

    *origin* is the address of its first byte. Raises AssemblyError: one line with the file, the line and the problem.
    """
    return _program(tuple(flatten(source, name, include_dirs)), mode, origin, name)


@lru_cache(maxsize=64)
def _program(statements: tuple[Statement, ...], mode: int, origin: int, name: str) -> Program:
    modes, corrected = _prepare(statements, mode, origin)
    code, places = _encode(statements, corrected, mode, origin)
    lines = []
    for i, (statement, fix) in enumerate(zip(statements, corrected, strict=True)):
        part = code[places[i] - origin : places[i + 1] - origin]
        part = fix.patch(part)
        lines.append(Line(places[i], part, statement.file, statement.number, statement.text, modes[i]))
    symbols = {s.label: place for s, place in zip(statements, places, strict=False) if s.label}
    _check_encodings(statements, lines, symbols)
    if not code:
        raise AssemblyError(f"{name}: the source assembles to nothing")
    shown = {label: place for label, place in symbols.items() if not label.startswith(".L")}
    return Program(b"".join(line.code for line in lines), origin, mode, shown, tuple(lines))


def _prepare(statements: Sequence[Statement], mode: int, origin: int) -> tuple[list[int], list[Corrected]]:
    """Return the code size at each statement, and what Keystone is to be given for it."""
    modes, corrected = [], []
    constants: dict[str, int] = {}
    for statement in statements:
        mode = CODE_SIZES.get(statement.word, mode)
        modes.append(mode)
        if statement.word in _CONSTANTS:
            _define(statement, constants, constants.get)
        elif statement.word in _FILL or statement.word == ".org":
            _check_size(statement, origin, constants)
        elif statement.label and is_register(statement.label):
            raise statement.error(f"{statement.label} is a register and cannot be a label")
        corrected.append(correct(statement, mode, constants))
    return modes, corrected


def _define(statement: Statement, constants: dict[str, int], lookup: Lookup) -> None:
    """Put what a `.set` says into *constants*, if it has a value yet."""
    name, text = split_arguments(statement.rest)
    try:
        constants[name] = evaluate(text, lookup)
    except ExpressionError:
        constants.pop(name, None)


def _check_size(statement: Statement, origin: int, constants: Mapping[str, int]) -> None:
    """Raise AssemblyError for a directive that would fill the memory of the host."""
    try:
        size = evaluate(statement.rest.split(",")[0], constants.get) - (origin if statement.word == ".org" else 0)
    except ExpressionError:
        return  # it depends on labels, which all lie in the program, or Keystone will refuse it
    if not 0 <= size <= LARGEST:
        raise statement.error(f"from 0 to {LARGEST:#x} bytes, not {size:#x}")


def _check_encodings(statements: Sequence[Statement], lines: Sequence[Line], symbols: Mapping[str, int]) -> None:
    """Raise AssemblyError for the first statement whose bytes do not mean what it says."""
    constants: dict[str, int] = {}

    def value(name: str) -> int | None:
        return constants.get(name, symbols.get(name))

    for statement in statements:  # a constant may be used before it is defined: then it has its last value
        if statement.word in _CONSTANTS:
            _define(statement, constants, value)
    for statement, line in zip(statements, lines, strict=True):
        if statement.word in _CONSTANTS:
            _define(statement, constants, value)
        elif problem := mistake(statement, line.code, line.address, line.mode, value):
            raise statement.error(problem)


# -- Keystone, at arm's length -----------------------------------------------------------------------------------------


def _encode(
    statements: Sequence[Statement], corrected: Sequence[Corrected], mode: int, origin: int
) -> tuple[bytes, list[int]]:
    """Return the bytes, and the address of each statement and of the end."""
    text = "".join(f"{_MARK}{i}:\n{fix.text}\n" for i, fix in enumerate(corrected))
    count = len(corrected) + 1
    marks = ", ".join(f"{_MARK}{i}" for i in range(count))
    output = _keystone({"mode": mode, "origin": origin, "texts": [f"{text}{_MARK}{count - 1}:\n.quad {marks}\n"]})
    answer = output[-1] if output else "the assembler crashes or loops"
    if answer.startswith(_OK):
        whole = bytes.fromhex(answer.removeprefix(_OK))
        size = len(whole) - 8 * count
        places = [*struct.unpack_from(f"<{count}Q", whole, size)] if size >= 0 else []
        # It may also stop half way in silence: then the table is not there, or does not fit
        if places == sorted(places) and places[:1] == [origin] and places[-1] == origin + size:
            return whole[:size], places
        answer = "the assembler drops a part of this file"
    raise _located(statements, corrected, mode, origin) or AssemblyError(f"{statements[0].file}: {answer}")


def _located(
    statements: Sequence[Statement], corrected: Sequence[Corrected], mode: int, origin: int
) -> AssemblyError | None:
    """Return the error of the statement that Keystone refuses, drops, loops or crashes on, tried one at a time."""
    known = [s.label for s in statements if s.label]
    known += [split_arguments(s.rest)[0] for s in statements if s.word in _CONSTANTS]
    answers = _keystone(
        {
            "mode": mode,
            "origin": origin,
            "texts": _alone(statements, corrected, mode),
            "known": known,
        }
    )
    for i, statement in enumerate(statements):
        if i == len(answers):
            return statement.error("the assembler crashes or loops on this")
        if not answers[i].startswith(_OK):
            return statement.error(answers[i])
        if answers[i] == _OK and not statement.label and statement.word not in _SILENT:
            return statement.error("the assembler makes nothing of this")
        if statement.word in _CONSTANTS and (missing := {*names(statement.rest)} - {*known}):
            return statement.error(f"there is no label or constant {min(missing)}")
    return None


def _alone(statements: Sequence[Statement], corrected: Sequence[Corrected], mode: int) -> list[str]:
    """Return a text for each statement that has all it needs from the others: the code size, constants, no labels."""
    constants: dict[str, int] = {}
    code_size, texts = f".code{mode}", []
    for statement, fix in zip(statements, corrected, strict=True):
        if statement.word in CODE_SIZES:
            code_size = fix.text
        if statement.word in _CONSTANTS:
            _define(statement, constants, constants.get)
        given = [f".set {name}, {constants[name]:#x}" for name in names(statement.text) if name in constants]
        texts.append("" if statement.label else "\n".join([code_size, *given, fix.text]))
    return texts


def _keystone(job: dict[str, object]) -> list[str]:
    """Return a line of output for each text of *job*, fewer when Keystone crashed or had to be ended."""
    paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    command = [sys.executable, "-P", "-c", "from hvemu.guest.asm import _child; _child()"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        result = subprocess.run(  # noqa: S603 - our own interpreter and our own code
            command, input=json.dumps(job).encode(), capture_output=True, env=environment, timeout=TIMEOUT, check=False
        )
        output = result.stdout
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
    return output.decode().splitlines()


def _child() -> None:
    """Assemble the texts of the job on standard input, one line of output for each. Runs in the child process."""
    import keystone  # noqa: PLC0415 - only the child needs it

    job = json.load(sys.stdin)
    modes = {16: keystone.KS_MODE_16, 32: keystone.KS_MODE_32, 64: keystone.KS_MODE_64}
    unknown: list[str] = []

    def resolve(name: bytes, value: Sequence[int]) -> bool:
        if name.decode() not in job["known"]:
            unknown.append(name.decode())
        value[0] = job["origin"]  # type: ignore[index] # a ctypes pointer
        return True

    for text in job["texts"]:
        assembler = keystone.Ks(keystone.KS_ARCH_X86, modes[job["mode"]])
        if "known" in job:
            assembler.sym_resolver = resolve
        try:
            code, _ = assembler.asm(text.encode(), job["origin"])
            answer = _OK + bytes(code or b"").hex()
        except keystone.KsError as error:
            answer = str(error).split(" (KS_")[0].lower()
        answer = f"there is no label or constant {unknown[0]}" if unknown else answer
        unknown.clear()
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
