from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pytest

from hvemu.x86.paging import PagingMode
from tests.memory.oracle import CODE, NX, RW, SHAPES, US, A, D, Oracle, P, Shape

FLAG = (False, True)
SETTINGS = [
    dict(zip(("wp", "nxe", "smep", "smap", "ac", "cpl"), values, strict=True))
    for values in itertools.product(FLAG, FLAG, FLAG, FLAG, FLAG, (0, 3))
]
BY_NAME = {shape.name: shape for shape in SHAPES}


def bits(mask: int) -> list[int]:
    return [1 << n for n in range(64) if mask >> n & 1]


def subsets(flags: Iterable[int]) -> Iterator[int]:
    """Yield every union of *flags*."""
    for chosen in itertools.product(*((0, flag) for flag in flags)):
        yield sum(chosen)


class Permuter:
    """The bits of each level of *shape* that can change without leading out of RAM."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.random = shape, random.Random(seed)
        self.rights = [self._rights(n) for n in range(len(shape.entries))]
        self.free = [self._free(n) for n in range(len(shape.entries))]

    def _pae_top(self, level: int) -> bool:
        return self.shape.mode is PagingMode.PAE and level == 0

    def _rights(self, level: int) -> list[int]:
        """The translator does not check the reserved low bits of a PAE PDPTE (docs/deviations.md)."""
        return [P] if self._pae_top(level) else [P, RW, US] if self.shape.size == 4 else [P, RW, US, NX]

    def _free(self, level: int) -> list[int]:
        """Bits with no part in the rights: ignored, memory type, PS, or reserved, and the engine knows which."""
        low = 0xE18 if self._pae_top(level) else 0xF98
        page = level == len(self.shape.entries) - 1
        below = (1 << self.shape.shifts[level]) - 0x1000 if page else 0  # between the flags and the frame
        if self.shape.size == 4:
            return bits(low | below & 1 << 21)  # bits 20:13 are an address beyond RAM
        high = 0x7FF << 52 | 0xFFF << 40
        return bits(low | below | high | (NX if self._pae_top(level) else 0))

    def entries(self, chosen: dict[int, int]) -> tuple[int, ...]:
        """Return the entries with the rights of the *chosen* levels replaced, and A and D at random everywhere."""
        found = []
        for level, entry in enumerate(self.shape.entries):
            used = 0 if self._pae_top(level) else self.random.choice((0, A, D, A | D))
            rights = sum(self.rights[level])
            found.append(used | entry & ~rights | chosen.get(level, entry & rights))
        return tuple(found)

    def permutations(self, levels: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yield all permutations of the rights of *levels*, half of them with one of the free bits."""
        for values in itertools.product(*(subsets(self.rights[level]) for level in levels)):
            chosen = dict(zip(levels, values, strict=True))
            level = self.random.choice(levels)
            if self.random.random() < 1 / 2:
                chosen[level] |= self.random.choice(self.free[level])
            yield self.entries(chosen)

    def sample(self) -> tuple[int, ...]:
        """Return entries with every bit of every level at random, most of them leading somewhere."""
        chosen = {}
        for level, rights in enumerate(self.rights):
            likely = {P: 15, RW: 3, US: 4, NX: 0.2}
            chosen[level] = sum(r for r in rights if self.random.random() < likely[r] / (likely[r] + 1))
            if self.random.random() < 0.15:
                chosen[level] |= self.random.choice(self.free[level])
        return self.entries(chosen)


def compare(shape: Shape, cases: Callable[[], Iterable[tuple[int, ...]]]) -> Counter[str]:
    """Compare every kind of access under all SETTINGS with *cases*, asked for anew each time; count the outcomes."""
    oracle, outcomes = Oracle(shape), Counter()
    for setting in SETTINGS:
        oracle.settle(**setting)
        for kind in CODE:
            for case in cases():
                outcomes[oracle.check(kind, case)] += 1
    return outcomes


# The entry formats once each: the levels above a large page, or below a PML5E, are those of the 4 KiB shape.
ONE_LEVEL = [
    ("32-bit 4K", 0), ("32-bit 4K", 1), ("32-bit 4M", 0), ("32-bit without PSE", 0),
    ("PAE 4K", 0), ("PAE 4K", 1), ("PAE 4K", 2), ("PAE 2M", 1),
    ("4-level 4K", 0), ("4-level 4K", 1), ("4-level 4K", 2), ("4-level 4K", 3), ("4-level 2M", 2), ("4-level 1G", 1),
    ("5-level 4K", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "level"), ONE_LEVEL)
def test_every_permutation_of_one_level(name, level):
    shape = BY_NAME[name]
    compare(shape, partial(Permuter(shape, level).permutations, (level,)))


# SDM 3A "Page-Fault Exceptions": P 1, W/R 2, U/S 4, RSVD 8, I/D 0x10.
NOT_PRESENT = {0x00, 0x02, 0x04, 0x06, 0x10, 0x14}
DENIED = {0x01, 0x03, 0x05, 0x07, 0x11, 0x15}
RESERVED = {0x09, 0x0B, 0x0D, 0x0F, 0x19, 0x1D}
NOTHING_RESERVED = {"32-bit 4K", "32-bit without PSE"}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sample_of_all_permutations_meets_every_error_code(shape):
    permuter = Permuter(shape, 1)
    outcomes = compare(shape, lambda: (permuter.sample() for _ in range(12)))
    codes = NOT_PRESENT | DENIED | (set() if shape.name in NOTHING_RESERVED else RESERVED)
    assert set(outcomes) == {"success", *(f"#PF({code:#x})" for code in codes)}
    assert outcomes["success"] > outcomes.total() / 8


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_permutation_of_two_levels(shape):
    for levels in itertools.combinations(range(len(shape.entries)), 2):
        compare(shape, partial(Permuter(shape, 1).permutations, levels))


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_large_sample_of_all_permutations(shape):
    permuter = Permuter(shape, 2)
    compare(shape, lambda: (permuter.sample() for _ in range(1000)))
