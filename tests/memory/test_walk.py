from __future__ import annotations

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
