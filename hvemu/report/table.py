"""Tables of plain text, aligned, the same on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Cell = str | int | None
"""A number is aligned to the right, and None shown as a dash: it does not apply."""


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """Yield the lines: first *heads*, then *rows*; a column whose first cell is text is aligned to the left."""
    cells = [[_text(cell) for cell in row] for row in rows]
    left = [isinstance(cell, str) for cell in rows[0]]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for row in (heads, *cells):
        parts = (c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True))
        yield "  ".join(parts).rstrip()


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:,}" if isinstance(cell, int) else cell
