"""Any guest, any sequence: with a shadow, every access ends as without one, and leaves the same memory.

Each step is a number that seeds a generator, so that a failing sequence shrinks to few steps.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.memory.walk import Access
from hvemu.x86.paging import Paging, PagingMode
from tests.memory.shadow_machine import PAGE, PS, XD, A, D, Machine, P, U, W

M = PagingMode
MODES = (M.BITS32, M.PAE, M.LEVEL4)
PAGES = 10  # of guest RAM: all may be tables, data or both
SPANS = {M.BITS32: (22, 12), M.PAE: (30, 21, 12), M.LEVEL4: (39, 30, 21, 12), M.NONE: (12,)}
LAST = {M.BITS32: (1023, 1023), M.PAE: (3, 511, 511), M.LEVEL4: (511, 511, 511, 511), M.NONE: (0xFFFFF,)}
ENTRY = {M.BITS32: 4, M.PAE: 8, M.LEVEL4: 8}
PINNED = (0x0060_0000, 0x0000_5000)  # in a region of its own, and beside the guest's pages
INDICES = (0, 1, 1, 2, -1)  # the numbers of the entries that are used: few, so that they meet
SEEDS = st.integers(0, (1 << 32) - 1)


class Guest:
    """Draws what a guest of one *mode* does."""

    def __init__(self, seed: int, mode: PagingMode) -> None:
        self.random, self.mode = Random(seed), mode

    def chance(self, one_in: int) -> bool:
        return not self.random.randrange(one_in)

    def index(self, mode: PagingMode, level: int) -> int:
        return self.random.choice(INDICES) % (LAST[mode][level] + 1)

    def gva(self, mode: PagingMode) -> int:
        """A byte of an entry, as it would be if the page were a table."""
        gva = sum(self.index(mode, level) << shift for level, shift in enumerate(SPANS[mode]))
        if mode is M.LEVEL4 and gva >> 47 and not self.chance(30):
            gva |= 0xFFFF << 48  # else it is not canonical
        offset = self.index(self.mode, -1) * ENTRY[self.mode]
        return gva + offset + (self.random.randrange(ENTRY[self.mode]) if self.chance(4) else 0)

    def entry(self) -> int:
        """An entry that is mostly permissive, of a page in RAM or just beyond it."""
        flags = sum(flag for flag, one_in in ((P, 24), (W, 8), (U, 8)) if not self.chance(one_in))
        flags |= self.random.choice((0, 0, A, A | D))
        if self.mode is not M.BITS32 and self.chance(16):
            flags |= XD
        if self.chance(12):
            return flags | PS  # maps a large page; in a PTE it is the PAT bit
        return flags | self.random.randint(0, PAGES) * PAGE

    def place(self) -> int:
        """The gpa of an entry."""
        return self.random.randrange(PAGES) * PAGE + self.index(self.mode, -1) * ENTRY[self.mode]

    def paging(self) -> Paging:
        r = self.random
        return Paging(
            mode=M.NONE if self.chance(10) else self.mode,
            root=r.randrange(3) * PAGE + (0x20 if self.mode is M.PAE and self.chance(2) else 0),
            wp=self.chance(2), nxe=self.mode is not M.BITS32 and not self.chance(4), smep=self.chance(2),
            smap=self.chance(3), pse=not self.chance(4),
        )  # fmt: skip

    def access(self) -> Access:
        r = self.random
        kind = r.choices(("read", "write", "fetch", "system"), (4, 6, 2, 1))[0]
        return Access(
            write=kind == "write" or (kind == "system" and self.chance(2)), fetch=kind == "fetch",
            user=kind != "system" and self.chance(3), implicit_supervisor=kind == "system", ac=self.chance(2),
        )  # fmt: skip


def step(machine: Machine, seed: int, mode: PagingMode) -> None:
    """Do one step on *machine*."""
    guest, shadow = Guest(seed, mode), machine.shadow
    size = guest.random.choice((1, 2, 4, 8))
    value = guest.entry() & (1 << 8 * size) - 1
    match guest.random.choices(("access", "dma", "activate", "invlpg", "drop"), (24, 4, 4, 2, 1))[0]:
        case "access":
            gva = guest.gva(shadow.paging.mode)
            size = min(size, PAGE - gva % PAGE)
            if not shadow.tree.pinned(gva):
                machine.access(gva, guest.access(), size, value & (1 << 8 * size) - 1)
        case "dma":
            gpa = guest.place()
            size = min(size, machine.ram - gpa)
            machine.dma(gpa, value & (1 << 8 * size) - 1, size)
        case "activate":
            machine.activate(guest.paging())
        case "invlpg":
            machine.told(shadow.invlpg(guest.gva(shadow.paging.mode)))
        case "drop":
            shadow.drop_all()
            machine.told(True)


def boot(machine: Machine, seed: int, mode: PagingMode) -> None:
    guest = Guest(seed, mode)
    for page in range(PAGES):
        for index in {*INDICES}:
            gpa = page * PAGE + index % (PAGE // ENTRY[mode]) * ENTRY[mode]
            machine.poke(gpa, guest.entry() & (1 << 8 * ENTRY[mode]) - 1, ENTRY[mode])
    machine.activate(guest.paging())


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=SEEDS, steps=st.lists(SEEDS, min_size=20, max_size=60), frames=st.sampled_from((11, 14, 40)),
    trees=st.integers(1, 3), patience=st.integers(0, 3), pins=st.sampled_from(((), PINNED)),
)  # fmt: skip
def test_a_guest_cannot_tell_a_shadow_from_no_tlb(mode, seed, steps, frames, trees, patience, pins) -> None:
    machine = Machine(ram=PAGES * PAGE, frames=frames, pins=pins, trees=trees, patience=patience)
    boot(machine, seed, mode)
    for number in steps:
        step(machine, number, mode)
        machine.check()
