"""Labels of a guest: from an address to a name, and from what a person types to an address."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from difflib import get_close_matches

from hvemu.errors import InputError

_BEYOND = 0x1000
"""Bytes behind the last label that still belong to it."""
_TERM = re.compile(r"\s*([+-]?)\s*([^\s+-]+)")
_HEX = re.compile(r"0x[0-9a-f]+")


class Symbols:
    """The *table* of labels: gva by name. *register* reads a register by its name, or returns None."""

    def __init__(self, table: Mapping[str, int], register: Callable[[str], int | None]) -> None:
        self.table, self._register = table, register
        first: dict[int, str] = {}
        for name, gva in table.items():
            first.setdefault(gva, name)
        self._names = first
        self._sorted = sorted(first)

    def name(self, gva: int) -> str:
        """Return ` <label+0x4>` for *gva*, or nothing where there is no label below it."""
        i = bisect_right(self._sorted, gva) - 1
        if i < 0 or gva >= self._sorted[-1] + _BEYOND:
            return ""
        distance = gva - self._sorted[i]
        return f" <{self._names[self._sorted[i]]}{f'+{distance:#x}' if distance else ''}>"

    def at(self, gva: int) -> list[str]:
        """Return the labels of exactly *gva*."""
        return [name for name, place in self.table.items() if place == gva]

    def annotate(self, text: str) -> str:
        """Return *text* with the label behind every number in it that is exactly a label's address."""
        found = [self._names.get(int(number, 0)) for number in _HEX.findall(text)]
        return text + "".join(f" <{name}>" for name in found if name)

    def address(self, text: str) -> int:
        """Return the address that *text* means: labels, registers and numbers, added and subtracted.

        Labels come before registers. Numbers are decimal, or hexadecimal with 0x. Raises InputError.
        """
        total, position = 0, 0
        while position < len(text):
            term = _TERM.match(text, position)
            if term is None or (position and not term[1]):
                raise InputError(f"{text}: not an address: write a number, a label or a register, as in start+0x10")
            value = self._term(term[2])
            total += -value if term[1] == "-" else value
            position = term.end()
        if total < 0:
            raise InputError(f"{text}: negative")
        return total

    def _term(self, word: str) -> int:
        if word in self.table:
            return self.table[word]
        register = self._register(word.lower())
        if register is not None:
            return register
        try:
            return int(word, 0)
        except ValueError:
            near = get_close_matches(word, self.table, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{word}: no label, register or number (hexadecimal needs 0x){hint}") from None
