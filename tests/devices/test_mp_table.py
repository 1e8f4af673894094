"""The MP configuration table, parsed by the MultiProcessor Specification."""

from __future__ import annotations

import itertools
import struct

from hvemu.devices import acpi_tables, mp_table

SIGNATURE, FEATURES = 0x000806E9, 0x078BFBFD


def parsed():
    (pointer_gpa, pointer), (gpa, table) = mp_table.tables(SIGNATURE, FEATURES)
    assert pointer_gpa % 16 == 0
    assert struct.unpack_from("<4sIBB", pointer) == (b"_MP_", gpa, 1, 4)
    assert (len(pointer), sum(pointer) % 256, pointer[11:]) == (16, 0, bytes(5))
    return table


def entries(table):
    at, found = 44, []
    while at < len(table):
        size = 20 if table[at] == 0 else 8
        found.append(table[at : at + size])
        at += size
    return found


def test_the_header():
    table = parsed()
    signature, length, revision = struct.unpack_from("<4sHB", table)
    assert (signature, length, revision, sum(table) % 256) == (b"PCMP", len(table), 4, 0)
    oem_table, oem_size, count, local, extended = struct.unpack_from("<IHHII", table, 28)
    assert (oem_table, oem_size, local, extended) == (0, 0, 0xFEE00000, 0)
    assert count == len(entries(table))


def test_one_processor_two_buses_and_an_io_apic():
    found = entries(parsed())
    assert [e[0] for e in found] == [0, 1, 1, 2] + [3] * 12 + [4] * 2
    assert struct.unpack("<xBBBII8x", found[0]) == (0, 0x14, 3, SIGNATURE, FEATURES)
    assert found[1][1:] == b"\0PCI   "
    assert found[2][1:] == b"\1ISA   "
    assert struct.unpack("<xBBBI", found[3]) == (0, 0x20, 1, 0xFEC00000)


def test_where_the_interrupts_go():
    found = entries(parsed())
    assert {(e[0], *e[2:4]) for e in found[4:]} == {(3, 0, 0), (4, 0, 0)}
    pins = {e[5]: e[7] for e in found if e[0] == 3 and e[1] == 0}
    assert pins == {0: 2, **{irq: irq for irq in (1, 3, 4, 6, 7, 8, 9, 12, 13, 14, 15)}}
    local = [(e[1], e[6], e[7]) for e in found if e[0] == 4]
    assert local == [(3, 0, 0), (1, 0xFF, 1)]


def test_both_kinds_of_tables_fit_beside_each_other():
    placed = sorted([*acpi_tables.tables(), *mp_table.tables(0, 0)])
    assert all(a + len(data) <= b for (a, data), (b, _) in itertools.pairwise(placed))
