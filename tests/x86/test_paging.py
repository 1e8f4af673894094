from __future__ import annotations

import itertools

import pytest

from hvemu.x86.paging import (
    GEOMETRY,
    Entry,
    Paging,
    PagingMode,
    Pde,
    Pde2M,
    Pde2MPae,
    Pde4M,
    Pde32,
    PdePae,
    Pdpte,
    Pdpte1G,
    PdptePae,
    Pml4e,
    Pml5e,
    Pte,
    Pte32,
    PtePae,
)
from hvemu.x86.state import PlainState

M = PagingMode
PG, PE, WP = 1 << 31, 1, 1 << 16
PSE, PAE, LA57, SMEP, SMAP = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21
LME, LMA, NXE = 1 << 8, 1 << 10, 1 << 11


def span(hi: int, lo: int) -> int:
    return (1 << hi + 1) - (1 << lo)


# -- entry formats, from the tables of SDM 3A "32-Bit Paging", "PAE Paging", "4-Level Paging and 5-Level Paging" ------

ALL_ONES = (1 << 64) - 1
TABLE_FLAGS = {"p", "rw", "us", "pwt", "pcd", "a"}
LEAF_FLAGS = {*TABLE_FLAGS, "d", "g", "pat"}
FORMATS = [
    (Pde32, TABLE_FLAGS | {"ps"}, span(31, 12)),
    (Pde4M, LEAF_FLAGS | {"ps"}, span(31, 22)),
    (Pte32, LEAF_FLAGS, span(31, 12)),
    (PdptePae, {"p", "pwt", "pcd"}, span(51, 12)),
    (PdePae, TABLE_FLAGS | {"ps", "xd"}, span(51, 12)),
    (Pde2MPae, LEAF_FLAGS | {"ps", "xd"}, span(51, 21)),
    (PtePae, LEAF_FLAGS | {"xd"}, span(51, 12)),
    (Pml5e, TABLE_FLAGS | {"xd"}, span(51, 12)),
    (Pml4e, TABLE_FLAGS | {"xd"}, span(51, 12)),
    (Pdpte, TABLE_FLAGS | {"ps", "xd"}, span(51, 12)),
    (Pdpte1G, LEAF_FLAGS | {"ps", "xd"}, span(51, 30)),
    (Pde, TABLE_FLAGS | {"ps", "xd"}, span(51, 12)),
    (Pde2M, LEAF_FLAGS | {"ps", "xd"}, span(51, 21)),
    (Pte, LEAF_FLAGS | {"xd"}, span(51, 12)),
]
BITS = {"p": 0, "rw": 1, "us": 2, "pwt": 3, "pcd": 4, "a": 5, "d": 6, "ps": 7, "g": 8, "xd": 63}
LARGE_PAT = {Pde4M, Pde2M, Pde2MPae, Pdpte1G}


@pytest.mark.parametrize(("kind", "flags", "frame"), FORMATS)
def test_flags_are_where_the_manual_has_them(kind, flags, frame):
    named = {name for name in kind.fields if not name.startswith(("frame", "reserved"))}
    assert named == flags
    for name in flags:
        at = BITS.get(name, 12 if kind in LARGE_PAT else 7)
        assert int(kind(**{name: 1})) == 1 << at
    assert kind.frame.mask << kind.frame.lo == frame


@pytest.mark.parametrize(("kind", "flags", "frame"), FORMATS)
def test_the_gpa_of_an_entry_is_its_frame(kind, flags, frame):
    high = 0xFF << 32 if kind is Pde4M else 0
    assert kind(ALL_ONES).gpa == frame | high


@pytest.mark.parametrize(("kind", "flags", "frame"), FORMATS)
def test_only_the_pdpte_of_pae_paging_has_no_accessed_bit_and_no_rights(kind, flags, frame):
    assert ((0, 6) if kind is PdptePae else (0x20, 0)) == (kind.ACCESSED, kind.ASSUMED)


@pytest.mark.parametrize("bit", range(8))
def test_pse36_holds_address_bits_39_to_32_in_bits_20_to_13(bit):
    assert Pde4M(1 << 13 + bit).gpa == 1 << 32 + bit


# -- hierarchies ------------------------------------------------------------------------------------------------------

LINEAR = {M.BITS32: 32, M.PAE: 32, M.LEVEL4: 48, M.LEVEL5: 57}
PAGES = {
    M.BITS32: {4 << 10, 4 << 20},
    M.PAE: {4 << 10, 2 << 20},
    M.LEVEL4: {4 << 10, 2 << 20, 1 << 30},
    M.LEVEL5: {4 << 10, 2 << 20, 1 << 30},
}


@pytest.mark.parametrize("mode", LINEAR)
def test_every_table_divides_what_an_entry_above_it_maps(mode):
    levels = GEOMETRY[mode].levels
    for above, below in itertools.pairwise(levels):
        assert above.span == below.span * below.entries
        assert above.number == below.number + 1
    assert levels[0].span * levels[0].entries == 1 << LINEAR[mode]
    assert levels[-1].span == 0x1000
    assert levels[-1].number == 1


@pytest.mark.parametrize("mode", LINEAR)
def test_pages_come_in_the_sizes_of_the_manual(mode):
    assert {level.span for level in GEOMETRY[mode].levels if level.leaf} == PAGES[mode]


@pytest.mark.parametrize("mode", LINEAR)
def test_a_table_is_a_page_but_for_the_four_pdptes_of_pae_paging(mode):
    sizes = [level.entries * GEOMETRY[mode].entry_size for level in GEOMETRY[mode].levels]
    assert sizes == [32 if mode is M.PAE else 0x1000] + [0x1000] * (len(sizes) - 1)


def test_without_cr4_pse_the_ps_bit_means_nothing():
    pde = Paging(mode=M.BITS32).levels[0]
    assert (pde.format(0x81), Paging(mode=M.BITS32, pse=True).levels[0].format(0x81)) == (Pde32, Pde4M)
    assert Paging(mode=M.BITS32).reserved[Pde32] == 0


# -- reserved bits ----------------------------------------------------------------------------------------------------


def reserved(kind: type[Entry], mode: PagingMode, m: int, nxe: bool) -> int:
    """Return the bits that the tables of the manual call "Reserved (must be 0)"; *m* is MAXPHYADDR."""
    if mode is M.BITS32:
        return span(21, min(m, 40) - 19) if kind is Pde4M else 0
    no_xd = 0 if nxe else 1 << 63
    low = {Pml4e: 1 << 7, Pml5e: 1 << 7, Pdpte1G: span(29, 13), Pde2M: span(20, 13), Pde2MPae: span(20, 13)}
    if kind is PdptePae:
        return 0b110 | span(8, 5) | span(63, m)
    return low.get(kind, 0) | span(62 if mode is M.PAE else 51, m) | no_xd


@pytest.mark.parametrize("maxphyaddr", [32, 36, 39, 40, 46, 51])
@pytest.mark.parametrize("nxe", [False, True])
@pytest.mark.parametrize("mode", LINEAR)
def test_reserved_bits_follow_the_mode_nxe_and_maxphyaddr(mode, nxe, maxphyaddr):
    found = Paging(mode=mode, pse=True, nxe=nxe, maxphyaddr=maxphyaddr).reserved
    kinds = {kind for level in GEOMETRY[mode].levels for kind in (level.table, level.leaf) if kind}
    assert found == {kind: reserved(kind, mode, maxphyaddr, nxe) for kind in kinds}


def test_with_52_address_bits_none_of_them_is_reserved():
    assert Paging(mode=M.LEVEL4, nxe=True, maxphyaddr=52).reserved[Pte] == 0


def test_where_1_gib_pages_are_not_offered_ps_is_reserved_in_a_pdpte():
    paging = Paging(mode=M.LEVEL4, nxe=True, gigabyte_pages=False, maxphyaddr=52)
    assert paging.levels[1].format(0x81) is Pdpte
    assert paging.reserved[Pdpte] == 1 << 7


# -- what registers select --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "mode"),
    [
        (PE, 0, 0, M.NONE),
        (PE, PAE | PSE, LME, M.NONE),
        (PG | PE, 0, 0, M.BITS32),
        (PG | PE, LA57, NXE, M.BITS32),
        (PG | PE, PAE, 0, M.PAE),
        (PG | PE, PAE | LA57, NXE, M.PAE),
        (PG | PE, PAE, LME | LMA, M.LEVEL4),
        (PG | PE, PAE | LA57, LME | LMA, M.LEVEL5),
    ],
)
def test_registers_select_the_mode(cr0, cr4, efer, mode):
    assert Paging.of(PlainState(cr0=cr0, cr4=cr4, efer=efer), 40).mode is mode


@pytest.mark.parametrize(
    ("mode", "root"),
    [(M.NONE, 0), (M.BITS32, 0xFFFF_F000), (M.PAE, 0xFFFF_FFE0), (M.LEVEL4, 0xF_FFFF_FFFF_F000),
     (M.LEVEL5, 0xF_FFFF_FFFF_F000)],
)  # fmt: skip
def test_cr3_holds_the_root(mode, root):
    cr4 = {M.NONE: 0, M.BITS32: 0, M.LEVEL5: PAE | LA57}.get(mode, PAE)
    efer = LMA if mode in (M.LEVEL4, M.LEVEL5) else 0
    state = PlainState(cr0=PE if mode is M.NONE else PE | PG, cr3=ALL_ONES, cr4=cr4, efer=efer)
    assert Paging.of(state, 40).root == root


def test_each_setting_comes_from_its_bit():
    on = {"wp": (WP, 0, 0), "smep": (0, SMEP, 0), "smap": (0, SMAP, 0), "pse": (0, PSE, 0), "nxe": (0, 0, NXE)}
    for name, (cr0, cr4, efer) in on.items():
        paging = Paging.of(PlainState(cr0=PG | PE | cr0, cr4=PAE | cr4, efer=LMA | efer), 40)
        assert {flag for flag in on if getattr(paging, flag)} == {name}


def test_32_bit_paging_has_no_execute_disable():
    assert not Paging.of(PlainState(cr0=PG | PE, efer=NXE), 40).nxe


def test_equal_registers_give_the_same_object_and_others_do_not():
    state = PlainState(cr0=PG | PE, cr3=0x1000)
    first = Paging.of(state, 40)
    assert Paging.of(state, 40) is first
    assert Paging.of(state, 36) != first
    state.cr3 = 0x2000
    assert Paging.of(state, 40).root == 0x2000


@pytest.mark.parametrize(("mode", "top"), [(M.NONE, 32), (M.BITS32, 32), (M.PAE, 32), (M.LEVEL4, 47), (M.LEVEL5, 56)])
def test_canonical_addresses(mode, top):
    paging, narrow = Paging(mode=mode), top == 32
    assert paging.canonical((1 << top) - 1)
    assert paging.canonical(1 << top) == narrow
    assert paging.canonical((1 << 64) - (1 << top))
