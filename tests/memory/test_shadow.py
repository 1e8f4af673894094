"""Each rule of the shadow on one small guest; test_shadow_oracle.py tries what comes of them together."""

from __future__ import annotations

import pytest

from hvemu.memory.shadow import Cause
from hvemu.memory.walk import Access
from hvemu.x86.paging import Paging, PagingMode
from hvemu.x86.vectors import Fault, Vector
from tests.memory.shadow_machine import ADDRESS, GUEST, PAGE, PIN, PS, TABLES, XD, A, D, Machine, P, U, W

READ, WRITE, FETCH = Access(), Access(write=True), Access(fetch=True)
USER_READ, USER_WRITE, USER_FETCH = Access(user=True), Access(write=True, user=True), Access(fetch=True, user=True)

PD, PT, DATA = 0x1000, 0x2000, 0x8000
TABLE_MAP, DIRECTORY_MAP = 0xFFC0_0000, 0xFFFF_F000  # where the last entry of the directory, itself, shows the tables
PAGING = Paging(mode=PagingMode.BITS32, root=PD, wp=True, pse=True)
ALL = P | W | U


def guest(paging: Paging = PAGING, machine: type[Machine] = Machine, **options) -> Machine:
    """Return a guest with gva 0 to 0xffff at gpa 0x8000, a directory that maps itself, and its tables unmarked."""
    m = machine(**options)
    m.poke(PD, PT | ALL, 4)
    m.poke(PD + 4 * 1023, PD | ALL, 4)
    for n in range(16):
        m.poke(PT + 4 * n, DATA + n * PAGE | ALL, 4)
    m.activate(paging)
    return m


def entry(m: Machine, gpa: int) -> int:
    return m.guest.read(gpa, 4)


def pages(m: Machine) -> list[int]:
    """The gvas that have leaves in the active tree."""
    return [gva for gva, _ in m.shadow.tree.leaves()]


def causes(m: Machine, *accesses: tuple[int, Access]) -> list[Cause | None]:
    """What stopped each access."""
    found = [m.access(gva, access)[1] for gva, access in accesses]
    m.check()
    return found


# -- filling ----------------------------------------------------------------------------------------------------------


def test_a_page_stops_once() -> None:
    assert causes(guest(), (0x3000, READ), (0x3FFF, READ), (0x4000, READ)) == [Cause.HIDDEN, None, Cause.HIDDEN]


def test_the_first_store_stops_to_set_the_dirty_bit() -> None:
    m = guest()
    assert causes(m, (0x3000, READ)) == [Cause.HIDDEN]
    assert entry(m, PT + 12) == 0xB000 | ALL | A
    assert causes(m, (0x3000, WRITE), (0x3000, WRITE)) == [Cause.HIDDEN, None]
    assert entry(m, PT + 12) == 0xB000 | ALL | A | D
    assert causes(m, (0x4000, WRITE), (0x4000, READ)) == [Cause.HIDDEN, None]


def test_a_clean_page_that_the_guest_marked_dirty_is_writable_at_once() -> None:
    m = guest()
    m.poke(PT + 12, 0xB000 | ALL | A | D, 4)
    assert causes(m, (0x3000, READ), (0x3000, WRITE)) == [Cause.HIDDEN, None]


# gva, access, error code by SDM 3A "Page-Fault Exceptions": P 1, W/R 2, U/S 4.
REFLECTED = [
    (0x0001_0000, READ, 0), (0x0001_0000, USER_WRITE, 6), (0x0040_0123, USER_READ, 4),
    (0x0000_1000, USER_READ, 5), (0x0000_1000, USER_WRITE, 7), (0x0000_2000, WRITE, 3), (0x0000_2000, USER_WRITE, 7),
]  # fmt: skip


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize(("gva", "access", "code"), REFLECTED)
def test_what_the_guest_forbids_is_the_guests_fault(gva, access, code, touched) -> None:
    m = guest()
    m.poke(PT + 4, 0x9000 | P | W, 4)
    m.poke(PT + 8, 0xA000 | P | U, 4)
    if touched:
        causes(m, (0x1000, READ), (0x2000, USER_READ))
    assert m.access(gva, access) == (Fault(Vector.PF, code, cr2=gva), None)
    assert m.shadow.counters.reflected == 1


def test_a_large_page_is_filled_by_small_ones() -> None:
    m = guest()
    m.poke(PD + 8, PS | ALL, 4)
    assert causes(m, (0x80_3000, WRITE), (0x80_3004, WRITE), (0x80_5000, READ), (0x80_5000, WRITE)) == [
        Cause.HIDDEN, None, Cause.HIDDEN, None,
    ]  # fmt: skip
    assert pages(m) == [0x80_3000, 0x80_5000]


def test_without_paging_every_gva_is_its_gpa() -> None:
    m = guest(Paging(mode=PagingMode.NONE, smep=True, smap=True))
    assert causes(m, (0x5678, WRITE), (0x5000, FETCH), (0x5000, USER_FETCH), (0x5000, FETCH)) == [
        Cause.HIDDEN, None, Cause.HIDDEN, Cause.HIDDEN,
    ]  # fmt: skip
    assert [*m.shadow.traces] == []


def test_what_is_no_ram_is_left_to_the_caller() -> None:
    m = guest()
    m.poke(PT + 12, 0xFEE0_0000 | ALL, 4)
    assert m.access(0x3010, WRITE) == (0xFEE0_0010, Cause.MMIO)
    assert m.access(0x3010, WRITE) == (0xFEE0_0010, Cause.MMIO)
    assert pages(m) == []
    assert entry(m, PT + 12) == 0xFEE0_0000 | ALL | A | D


class TablesOnADevice(Machine):
    def to_host(self, gpa):
        return None if gpa // PAGE == PT // PAGE else super().to_host(gpa)


def test_a_translation_by_a_table_outside_ram_is_not_kept() -> None:
    m = guest(machine=TablesOnADevice)
    assert causes(m, (0x3000, READ), (0x3000, READ)) == [Cause.UNMAPPABLE, Cause.UNMAPPABLE]
    assert pages(m) == []


# -- following the guest's tables -------------------------------------------------------------------------------------


def test_a_store_into_a_page_table_stops_and_counts_at_once() -> None:
    m = guest()
    assert m.access(0x3000, READ) == (0xB000, Cause.HIDDEN)
    assert m.access(TABLE_MAP + 12, WRITE, 4, 0xF000 | ALL) == (PT + 12, Cause.TRACED_WRITE)
    assert m.access(0x3000, READ) == (0xF000, Cause.HIDDEN)
    assert m.access(TABLE_MAP + 12, WRITE, 4, 0) == (PT + 12, Cause.TRACED_WRITE)
    assert m.access(0x3000, READ) == (Fault(Vector.PF, 0, cr2=0x3000), None)
    m.check()


def test_reading_a_page_table_is_free() -> None:
    assert causes(guest(), (TABLE_MAP, READ), (TABLE_MAP + 4, READ), (DIRECTORY_MAP, READ)) == [
        Cause.HIDDEN, None, Cause.HIDDEN,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("offset", "size", "gone"),
    [(12, 4, [3]), (8, 8, [2, 3]), (13, 1, [3]), (14, 4, [3, 4]), (0, 1, [0]), (15, 1, [3]), (16, 2, [4]),
     (20, 64, [5, 6, 7]), (64, 4, []), (4092, 4, []), (-4, 8, [0]), (-4, 4, [])],
)  # fmt: skip
def test_a_store_drops_the_leaves_of_the_entries_it_touches(offset, size, gone) -> None:
    m = guest()
    causes(m, *((n * PAGE, READ) for n in range(8)))
    m.guest.write_bytes(PT + offset, bytes(size))
    assert m.shadow.written(PT + offset, size) is bool(gone)
    assert pages(m) == [n * PAGE for n in range(8) if n not in gone]
    assert m.shadow.counters.zaps == len(gone)


def test_a_store_into_a_directory_drops_all_below_the_entry() -> None:
    m = guest()
    m.poke(PD + 4, PT | ALL, 4)
    gone, left = [0x0000, 0x3000, TABLE_MAP], [0x40_0000, 0x40_3000, TABLE_MAP + PAGE, DIRECTORY_MAP]
    causes(m, *((gva, READ) for gva in gone + left))
    m.dma(PD, PT | P, 4)
    assert pages(m) == left
    assert m.shadow.counters.zaps == len(gone)


def test_the_tlb_may_know_a_table_of_the_tree_that_has_no_leaves() -> None:
    m = guest()
    causes(m, (0x3000, READ))
    assert m.shadow.invlpg(0x3000) is True
    assert m.shadow.written(PD, 4) is True
    assert m.shadow.written(PD, 4) is False


def test_one_table_under_two_entries_is_followed_in_both_places() -> None:
    m = guest()
    m.poke(PD + 4, PT | ALL, 4)
    causes(m, (0x3000, READ), (0x40_3000, READ), (0x40_4000, READ))
    m.dma(PT + 12, 0xF000 | ALL, 4)
    assert pages(m) == [0x40_4000]


def test_one_table_in_two_spaces_is_followed_in_both() -> None:
    m = guest()
    m.poke(0x4000, PT | ALL, 4)
    other = Paging(mode=PagingMode.BITS32, root=0x4000, wp=True)
    causes(m, (0x3000, READ))
    m.activate(other)
    causes(m, (0x3000, READ))
    m.dma(PT + 12, 0xF000 | ALL, 4)
    for paging in (PAGING, other):
        m.activate(paging)
        assert m.access(0x3000, READ) == (0xF000, Cause.HIDDEN)


def test_a_page_that_becomes_a_table_is_taken_from_all_who_may_write_to_it() -> None:
    m = guest()
    table = 0xB000  # a page of data until now, at gva 0x3000
    other = Paging(mode=PagingMode.BITS32, root=PD)
    for paging in (other, PAGING):
        m.activate(paging)
        assert causes(m, (0x3000, WRITE), (0x3000, WRITE)) == [Cause.HIDDEN, None]
    m.dma(PD + 4, table | ALL, 4)
    m.dma(table, DATA | ALL, 4)
    assert causes(m, (0x40_0000, READ)) == [Cause.HIDDEN]
    assert m.shadow.counters.flushes == 1
    assert m.access(0x3000, WRITE, 4, 0xF000 | ALL)[1] is Cause.TRACED_WRITE
    assert entry(m, table) == 0xF000 | ALL
    m.activate(other)
    assert m.shadow.fault(0x3000, WRITE).cause is Cause.TRACED_WRITE


class SecondView(Machine):
    """The page of the table has a second gpa."""

    def to_host(self, gpa):
        return super().to_host(gpa - 0xF000 + PT if gpa // PAGE == 0xF else gpa)


def test_a_table_is_traced_under_every_gpa() -> None:
    m = guest(machine=SecondView)
    assert m.shadow.fault(0x3000, READ).cause is Cause.HIDDEN
    assert m.shadow.fault(0x7000, WRITE).cause is Cause.TRACED_WRITE
    assert m.shadow.written(0xF00C, 4)
    assert 0x3000 not in pages(m)


@pytest.mark.parametrize("root", [0x1000, 0x1020, 0x1FE0])
def test_a_pdpt_may_begin_inside_its_page(root) -> None:
    m = Machine(patience=PAGE)
    m.poke(root + 8, PT | P)  # gva 1 GiB
    m.poke(PT, 0x3000 | ALL)
    m.poke(0x3000, DATA | ALL)
    m.activate(Paging(mode=PagingMode.PAE, root=root, nxe=True))
    assert causes(m, (0x4000_0000, WRITE)) == [Cause.HIDDEN]
    for gpa in range(0x1000, 0x2000, 8):
        m.dma(gpa, m.guest.read(gpa, 8), 8)
        assert pages(m) == ([] if gpa == root + 8 else [0x4000_0000])
        causes(m, (0x4000_0000, WRITE))


def test_the_upper_half_of_a_64_bit_space_is_followed() -> None:
    m = Machine()
    for table in (0x1000, 0x2000, 0x3000):
        m.poke(table + 8 * 511, table + PAGE | ALL)
    m.poke(0x4000 + 8 * 511, DATA | ALL | XD)
    m.activate(Paging(mode=PagingMode.LEVEL4, root=0x1000, nxe=True))
    top = 0xFFFF_FFFF_FFFF_F000
    assert causes(m, (top, WRITE), (top, WRITE)) == [Cause.HIDDEN, None]
    assert m.access(top, FETCH) == (Fault(Vector.PF, 0x11, cr2=top), None)
    assert m.access(top & (1 << 48) - 1, READ) == (Fault(Vector.GP, 0), None)
    m.dma(0x1000 + 8 * 511, 0, 8)
    assert pages(m) == []
    assert [*m.shadow.traces] == [GUEST + 0x1000]


# -- no page is traced for ever ---------------------------------------------------------------------------------------


def test_a_table_that_is_written_and_not_walked_is_no_longer_traced() -> None:
    m = guest(patience=4)
    m.poke(PT + 60, PT | ALL, 4)  # gva 0xf000 is the table
    causes(m, (0x3000, READ))
    m.dma(PD, 0x7000 | ALL, 4)  # the guest gives the table up, with all below
    m.poke(0x7000 + 4, DATA | ALL, 4)
    assert GUEST + PT not in m.shadow.traces
    causes(m, (0x1000, READ))
    for n in range(5):
        assert GUEST + 0x7000 in m.shadow.traces
        m.dma(0x7000 + 64, n, 4)
    assert GUEST + 0x7000 not in m.shadow.traces
    assert pages(m) == []
    assert m.shadow.counters.untraced == 1
    assert causes(m, (0x1000, READ)) == [Cause.HIDDEN]
    assert GUEST + 0x7000 in m.shadow.traces


def test_a_walk_renews_patience() -> None:
    m = guest(patience=2)
    for n in range(4, 10):
        causes(m, (n * PAGE, READ))
        m.dma(PT, n, 4)
        m.dma(PT, n, 4)
    assert m.shadow.counters.untraced == 0


def test_a_table_that_maps_itself_can_be_given_up() -> None:
    m = guest(patience=0)
    causes(m, (0x3000, READ), (DIRECTORY_MAP, READ), (TABLE_MAP, READ))
    m.dma(PD + 64, 0, 4)
    assert [*m.shadow.traces] == []
    assert pages(m) == []
    assert causes(m, (DIRECTORY_MAP + 64, WRITE), (0x3000, READ)) == [Cause.TRACED_WRITE, Cause.HIDDEN]


def test_tables_of_a_dropped_tree_are_not_traced() -> None:
    m = guest(trees=1)
    causes(m, (0x3000, WRITE))
    m.activate(Paging(mode=PagingMode.NONE))
    assert [*m.shadow.traces] == []
    assert causes(m, (PT, WRITE), (PD, WRITE)) == [Cause.HIDDEN, Cause.HIDDEN]


def test_other_pages_can_be_traced_too() -> None:
    m = guest()
    page = GUEST + 0xB000
    causes(m, (0x3000, WRITE), (0x4000, WRITE))
    assert m.shadow.traces.watch({page}) is True
    m.told(True)
    assert m.shadow.traces.watch({page}) is False
    assert causes(m, (0x3000, READ), (0x3000, WRITE), (0x4000, WRITE)) == [None, Cause.TRACED_WRITE, None]
    assert m.shadow.traces.watch(set()) is False
    assert causes(m, (0x3000, WRITE), (0x3000, WRITE)) == [Cause.HIDDEN, None]


# -- CR0.WP, SMEP and SMAP --------------------------------------------------------------------------------------------


def without_wp(**bits) -> Machine:
    m = guest(Paging(mode=PagingMode.BITS32, root=PD, **bits))
    m.poke(PT + 12, 0xB000 | P | U, 4)
    m.poke(PT + 16, 0xC000 | P, 4)
    return m


def test_with_wp_off_a_read_only_page_goes_from_user_to_supervisor_and_back() -> None:
    m = without_wp()
    assert causes(m, (0x3000, USER_READ), (0x3000, WRITE), (0x3000, WRITE), (0x3000, FETCH), (0x3000, READ)) == [
        Cause.HIDDEN, Cause.WP_OFF, None, None, None,
    ]  # fmt: skip
    assert m.access(0x3000, USER_WRITE) == (Fault(Vector.PF, 7, cr2=0x3000), None)
    assert causes(m, (0x3000, USER_READ), (0x3000, USER_FETCH), (0x3000, WRITE)) == [Cause.HIDDEN, None, Cause.WP_OFF]


def test_with_wp_off_a_supervisor_page_needs_no_change_of_hands() -> None:
    m = without_wp()
    assert causes(m, (0x4000, WRITE), (0x4000, WRITE)) == [Cause.HIDDEN, None]
    assert m.access(0x4000, USER_READ) == (Fault(Vector.PF, 5, cr2=0x4000), None)


def test_smep_holds_for_a_page_taken_from_users() -> None:
    m = without_wp(smep=True)
    causes(m, (0x3000, WRITE), (0x4000, WRITE))
    assert m.access(0x3000, FETCH) == (Fault(Vector.PF, 0x11, cr2=0x3000), None)
    assert causes(m, (0x3000, USER_FETCH), (0x4000, FETCH)) == [Cause.HIDDEN, None]


def test_smap_and_wp_off_need_emulation() -> None:
    m = without_wp(smap=True)
    ac = Access(write=True, ac=True)
    assert causes(m, (0x3000, ac), (0x3000, ac), (0x4000, WRITE)) == [Cause.UNMAPPABLE, Cause.UNMAPPABLE, Cause.HIDDEN]
    assert m.access(0x3000, READ) == (Fault(Vector.PF, 1, cr2=0x3000), None)


# -- trees and frames -------------------------------------------------------------------------------------------------


def root_of(n: int) -> Paging:
    return Paging(mode=PagingMode.BITS32, root=n * PAGE)


def test_the_tree_used_longest_ago_makes_room() -> None:
    m = guest(trees=2)
    first = m.shadow.activate(root_of(0))
    m.shadow.activate(root_of(1))
    assert m.shadow.activate(root_of(0)) == first
    m.shadow.activate(root_of(2))
    m.shadow.activate(root_of(0))
    assert m.shadow.counters.trees == 4  # with that of guest()
    m.shadow.activate(root_of(1))
    assert m.shadow.counters.trees == 5


def test_whatever_translation_depends_on_chooses_the_tree() -> None:
    m = guest(frames=100, trees=16)
    bits = ("wp", "smep", "smap", "pse", "nxe")
    pagings = [Paging(mode=PagingMode.PAE, root=0x20, **{name: True}) for name in bits]
    roots = [m.shadow.activate(paging) for paging in [*pagings, Paging(mode=PagingMode.PAE, root=0x40), PAGING]]
    assert len(set(roots)) == len(bits) + 2


def test_when_frames_run_out_everything_is_dropped_and_the_root_stays() -> None:
    m = guest(frames=7, trees=1)  # root, four directories, two tables
    root = m.shadow.tree.root
    m.poke(PD + 4, PT | ALL, 4)
    m.poke(PD + 8, PT | ALL, 4)
    causes(m, (0x3000, READ), (0x40_3000, READ))
    found = m.shadow.fault(0x80_3000, READ)
    assert (found.cause, found.flush) == (Cause.HIDDEN, True)
    assert pages(m) == [0x80_3000]
    assert m.shadow.tree.root == root
    assert m.shadow.counters.drops == 1
    m.check()


def test_too_few_frames_for_one_tree_are_an_error_that_keeps_none() -> None:
    with pytest.raises(MemoryError):
        guest(frames=4)
    m = Machine(frames=5)
    m.shadow.pin(0xFF00_0000, PIN)
    with pytest.raises(MemoryError):
        m.activate(PAGING)
    assert m.frames.free_count == 5


def test_a_32_bit_root_lies_below_4_gib() -> None:
    m = Machine()
    m.frames._free = [1 << 32]
    with pytest.raises(AssertionError, match="0x100000000"):
        m.activate(PAGING)


def test_pdptes_never_change() -> None:
    m = guest()
    before = m.buffer[TABLES : TABLES + 32]
    causes(m, (0x3000, WRITE), (TABLE_MAP, READ))
    m.shadow.drop_all()
    assert m.buffer[TABLES : TABLES + 32] == before


def test_invlpg_drops_one_page() -> None:
    m = guest()
    causes(m, (0x3000, READ), (0x4000, READ))
    assert m.shadow.invlpg(0x3456) is True
    assert m.shadow.invlpg(0x3456) is False
    assert pages(m) == [0x4000]


# -- pins -------------------------------------------------------------------------------------------------------------


def test_a_pin_is_in_every_tree_for_good() -> None:
    m = guest(pins=(0x5000, 0xFF00_0000))
    m.poke(0x4000, PT | ALL, 4)
    causes(m, (0x4000, READ), (0x6000, READ))
    for paging in (root_of(4), PAGING, Paging(mode=PagingMode.NONE), Paging(mode=PagingMode.LEVEL4, root=PD)):
        m.activate(paging)
        for gva in m.pins:
            assert m.processor.translate(gva + 0x123, READ) == PIN + 0x123
            for access in (WRITE, FETCH, USER_READ):
                assert m.processor.translate(gva, access) is None
    m.activate(PAGING)
    m.dma(PD, PT | ALL, 4)
    m.shadow.drop_all()
    m.shadow.invlpg(0x5000)
    m.check()
    assert pages(m) == []


def test_a_pin_beyond_4_gib_is_in_the_trees_that_reach_it() -> None:
    m = guest()
    m.shadow.pin(0xFFFF_FFFF_FF00_0000, PIN, writable=True)
    assert m.processor.translate(0xFF00_0000, READ) is None
    m.activate(Paging(mode=PagingMode.LEVEL4, root=PD))
    assert m.processor.translate(0xFFFF_FFFF_FF00_0008, WRITE) == PIN + 8
    m.shadow.unpin(0xFFFF_FFFF_FF00_0000)
    m.told(True)
    assert m.processor.translate(0xFFFF_FFFF_FF00_0008, READ) is None


def test_an_access_where_a_pin_hides_the_guests_page_is_a_conflict() -> None:
    m = guest(pins=(0x60_0000,))
    causes(m, (0x3000, WRITE))
    m.shadow.pin(0x3000, PIN)
    m.told(True)
    assert m.access(0x3008, USER_READ) == (0xB008, Cause.CONFLICT)
    assert m.access(0x60_0000, USER_READ) == (Fault(Vector.PF, 4, cr2=0x60_0000), None)
    assert [m.shadow.conflict(gva) for gva in (0x3000, 0x60_0000)] == [True, False]
    m.shadow.unpin(0x3000)
    m.told(True)
    assert causes(m, (0x3008, USER_WRITE), (0x3008, USER_WRITE)) == [Cause.HIDDEN, None]


def test_looking_for_a_conflict_leaves_no_trace() -> None:
    m = guest()
    assert m.shadow.conflict(0x3000)
    assert entry(m, PT + 12) == 0xB000 | ALL
    m.activate(Paging(mode=PagingMode.NONE))
    assert [m.shadow.conflict(gva) for gva in (0x3000, 0xFF00_0000)] == [True, False]


def test_a_pin_finds_room() -> None:
    m = guest(frames=7, trees=1)
    m.poke(PD + 4, PT | ALL, 4)
    causes(m, (0x3000, READ), (0x40_3000, READ))
    m.shadow.pin(0xFF00_0000, PIN)
    m.told(True)
    assert m.processor.translate(0xFF00_0000, READ) == PIN
    assert pages(m) == []


def test_pins_are_whole_pages() -> None:
    for gva, hpa in ((0x3004, PIN), (0x3000, PIN + 8)):
        with pytest.raises(AssertionError, match="a pin maps a page"):
            guest().shadow.pin(gva, hpa)


# -- what people see --------------------------------------------------------------------------------------------------


def test_counters_say_what_the_shadow_cost() -> None:
    m = guest()
    causes(m, (0x3000, READ), (0x3000, WRITE), (0x3000, WRITE), (TABLE_MAP + 12, WRITE), (0x4000, READ))
    m.access(0x0050_0000, READ)
    counters = m.shadow.counters
    assert counters.faults == {
        Cause.HIDDEN: 3, Cause.WP_OFF: 0, Cause.TRACED_WRITE: 1, Cause.MMIO: 0, Cause.UNMAPPABLE: 0, Cause.CONFLICT: 0,
    }  # fmt: skip
    assert (counters.reflected, counters.zaps, counters.flushes, counters.trees, counters.drops) == (1, 1, 1, 1, 0)


def test_a_shadow_has_no_paging_before_the_first_activate() -> None:
    with pytest.raises(AssertionError, match="no paging"):
        Machine().shadow.fault(0, READ)


def test_a_tree_prints_itself() -> None:
    m = guest()
    causes(m, (0x3000, READ))
    assert repr(m.shadow.tree) == f"ShadowTree(3 levels, root hpa {TABLES:#x}, 1 leaves)"
    assert m.shadow.tree.leaf(0x3000) & ADDRESS == GUEST + 0xB000
