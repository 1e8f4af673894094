from __future__ import annotations

import re

import pytest

from hvemu.errors import InputError
from tests.debug.guests import SPIN, ask, paused, session


def test_a_walk_shows_both_dimensions():
    s = paused("paging", "protect")
    lines = ask(s, "walk 0x40001008").splitlines()  # MIRROR: the frame RED, gpa 0x310000, written once
    assert lines[0].startswith("gva 0x40001008: 32-bit paging, the first table is at gpa 0x201000")
    levels = [line for line in lines if line.startswith("level")]
    # Bits 31:22 and 21:12 of the gva are 0x100 and 0x001: entries of 4 bytes (SDM 3A "32-Bit Paging").
    assert levels[0].startswith("level 2  gpa 0x201400: ")
    assert "[P RW US A]  Pde32 refers to the next table" in levels[0]
    assert re.match(
        r"level 1  gpa 0x[0-9a-f]+004: 0x310063 \[P RW A D\]  Pte32 maps the page of 4 KiB at gpa 0x310000", levels[1]
    )
    assert "gpa 0x310008" in lines
    assert sum("EPT PML4E" in line for line in lines) == 3  # two entries and the page
    hpa = 0x310008 + s.vm.ram.base
    assert lines[-1] == f"hpa {hpa:#x}"


def test_a_walk_ends_at_the_entry_that_is_not_present():
    lines = ask(paused("paging", "protect", "bare"), "walk 0x80000000").splitlines()
    assert lines[-1] == "level 2  gpa 0x201800: 0x0  Pde32 is not present"
    assert not any("EPT" in line for line in lines)


def test_a_walk_before_ept_maps_anything_says_so():
    lines = ask(session(SPIN), "walk 0x100000").splitlines()
    assert lines[0] == "gva 0x100000: the guest uses no paging, gva and gpa are equal"
    assert lines[1].endswith("is not present")
    assert lines[-1] == "EPT does not translate gpa 0x100000"


def test_a_walk_of_four_levels_names_them():
    s = session("hello64")
    s.step(), s.step()
    levels = [line for line in ask(s, "walk 0x40000000-1").splitlines() if line.startswith("level")]
    assert [line.split("  ")[2].split()[0] for line in levels] == ["Pml4e", "Pdpte", "Pde2M"]
    assert levels[-1].endswith("maps the page of 2 MiB at gpa 0x3fe00000")


def test_a_gva_that_is_not_canonical_has_no_walk():
    with pytest.raises(InputError, match="not canonical"):
        ask(session("hello64"), "walk 0x800000000000")
