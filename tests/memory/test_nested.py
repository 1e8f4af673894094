from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.memory.ept import PAGE_4K, RW, RWX, RX, EptPaging, EptRights, R
from hvemu.memory.ept_tables import EptTables
from hvemu.memory.ept_walk import READ, EptMisconfiguration, EptViolation
from hvemu.memory.frames import Frames
from hvemu.memory.nested import NestedPhysical
from hvemu.memory.physical import Ram
from hvemu.memory.walk import Access, walk
from hvemu.x86.paging import Paging, PagingMode

K = PAGE_4K
TABLES, GUEST = 0x10_0000, 0x20_0000
A, D = 0x100, 0x200


class Counting(Ram):
    """RAM that counts its accesses."""

    accesses = 0

    def read_bytes(self, gpa, size):
        self.accesses += 1
        return super().read_bytes(gpa, size)


class Machine:
    """Guest page n lies in host page ORDER[n] from GUEST: neighbours in gpa are none in hpa."""

    ORDER = [5, 2, 7, 0, 3, 6, 1, 4]

    def __init__(self, rights=RWX, **given):
        self.host = Counting(bytearray(0x30_0000))
        self.tables = EptTables(self.host, Frames(TABLES, 16 * K))
        for page, frame in enumerate(self.ORDER):
            self.tables.map(page * K, GUEST + frame * K, K, rights)
        self.nested = NestedPhysical(EptPaging(self.tables.root, **given), self.host)

    def hpa(self, gpa):
        return GUEST + self.ORDER[gpa // K] * K + gpa % K

    def guest_bytes(self):
        return b"".join(self.host.read_bytes(self.hpa(page * K), K) for page in range(len(self.ORDER)))


def entry_hpa(machine, gpa):
    """Follow the tables by hand to the EPT PTE of *gpa*."""
    table = machine.tables.root
    for shift in (39, 30, 21):
        table = machine.host.read(table + 8 * (gpa >> shift & 511), 8) & 0xF_FFFF_FFFF_F000
    return table + 8 * (gpa >> 12 & 511)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("gpa", [0x1FF9, 0x1FFC, 0x1FFE, 0x1FFF, 0x2000])
def test_integers_cross_from_page_to_page(gpa, size):
    machine, value = Machine(), 0x8877_6655_4433_2211 & (1 << 8 * size) - 1
    machine.nested.write(gpa, size, value)
    assert machine.nested.read(gpa, size) == value
    assert [machine.host.read(machine.hpa(gpa + n), 1) for n in range(size)] == [*value.to_bytes(size, "little")]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8 * K - 1), st.integers(1, 3 * K), st.booleans()), min_size=1, max_size=12
    ),
    st.booleans(),
)  # fmt: skip
def test_memory_reads_as_flat_bytes_would(accesses, accessed_dirty):
    machine, flat = Machine(accessed_dirty=accessed_dirty), bytearray(8 * K)
    for n, (gpa, length, stores) in enumerate(accesses):
        size = min(length, 8 * K - gpa)
        if stores:
            flat[gpa : gpa + size] = bytes([n + 1]) * size
            machine.nested.write_bytes(gpa, bytes([n + 1]) * size)
        assert machine.nested.read_bytes(gpa, size) == flat[gpa : gpa + size]
    assert machine.guest_bytes() == flat


def test_a_store_that_one_page_refuses_changes_no_byte():
    machine = Machine()
    machine.tables.protect(3 * K, K, R)
    before = machine.guest_bytes()
    with pytest.raises(EptViolation) as raised:
        machine.nested.write_bytes(K + 0x800, bytes([0xAA]) * 3 * K)
    assert (raised.value.gpa, raised.value.access.write, raised.value.rights) == (3 * K, True, R)
    assert machine.guest_bytes() == before


@pytest.mark.parametrize(
    ("rights", "allowed"),
    [(R, {"read", "read_entry"}), (RW, {"read", "read_entry", "write", "write_entry"}),
     (RX, {"read", "read_entry", "fetch"}), (EptRights(execute=1), {"fetch"})],
)  # fmt: skip
def test_each_access_needs_its_right(rights, allowed):
    calls = {
        "read": lambda m: m.read(0x10, 4), "read_entry": lambda m: m.read_entry(0x10, 8),
        "write": lambda m: m.write(0x10, 4, 1), "write_entry": lambda m: m.write_entry(0x10, 8, 1),
        "fetch": lambda m: m.fetch(0x10, 15, user=False),
    }  # fmt: skip
    machine, passed = Machine(rights, execute_only=True).nested, set()
    for name, call in [*calls.items()] * 2:  # the second time with what the first one kept
        try:
            call(machine)
        except EptViolation:
            assert name not in allowed
        else:
            passed.add(name)
    assert passed == allowed


def test_code_is_fetched_across_pages():
    machine = Machine()
    machine.nested.write_bytes(2 * K - 3, bytes(range(1, 8)))
    assert machine.nested.fetch(2 * K - 3, 7, user=True) == bytes(range(1, 8))


def test_translations_are_kept_until_they_are_flushed():
    machine = Machine()
    machine.nested.write(0, 8, 0x11)
    machine.tables.unmap(0, K)
    assert machine.nested.read(0, 8) == 0x11
    machine.nested.flush()
    with pytest.raises(EptViolation):
        machine.nested.read(0, 8)


def test_the_first_store_after_a_load_sets_the_dirty_flag():
    machine = Machine(accessed_dirty=True)
    flags = []
    for access in (lambda: None, lambda: machine.nested.read(0, 8), lambda: machine.nested.write(0, 8, 1)):
        access()
        flags.append(machine.host.read(entry_hpa(machine, 0), 8) & (A | D))
    assert flags == [0, A, A | D]


@pytest.mark.parametrize("loaded_before", [False, True])
def test_with_the_flags_on_the_page_walker_writes_even_when_it_reads(loaded_before):
    machine = Machine(accessed_dirty=True)
    if loaded_before:
        machine.nested.read(0, 8)
    machine.nested.read_entry(0, 8)
    assert machine.host.read(entry_hpa(machine, 0), 8) & D
    machine = Machine(R, accessed_dirty=True)
    with pytest.raises(EptViolation) as raised:
        machine.nested.read_entry(0, 8)
    assert (raised.value.access.read, raised.value.access.write, raised.value.access.paging) == (True, True, True)


def test_a_misconfigured_page_is_refused():
    machine = Machine()
    machine.host.write(entry_hpa(machine, 0), 8, GUEST | 0x2)
    with pytest.raises(EptMisconfiguration):
        machine.nested.read(0, 1)


# -- both dimensions -----------------------------------------------------------------------------------------------


def test_a_four_level_guest_on_four_levels_of_ept_costs_24_accesses():
    # Four guest entries and the final gpa, each translated by four EPT entries, and the four guest entries: 5 * 4 + 4.
    machine = Machine()
    gva, path = 0x80_8060_4123, [0, K, 2 * K, 3 * K, 4 * K]
    for (table, below), shift in zip(pairwise(path), (39, 30, 21, 12), strict=True):
        machine.host.write(machine.hpa(table) + 8 * (gva >> shift & 511), 8, below | 7)
    machine.host.accesses = 0
    paging = Paging(mode=PagingMode.LEVEL4, root=0)
    done = walk(paging, machine.nested.read_entry, gva, Access(user=True))
    assert done.gpa == 4 * K + 0x123
    assert machine.nested.translate(done.gpa, READ).hpa == machine.hpa(done.gpa)
    assert machine.host.accesses == 24
