"""An assembled guest: its bytes, its labels, and which source line each byte comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BYTES_PER_ROW = 8


@dataclass(frozen=True, slots=True)
class Line:
    """One statement: the *code* that it became at *address*, and where it was written.

    *source* is its text, macro arguments filled in; *mode* is 16, 32 or 64.
    """

    address: int
    code: bytes
    file: str
    number: int
    source: str
    mode: int


@dataclass(frozen=True, slots=True)
class Program:
    """Flat *code* for *origin*. *symbols* holds every label; *mode* (16, 32, 64) is how it starts."""

    code: bytes
    origin: int
    mode: int
    symbols: Mapping[str, int]
    listing: tuple[Line, ...]

    def __repr__(self) -> str:
        return f"Program({len(self.code):#x} bytes at {self.origin:#x}, mode={self.mode}, {len(self.symbols)} labels)"


def render_listing(program: Program) -> Iterator[str]:
    """Yield the listing: address, bytes, and the source where it is written; a heading for each file."""
    file = None
    for line in program.listing:
        if line.file != file:
            file = line.file
            yield f"; {file}"
        rows = [line.code[i : i + BYTES_PER_ROW] for i in range(0, len(line.code), BYTES_PER_ROW)] or [b""]
        label = line.source.endswith(":") and not line.code
        text = line.source if label else f"    {line.source}"
        yield f"{line.address:08x}  {rows[0].hex(' '):24}{line.number:5}  {text}"
        for i, row in enumerate(rows[1:], 1):
            yield f"{line.address + BYTES_PER_ROW * i:08x}  {row.hex(' ')}"
