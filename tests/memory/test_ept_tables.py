"""Tables are judged by walking them: the oracle is the list of what was asked for, the last word on a page winning."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.memory.ept import ALL_RIGHTS, PAGE_1G, PAGE_2M, PAGE_4K, RW, RWX, RX, EptPaging, EptRights, MemoryType, R
from hvemu.memory.ept_tables import EptTables
from hvemu.memory.ept_walk import LOOK, WRITE, EptViolation, walk_ept
from hvemu.memory.frames import Frames
from hvemu.memory.physical import Ram

BASE, FRAMES = 0x1_0000, 128
K, M, G = PAGE_4K, PAGE_2M, PAGE_1G


class Machine:
    """Host memory that holds nothing but tables; frames begin dirty."""

    def __init__(self, **options):
        frames = options.pop("frames", FRAMES)
        self.memory = Ram(bytearray(b"\xa5" * (BASE + frames * K)))
        self.frames = Frames(BASE, frames * K)
        self.tables = EptTables(self.memory, self.frames, **options)
        self.ept = EptPaging(self.tables.root, accessed_dirty=True, execute_only=True)

    def at(self, gpa, access=LOOK):
        """Return the walk of *gpa*, or None where nothing is mapped."""
        try:
            return walk_ept(self.ept, self.memory.read, gpa, access, self.memory.write)
        except EptViolation:
            return None

    @property
    def used(self):
        return self.frames.total - self.frames.free_count


@pytest.mark.parametrize(
    ("largest", "gpa", "hpa", "size", "pages"),
    [(G, 0, 0, 4 * G, {0: G, 4 * G - 1: G}),
     (M, 0, 0, 2 * M, {0: M, 2 * M - 1: M}),
     (K, 0, 0, 2 * M, {0: K, 2 * M - 1: K}),
     (G, 3 * G, 5 * G + K, 2 * M, {3 * G: K, 3 * G + 2 * M - 1: K}),
     (G, 3 * G, 5 * G + M, G, {3 * G: M, 4 * G - 1: M}),
     (G, 0, 0, G - K, {0: M, G - M - 1: M, G - M: K, G - 2 * K: K, G - K: None}),
     (G, M - K, M - K, G, {M - 2 * K: None, M - K: K, M: M, G - 1: M, G: K, G + M - 2 * K: K, G + M - K: None}),
     (G, 2**48 - G, 2**40 - G, G, {2**48 - G - 1: None, 2**48 - 1: G})],
)  # fmt: skip
def test_pages_are_as_large_as_alignment_and_size_allow(largest, gpa, hpa, size, pages):
    machine = Machine(largest=largest)
    machine.tables.map(gpa, hpa, size)
    walks = {at: machine.at(at) for at in pages}
    assert {at: walk and walk.page_size for at, walk in walks.items()} == pages
    assert all(walk.hpa == at - gpa + hpa for at, walk in walks.items() if walk)


def test_a_table_is_what_a_person_would_write():
    machine = Machine(largest=M)
    machine.tables.map(0x20_3000, 0xABC_D000, K, RX, memory_type=MemoryType.UC)
    machine.tables.map(0x40_0000, 0x1_0000_0000, M)
    root, pointers, directory, table = range(BASE, BASE + 4 * K, K)
    read = machine.memory.read
    assert machine.tables.root == root
    assert [read(root, 8), read(pointers, 8)] == [pointers | 7, directory | 7]
    assert [read(directory + 8 * n, 8) for n in range(4)] == [0, table | 7, 0x1_0000_00B7, 0]
    assert [read(table + 8 * n, 8) for n in range(5)] == [0, 0, 0, 0xABC_D005, 0]


@pytest.mark.parametrize(("access", "flags"), [(None, 0), (LOOK, 0x100), (WRITE, 0x300)])
def test_splitting_keeps_address_rights_type_and_flags_of_every_page(access, flags):
    machine = Machine()
    machine.tables.map(2 * G, 5 * G, G, RW, memory_type=MemoryType.WT)
    if access is not None:
        machine.at(2 * G, access)
    machine.tables.unmap(2 * G + 3 * M + 7 * K, K)
    directory, table = BASE + 2 * K, BASE + 3 * K  # the last frames that were taken
    assert machine.used == 4
    for n in set(range(512)) - {3}:
        assert machine.memory.read(directory + 8 * n, 8) == 5 * G + n * M | 0xA3 | flags
    assert machine.memory.read(directory + 8 * 3, 8) == table | 7
    for n in set(range(512)) - {7}:
        assert machine.memory.read(table + 8 * n, 8) == 5 * G + 3 * M + n * K | 0x23 | flags
    assert machine.memory.read(table + 8 * 7, 8) == 0


def test_what_is_not_mapped_needs_no_table():
    machine = Machine()
    machine.tables.unmap(3 * K, 2 * G)
    machine.tables.protect(3 * K, 2 * G, R)
    assert (machine.used, machine.at(3 * K)) == (1, None)


def test_a_split_on_the_way_to_a_2_mbyte_page_leaves_all_others_large():
    machine = Machine()
    machine.tables.map(0, 0, G)
    machine.tables.protect(6 * M, M, R)
    assert {machine.at(n * M).page_size for n in range(512)} == {M}
    assert [n for n in range(512) if machine.at(n * M).rights == R] == [6]


def test_a_large_page_takes_the_place_of_a_table_and_frees_it():
    machine = Machine()
    machine.tables.map(0, 0, G)
    machine.tables.map(M, 9 * M, K)
    assert machine.used == 4
    machine.tables.map(0, 4 * G, G)
    assert (machine.used, machine.at(M).hpa, machine.at(M).page_size) == (2, 4 * G + M, G)


# -- any sequence of calls -----------------------------------------------------------------------------------------

_RIGHTS = st.sampled_from([R, RW, RX, RWX, EptRights(execute=1)])
_TYPES = st.sampled_from(list(MemoryType))
# Places and sizes around the boundaries of tables, so that pages of all sizes meet.
_PLACES = st.builds(lambda g, m, k: g * G + m * M + k * K, *[st.sampled_from([0, 0, 1, 2, 511])] * 3)
_SIZES = st.builds(
    lambda g, m, k: g * G + m * M + k * K or K, *[st.sampled_from([0, 0, 0, 1, 2])] * 2, st.sampled_from([0, 0, 1, 2])
)
_CALLS = st.one_of(
    st.tuples(st.just("map"), _PLACES, _SIZES, st.integers(0, 3), _RIGHTS, _TYPES),
    st.tuples(st.just("unmap"), _PLACES, _SIZES),
    st.tuples(st.just("protect"), _PLACES, _SIZES, _RIGHTS),
)


def offset(size, distance):
    """Return hpa - gpa, such that few tables are enough: 1 GiB in pages of 4 KiB would be 512 of them."""
    return distance * next(page for page in (G, M, K) if size >= page)


def apply(tables, call):
    match call:
        case "map", gpa, size, distance, rights, memory_type:
            tables.map(gpa, gpa + offset(size, distance), size, rights, memory_type=memory_type)
        case name, gpa, *rest:
            getattr(tables, name)(gpa, *rest)


def replay(calls, gpa):
    """Return (hpa, rights, memory type) of *gpa* after *calls*, or None."""
    mapped = None
    for call in calls:
        name, start, size, *rest = call
        if not start <= gpa < start + size:
            continue
        if name == "map":
            mapped = gpa + offset(size, rest[0]), rest[1], rest[2]
        elif name == "unmap":
            mapped = None
        elif mapped:
            mapped = mapped[0], rest[0], mapped[2]
    return mapped


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(_CALLS, min_size=1, max_size=6), st.sampled_from([K, M, G]))
def test_any_sequence_translates_as_its_last_word_on_each_page(calls, largest):
    calls = [call for call in calls if largest > K or call[2] < M]  # 2 MByte in pages of 4 KByte: slow, nothing new
    machine = Machine(largest=largest)
    edges = {edge for _, gpa, size, *_ in calls for edge in (gpa, gpa + size)}
    for n, call in enumerate(calls):
        apply(machine.tables, call)
        for gpa in {max(edge + step, 0) for edge in edges for step in (-M, -K, -1, 0, K, M)}:
            walk = machine.at(gpa)
            assert (walk and (walk.hpa, walk.rights, walk.memory_type)) == replay(calls[: n + 1], gpa), hex(gpa)
    machine.tables.unmap(0, 2**48)
    assert machine.used == 1  # the root alone: no table is lost


# -- misuse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda t: t.map(0x800, 0, K), "gpa 0x800, 0x1000 bytes: not multiples of 0x1000"),
     (lambda t: t.map(0, 0x800, K), "hpa 0x800, 0x1000 bytes: not multiples"),
     (lambda t: t.map(0, 0, 0x800), "gpa 0x0, 0x800 bytes: not multiples"),
     (lambda t: t.map(0, 0, 0), "not inside 48 bits"),
     (lambda t: t.map(0, 0, -K), "not inside 48 bits"),
     (lambda t: t.map(-K, 0, K), "not inside 48 bits"),
     (lambda t: t.map(2**48 - K, 0, 2 * K), "not inside 48 bits"),
     (lambda t: t.map(0, 2**52 - K, 2 * K), "not inside 52 bits"),
     (lambda t: t.map(0, 0, K, EptRights()), "only written is no page"),
     (lambda t: t.map(0, 0, K, EptRights(write=1, execute=1)), "only written is no page"),
     (lambda t: t.map(0, 0, K, ALL_RIGHTS), "the tables above allow only"),
     (lambda t: t.map(0, 0, K, memory_type=3), "3 is not a valid MemoryType"),
     (lambda t: t.unmap(0x10, K), "not multiples"),
     (lambda t: t.unmap(2**48, K), "not inside 48 bits"),
     (lambda t: t.protect(0, 0x10, R), "not multiples"),
     (lambda t: t.protect(0, K, EptRights(write=1)), "only written is no page")],
)  # fmt: skip
def test_misuse_is_refused_before_anything_changes(call, message):
    machine = Machine()
    machine.tables.map(0, 0, K)
    before = machine.memory.read_bytes(0, machine.memory.size)
    with pytest.raises(ValueError, match=message):
        call(machine.tables)
    assert machine.memory.read_bytes(0, machine.memory.size) == before


def test_there_are_three_page_sizes():
    with pytest.raises(ValueError, match="no pages of 0x400000 bytes"):
        Machine(largest=0x40_0000)


def test_user_execute_passes_when_the_tables_above_allow_it():
    machine = Machine(table_rights=ALL_RIGHTS)
    machine.tables.map(0, 0, K, ALL_RIGHTS)
    ept = EptPaging(machine.tables.root, mode_based_execute=True)
    assert walk_ept(ept, machine.memory.read, 0, LOOK).rights == ALL_RIGHTS


def test_what_was_mapped_stays_when_the_frames_run_out():
    machine = Machine(largest=K, frames=5)
    machine.tables.map(0, 0, K)
    with pytest.raises(MemoryError):
        machine.tables.map(M, M, G)
    assert machine.at(0).hpa == 0
    assert machine.at(M).hpa == M
