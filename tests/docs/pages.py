"""The pages that people read, cut into their fenced blocks, and how each kind of block is held to the truth.

A block of `console` holds commands, each in a line `$ ...`, and what they print. In it a line `...` stands for any
lines, and ` ...` at the end of a line for the rest of that line. A block of `python` is run; a block of `text` right
behind it is what it prints. A block whose first line is a comment with a file name is that file for the commands of the
same page, and `--mode` in the first line of `asm` is the mode in which it is assembled.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from hvemu import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(?P<language>.*)\n(?P<text>(?:.*\n)*?)```$", re.MULTILINE)
_FILE = re.compile(r"# (?P<name>[\w-]+\.(?:asm|toml|log))\b(?:.*--mode (?P<mode>16|32|64))?")
_REST = " ..."


@dataclass(frozen=True)
class Block:
    """What stands between two fences: *line* is that of the first one; *follows* the block right before it, if any."""

    page: Path
    line: int
    language: str
    text: str
    follows: Block | None = None

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that a block is, if it is one."""
        match = _FILE.match(self.text)
        return match["name"] if match else None

    @property
    def mode(self) -> int:
        match = _FILE.match(self.text)
        return int((match and match["mode"]) or 32)


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(encoding="utf-8"), []
    end = -1
    for match in _FENCE.finditer(text):
        near = found and not text[end : match.start()].strip()
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["language"], match["text"], found[-1] if near else None))
        end = match.end()
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def put_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows into *folder*."""
    for block in BLOCKS:
        if block.page == page and block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def as_pattern(shown: str) -> re.Pattern[str]:
    """What a page shows, as a pattern for what is printed."""
    lines = []
    for line in shown.splitlines():
        if line == _REST.strip():
            lines.append("(?:.*\n)*?")
        elif line.endswith(_REST):
            lines.append(f"{re.escape(line.removesuffix(_REST))}.*\n")
        else:
            lines.append(f"{re.escape(line)}\n")
    return re.compile("".join(lines))


def sessions(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a block of console, each with what it shows."""
    first, *parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert first == "", f"{block.name}: it does not begin with a command"
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def hvemu(line: str) -> int:
    """Run a command of hvemu in this process; return its status."""
    program, *arguments = shlex.split(line, comments=True)
    assert Path(program).name == "hvemu", line
    return cli.main(arguments)
