"""The second level: what is mapped where, and what a guest meets that goes elsewhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.engine.boot import HIDDEN_SIZE
from hvemu.engine.second_level import LARGE, PAGE, Mapping, SecondLevel, SecondLevelCode
from hvemu.engine.traps import Kind
from tests.engine.rig import (
    BITS,
    CODE,
    DATA,
    NX,
    PD,
    PDPT,
    PML4,
    PS,
    RAM,
    RAX,
    RBX,
    RW,
    US,
    P,
    rig,
    summary,
)

GIB = 1 << 30
BASE, FIRST_FREE = 1 << 36, 0x1_0000


def table(size=HIDDEN_SIZE):
    return SecondLevel(memoryview(bytearray(size)), BASE, FIRST_FREE)


# -- the table --------------------------------------------------------------------------------------------------------


def test_what_was_never_mapped_is_not_there():
    assert table().lookup(0) is None


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("gpa", [0, 0x1000, LARGE - PAGE, GIB, 5 * GIB + 0x3000, (1 << 48) - PAGE])
def test_a_page_that_was_mapped_is_found(gpa, writable):
    level = table()
    level.map(gpa, 0x5000, PAGE, writable=writable)
    assert level.lookup(gpa) == level.lookup(gpa + 0xFFF) == Mapping(0x5000, writable, PAGE)
    assert level.lookup(gpa ^ LARGE) is None


def test_large_leaves_are_used_where_both_addresses_are_aligned():
    level = table()
    level.map(LARGE - PAGE, 3 * LARGE - PAGE, 2 * LARGE + 2 * PAGE)
    assert [level.lookup(gpa) for gpa in (LARGE - PAGE, LARGE, 2 * LARGE, 3 * LARGE, 3 * LARGE + PAGE)] == [
        Mapping(3 * LARGE - PAGE, True, PAGE), Mapping(3 * LARGE, True, LARGE), Mapping(4 * LARGE, True, LARGE),
        Mapping(5 * LARGE, True, PAGE), None,
    ]  # fmt: skip


def test_small_leaves_are_used_where_the_addresses_differ_in_alignment():
    level = table()
    level.map(0, PAGE, LARGE)
    assert level.lookup(LARGE - PAGE) == Mapping(LARGE, True, PAGE)


def test_a_large_range_takes_one_table_for_each_gib():
    level = table()
    level.map(0, 0, 8 * GIB)
    assert (level.lookup(8 * GIB - 1), level.lookup(8 * GIB)) == (Mapping(8 * GIB - LARGE, True, LARGE), None)
    level = table(FIRST_FREE + (2 + 8) * PAGE)  # the root, one for the 512 GiB, and one for each GiB
    level.map(0, 0, 8 * GIB)
    with pytest.raises(MemoryError):
        level.map(8 * GIB, 0, PAGE)


def test_one_small_page_splits_a_large_one_and_the_rest_stays():
    level = table()
    level.map(0, LARGE, LARGE, writable=False)
    level.map(0x5000, 0x9000, PAGE)
    for gpa in range(0, LARGE, PAGE):
        assert level.lookup(gpa) == (
            Mapping(0x9000, True, PAGE) if gpa == 0x5000 else Mapping(LARGE + gpa, False, PAGE)
        )


def test_a_large_leaf_takes_the_place_of_small_ones():
    level = table()
    level.map(0x5000, 0x9000, PAGE)
    level.map(0, LARGE, LARGE)
    assert level.lookup(0x5000) == Mapping(LARGE, True, LARGE)


def test_set_writable_opens_and_closes_one_page():
    level = table()
    level.map(0, 0, LARGE)
    level.set_writable(0x7000, False)
    assert [level.lookup(gpa).writable for gpa in (0x6000, 0x7000, 0x8000)] == [True, False, True]
    level.set_writable(0x7000, True)
    assert level.lookup(0x7000) == Mapping(0x7000, True, PAGE)


@pytest.mark.parametrize(
    ("gpa", "size"), [(0, PAGE), (LARGE - PAGE, 2 * PAGE), (0, LARGE), (LARGE, 2 * LARGE), (0, GIB)]
)
def test_unmap_removes_these_pages_and_no_others(gpa, size):
    level = table()
    level.map(0, 0, 4 * LARGE)
    level.unmap(gpa, size)
    for page in range(0, 4 * LARGE, PAGE):
        assert (level.lookup(page) is None) == (gpa <= page < gpa + size), hex(page)


def test_unmap_of_a_whole_large_page_splits_nothing():
    level = table(FIRST_FREE + 3 * PAGE)  # no table is left
    level.map(0, 0, 4 * LARGE)
    level.unmap(LARGE, 2 * LARGE)
    assert [level.lookup(n * LARGE) is None for n in range(4)] == [False, True, True, False]


def test_unmap_of_nothing_needs_no_table():
    level = table(FIRST_FREE + PAGE)
    level.unmap(0, 4 * GIB)
    assert level.lookup(0) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["map", "protect", "unmap", "close", "open"]), st.integers(0, 1200), st.integers(1, 700),
            st.integers(0, 3),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_the_table_is_a_dictionary_of_pages(actions):
    level, model = table(), {}
    for action, page, count, shift in actions:
        pages = range(page, page + count)
        if action in ("map", "protect"):
            level.map(page * PAGE, (page + shift * 512) * PAGE, count * PAGE, writable=action == "map")
            model.update({n: ((n + shift * 512) * PAGE, action == "map") for n in pages})
        elif action == "unmap":
            level.unmap(page * PAGE, count * PAGE)
            for n in pages:
                model.pop(n, None)
        elif page in model:
            level.set_writable(page * PAGE, action == "open")
            model[page] = (model[page][0], action == "open")
    for n in range(2000):
        found = level.lookup(n * PAGE)
        seen = found and (found.hpa + n * PAGE % found.size, found.writable)
        assert seen == model.get(n)


# -- full tables ------------------------------------------------------------------------------------------------------


def test_who_maps_when_the_tables_are_full_is_told_and_may_clear_and_fill_again():
    level = table(FIRST_FREE + 12 * PAGE)
    for n in range(5):
        level.map(n * GIB, n * PAGE, PAGE)
    with pytest.raises(MemoryError):
        level.map(5 * GIB, 0, PAGE)
    before = [level.lookup(n * GIB) for n in range(100)]
    assert before[:5] == [Mapping(n * PAGE, True, PAGE) for n in range(5)]
    assert before[5:] == [None] * 95
    level.clear()
    assert [level.lookup(n * GIB) for n in range(100)] == [None] * 100
    level.map(7 * GIB, 0, LARGE)
    assert level.lookup(7 * GIB) == Mapping(0, True, LARGE)


def test_a_split_that_finds_no_table_changes_nothing():
    level = table(FIRST_FREE + 3 * PAGE)
    level.map(0, 0, LARGE)
    for action in (
        lambda: level.map(0, 0x5000, PAGE),
        lambda: level.unmap(0, PAGE),
        lambda: level.set_writable(0, False),
    ):
        with pytest.raises(MemoryError):
            action()
        assert level.lookup(0) == Mapping(0, True, LARGE)


def test_splitting_and_joining_for_ever_needs_one_table():
    level = table(FIRST_FREE + 4 * PAGE)
    for n in range(2000):
        level.map(0, 0, LARGE)
        level.map(n % 512 * PAGE, 0x5000, PAGE)
        assert level.lookup((n + 1) % 512 * PAGE) == Mapping((n + 1) % 512 * PAGE, True, PAGE)
        if n % 3 == 0:
            level.unmap(0, LARGE)
            assert level.lookup(0) is None


def fill(level):
    for n in range(1 << 20):
        level.map(n * GIB, 0, PAGE)


def test_clearing_keeps_the_root_where_the_emulator_looks_for_it():
    r = rig(32)
    level = r.engine.second_level
    root = level.root
    with pytest.raises(MemoryError):
        fill(level)
    level.clear()
    r.engine.flush_tlb()
    assert level.root == root == r.state.nested_cr3
    assert r.run(b"\x90").kind is Kind.SECOND_LEVEL
    level.map(0, 0, RAM)
    r.engine.flush_tlb()
    assert r.run(b"\x90\xf4").kind is Kind.HLT


# -- what the guest meets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("counted", [True, False])
def test_memory_is_where_the_second_level_says(bits, counted):
    r = rig(bits, counted=counted)
    r.engine.second_level.map(0x3000, 0x4_1000, PAGE)
    r.engine.flush_tlb()
    r.ram[0x4_1010] = 0x55
    r.gpr(RBX, 0x3010)
    r.gpr(7, 0x3010)
    assert r.run(b"\x8a\x07\xfe\xc0\x88\x47\x01\xf4").kind is Kind.HLT  # mov al, [bx or edi]; inc al; mov [.. + 1], al
    assert (r.state.gpr(RAX), r.ram[0x4_1011]) == (0x56, 0x56)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("code", "wr"), [(b"\x8a\x03", False), (b"\x88\x03", True)], ids=["load", "store"])
@pytest.mark.parametrize("present", [False, True])
def test_a_fault_names_the_gpa_and_the_access(code, wr, present, bits):
    r = rig(bits)
    level = r.engine.second_level
    level.map(DATA, DATA, PAGE, writable=False) if present else level.unmap(DATA, PAGE)
    r.engine.flush_tlb()
    r.gpr(RBX, DATA + 0x123)
    stop = r.run(b"\x90" + code + b"\xf4")
    if present and not wr:
        assert stop.kind is Kind.HLT
        return
    assert (summary(stop), stop.address, r.offset) == ((Kind.SECOND_LEVEL, 0), DATA + 0x123, 1)
    assert SecondLevelCode(stop.error_code) == SecondLevelCode(p=present, wr=wr, us=1)


def test_a_fetch_that_faults_says_so():
    r = rig(32)
    r.engine.second_level.unmap(DATA, PAGE)
    r.engine.flush_tlb()
    r.state.rip = DATA + 4
    stop = r.engine.run(1000)
    assert (summary(stop), stop.address) == ((Kind.SECOND_LEVEL, 0), DATA + 4)
    assert SecondLevelCode(stop.error_code) == SecondLevelCode(us=1, id=1)
    assert r.engine.fetch() == b""


@pytest.mark.parametrize("cpl", [0, 3])
def test_a_fault_is_about_a_user_access_at_every_privilege_level(cpl):
    r = rig(64, cpl)
    stop = r.run(b"\xa0" + RAM.to_bytes(8, "little"))
    assert stop.kind in (Kind.SECOND_LEVEL, Kind.EXCEPTION)
    r.word(PD + 8, RAM | PS | US | RW | P)
    r.engine.flush_tlb()
    stop = r.run(b"\xa0" + RAM.to_bytes(8, "little"))
    assert (stop.kind, stop.address, SecondLevelCode(stop.error_code).us) == (Kind.SECOND_LEVEL, RAM, True)


@pytest.mark.parametrize("level", [PML4, PDPT, PD])
@pytest.mark.parametrize(
    ("writable", "code"), [(None, SecondLevelCode(us=1, wr=1)), (False, SecondLevelCode(p=1, us=1, wr=1))]
)
def test_an_access_of_the_page_walker_is_a_write_even_for_a_load(level, writable, code):
    r = rig(64)
    r.engine.second_level.unmap(level, PAGE)
    if writable is False:
        r.engine.second_level.map(level, level, PAGE, writable=False)
    r.engine.flush_tlb()
    stop = r.run(b"\x90")
    assert (stop.kind, stop.address, stop.error_code) == (Kind.SECOND_LEVEL, level, code)


def test_the_bit_for_no_execution_is_a_clean_reserved_bit():
    r = rig(32)
    level = r.engine.second_level
    level.map(DATA, DATA, PAGE)
    slot = level._slot(DATA, 0, create=False)
    level._words[slot] |= NX
    r.engine.flush_tlb()
    stop = r.run(b"\xa0" + DATA.to_bytes(4, "little"))
    assert (stop.kind, SecondLevelCode(stop.error_code).rsvd) == (Kind.SECOND_LEVEL, True)


@pytest.mark.parametrize("order", [*itertools.permutations(("map", "flush", "run"), 3)][:2])
def test_a_mapping_counts_after_a_flush(order):
    r = rig(32)
    r.gpr(RBX, DATA)
    r.ram[DATA], r.ram[DATA + PAGE] = 1, 2
    r.run(b"\x8a\x03\xf4")
    r.engine.second_level.map(DATA, DATA + PAGE, PAGE)
    if order[1] == "flush":
        r.engine.flush_tlb()
    r.run(b"\x8a\x03\xf4")
    assert r.state.gpr(RAX) == (2 if order[1] == "flush" else 1)


# -- fetching where a walk would fault: the host process must live ----------------------------------------------------


@pytest.mark.parametrize("what", ["the page", "its table", "everything"])
def test_fetch_is_safe_when_the_second_level_has_lost_what_it_needs(what):
    r = rig(64)
    assert r.run(b"\x0f\xa2").kind is Kind.CPUID
    if what == "everything":
        r.engine.second_level.clear()
    else:
        r.engine.second_level.unmap(CODE if what == "the page" else PDPT, PAGE)
    r.engine.flush_tlb()
    assert r.engine.fetch() == b""
    assert r.engine.run(1000).kind is Kind.SECOND_LEVEL


def test_fetch_returns_what_there_is_before_a_page_that_is_missing():
    r = rig(64)
    r.put(b"\x48\xb8", CODE + 0xFFE)  # movabs rax, ...
    r.engine.second_level.unmap(CODE + PAGE, PAGE)
    r.engine.flush_tlb()
    r.state.rip = CODE + 0xFFE
    stop = r.engine.run(1000)
    assert (stop.kind, stop.address) == (Kind.SECOND_LEVEL, CODE + PAGE)
    assert r.engine.fetch() == b"\x48\xb8"


def paged():
    """Long mode with 4 KiB pages; entries of the last table at 0x83000."""
    r = rig(64)
    r.word(PD, 0x8_3000 | US | RW | P)
    for page in range(512):
        r.word(0x8_3000 + 8 * page, page << 12 | RW | P)
    r.engine.flush_tlb()
    return r


def test_fetch_goes_on_in_the_next_page_only_if_the_instruction_does():
    r = paged()
    following = 0x8_3000 + 8 * ((CODE >> 12) + 1)
    r.state.rip = CODE + 0xFFE
    r.put(b"\x0f\xa2", CODE + 0xFFE)
    assert r.engine.fetch() == b"\x0f\xa2"
    assert not r.peek(following) & 0x20  # A is clear: nobody has been there
    r.put(b"\x48\xb8" + bytes(range(8)), CODE + 0xFFE)
    assert r.engine.fetch()[:10] == b"\x48\xb8" + bytes(range(8))
    assert r.peek(following) & 0x20


# The emulator translates a block to its end, into the next page, before it runs the first instruction.
BEFORE_END = {"cpuid": (b"\x90\x90\x0f\xa2", Kind.CPUID, 2), "out": (b"\x90\x90\x90\xee", Kind.IO, 3),
              "outsb": (b"\x90\x90\x90\x6e", Kind.IO, 3), "rdmsr": (b"\x90\x90\x0f\x32", Kind.MSR, 2),
              "pushf": (b"\x90\x9c\x0f\xa2", Kind.CPUID, 2), "div": (b"\x90\x90\xf6\xf1", Kind.EXCEPTION, 2),
              "sti": (b"\x90\xfb\x0f\xa2", Kind.CPUID, 2), "store": (b"\x88\x03\x0f\xa2", Kind.CPUID, 1)}  # fmt: skip


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("missing", ["page", "second level"])
@pytest.mark.parametrize("name", BEFORE_END)
def test_code_up_to_the_end_of_a_page_runs_whether_or_not_there_is_a_next_one(name, missing, counted):
    code, kind, ran = BEFORE_END[name]
    r = rig(64, counted=counted)
    r.word(PD, 0x8_3000 | US | RW | P)
    for page in range(512):
        r.word(0x8_3000 + 8 * page, page << 12 | RW | P)
    if missing == "page":
        r.word(0x8_3000 + 8 * ((CODE >> 12) + 1), 0)
    else:
        r.engine.second_level.unmap(CODE + PAGE, PAGE)
    r.engine.flush_tlb()
    r.gpr(RBX, DATA)
    at = CODE + PAGE - len(code)
    r.put(code, at)
    for limit in ((1000,), (1,) * 10):
        r.state.rip, r.engine.instructions = at, 0
        for size in limit:
            stop = r.engine.run(size)
            if stop.kind is not Kind.LIMIT:
                break
        assert stop.kind is kind
        assert r.state.rip == CODE + PAGE - (1 if kind is Kind.IO else 2)
        assert r.engine.instructions == (ran if counted else 0)
        assert not r.state.blocking_by_sti_or_mov_ss or name == "sti"


@pytest.mark.parametrize("counted", [True, False])
def test_code_that_runs_off_the_last_page_stops_at_its_end(counted):
    r = paged()
    r = rig(32, counted=counted)
    r.engine.second_level.unmap(CODE + PAGE, PAGE)
    r.engine.flush_tlb()
    r.put(b"\x40" * 40, CODE + PAGE - 40)
    r.state.rip = CODE + PAGE - 40
    stop = r.engine.run(1000)
    assert (stop.kind, stop.address, r.state.rip) == (Kind.SECOND_LEVEL, CODE + PAGE, CODE + PAGE)
    assert (r.state.gpr(RAX), r.engine.instructions) == (40, 40 if counted else 0)


def test_fetch_at_an_address_that_is_not_canonical_is_empty():
    r = rig(64)
    r.state.rip = 1 << 62
    assert r.engine.run(1000).kind is Kind.EXCEPTION
    assert r.engine.fetch() == b""


def test_where_code_lies_is_remembered_and_what_is_there_is_not():
    r = paged()
    for code in (b"\x0f\xa2", b"\xf4\x90"):
        r.ram[CODE : CODE + 2] = code
        r.state.rip = CODE
        assert r.engine.fetch()[:2] == code


def test_what_is_remembered_of_the_kernel_is_nothing_to_a_user():
    r = paged()
    r.put(b"\x0f\xa2")
    r.state.rip = CODE
    assert r.engine.fetch()[:2] == b"\x0f\xa2"
    user = r.state.segment(2)
    r.state.set_segment(2, type(user)(user.selector | 3, 0, 0xFFFF_FFFF, user.rights.replace(dpl=3)))
    assert r.state.cpl == 3
    assert r.engine.fetch() == b""


@pytest.mark.parametrize("how", ["flush", "CR3", "guest's INVLPG", "guest's MOV to CR3"])
def test_what_is_remembered_is_forgotten_with_the_tlb(how):
    r = paged()
    entry = 0x8_3000 + 8 * (DATA >> 12)
    r.ram[DATA : DATA + 2], r.ram[DATA + PAGE : DATA + PAGE + 2] = b"\x0f\xa2", b"\xf4\x90"
    r.engine.arm_registers(cr_read=0, cr_write=0xFFFF, dr_read=0, dr_write=0)
    r.state.rip = DATA
    assert r.engine.fetch()[:2] == b"\x0f\xa2"
    r.word(entry, DATA + PAGE | RW | P)
    if how == "flush":
        r.engine.flush_tlb()
    elif how == "CR3":
        r.state.cr3 = PML4
    else:
        stop = r.run(b"\x0f\x01\x3b" if how == "guest's INVLPG" else b"\x0f\x22\xd8")
        assert stop.kind in (Kind.INVLPG, Kind.CR_WRITE)
        r.engine.write_cr(3, PML4)
    r.state.rip = DATA
    assert r.engine.fetch()[:2] == b"\xf4\x90"
