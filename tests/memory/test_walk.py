from __future__ import annotations

import itertools

import pytest

from hvemu.memory.walk import Access, Meaning, explain, walk
from hvemu.x86.paging import Paging, PagingMode
from hvemu.x86.vectors import Fault, Vector

M = PagingMode


class Words(dict):
    """Physical memory as a dict of entries; what was never written is 0."""

    def read(self, gpa, size):
        assert gpa % size == 0
        return self.get(gpa, 0)

    def write(self, gpa, size, value):
        assert value >> 8 * size == 0
        self[gpa] = value


# mode, root, gva, {entry gpa: entry}, gpa, page size. By hand from the figures of SDM 3A "32-Bit Paging",
# "PAE Paging" and "4-Level Paging and 5-Level Paging".
TRANSLATIONS = [
    (M.BITS32, 0x1000, 0xC0123ABC, {0x1C00: 0x2067, 0x248C: 0x345067}, 0x345ABC, 0x1000),
    (M.BITS32, 0x1000, 0xC0123ABC, {0x1C00: 0x008000E7}, 0x923ABC, 0x400000),
    (M.BITS32, 0x1000, 0xC0123ABC, {0x1C00: 0x0081E0E7}, 0xF00923ABC, 0x400000),
    (M.PAE, 0x1020, 0xC0723ABC, {0x1038: 0x2001, 0x2018: 0x3067, 0x3918: 0x5_0034_5067}, 0x500345ABC, 0x1000),
    (M.PAE, 0x1020, 0xC0723ABC, {0x1038: 0x2001, 0x2018: 0x5_0060_00E7}, 0x500723ABC, 0x200000),
    (M.LEVEL4, 0x1000, 0xFFFF_9234_5678_9ABC,
     {0x1920: 0x2067, 0x2688: 0x3067, 0x3598: 0x4067, 0x4C48: 0xF_0034_5067}, 0xF00345ABC, 0x1000),
    (M.LEVEL4, 0x1000, 0xFFFF_9234_5678_9ABC,
     {0x1920: 0x2067, 0x2688: 0x3067, 0x3598: 0xF_0060_00E7}, 0xF00789ABC, 0x200000),
    (M.LEVEL4, 0x1000, 0xFFFF_9234_5678_9ABC, {0x1920: 0x2067, 0x2688: 0xF_4000_00E7}, 0xF56789ABC, 0x40000000),
    (M.LEVEL5, 0x8000, 0x0012_9234_5678_9ABC,
     {0x8090: 0x1067, 0x1920: 0x2067, 0x2688: 0x3067, 0x3598: 0x4067, 0x4C48: 0x345067}, 0x345ABC, 0x1000),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "root", "gva", "tables", "gpa", "size"), TRANSLATIONS)
def test_translations_by_hand(mode, root, gva, tables, gpa, size):
    paging = Paging(mode=mode, root=root, pse=True)
    memory = Words(tables)
    found = walk(paging, memory.read, gva, Access(), memory.write)
    assert (found.gpa, found.page_size) == (gpa, size)
    assert [step.entry_gpa for step in found.steps] == [*tables]
    assert [int(step.entry) for step in found.steps] == [*tables.values()]
    assert memory == tables


@pytest.mark.parametrize("gva", [0, 0x1234, 0xFFFF_FFFF, 0x1_0000_1234])
def test_without_paging_the_walk_is_the_identity_on_32_bits(gva):
    found = walk(Paging(mode=M.NONE), None, gva, Access(write=True, user=True))
    assert (found.gpa, found.steps, found.writable, found.user, found.executable) == (
        gva & 0xFFFF_FFFF, (), True, True, True,
    )  # fmt: skip
    assert explain(Paging(mode=M.NONE), None, gva) == ()


@pytest.mark.parametrize(
    ("mode", "gva", "good"),
    [(M.LEVEL4, 0x7FFF_FFFF_FFFF, True), (M.LEVEL4, 0x8000_0000_0000, False),
     (M.LEVEL4, 0xFFFF_7FFF_FFFF_FFFF, False), (M.LEVEL4, 0xFFFF_8000_0000_0000, True),
     (M.LEVEL5, 0xFF_FFFF_FFFF_FFFF, True), (M.LEVEL5, 0x100_0000_0000_0000, False),
     (M.LEVEL5, 0xFEFF_FFFF_FFFF_FFFF, False), (M.LEVEL5, 0xFF00_0000_0000_0000, True)],
)  # fmt: skip
def test_a_gva_that_is_not_canonical_is_gp(mode, gva, good):
    with pytest.raises(Fault) as raised:
        walk(Paging(mode=mode), Words().read, gva, Access())
    assert raised.value == (Fault(Vector.PF, 0, cr2=gva) if good else Fault(Vector.GP, 0))


def test_explain_ends_where_the_walk_does_and_says_why():
    paging, gva = Paging(mode=M.PAE, root=0x1000), 0x0020_1000
    memory = Words({0x1000: 0x2001})
    assert [s.meaning for s in explain(paging, memory.read, gva)] == [Meaning.TABLE, Meaning.NOT_PRESENT]
    memory[0x2008] = 0x8000_0000_0000_3001
    last = explain(paging, memory.read, gva)[-1]
    assert (last.meaning, last.reserved) == (Meaning.RESERVED, 1 << 63)
    assert str(last) == (
        "level 2, gpa 0x2008: PdePae(0x8000000000003001: p xd frame=0x3) has reserved bits set: 0x8000000000000000"
    )


# -- who may do what: SDM 3A "Determination of Access Rights", sentence by sentence ------------------------------------

SUPERVISOR, USER, IMPLICIT = "supervisor", "user", "implicit"
FLAG = (False, True)
P, RW, US, A, D, XD = 1, 2, 4, 0x20, 0x40, 1 << 63
GVA = 0x0012_3456
LEAF = 0x2000 + 0x123 * 8  # gpa of the PTE of GVA


def allowed(kind: str, who: str, *, rw: bool, us: bool, xd: bool, wp: bool, smep: bool, smap: bool, ac: bool) -> bool:
    """Return what the manual says of one access; *rw*, *us* hold for every entry, *xd* for any."""
    explicit = who == SUPERVISOR
    match who == USER, kind, us:
        case False, "read", True:
            return not smap or (explicit and ac)
        case False, "read", False:
            return True
        case False, "write", True:
            return (rw or not wp) and (not smap or (explicit and ac))
        case False, "write", False:
            return rw or not wp
        case False, "fetch", True:
            return not smep and not xd
        case False, "fetch", False:
            return not xd
        case True, "read", _:
            return us
        case True, "write", _:
            return us and rw
        case True, "fetch", _:
            return us and not xd
    raise AssertionError


def two_levels(first: int, second: int, **settings: bool) -> tuple[Paging, Words]:
    """Return PAE paging in which the PDE of GVA has the flags *first*, and its PTE *second*."""
    paging = Paging(mode=M.PAE, root=0x1000, nxe=True, **settings)
    return paging, Words({0x1000: 0x3001, 0x3000: 0x2000 | first, LEAF: 0x7000 | second})


@pytest.mark.parametrize(
    ("who", "kind"),
    [(SUPERVISOR, "read"), (SUPERVISOR, "write"), (SUPERVISOR, "fetch"), (USER, "read"), (USER, "write"),
     (USER, "fetch"), (IMPLICIT, "read"), (IMPLICIT, "write")],
)  # fmt: skip
def test_access_rights(kind, who):
    ones = itertools.product(FLAG, repeat=10)
    for rw1, rw2, us1, us2, xd1, xd2, wp, smep, smap, ac in ones:
        first = P | (RW if rw1 else 0) | (US if us1 else 0) | (XD if xd1 else 0)
        second = P | (RW if rw2 else 0) | (US if us2 else 0) | (XD if xd2 else 0)
        paging, memory = two_levels(first, second, wp=wp, smep=smep, smap=smap)
        access = Access(
            write=kind == "write", fetch=kind == "fetch", user=who == USER, implicit_supervisor=who == IMPLICIT, ac=ac
        )
        rights = {"rw": rw1 and rw2, "us": us1 and us2, "xd": xd1 or xd2}
        if allowed(kind, who, **rights, wp=wp, smep=smep, smap=smap, ac=ac):
            found = walk(paging, memory.read, GVA, access)
            assert found.gpa == 0x7456
            assert (found.writable, found.user, found.executable) == (rights["rw"], rights["us"], not rights["xd"])
        else:
            code = 1 | 2 * (kind == "write") | 4 * (who == USER) | 0x10 * (kind == "fetch")
            with pytest.raises(Fault) as raised:
                walk(paging, memory.read, GVA, access, memory.write)
            assert raised.value == Fault(Vector.PF, code, cr2=GVA)


@pytest.mark.parametrize(
    ("mode", "nxe", "smep", "shown"),
    [(M.BITS32, False, False, 0), (M.BITS32, False, True, 0x10), (M.PAE, False, False, 0), (M.PAE, True, False, 0x10),
     (M.PAE, False, True, 0x10), (M.LEVEL4, False, False, 0), (M.LEVEL4, True, True, 0x10)],
)  # fmt: skip
def test_fetches_are_shown_only_where_they_can_be_forbidden(mode, nxe, smep, shown):
    with pytest.raises(Fault) as raised:
        walk(Paging(mode=mode, nxe=nxe, smep=smep), Words().read, 0, Access(fetch=True, user=True))
    assert raised.value.error_code == 4 | shown


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, *range(40, 64)])
def test_reserved_bits_of_a_pdpte_of_pae_paging_are_a_page_fault(bit):
    paging, memory = two_levels(P | RW, P | RW)
    memory[0x1000] |= 1 << bit
    with pytest.raises(Fault) as raised:
        walk(paging, memory.read, GVA, Access())
    assert raised.value.error_code == 9


@pytest.mark.parametrize("bit", range(1, 64))
def test_nothing_is_reserved_in_an_entry_that_is_not_present(bit):
    paging, memory = two_levels(1 << bit, 0)
    with pytest.raises(Fault) as raised:
        walk(paging, memory.read, GVA, Access())
    assert raised.value.error_code == 0


# -- accessed and dirty flags: SDM 3A "Accessed and Dirty Flags" ------------------------------------------------------


@pytest.mark.parametrize("write", FLAG)
@pytest.mark.parametrize(("first", "second"), [*itertools.product([0, A, D, A | D], repeat=2)])
def test_a_is_set_in_every_entry_and_d_in_the_one_that_maps_the_page(first, second, write):
    paging, memory = two_levels(P | RW | first, P | RW | second)
    found = walk(paging, memory.read, GVA, Access(write=write), memory.write)
    leaf = 0x7000 | P | RW | second | A | (D if write else 0)
    assert memory == {0x1000: 0x3001, 0x3000: 0x2000 | P | RW | first | A, LEAF: leaf}
    assert [int(step.entry) for step in found.steps] == [*memory.values()]
    assert found.dirty == bool(leaf & D)


def test_entries_are_written_only_when_a_flag_is_new():
    paging, memory = two_levels(P | RW | A, P | RW | A)
    written = []
    walk(paging, memory.read, GVA, Access(write=True), lambda gpa, size, value: written.append((gpa, size, value)))
    assert written == [(LEAF, 8, 0x7000 | P | RW | A | D)]


def test_without_a_writer_nothing_is_set_and_the_steps_say_so():
    paging, memory = two_levels(P | RW, P | RW)
    found = walk(paging, memory.read, GVA, Access(write=True))
    assert [int(step.entry) & (A | D) for step in found.steps] == [0, 0, 0]
    assert not found.dirty


@pytest.mark.parametrize(("first", "second"), [(P, 0), (P, P | 1 << 52), (P, P), (0, P), (P | 1 << 52, P)])
def test_a_fault_leaves_the_tables_alone(first, second):
    paging, memory = two_levels(first, second)
    before = dict(memory)
    with pytest.raises(Fault):
        walk(paging, memory.read, GVA, Access(user=True), memory.write)
    assert memory == before


def test_an_entry_that_maps_its_own_table_is_marked_as_a_table_and_as_a_page():
    memory = Words({0x1000: 0x1000 | P | RW})
    found = walk(Paging(mode=M.LEVEL4, root=0x1000), memory.read, 0x10, Access(write=True), memory.write)
    assert found.gpa == 0x1010
    assert memory == {0x1000: 0x1000 | P | RW | A | D}


@pytest.mark.parametrize("bit", [6, 8])
def test_dirty_and_global_are_those_of_the_leaf(bit):
    paging, memory = two_levels(P | 1 << bit, P)
    found = walk(paging, memory.read, GVA, Access())
    assert (found.dirty, found.global_page) == (False, False)
    memory[LEAF] |= 1 << bit
    found = walk(paging, memory.read, GVA, Access())
    assert (found.dirty, found.global_page) == (bit == 6, bit == 8)
