"""What a shadow knows about guest pages: which of them are page tables, used where, and which leaves may write to them.

Pages are named by hpa, so that two gpas of one page are one page. A page that holds a table is *traced*: no leaf may
write to it, so that every store into it stops and can be followed up. The owner of the shadow can have others traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from hvemu.memory.shadow_tree import PAGE, ShadowTree
from hvemu.memory.walk import Step


class Use(NamedTuple):
    """A guest table's place in one tree: its entry number n maps *span* bytes from gva *origin* + n * *span*.

    A PDPT of PAE paging may begin inside its page; what lies before and after it then maps to gvas outside the tree.
    """

    tree: ShadowTree
    origin: int
    span: int
    entry_size: int

    @classmethod
    def of(cls, tree: ShadowTree, gva: int, step: Step) -> Use:
        """Return the use that the walk of *gva* made of the table with *step*'s entry."""
        number = step.entry_gpa % PAGE // step.entry_size
        return cls(tree, (gva // step.span - number) * step.span, step.span, step.entry_size)

    def range(self, offset: int, size: int) -> tuple[int, int]:
        """Return (gva, size) of what the entries in the *size* bytes from *offset* of the table's page map."""
        first, last = offset // self.entry_size, (offset + size - 1) // self.entry_size
        return self.origin + first * self.span, (last - first + 1) * self.span


@dataclass(slots=True, eq=False)
class TracedPage:
    """A page with guest tables in it. *writes*: stores into it since a walk last went through it."""

    uses: dict[Use, None] = field(default_factory=dict)  # an ordered set, so that a run can be repeated
    writes: int = 0


class Traces:
    """The traced pages, and for every page the leaves (tree, gva) that may write to it."""

    def __init__(self) -> None:
        self._pages: dict[int, TracedPage] = {}
        self._writers: dict[int, dict[tuple[ShadowTree, int], None]] = {}
        self._tables: dict[ShadowTree, dict[Use, int]] = {}  # the same as _pages, by tree
        self._watched: set[int] = set()

    def __contains__(self, hpa: int) -> bool:
        """Whether the page at *hpa* is traced."""
        return hpa in self._pages or hpa in self._watched

    def __iter__(self) -> Iterator[int]:
        """Yield the hpa of every traced page."""
        return iter(sorted(self._pages.keys() | self._watched))

    def watch(self, pages: set[int]) -> bool:
        """Trace the *pages* (hpa) too, whatever is in them, and no longer those named before.

        Return whether any leaf was made read-only.
        """
        new, self._watched = pages - self._watched, set(pages)
        return sum(self._protect(hpa) for hpa in sorted(new)) > 0

    def get(self, hpa: int) -> TracedPage | None:
        """Return what is known about a traced page."""
        return self._pages.get(hpa)

    def add(self, hpa: int, use: Use) -> bool:
        """Record that a walk went through a table in the page at *hpa*; return whether any leaf was made read-only."""
        first = hpa not in self._pages
        page = self._pages.setdefault(hpa, TracedPage())
        page.uses[use], page.writes = None, 0
        before = self._tables.setdefault(use.tree, {}).setdefault(use, hpa)
        assert before == hpa, f"the table for gva {use.origin:#x} moved from {before:#x} to {hpa:#x} without a word"
        return first and self._protect(hpa)

    def remove(self, use: Use) -> None:
        """Forget *use*; a page without uses is no longer traced."""
        hpa = self._tables[use.tree].pop(use)
        page = self._pages[hpa]
        del page.uses[use]
        if not page.uses:
            del self._pages[hpa]

    def below(self, tree: ShadowTree, start: int, size: int, span: int) -> list[Use]:
        """Return the uses of lower levels than entries of *span* bytes are, in the *size* bytes from gva *start*."""
        uses = self._tables.get(tree, {})
        return [use for use in uses if use.span < span and start <= use.origin < start + size]

    def forget(self, tree: ShadowTree) -> None:
        """Forget all uses of *tree*."""
        for use in [*self._tables.get(tree, ())]:
            self.remove(use)

    def writer(self, hpa: int, tree: ShadowTree, gva: int, writes: bool) -> None:
        """Record whether the leaf of *tree* for *gva* may write to the page at *hpa*."""
        if writes:
            assert hpa not in self, f"the traced page {hpa:#x} is writable at gva {gva:#x}"
            self._writers.setdefault(hpa, {})[tree, gva] = None
        elif (writers := self._writers.get(hpa)) is not None:
            writers.pop((tree, gva), None)
            if not writers:
                del self._writers[hpa]

    def _protect(self, hpa: int) -> bool:
        """Take W from all leaves of the page at *hpa*."""
        writers = self._writers.pop(hpa, {})
        for tree, gva in writers:
            tree.set_leaf(gva, tree.leaf(gva).replace(w=0))
        return bool(writers)
