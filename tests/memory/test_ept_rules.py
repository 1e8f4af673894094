"""Every misconfiguration row rejects its counterexample, and the entry that differs in one bit passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hvemu.memory.ept import LEVELS, PDE, PDPTE, PTE, EptPaging
from hvemu.memory.ept_rules import MISCONFIGURATIONS, misconfigured
from hvemu.memory.ept_walk import READ, EptMisconfiguration, walk_ept

ROOT = 0x1000
rows = pytest.mark.parametrize("row", MISCONFIGURATIONS, ids=lambda row: row.name)


def broken(level, raw, **given):
    """Return the names of the rows that the entry *raw* violates."""
    ept, entry = EptPaging(ROOT, **given), level.decode(raw)
    return [row.name for row in MISCONFIGURATIONS if not row.holds(entry, level, ept)]


@rows
def test_each_row_alone_rejects_its_counterexample(row):
    assert broken(row.level, row.breaks, **row.given) == [row.name]
    assert misconfigured(row.level.decode(row.breaks), row.level, EptPaging(ROOT, **row.given)) is row


@rows
def test_the_unbroken_entry_differs_in_one_bit_and_passes(row):
    assert (row.legal ^ row.breaks).bit_count() == 1
    assert broken(row.level, row.legal, **row.given) == []
    assert misconfigured(row.level.decode(row.legal), row.level, EptPaging(ROOT, **row.given)) is None


@rows
def test_the_given_attributes_are_needed(row):
    if row.given:
        assert broken(row.level, row.breaks) == []


@rows
def test_a_walk_stops_at_the_counterexample_with_its_row(row):
    above = LEVELS.index(row.level)
    entries = iter([0x2007] * above + [row.breaks] + [0x2007] * 4)
    with pytest.raises(EptMisconfiguration) as raised:
        walk_ept(replace(EptPaging(ROOT), **row.given), lambda _hpa, _size: next(entries), 0, READ)
    assert raised.value.rule is row
    assert (raised.value.culprit.level, raised.value.culprit.entry) == (row.level, row.breaks)
    assert str(raised.value).splitlines()[1] == str(row)


def test_names_are_unique_clauses_are_sentences_and_sections_are_listed():
    listed = Path(__file__).parents[2].joinpath("docs/sdm.md").read_text(encoding="utf-8").split("## Volume 3C")[1]
    assert len({row.name for row in MISCONFIGURATIONS}) == len(MISCONFIGURATIONS)
    assert [row.name for row in MISCONFIGURATIONS if not row.clause.endswith(".")] == []
    assert [row.sdm for row in MISCONFIGURATIONS if f"* {row.sdm}\n" not in listed] == []


@pytest.mark.parametrize("memory_type", range(8))
@pytest.mark.parametrize(("level", "page"), [(PDPTE, 0x81), (PDE, 0x81), (PTE, 0x1)], ids=str)
def test_memory_types_2_3_and_7_are_reserved_in_every_page_entry(level, page, memory_type):
    reserved = ["memory_type_is_not_reserved"] if memory_type in {2, 3, 7} else []
    assert broken(level, page | memory_type << 3) == reserved


@pytest.mark.parametrize("bit", range(12, 52))
@pytest.mark.parametrize(("level", "page", "aligned"), [(PDPTE, 0x81, 30), (PDE, 0x81, 21), (PTE, 0x1, 12)], ids=str)
@pytest.mark.parametrize("maxphyaddr", [36, 46, 52])
def test_address_bits_are_reserved_below_the_page_size_and_beyond_the_width(level, page, aligned, bit, maxphyaddr):
    expected = ["page_is_aligned"] if bit < aligned else []
    expected += ["address_fits_physical_address_width"] if bit >= maxphyaddr else []
    assert broken(level, page | 1 << bit, maxphyaddr=maxphyaddr) == expected


@pytest.mark.parametrize("bit", [9, 11, *range(52, 64)])
@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_ignored_bits_are_ignored(level, bit):
    assert broken(level, 0x1 | 1 << bit) == []
