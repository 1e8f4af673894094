"""Shadow paging: the page tables that the processor walks are a cache of what the guest's page tables say.

A shadow is a TLB in the form of page tables. A leaf is made when the guest touches a page, by a walk of the guest's own
tables under the guest's own rules; every table on the way is traced from then on, and a store into it removes the
leaves that came from the entries it changed. So a leaf never outlives the entries it was made of: the guest sees a
processor without a TLB, which every guest that flushes correctly can run on. Losing leaves costs time only.

The processor must run with CR0.WP and EFER.NXE set, and with the guest's CR4.SMEP and CR4.SMAP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from hvemu.memory.frames import Frames
from hvemu.memory.physical import Physical
from hvemu.memory.shadow_trace import TracedPage, Traces, Use
from hvemu.memory.shadow_tree import PAGE, ShadowEntry, ShadowTree, leaf
from hvemu.memory.walk import Access, Meaning, Walk, explain, walk
from hvemu.x86.paging import Paging, PagingMode
from hvemu.x86.vectors import Fault

_LEVELS = {PagingMode.LEVEL4: 4, PagingMode.LEVEL5: 5}
_PAE = 3


class Cause(Enum):
    """Why an access that the guest's tables allow did not pass through the shadow, and what is to be done."""

    HIDDEN = "there was no leaf, or one with too few rights: now there is; retry"
    WP_OFF = "a supervisor store to a user's read-only page under CR0.WP=0: the page is now the supervisor's; retry"
    TRACED_WRITE = "a store into a page table: emulate the instruction and call written()"
    MMIO = "no RAM: emulate the instruction"
    UNMAPPABLE = "no leaf can say what the guest's tables say: emulate the instruction"
    CONFLICT = "the guest maps a page where one is pinned: move the pin, or emulate the instruction"


@dataclass(frozen=True, slots=True)
class ShadowFault:
    """What a page fault of the processor was: its *cause*, the *gpa* accessed, whether to *flush* the TLB now."""

    cause: Cause
    gpa: int
    flush: bool = False

    @property
    def retry(self) -> bool:
        """Whether the instruction passes now."""
        return self.cause in (Cause.HIDDEN, Cause.WP_OFF)


@dataclass(slots=True)
class ShadowCounters:
    """What the shadow cost. *faults*: by cause; *zaps*: leaves removed; *flushes*: how often one was asked for."""

    faults: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))
    reflected: int = 0  # page faults that the guest's own tables call for
    zaps: int = 0
    flushes: int = 0
    untraced: int = 0  # pages that took too many stores without a walk
    trees: int = 0  # made
    drops: int = 0  # of everything, for want of frames or by request


class Shadow:
    """The shadow page tables of one virtual processor.

    *guest* is memory by gpa, *host* by hpa; *to_host* gives the hpa of a gpa, or None where there is no guest RAM, page
    by page. Tables come from *frames*, of which one tree with the pins must find enough; at most *trees* are kept, one
    per Paging. A page is no longer traced after *patience* stores with no walk through it between them.
    """

    def __init__(
        self, guest: Physical, host: Physical, frames: Frames, to_host: Callable[[int], int | None],
        *, trees: int = 8, patience: int = 16,
    ) -> None:  # fmt: skip
        self._guest, self._host, self._frames, self._to_host = guest, host, frames, to_host
        self._limit, self._patience = trees, patience
        self._trees: dict[Paging, ShadowTree] = {}  # the one used last at the end
        self._pins: dict[int, ShadowEntry] = {}
        self._paging: Paging | None = None
        self.traces = Traces()
        self.counters = ShadowCounters()

    @property
    def paging(self) -> Paging:
        """The guest's paging. Raises AssertionError before the first activate()."""
        assert self._paging is not None, "no paging was activated"
        return self._paging

    @property
    def tree(self) -> ShadowTree:
        """The active tree."""
        return self._trees[self.paging]

    def activate(self, paging: Paging) -> int:
        """Use the tree for *paging*; return its root (hpa), to be loaded into CR3, which flushes the TLB.

        Raises MemoryError when even the first tree does not find enough frames.
        """
        tree = self._trees.pop(paging, None)
        if tree is None:
            tree = self._make_tree(_LEVELS.get(paging.mode, _PAE))
        self._trees[paging], self._paging = tree, paging
        return tree.root

    def fault(self, gva: int, access: Access) -> ShadowFault:
        """Find out why *access* to *gva* trapped, and make the leaf that lets it pass, if one can.

        Sets accessed and dirty bits in the guest's tables as the access does. Raises the Fault that the guest's own
        tables call for.
        """
        try:
            found = walk(self.paging, self._guest.read, gva, access, self._guest.write)
        except Fault:
            self.counters.reflected += 1
            raise
        try:
            result = self._resolve(gva, access, found)
        except MemoryError:
            self.drop_all()
            result = replace(self._resolve(gva, access, found), flush=True)
        self.counters.faults[result.cause] += 1
        self.counters.flushes += result.flush
        return result

    def written(self, gpa: int, size: int) -> bool:
        """Follow up a store of *size* bytes at *gpa* by anyone but the processor; return whether to flush the TLB."""
        flush, end = False, gpa + size
        while gpa < end:
            part = min(end - gpa, PAGE - gpa % PAGE)
            flush |= self._page_written(gpa, part)
            gpa += part
        self.counters.flushes += flush
        return flush

    def invlpg(self, gva: int) -> bool:
        """Drop the leaf for *gva*; return whether to flush the TLB. The guest's tables are followed without it too."""
        flush = self._zap(self.tree, self.tree.fold(gva), PAGE, PAGE)
        self.counters.flushes += flush
        return flush

    def drop_all(self) -> None:
        """Drop every leaf, and every tree but the active one, whose root stays. The caller flushes the TLB."""
        for paging in [*self._trees]:
            if paging == self._paging:
                self._empty(self._trees[paging])
            else:
                self._evict(paging)
        self.counters.drops += 1

    def pin(self, gva: int, hpa: int, *, writable: bool = False) -> None:
        """Map the page at *hpa*, the caller's own, at *gva* in every tree that reaches it: supervisor, no execution.

        A guest kernel in ring 1 can read it: paging cannot tell it from ring 0. The caller flushes the TLB.
        """
        assert gva % PAGE == hpa % PAGE == 0, f"a pin maps a page: gva {gva:#x}, hpa {hpa:#x}"
        entry = self._pins[gva] = leaf(hpa, w=writable, u=False, nx=True)
        try:
            for tree in self._trees.values():
                self._pin(tree, gva, entry)
        except MemoryError:
            self.drop_all()
            self._pin(self.tree, gva, entry)

    def unpin(self, gva: int) -> None:
        """Take a pinned page out of every tree. The caller flushes the TLB."""
        del self._pins[gva]
        for tree in self._trees.values():
            tree.unpin(gva)

    def conflict(self, gva: int) -> bool:
        """Whether the guest maps anything at *gva*, which a pin there would hide. Without paging RAM alone counts."""
        steps = explain(self.paging, self._guest.read, gva)
        return steps[-1].meaning is Meaning.PAGE if steps else self._to_host(gva) is not None

    def _resolve(self, gva: int, access: Access, found: Walk) -> ShadowFault:
        """Make the leaf, or say why not. Raises MemoryError when frames run out."""
        tree, hpa = self.tree, self._to_host(found.gpa)
        tables = [self._to_host(step.entry_gpa) for step in found.steps]
        taken = _taken(access, found)
        if tree.pinned(gva):
            return ShadowFault(Cause.CONFLICT, found.gpa)
        if hpa is None:
            return ShadowFault(Cause.MMIO, found.gpa)
        if None in tables or (taken and self.paging.smap):  # SMAP protects users' pages alone
            return ShadowFault(Cause.UNMAPPABLE, found.gpa)
        flush, hpa = False, _page(hpa)
        for step, table in zip(found.steps, tables, strict=True):
            flush |= self.traces.add(_page(table), Use.of(tree, tree.fold(gva), step))
        self._map(tree, tree.fold(gva), self._leaf(hpa, access, found))
        if access.write and hpa in self.traces:
            return ShadowFault(Cause.TRACED_WRITE, found.gpa, flush)
        return ShadowFault(Cause.WP_OFF if taken else Cause.HIDDEN, found.gpa, flush)

    def _leaf(self, hpa: int, access: Access, found: Walk) -> ShadowEntry:
        """Return the leaf for *found*. W waits for the guest's D bit, so that the store that must set it traps.

        Without paging SMEP and SMAP mean nothing to the guest, but much to the processor: a page then follows its user.
        """
        taken, paging = _taken(access, found), self.paging
        own = not found.steps and not access.user and (paging.smep or paging.smap)
        writable = found.writable or taken or not (paging.wp or found.user)
        dirty = found.dirty or not found.steps
        return leaf(
            hpa, w=writable and dirty and hpa not in self.traces, u=found.user and not (taken or own),
            nx=not found.executable or (taken and paging.smep),  # what SMEP did while it was a user's page
        )  # fmt: skip

    def _map(self, tree: ShadowTree, gva: int, entry: ShadowEntry) -> None:
        """Set a leaf. Rights that the one before had more are still right, as the guest's tables are the same."""
        old = tree.leaf(gva)
        tree.set_leaf(gva, entry)
        if old.w:
            self.traces.writer(old.hpa, tree, gva, writes=False)
        if entry.w:
            self.traces.writer(entry.hpa, tree, gva, writes=True)

    def _page_written(self, gpa: int, size: int) -> bool:
        """Follow up a store inside one page."""
        hpa = self._to_host(gpa)
        page = None if hpa is None else self.traces.get(_page(hpa))
        if page is None:
            return False
        page.writes += 1
        if page.writes > self._patience:
            return self._untrace(page)
        flush = False
        for use in [*page.uses]:
            flush |= self._zap(use.tree, *use.range(gpa % PAGE, size), use.span)
        return flush

    def _untrace(self, page: TracedPage) -> bool:
        """Drop all that came from the tables in *page*, which the guest may then write to."""
        self.counters.untraced += 1
        flush = False
        for use in [*page.uses]:
            flush |= self._zap(use.tree, *use.range(0, PAGE), use.span)
            if use in page.uses:  # not when the table mapped itself
                self.traces.remove(use)
        return flush

    def _zap(self, tree: ShadowTree, start: int, size: int, span: int) -> bool:
        """Drop the leaves in *size* bytes from *start*, and the uses of tables under entries of *span* bytes there.

        Return whether the TLB may hold anything of it: a leaf, or a table of the tree that is gone.
        """
        before = self._frames.free_count
        removed = tree.clear(start, size)
        for gva, entry in removed:
            if entry.w:
                self.traces.writer(entry.hpa, tree, gva, writes=False)
        for use in self.traces.below(tree, start, size, span):
            self.traces.remove(use)
        self.counters.zaps += len(removed)
        return bool(removed) or self._frames.free_count > before

    def _pin(self, tree: ShadowTree, gva: int, entry: ShadowEntry) -> None:
        if not tree.pinned(gva):
            self._zap(tree, tree.fold(gva), PAGE, PAGE)
        tree.pin(gva, entry)

    def _empty(self, tree: ShadowTree) -> None:
        self._zap(tree, 0, tree.space, 0)
        self.traces.forget(tree)

    def _evict(self, paging: Paging) -> None:
        tree = self._trees.pop(paging)
        self._empty(tree)
        tree.destroy()

    def _make_tree(self, levels: int) -> ShadowTree:
        """Return a new tree, for which old ones may have to go."""
        while len(self._trees) >= self._limit:
            self._evict(next(iter(self._trees)))
        self.counters.trees += 1
        try:
            return ShadowTree(self._host, self._frames, levels, self._pins)
        except MemoryError:
            for paging in [*self._trees]:
                self._evict(paging)
            self.counters.drops += 1
            return ShadowTree(self._host, self._frames, levels, self._pins)


def _taken(access: Access, found: Walk) -> bool:
    """Whether a store passes for CR0.WP=0 alone. With W for it, the page must be kept from users, who may not write."""
    return access.write and found.user and not found.writable


def _page(hpa: int | None) -> int:
    assert hpa is not None
    return hpa // PAGE * PAGE
