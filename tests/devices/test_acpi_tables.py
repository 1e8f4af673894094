"""The ACPI tables as a parser sees them that knows their layout from the specification alone."""

from __future__ import annotations

import itertools
import struct

import pytest

from hvemu.devices import acpi_tables


class Memory:
    """What firmware put into the BIOS area."""

    def __init__(self, placed):
        self.image = bytearray(0x100000)
        self.spans = [(gpa, gpa + len(data)) for gpa, data in placed]
        for gpa, data in placed:
            self.image[gpa : gpa + len(data)] = data

    def read(self, gpa, layout):
        return struct.unpack_from(layout, self.image, gpa)

    def table(self, gpa):
        (length,) = self.read(gpa + 4, "<I")
        return bytes(self.image[gpa : gpa + length])

    def tables(self):
        """Find the pointer as an operating system does, and return the tables it leads to, by signature."""
        gpa = next(g for g in range(0xE0000, 0x100000, 16) if self.image[g : g + 8] == b"RSD PTR ")
        assert sum(self.image[gpa : gpa + 20]) % 256 == 0
        assert self.image[gpa + 15] == 0  # ACPI 1.0
        root = self.table(self.read(gpa + 16, "<I")[0])
        found = [self.table(where) for (where,) in struct.iter_unpack("<I", root[36:])]
        found += [root, self.table(struct.unpack_from("<I", found[0], 40)[0])]
        return {table[:4].decode(): table for table in found}


@pytest.fixture
def memory():
    return Memory(acpi_tables.tables())


@pytest.fixture
def tables(memory):
    return memory.tables()


def test_everything_is_in_the_bios_area_and_nothing_overlaps(memory):
    spans = sorted(memory.spans)
    assert spans[0][0] >= 0xE0000
    assert spans[-1][1] <= 0x100000
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_which_tables_there_are_and_that_their_sums_are_0(tables):
    assert sorted(tables) == ["APIC", "DSDT", "FACP", "HPET", "RSDT"]
    assert {name: sum(table) % 256 for name, table in tables.items()} == dict.fromkeys(tables, 0)
    assert {table[10:16] for table in tables.values()} == {b"HVEMU "}


def test_the_fixed_description(memory, tables):
    fadt = tables["FACP"]
    assert len(fadt) == 116
    facs, _, model, profile, sci = struct.unpack_from("<IIBBH", fadt, 36)
    assert (memory.read(facs, "<4sI"), facs % 64) == ((b"FACS", 64), 0)
    assert (model, profile, sci) == (1, 0, 9)
    assert struct.unpack_from("<IBB", fadt, 48) == (0xB2, 0xF1, 0xF0)
    assert struct.unpack_from("<8I", fadt, 56) == (0x600, 0, 0x604, 0, 0, 0x608, 0, 0)
    assert (*fadt[88:96],) == (4, 2, 0, 4, 0, 0, 0, 0)
    assert struct.unpack_from("<HH", fadt, 96) == (0xFFF, 0xFFF)
    assert fadt[108] == 0x32
    assert struct.unpack_from("<I", fadt, 112) == (0x80B5,)


def test_the_interrupt_controllers(tables):
    madt = tables["APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert [(e[0], len(e)) for e in entries] == [(0, 8), (1, 12), (2, 10), (2, 10), (4, 6)]
    assert struct.unpack("<BBI", entries[0][2:]) == (0, 0, 1)
    assert struct.unpack("<BxII", entries[1][2:]) == (0, 0xFEC00000, 0)
    overrides = [struct.unpack("<BBIH", e[2:]) for e in entries[2:4]]
    assert overrides == [(0, 0, 2, 0), (0, 9, 9, 0x000D)]
    assert struct.unpack("<BHB", entries[4][2:]) == (0xFF, 0, 1)


def test_the_event_timer(tables):
    assert struct.unpack("<I4BQBHB", tables["HPET"][36:]) == (0x8086A201, 0, 0, 0, 0, 0xFED00000, 0, 0, 0)


def test_the_sleep_type_of_s5_in_aml(tables):
    # DefName := NameOp NameSeg DefPackage; DefPackage := PackageOp PkgLength NumElements elements
    assert tables["DSDT"][36:] == b"\x08_S5_" + b"\x12\x06\x04" + bytes(4)
