"""The Multiboot header, and the information a kernel gets, against the specification's offsets."""

from __future__ import annotations

import struct

import pytest

from hvemu.errors import InputError
from hvemu.guest import multiboot
from hvemu.guest.multiboot import HeaderFlags, Module

RAM = 64 * 2**20


def header(flags, *addresses):
    return struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) % 2**32) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )


@pytest.mark.parametrize("offset", [0, 4, 1000, 8192 - 12])
def test_a_header_is_found_in_the_first_8_kib(offset):
    found = multiboot.find_header(bytes(offset) + header(3) + bytes(50))
    assert found is not None
    assert (found.offset, found.flags) == (offset, 3)


@pytest.mark.parametrize("offset", [1, 2, 1002, 8192 - 8, 8192])
def test_a_header_elsewhere_is_none(offset):
    assert multiboot.find_header(bytes(offset) + header(3) + bytes(50)) is None


def test_a_wrong_checksum_is_no_header():
    assert multiboot.find_header(header(3)[:-1] + b"\0" + bytes(50)) is None


@pytest.mark.parametrize("size", range(12))
def test_a_cut_header_is_none(size):
    assert multiboot.find_header(header(3)[:size]) is None


def kludge(load=0x100000, *, data=b"code", gap=0, load_end=0, bss_end=0):
    start = load + gap
    return bytes(gap) + header(0x10000, start, load, load_end, bss_end, start + 32) + data


def test_addresses_place_a_flat_file():
    data = kludge(gap=8)
    found = multiboot.find_header(data)
    assert multiboot.load_by_addresses("k", data, found, RAM) == (0x100000, data)
    assert found.entry_gpa == 0x100000 + 8 + 32


def test_addresses_may_load_a_part_and_zero_what_follows():
    data = kludge(data=b"abcdef", load_end=0x100000 + 34, bss_end=0x100000 + 40)
    gpa, loaded = multiboot.load_by_addresses("k", data, multiboot.find_header(data), RAM)
    assert (gpa, loaded[32:]) == (0x100000, b"ab" + bytes(6))


def test_a_file_may_begin_before_what_is_loaded():
    data = b"skip" + header(0x10000, 0x100000, 0x100000, 0, 0, 0x100020) + b"code"
    assert multiboot.load_by_addresses("k", data, multiboot.find_header(data), RAM) == (0x100000, data[4:])


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (kludge(load_end=0x100000 + 4096), "truncated"),
        (kludge(load_end=0x0FFFF0), "contradict"),
        (header(0x10000, 0x100000, 0x100004, 0, 0, 0) + b"code", "contradict"),
        (header(0x10000, 0x101000, 0x100000, 0, 0, 0) + b"code", "contradict"),
        (kludge(bss_end=0xF0000000), "--ram"),
        (kludge(load=0xFFFF0000), "--ram"),
    ],
)
def test_bad_addresses_are_refused(data, complaint):
    with pytest.raises(InputError, match=complaint):
        multiboot.load_by_addresses("k", data, multiboot.find_header(data), RAM)


@pytest.mark.parametrize("bit", range(2, 16))
def test_requirements_that_cannot_be_met_are_refused(bit):
    with pytest.raises(InputError, match="flag"):
        multiboot.check_flags("k", multiboot.Header(0, HeaderFlags(1 << bit)))


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0x10003, 0x20000])
def test_the_other_flags_are_accepted(flags):
    multiboot.check_flags("k", multiboot.Header(0, HeaderFlags(flags)))


class Info:
    """The information as a kernel reads it."""

    def __init__(self, **options):
        self.data = multiboot.info("kernel", **({"ram": RAM, "cmdline": "", "modules": ()} | options))

    def word(self, offset):
        return struct.unpack_from("<I", self.data, offset)[0]

    def text(self, gpa):
        return self.data[gpa - 0x500 :].split(b"\0")[0].decode()


def test_where_the_parts_of_the_information_are():
    info = Info(cmdline="root=x")
    assert info.word(0) == 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (info.word(4), info.word(8)) == (639, 63 * 1024)
    assert info.text(info.word(16)) == "kernel root=x"
    assert info.text(info.word(64)) == "hvemu"


def test_a_kernel_without_arguments_gets_its_name():
    info = Info()
    assert info.text(info.word(16)) == "kernel"


def test_the_memory_map_is_the_one_of_a_pc():
    info = Info()
    length, gpa = info.word(44), info.word(48)
    entries = [*struct.iter_unpack("<IQQI", info.data[gpa - 0x500 : gpa - 0x500 + length])]
    assert entries == [
        (20, 0, 0x9FC00, 1),
        (20, 0x9FC00, 0x400, 2),
        (20, 0xF0000, 0x10000, 2),
        (20, 0x100000, RAM - 0x100000, 1),
    ]


def test_modules_are_listed_with_their_ends_and_names():
    modules = (Module(0x200000, b"abc", "first"), Module(0x201000, b"", "second"))
    info = Info(modules=modules)
    count, gpa = info.word(20), info.word(24)
    assert count == 2
    rows = [[info.word(gpa - 0x500 + 16 * i + 4 * j) for j in range(4)] for i in range(2)]
    assert [row[:2] + row[3:] for row in rows] == [[0x200000, 0x200003, 0], [0x201000, 0x201000, 0]]
    assert [info.text(row[2]) for row in rows] == ["first", "second"]


def test_a_command_line_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="--append"):
        Info(cmdline="x" * 4096)


def test_a_wrapped_kernel_is_a_multiboot_kernel():
    data = multiboot.wrap(b"code", 0x100000, 0x100002)
    found = multiboot.find_header(data)
    gpa, loaded = multiboot.load_by_addresses("k", data, found, RAM)
    assert loaded[0x100000 - gpa :] == b"code"
    assert found.entry_gpa == 0x100002
