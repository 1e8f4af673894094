"""Finding and reading guests in every accepted format; each mistake is one line."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.errors import InputError
from hvemu.guest import elf, image, multiboot

CODE = b"\xf4" * 16
HEADER = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 % 2**32)
TEXT = HEADER + CODE


class Section(NamedTuple):
    """A section header without its flags and alignment."""

    name: int
    type: int
    addr: int
    offset: int
    size: int
    link: int = 0
    info: int = 0
    entsize: int = 0


def make_elf(
    *,
    bits=32,
    machine=None,
    gpa=0x100000,
    gva=None,
    entry=None,
    text=TEXT,
    memory=None,
):
    """Return an ELF executable with one segment and one symbol, laid out by the tables of the ELF specification."""
    wide = bits == 64
    gva = gpa if gva is None else gva
    entry = gva + len(HEADER) if entry is None else entry
    memory = len(text) + 32 if memory is None else memory
    head, ph, sh = (64, 56, 64) if wide else (52, 32, 40)
    names = b"\0.symtab\0.strtab\0"
    strings = b"\0kernel_main\0"
    symbol = struct.pack("<IBBHQQ", 1, 0x12, 0, 0xFFF1, gva + 12, 0) if wide else struct.pack(
        "<IIIBBH", 1, gva + 12, 0, 0x12, 0, 0xFFF1
    )  # fmt: skip
    symbols = bytes(len(symbol)) + symbol
    text_at = head + ph
    symbols_at = text_at + len(text)
    strings_at = symbols_at + len(symbols)
    names_at = strings_at + len(strings)
    sections_at = names_at + len(names)
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    machine = machine or (62 if wide else 3)
    word = "Q" if wide else "I"
    file_header = ident + struct.pack(
        f"<HHI{word}{word}{word}IHHHHHH", 2, machine, 1, entry, head, sections_at, 0, head, ph, 1, sh, 4, 3
    )
    sizes = (len(text), memory)
    program = (
        struct.pack("<IIQQQQQQ", 1, 7, text_at, gva, gpa, *sizes, 4096)
        if wide
        else struct.pack("<IIIIIIII", 1, text_at, gva, gpa, *sizes, 7, 4096)
    )
    sections = [
        Section(0, 0, 0, 0, 0),
        Section(1, 2, 0, symbols_at, len(symbols), 2, 1, len(symbol)),
        Section(9, 3, 0, strings_at, len(strings)),
        Section(9, 3, 0, names_at, len(names)),
    ]
    table = b"".join(
        struct.pack(f"<II{word}{word}{word}{word}II{word}{word}", s.name, s.type, 0, *s[2:5], *s[5:7], 1, s.entsize)
        for s in sections
    )
    return file_header + program + text + symbols + strings + names + table


@pytest.fixture
def guest(tmp_path):
    def write(data, name="kernel"):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def refused(path, **options):
    with pytest.raises(InputError) as error:
        image.load(path, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


I386, X86_64 = 3, 62


@pytest.mark.parametrize("bits", [32, 64])
def test_an_elf_kernel_is_loaded_at_its_physical_addresses(guest, bits):
    loaded = image.load(guest(make_elf(bits=bits, machine=I386)))
    assert loaded.segments == ((0x100000, TEXT + bytes(32)),)
    assert (loaded.kind, loaded.mode, loaded.entry) == ("multiboot", 32, 0x10000C)
    assert loaded.symbols == {"kernel_main": 0x10000C}
    assert loaded.name == "kernel"


def test_a_kernel_linked_high_is_entered_where_it_lies(guest):
    loaded = image.load(guest(make_elf(gva=0xC0100000)))
    assert (loaded.entry, loaded.symbols["kernel_main"]) == (0x10000C, 0xC010000C)


@pytest.mark.parametrize("bits", [32, 64])
def test_an_x86_64_kernel_is_refused_because_it_would_start_in_32_bit_mode(guest, bits):
    assert "objcopy -O elf32-i386" in refused(guest(make_elf(bits=bits, machine=X86_64)))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("machine", [I386, X86_64])
@pytest.mark.parametrize("gpa", [0x100000, 0xFFFF0000])
def test_a_header_with_addresses_counts_in_place_of_the_program_headers(guest, bits, machine, gpa):
    flags, base = 0x10003, 0x200000
    header = struct.pack(
        "<8I", 0x1BADB002, flags, -0x1BADB002 - flags & 0xFFFFFFFF, *(base,) * 2, base + 48, 0, base + 32
    )
    loaded = image.load(guest(make_elf(bits=bits, machine=machine, gpa=gpa, text=header + CODE)))
    assert loaded.segments == ((base, header + CODE),)
    assert (loaded.kind, loaded.mode, loaded.entry) == ("multiboot", 32, base + 32)
    assert loaded.symbols == {"kernel_main": gpa + 12}


@pytest.mark.parametrize("bits", [32, 64])
def test_every_truncation_of_an_elf_file_is_one_line(guest, bits):
    data = make_elf(bits=bits)
    for size in range(4, len(data)):
        message = refused(guest(data[:size]))
        assert "truncated" in message


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(4, len(make_elf()) - 1), st.integers(0, 255))
def test_a_damaged_elf_file_is_loaded_or_refused(offset, byte):
    data = bytearray(make_elf())
    data[offset] = byte
    try:
        segments = elf.load("kernel", bytes(data), image.DEFAULT_RAM).segments
    except InputError:
        return
    assert all(gpa + len(part) <= image.DEFAULT_RAM for gpa, part in segments)


@pytest.mark.parametrize("machine", [8, 40, 183, 243])
def test_an_elf_file_for_another_machine(guest, machine):
    assert "another machine" in refused(guest(make_elf(machine=machine)))


def test_an_elf_file_without_a_multiboot_header(guest):
    assert "no Multiboot 1 header" in refused(guest(make_elf(text=CODE, entry=0x100000)))


def test_an_elf_entry_that_is_nowhere(guest):
    assert "entry point 0x200000" in refused(guest(make_elf(entry=0x200000)))


def test_an_elf_file_is_32_bit_at_its_start(guest):
    assert "--mode 64" in refused(guest(make_elf()), mode=64)
    assert image.load(guest(make_elf()), mode=32).mode == 32


@pytest.mark.parametrize("memory", [64 * 2**20, 2**31])
def test_a_guest_larger_than_ram(guest, memory):
    assert "larger --ram" in refused(guest(make_elf(memory=memory)))


@pytest.mark.parametrize("size", [1, 0x8400])
def test_a_flat_binary_larger_than_ram(guest, size):
    message = refused(guest(bytes(size + 0x8400)), mode=16, ram=0x10000)
    assert "larger --ram" in message


def test_a_missing_file(tmp_path):
    assert "no such guest and no such file" in refused(str(tmp_path / "nothing.elf"))


def test_a_directory(tmp_path):
    assert "Is a directory" in refused(str(tmp_path))


@pytest.mark.parametrize("name", ["kernel", "kernel.asm"])
def test_an_empty_file(guest, name):
    assert "the file is empty" in refused(guest(b"", name))


def test_a_source_that_is_no_text(guest):
    assert "not a text file" in refused(guest(b"nop\xff\xfe", "kernel.asm"))


def test_a_linux_kernel(guest):
    data = bytearray(1024)
    data[0x1FE:0x206] = b"\x55\xaa\xeb\x66HdrS"
    assert "not supported yet" in refused(guest(bytes(data)))


def test_a_flat_binary_needs_a_mode(guest):
    assert "--mode 16, 32 or 64" in refused(guest(CODE))


@pytest.mark.parametrize(("mode", "gpa"), [(16, 0x7C00), (32, 0x100000), (64, 0x100000)])
def test_a_flat_binary_lies_where_its_mode_says(guest, mode, gpa):
    loaded = image.load(guest(CODE), mode=mode)
    assert (loaded.segments, loaded.entry, loaded.kind, loaded.mode) == (((gpa, CODE),), gpa, "flat", mode)


def test_a_flat_multiboot_kernel_says_itself_where_it_lies(guest):
    loaded = image.load(guest(multiboot.wrap(CODE, 0x200000, 0x200004)))
    assert (loaded.kind, loaded.entry) == ("multiboot", 0x200004)
    ((gpa, data),) = loaded.segments
    assert data[0x200000 - gpa :] == CODE


def test_a_flat_multiboot_kernel_without_addresses(guest):
    assert "flag 16" in refused(guest(TEXT))
    assert image.load(guest(TEXT), mode=32).kind == "flat"


@pytest.mark.parametrize(("option", "name"), [("cmdline", "--append"), ("initrd", "--initrd")])
@pytest.mark.parametrize("mode", [16, 64])
def test_options_that_only_multiboot_passes_on(guest, option, name, mode):
    assert name in refused(guest(CODE), mode=mode, **{option: "text"})


def test_an_initrd_is_a_module_on_the_next_page(guest):
    initrd = guest(b"files", "initrd.img")
    loaded = image.load(guest(make_elf(memory=0x1001)), initrd=initrd, cmdline="a b")
    assert loaded.modules == (multiboot.Module(0x102000, b"files", "initrd.img"),)
    assert loaded.cmdline == "a b"
    assert "No such file" in refused(guest(make_elf()), initrd="nothing.img")
    assert "larger --ram" in refused(guest(make_elf()), initrd=initrd, ram=0x101000)
