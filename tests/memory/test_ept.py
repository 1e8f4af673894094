from __future__ import annotations

import pytest

from hvemu.memory.ept import (
    LEVELS,
    PDE,
    PDPTE,
    PML4E,
    PTE,
    RW,
    RWX,
    EptEntry,
    EptPage,
    EptPage1G,
    EptPage2M,
    EptPaging,
    EptRights,
    EptTableEntry,
    MemoryType,
)

GPA = 0b000000001_000000010_000000011_000000100_000000000101


@pytest.mark.parametrize(("level", "index"), [*zip(LEVELS, [1, 2, 3, 4], strict=True)], ids=str)
def test_each_level_takes_nine_bits_of_the_gpa(level, index):
    assert level.slot(0x7000, GPA) == 0x7000 + 8 * index


def test_an_entry_covers_512_times_what_one_below_covers():
    assert [level.size for level in LEVELS] == [2**39, 2**30, 2**21, 2**12]


@pytest.mark.parametrize(
    ("level", "bit7", "format_"),
    [(PML4E, 0, EptTableEntry), (PML4E, 1, EptTableEntry), (PDPTE, 0, EptTableEntry), (PDPTE, 1, EptPage1G),
     (PDE, 0, EptTableEntry), (PDE, 1, EptPage2M), (PTE, 0, EptPage), (PTE, 1, EptPage)],
)  # fmt: skip
def test_bit_7_tells_pages_from_tables_where_there_are_both(level, bit7, format_):
    assert type(level.decode(bit7 << 7 | 1)) is format_


@pytest.mark.parametrize(
    ("entry", "raw"),
    [(EptTableEntry.of(0x1234_5000, RWX), 0x1234_5007),
     (EptPage.of(0x1234_5000, RW, memory_type=MemoryType.WB), 0x1234_5033),
     (EptPage2M.of(0x1220_0000, RWX, large_page=1, memory_type=MemoryType.WB, ignore_pat=1), 0x1220_00F7),
     (EptPage1G.of(0x4000_0000, RWX, large_page=1, accessed=1, dirty=1), 0x4000_0387),
     (EptPage.of(0xF_FFFF_FFFF_F000, EptRights(read=1, user_execute=1), suppress_ve=1), 0x800F_FFFF_FFFF_F401)],
)  # fmt: skip
def test_entries_lie_in_memory_as_the_manual_draws_them(entry, raw):
    assert entry == raw
    assert entry.hpa == raw & 0xF_FFFF_FFFF_F000


def test_an_entry_shows_its_fields_by_name():
    assert repr(PTE.decode(0x1234_5033)) == "EptPage(0x12345033: read write frame=0x12345 memory_type=0x6)"


def test_bit_10_counts_under_mode_based_execute_control_only():
    for entry in map(EptEntry, range(0x800)):
        assert EptPaging(0).rights(entry) == entry & 7
        assert EptPaging(0, mode_based_execute=True).rights(entry) == entry & 7 | (8 if entry & 0x400 else 0)


@pytest.mark.parametrize("root", [0x800, 1 << 40, 1 << 52])
def test_a_root_that_no_eptp_can_hold_is_refused(root):
    with pytest.raises(ValueError, match="root 0x"):
        EptPaging(root)
