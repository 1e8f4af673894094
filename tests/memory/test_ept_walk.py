"""The walk against a second reading of the manual: raw integers, step by step as the prioritization section says."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvemu.memory.ept import EptPaging, MemoryType
from hvemu.memory.ept_walk import (
    FETCH,
    LOOK,
    PAGING_READ,
    PAGING_WRITE,
    READ,
    WRITE,
    EptAccess,
    EptMisconfiguration,
    EptViolation,
    walk_ept,
)

ROOT = 0x1000
GPA = 0b000000001_000000010_000000011_000000100_000000000101
READ_WRITE = EptAccess(read=1, write=1)
USER_FETCH = EptAccess(fetch=1, user=1)
SHIFTS = (39, 30, 21, 12)


def is_page(number, entry):
    return number == 3 or (number in {1, 2} and bool(entry & 0x80))


def misconfigured(ept, number, entry):
    """SDM 3C "EPT Misconfigurations", and the reserved bits of the tables in "EPT Translation Mechanism"."""
    fetches = bool(entry & 0x4) or (ept.mode_based_execute and bool(entry & 0x400))
    if not entry & 1 and (entry & 2 or (fetches and not ept.execute_only)):
        return True
    if (entry & (1 << 52) - 1) >> ept.maxphyaddr:
        return True
    if not is_page(number, entry):
        return bool(entry & (0xF8 if number == 0 else 0x78))
    offered = (False, ept.pages_1g, ept.pages_2m, True)[number]
    return not offered or bool(entry & (1 << SHIFTS[number]) - 0x1000) or (entry >> 3 & 7) in {2, 3, 7}


def judge(ept, entries, gpa, access):
    """Return how the access ends: ("walk", hpa, rights), ("violation", rights) or ("misconfiguration",), and the
    number of entries that were used."""
    reads, writes, fetches = bool(access & 1), bool(access & 2), bool(access & 4)
    if access & 16 and ept.accessed_dirty:
        reads = writes = True
    together = 0x407 if ept.mode_based_execute else 7
    present_bits = together
    for number, entry in enumerate(entries):
        if not entry & present_bits:
            return "violation", 0, number + 1
        if misconfigured(ept, number, entry):
            return "misconfiguration", None, number + 1
        together &= entry
        if is_page(number, entry):
            break
    execute = 0x400 if ept.mode_based_execute and access & 8 else 4
    rights = together & 7 | (8 if together & 0x400 else 0)
    if (reads and not together & 1) or (writes and not together & 2) or (fetches and not together & execute):
        return "violation", rights, number + 1
    offset = (1 << SHIFTS[number]) - 1
    return "walk", ((entry & (1 << 52) - 0x1000) + (gpa & offset), rights), number + 1


def walked(ept, entries, gpa, access):
    """Return the same of walk_ept, and check the addresses that it reads."""
    read = []

    def memory(hpa, size):
        table = entries[len(read) - 1] & (1 << 52) - 0x1000 if read else ept.root
        assert (hpa, size) == (table + 8 * (gpa >> SHIFTS[len(read)] & 0x1FF), 8)
        read.append(hpa)
        return entries[len(read) - 1]

    try:
        end = walk_ept(ept, memory, gpa, access)
    except (EptViolation, EptMisconfiguration) as refused:
        end = refused
    assert [(step.hpa, step.entry) for step in end.steps] == [*zip(read, entries, strict=False)]
    if isinstance(end, EptViolation):
        return "violation", end.rights, len(read)
    if isinstance(end, EptMisconfiguration):
        return "misconfiguration", None, len(read)
    assert end.page_size == 1 << SHIFTS[len(read) - 1]
    return "walk", (end.hpa, end.rights), len(read)


@pytest.mark.parametrize("execute_only", [False, True])
@pytest.mark.parametrize("access", [READ, WRITE, FETCH, READ_WRITE, LOOK], ids=repr)
def test_every_combination_of_rights_at_all_four_levels(access, execute_only):
    ept = EptPaging(ROOT, execute_only=execute_only)
    for a, b, c, d in itertools.product(range(8), repeat=4):
        entries = [0x2000 | a, 0x3000 | b, 0x4000 | c, 0x5030 | d]
        assert walked(ept, entries, GPA, access) == judge(ept, entries, GPA, access), entries


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("access", [READ, WRITE, FETCH, READ_WRITE, LOOK], ids=repr)
def test_every_combination_of_rights_above_a_large_page(access, levels):
    ept = EptPaging(ROOT)
    for rights in itertools.product(range(8), repeat=levels):
        entries = [0x2000 | r for r in rights]
        entries[-1] = 0x4000_00B0 | rights[-1]
        assert walked(ept, entries, GPA, access) == judge(ept, entries, GPA, access), entries


@pytest.mark.parametrize("execute_only", [False, True])
@pytest.mark.parametrize("mode_based", [False, True])
@pytest.mark.parametrize("access", [READ, WRITE, FETCH, USER_FETCH], ids=repr)
def test_every_combination_with_execute_rights_by_mode(access, mode_based, execute_only):
    ept = EptPaging(ROOT, mode_based_execute=mode_based, execute_only=execute_only)
    rights = [three | user for three in range(8) for user in (0, 0x400)]
    for upper, lower in itertools.product(rights, repeat=2):
        entries = [0x2000 | upper, 0x4000_00B0 | lower]
        assert walked(ept, entries, GPA, access) == judge(ept, entries, GPA, access), entries


_MOSTLY_LEGAL = st.builds(
    lambda rights, flags, frame, noise: rights | flags | frame << 12 | noise,
    st.sampled_from([7, 7, 7, 7, 3, 1, 5, 0x407]),
    st.sampled_from([0, 0, 0x30, 0x80, 0xB0]),
    st.sampled_from([0, 5, 0x200, 0x4_0000, 0x3_FFFF_FFFF]),
    st.sampled_from([0, 0, 0, *(1 << n for n in range(64))]),
)
_EPT = st.builds(
    EptPaging,
    st.just(ROOT),
    accessed_dirty=st.booleans(),
    execute_only=st.booleans(),
    mode_based_execute=st.booleans(),
    pages_2m=st.booleans(),
    pages_1g=st.booleans(),
    maxphyaddr=st.integers(36, 52),
)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(
    _EPT,
    st.lists(_MOSTLY_LEGAL | st.integers(0, 2**64 - 1), min_size=4, max_size=4),
    st.integers(0, 2**48 - 1),
    st.builds(EptAccess, st.integers(0, 31)),
)
@example(EptPaging(ROOT), [0x2007, 0x3007, 0x4007, 0x5037], 2**48 - 1, WRITE)
def test_any_entries_and_any_processor(ept, entries, gpa, access):
    assert walked(ept, entries, gpa, access) == judge(ept, entries, gpa, access)


# -- what the exits tell ------------------------------------------------------------------------------------------


def refuse(entries, access, gpa=GPA, **given):
    left = iter(entries)
    with pytest.raises(EptViolation) as raised:
        walk_ept(EptPaging(ROOT, **given), lambda _hpa, _size: next(left), gpa, access)
    return raised.value


def test_a_misconfiguration_below_wins_over_a_right_that_is_missing_above():
    entries = iter([0x2001, 0x3007, 0x4007, 0x5017])
    with pytest.raises(EptMisconfiguration) as raised:
        walk_ept(EptPaging(ROOT), lambda _hpa, _size: next(entries), GPA, WRITE)
    assert raised.value.rule.name == "memory_type_is_not_reserved"


def test_the_culprit_is_the_entry_that_is_not_present_even_below_one_without_the_right():
    violation = refuse([0x2001, 0x3007, 0], WRITE)
    assert (violation.culprit.level.name, violation.culprit.entry, violation.rights) == ("EPT PDE", 0, 0)


def test_the_culprit_is_the_first_entry_without_the_right():
    violation = refuse([0x2007, 0x3005, 0x4005, 0x5037], WRITE)
    assert (violation.culprit.level.name, violation.culprit.entry, violation.rights) == ("EPT PDPTE", 0x3005, 5)
    assert str(violation) == (
        "EPT violation at gpa 0x8080604005: EptAccess(0x2: write), EptRights(0x5: read execute): "
        "EPT PDPTE at hpa 0x2010: EptTableEntry(0x3005: read execute frame=0x3)"
    )


@pytest.mark.parametrize("bit", range(48, 64))
def test_a_gpa_with_more_bits_than_the_levels_translate_is_a_violation(bit):
    violation = refuse([], READ, gpa=1 << bit)
    assert (violation.rights, violation.steps, violation.culprit) == (0, (), None)
    assert "more than 48 bits" in str(violation)


@pytest.mark.parametrize("access", [PAGING_READ, PAGING_WRITE], ids=repr)
def test_with_the_flags_on_an_access_to_a_paging_structure_reports_read_and_write(access):
    violation = refuse([0x2007, 0x3007, 0x4007, 0x5035], access, accessed_dirty=True)
    assert (violation.access.read, violation.access.write, violation.access.paging) == (True, True, True)


def test_with_the_flags_off_reading_a_paging_structure_needs_no_write_access():
    entries = [0x2007, 0x3007, 0x4007, 0x5031]
    assert walked(EptPaging(ROOT), entries, GPA, PAGING_READ)[0] == "walk"
    assert refuse(entries, PAGING_WRITE).access == PAGING_WRITE


@pytest.mark.parametrize("memory_type", MemoryType)
@pytest.mark.parametrize("ignore_pat", [0, 1])
def test_the_page_says_the_memory_type(memory_type, ignore_pat):
    entries = iter([0x2007, 0x3007, 0x4007, 0x5007 | memory_type << 3 | ignore_pat << 6])
    walk = walk_ept(EptPaging(ROOT), lambda _hpa, _size: next(entries), GPA, READ)
    assert (walk.memory_type, walk.page.ignore_pat) == (memory_type, bool(ignore_pat))


# -- accessed and dirty flags ------------------------------------------------------------------------------------


class Entries(dict):
    """The entries by hpa."""

    def read(self, hpa, _size):
        return self[hpa]

    def write(self, hpa, _size, value):
        self[hpa] = int(value)


def flagged(entries, access, *, on=True, writes=True):
    """Walk through *entries*, and return them as memory holds them after it."""
    memory = Entries(zip(HPAS, entries, strict=False))
    walk = walk_ept(EptPaging(ROOT, accessed_dirty=on), memory.read, GPA, access, memory.write if writes else None)
    assert [step.entry for step in walk.steps] == [*memory.values()]
    return [*memory.values()]


HPAS = [0x1008, 0x2010, 0x3018, 0x4020]
SMALL, LARGE = [0x2007, 0x3007, 0x4007, 0x5037], [0x2007, 0x3007, 0x40_00B7]
A, D = 0x100, 0x200


@pytest.mark.parametrize("access", [READ, WRITE, FETCH, LOOK, PAGING_READ, PAGING_WRITE], ids=repr)
@pytest.mark.parametrize("entries", [SMALL, LARGE], ids=["4 KiB", "2 MiB"])
@pytest.mark.parametrize("dirty", [0, D])
def test_flags_in_every_earlier_state(entries, dirty, access):
    # SDM 3C "Accessed and Dirty Flags for EPT": with the flags on, paging-structure accesses count as writes.
    sets = D if access in {WRITE, PAGING_READ, PAGING_WRITE} else 0
    for accessed in itertools.product([0, A], repeat=len(entries)):
        before = [entry | a for entry, a in zip(entries, accessed, strict=True)]
        before[-1] |= dirty
        after = [entry | A for entry in entries]
        after[-1] |= dirty | sets
        assert flagged(before, access) == after
        assert flagged(before, access, on=False) == before
        assert flagged(before, access, writes=False) == before


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("removed", [0x2, 0x7])
def test_flags_stay_when_the_access_is_refused(number, removed):
    memory = Entries(zip(HPAS, SMALL, strict=True))
    memory[HPAS[number]] &= ~removed
    before = {**memory}
    with pytest.raises(EptViolation):
        walk_ept(EptPaging(ROOT, accessed_dirty=True), memory.read, GPA, WRITE, memory.write)
    assert memory == before
