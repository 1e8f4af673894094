from __future__ import annotations

import itertools

import pytest

from hvemu.x86.cpuid import PLAIN, Offer
from hvemu.x86.msrs import ROWS, Msr

ALL, NONE, LOW = set(range(64)), set(), set(range(32))
CANONICAL = set(range(47))  # as single bits
PAGES = set(range(12, 40))  # of a physical address
TYPE = {0, 2}  # as single bits: WC 1, WT 4; 2 and everything above 7 is reserved
EIGHT_TYPES = {8 * byte + n for byte in range(8) for n in TYPE}

# SDM 4 "Architectural MSRs": index: value after reset, and the bits that may be flipped alone in it.
EXPECTED: dict[int, tuple[int, set[int]]] = {
    0x10: (0, ALL),
    0x17: (0, NONE),
    0x1B: (0xFEE0_0900, {8, 11} | PAGES),
    0x3A: (0, {0, 2}),
    0x8B: (0, ALL),
    0xFE: (0x508, NONE),
    0x174: (0, LOW),
    0x175: (0, CANONICAL),
    0x176: (0, CANONICAL),
    0x179: (0, NONE),
    0x17A: (0, {0, 1, 2}),
    0x1A0: (0x1801, {0}),
    0x1D9: (0, NONE),
    **{0x200 + 2 * n: (0, PAGES | TYPE) for n in range(8)},
    **{0x201 + 2 * n: (0, PAGES | {11}) for n in range(8)},
    **dict.fromkeys((0x250, 0x258, 0x259, *range(0x268, 0x270)), (0, EIGHT_TYPES)),
    0x277: (0x0007_0406_0007_0406, NONE),  # what can be flipped depends on the byte: see below
    0x2FF: (0, TYPE | {10, 11}),
    0xC000_0080: (0, ALL),  # the rules are in cpu/control.py
    0xC000_0081: (0, ALL),
    0xC000_0082: (0, CANONICAL),
    0xC000_0083: (0, CANONICAL),
    0xC000_0084: (0, LOW),
    0xC000_0100: (0, CANONICAL),
    0xC000_0101: (0, CANONICAL),
    0xC000_0102: (0, CANONICAL),
    0xC000_0103: (0, LOW),
}
BY_INDEX = {row.index: row for row in ROWS}
BY_NAME = {row.name: row for row in ROWS}
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def legal(row: Msr, value: int) -> bool:
    stored = row.rule(row.reset, value)
    assert stored in (None, value)
    return stored is not None


def test_the_table_is_whole_and_has_no_name_twice() -> None:
    assert sorted(row.index for row in ROWS) == sorted(EXPECTED)
    assert len(BY_NAME) == len(ROWS)
    assert all(row.name.startswith("IA32_") for row in ROWS)


@each_row
def test_values_after_reset(row: Msr) -> None:
    assert row.reset == EXPECTED[row.index][0]


@each_row
def test_each_bit_alone(row: Msr) -> None:
    if row.name != "IA32_PAT":
        assert {n for n in range(64) if legal(row, row.reset ^ 1 << n)} == EXPECTED[row.index][1]


@each_row
def test_what_is_not_read_only_can_be_written_back(row: Msr) -> None:
    assert legal(row, row.reset) == (row.name not in {"IA32_PLATFORM_ID", "IA32_MTRRCAP", "IA32_MCG_CAP"})


CANONICAL_ROWS = [row for row in ROWS if EXPECTED[row.index][1] == CANONICAL]


@pytest.mark.parametrize("row", CANONICAL_ROWS, ids=lambda row: row.name)
def test_canonical_addresses(row: Msr) -> None:
    good = [0, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, 2**64 - 1]
    bad = [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63, 0xFFFE_8000_0000_0000]
    assert [legal(row, value) for value in good + bad] == [True] * 4 + [False] * 4
    assert {row.name.removeprefix("IA32_") for row in CANONICAL_ROWS} == {
        "SYSENTER_ESP", "SYSENTER_EIP", "LSTAR", "CSTAR", "FS_BASE", "GS_BASE", "KERNEL_GS_BASE",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("IA32_PAT", {0, 1, 4, 5, 6, 7}),  # SDM 3A "Programming the PAT"
        ("IA32_MTRR_FIX64K_00000", {0, 1, 4, 5, 6}),
        ("IA32_MTRR_FIX16K_A0000", {0, 1, 4, 5, 6}),
        ("IA32_MTRR_FIX4K_F8000", {0, 1, 4, 5, 6}),
    ],
)
def test_memory_types_in_each_of_eight_bytes(name: str, types: set[int]) -> None:
    for byte in range(8):
        assert {t for t in range(256) if legal(BY_NAME[name], t << 8 * byte)} == types


@pytest.mark.parametrize(
    ("name", "rest"),
    [("IA32_MTRR_DEF_TYPE", 0xC00), ("IA32_MTRR_PHYSBASE3", 0xFF_FFFF_F000), ("IA32_MTRR_PHYSBASE0", 0)],
)
def test_the_memory_type_in_the_low_byte(name: str, rest: int) -> None:
    assert {t for t in range(256) if legal(BY_NAME[name], rest | t)} == {0, 1, 4, 5, 6}


def test_feature_control_is_final_once_locked() -> None:
    row = BY_NAME["IA32_FEATURE_CONTROL"]
    for old, new in itertools.product(range(8), range(8)):
        smx = new & 2  # there is no SMX
        assert row.rule(old, new) == (None if old & 1 or smx else new)


def test_misc_enable_says_which_monitors_are_not_there_and_cannot_be_told_otherwise() -> None:
    row = BY_NAME["IA32_MISC_ENABLE"]
    assert [row.rule(0x1801, value) for value in (0x1800, 0x1801, 0x0801, 0x40_1801)] == [0x1800, 0x1801, None, None]
    assert row.rule(0x1800, 0x1801) == 0x1801


@pytest.mark.parametrize(
    ("offer", "missing"),
    [
        (PLAIN, {0x1B, 0x3A}),
        (Offer(apic=True), {0x3A}),
        (Offer(vmx=True), {0x1B}),
        (Offer(vmx=True, apic=True), set()),
    ],
)
def test_which_processor_has_which(offer: Offer, missing: set[int]) -> None:
    assert {row.index for row in ROWS if not row.needs(offer)} == missing
