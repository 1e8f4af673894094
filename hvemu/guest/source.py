r"""From an assembly source to plain statements: includes read, macros and repetitions expanded, conditions decided.

Every statement remembers the file and line it was written on, so that errors and listings can say where. The language
is GNU's: `.macro` with defaults, `:vararg` and `\@`, `.rept`, `.if` and `.else`, `.include`, numeric labels (`1:`, `1b`
and `1f`); `#`, `//` and `/* */` are comments, and `;` separates statements.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hvemu.errors import InputError
from hvemu.guest.expression import ExpressionError, evaluate

LONGEST_SHOWN = 120
"""Characters of a line that an error message repeats."""
MOST_STATEMENTS = 100_000
"""More than this is taken for a macro that uses itself."""

_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\')|(/\*.*?\*/)|(?:\#|//)[^\n]*', re.DOTALL)
_STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'')
_PART = re.compile(r'(?:"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'|[^;])+')
_PIECE = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'|\[[^\]]*\]|\([^)]*\)|.')
_LABEL = re.compile(r"([A-Za-z_.$][\w.$]*|\d+)\s*:(?!:)\s*")
_ASSIGNMENT = re.compile(r"([A-Za-z_.$][\w.$]*)\s*=(?!=)\s*(.+)")
_NUMERIC = re.compile(r"""("(?:\\.|[^"\\])*")|(?<![\w.$])(\d+)([bf])(?![\w.$])""")
_PARAMETER = re.compile(r"\\(\(\)|@|[A-Za-z_]\w*)")
_ENDS = {".macro": ".endm", ".rept": ".endr", ".if": ".endif"}
_STRAY = {*_ENDS.values(), ".else"}


class AssemblyError(InputError):
    """A source that cannot be assembled: file, line, what is wrong, and the line itself."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One label, directive or instruction, and where it was written.

    *files* is the chain of includes, the outermost first. *within* names the macro use that it comes from, if any.
    """

    files: tuple[str, ...]
    number: int
    text: str
    within: str = ""

    @property
    def file(self) -> str:
        """The file it was written in."""
        return self.files[-1]

    @property
    def word(self) -> str:
        """What it begins with: a mnemonic, a directive, the name of a macro."""
        return self.text.split(maxsplit=1)[0]

    @property
    def label(self) -> str | None:
        """The name, if it is a label."""
        match = _LABEL.fullmatch(self.text)
        return match[1] if match else None

    @property
    def rest(self) -> str:
        """All that follows the first word."""
        return self.text[len(self.word) :].strip()

    def error(self, problem: str) -> AssemblyError:
        """Return the error that says where *problem* is."""
        within = f" ({self.within})" if self.within else ""
        text = "".join(c if c.isprintable() else "?" for c in self.text[:LONGEST_SHOWN])
        return AssemblyError(f"{self.file}:{self.number}: {problem}: {text}{within}")


@dataclass(frozen=True, slots=True)
class _Macro:
    """*parameters* maps each name to its default, in order."""

    parameters: dict[str, str]
    vararg: bool
    body: tuple[Statement, ...]


def split_arguments(text: str) -> list[str]:
    """Return the comma-separated parts of *text*; commas in strings, brackets and parentheses do not count."""
    parts = [""]
    for piece in _PIECE.findall(text):
        if piece == ",":
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts] if text.strip() else []


def flatten(text: str, name: str, include_dirs: Sequence[Path]) -> list[Statement]:
    """Return the statements of the source *text*, which the file *name* holds. Raises AssemblyError."""
    return _Reader(include_dirs).read(_statements(text, (name,)))


def _statements(text: str, files: tuple[str, ...]) -> Iterator[Statement]:
    plain = _COMMENT.sub(lambda m: m[1] or "\n" * (m[2] or "").count("\n") or " ", text)
    for number, line in enumerate(plain.split("\n"), 1):
        for part in _PART.findall(line):
            if part.strip():
                statement = Statement(files, number, part.strip())
                if '"' in _STRING.sub("", part):
                    raise statement.error("the string does not end")
                yield statement


class _Reader:
    """A queue of statements: what a directive or a macro stands for is put back at its front."""

    def __init__(self, include_dirs: Sequence[Path]) -> None:
        self.include_dirs = include_dirs
        self.queue: deque[Statement] = deque()
        self.macros: dict[str, _Macro] = {}
        self.constants: dict[str, int] = {}
        self.labels: dict[str, Statement] = {}
        self.numeric: dict[str, int] = {}
        self.uses = 0
        self.plain: list[Statement] = []
        self.directives = {
            ".include": self.include,
            ".macro": self.macro,
            ".rept": self.rept,
            ".if": self.condition,
        }

    def read(self, statements: Iterator[Statement]) -> list[Statement]:
        self.queue.extend(statements)
        taken = 0
        while self.queue:
            taken += 1
            if taken > MOST_STATEMENTS:
                raise self.queue[0].error(f"more than {MOST_STATEMENTS} statements: does a macro use itself?")
            self.one(self.queue.popleft())
        return self.plain

    def one(self, statement: Statement) -> None:
        if not statement.text:
            return  # a macro argument that was not given
        if label := _LABEL.match(statement.text):
            self.label(label[1], statement)
            if rest := statement.text[label.end() :]:
                self.queue.appendleft(replace(statement, text=rest))
        elif assignment := _ASSIGNMENT.fullmatch(statement.text):
            self.queue.appendleft(replace(statement, text=f".set {assignment[1]}, {assignment[2]}"))
        elif handler := self.directives.get(statement.word):
            handler(statement)
        elif statement.word in self.macros:
            self.expand(statement)
        elif statement.word in _STRAY:
            raise statement.error(f"{statement.word} without its beginning")
        else:
            if statement.word in {".set", ".equ"}:
                self.remember(statement)
            self.plain.append(replace(statement, text=_NUMERIC.sub(self.numeric_label, statement.text)))

    def put_back(self, statements: Sequence[Statement]) -> None:
        self.queue.extendleft(reversed(statements))

    def label(self, name: str, statement: Statement) -> None:
        if name.isdigit():
            self.numeric[name] = self.numeric.get(name, 0) + 1
            name = f".L{name}_{self.numeric[name]}"
        elif name in self.labels:
            first = self.labels[name]
            raise statement.error(f"the label {name} is there already, at {first.file}:{first.number}")
        self.labels[name] = statement
        self.plain.append(replace(statement, text=f"{name}:"))

    def numeric_label(self, match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        return f".L{match[2]}_{self.numeric.get(match[2], 0) + (match[3] == 'f')}"

    def remember(self, statement: Statement) -> None:
        """Note a constant, if it is one: what depends on labels has no value yet."""
        parts = split_arguments(statement.rest)
        if len(parts) != 2 or not all(parts):
            raise statement.error(f"{statement.word} takes a name and a value")
        name, text = parts
        try:
            self.constants[name] = evaluate(text, self.constants.get)
        except ExpressionError:
            self.constants.pop(name, None)

    def constant(self, statement: Statement) -> int:
        try:
            return evaluate(statement.rest, self.constants.get)
        except ExpressionError as error:
            raise statement.error(str(error)) from error

    def block(self, start: Statement) -> list[Statement]:
        """Take the statements up to the end that belongs to *start*."""
        end, depth = _ENDS[start.word], 1
        body: list[Statement] = []
        while self.queue:
            statement = self.queue.popleft()
            depth += (statement.word == start.word) - (statement.word == end)
            if not depth:
                return body
            body.append(statement)
        raise start.error(f"no {end} follows")

    # -- directives ------------------------------------------------------------------------------------------------

    def include(self, statement: Statement) -> None:
        name = statement.rest.strip('"')
        path = next((d / name for d in self.include_dirs if (d / name).is_file()), None)
        if path is None:
            raise statement.error("there is no such file to include")
        if str(path) in statement.files:
            raise statement.error("the file includes itself")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise statement.error(f"the file cannot be read ({error})") from error
        self.put_back([*_statements(text, (*statement.files, str(path)))])

    def macro(self, statement: Statement) -> None:
        name, _, rest = statement.rest.partition(" ")
        parameters, vararg = {}, False
        for text in re.findall(r'[^\s,="]+(?:\s*=\s*(?:"[^"]*"|[^\s,]+))?', rest):
            key, _, default = text.partition("=")
            key, _, kind = key.strip().partition(":")
            vararg = kind == "vararg"
            parameters[key] = default.strip().strip('"')
        self.macros[name] = _Macro(parameters, vararg, tuple(self.block(statement)))

    def rept(self, statement: Statement) -> None:
        body, count = self.block(statement), self.constant(statement)
        if count * len(body) > MOST_STATEMENTS:
            raise statement.error(f"more than {MOST_STATEMENTS} statements")
        self.put_back(body * count)

    def condition(self, statement: Statement) -> None:
        depth, branches = 0, {True: list[Statement](), False: list[Statement]()}
        taken = True
        for inner in self.block(statement):
            depth += (inner.word == ".if") - (inner.word == ".endif")
            if inner.word == ".else" and not depth:
                taken = False
            else:
                branches[taken].append(inner)
        self.put_back(branches[bool(self.constant(statement))])

    def expand(self, use: Statement) -> None:
        macro = self.macros[use.word]
        count = len(macro.parameters)
        values = split_arguments(use.rest)
        if macro.vararg and len(values) >= count:
            values[count - 1 :] = [", ".join(values[count - 1 :])]
        elif len(values) > count:
            raise use.error(f"the macro {use.word} takes {count} arguments, not {len(values)}")
        given = [v[1:-1] if v.startswith('"') and v.endswith('"') else v for v in values]
        known = {**macro.parameters, **dict(zip(macro.parameters, given, strict=False))}
        known |= {"@": str(self.uses), "()": ""}
        self.uses += 1
        within = use.within or f"in {use.word}, used at {use.file}:{use.number}"

        def fill(match: re.Match[str]) -> str:
            return known.get(match[1], match[0])

        self.put_back([replace(s, text=_PARAMETER.sub(fill, s.text).strip(), within=within) for s in macro.body])
