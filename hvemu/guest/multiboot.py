"""Multiboot 1 (Multiboot Specification 0.6.96): the header in a kernel file, and what the loader tells the kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hvemu.bits import Register, bit, bits
from hvemu.errors import InputError

HEADER_MAGIC = 0x1BADB002
BOOT_MAGIC = 0x2BADB002
"""What EAX holds when a kernel starts."""
SEARCH = 8192
"""The header lies in the first this many bytes of the file."""
INFO_GPA = 0x500
"""Where the information begins: after the tables of the firmware, and it ends below INFO_END."""
INFO_END = 0xFE0
LOADER_NAME = "hvemu"


class HeaderFlags(Register):
    """What a kernel asks for. A loader must refuse what it does not know among the lower 16 bits."""

    align_modules = bit(0)
    memory_info = bit(1)
    video_mode = bit(2)
    unknown = bits(15, 3)
    addresses = bit(16)


class InfoFlags(Register):
    """Which parts of the information are there."""

    memory = bit(0)
    cmdline = bit(2)
    modules = bit(3)
    memory_map = bit(6)
    loader_name = bit(9)


@dataclass(frozen=True, slots=True)
class Header:
    """A header found at *offset* in a file. The addresses are gpas, and 0 unless *flags* has `addresses`."""

    offset: int
    flags: HeaderFlags
    header_gpa: int = 0
    load_gpa: int = 0
    load_end_gpa: int = 0
    bss_end_gpa: int = 0
    entry_gpa: int = 0


@dataclass(frozen=True, slots=True)
class Module:
    """A file loaded beside the kernel."""

    gpa: int
    data: bytes
    cmdline: str


def find_header(data: bytes) -> Header | None:
    """Return the header in the file *data*, or None."""
    for offset in range(0, min(len(data), SEARCH) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) % 2**32 == 0:
            found = HeaderFlags(flags)
            if found.addresses and offset + 32 <= min(len(data), SEARCH):
                return Header(offset, found, *struct.unpack_from("<IIIII", data, offset + 12))
            return Header(offset, found.replace(addresses=0))
    return None


def check_flags(name: str, header: Header) -> None:
    """Raise InputError when the kernel asks for what there is not."""
    if header.flags.video_mode:
        raise InputError(f"{name}: its Multiboot header asks for a video mode (flag 2), and there is no display")
    if header.flags.unknown:
        raise InputError(f"{name}: its Multiboot header has unknown requirements (flags {int(header.flags):#x})")


def load_by_addresses(name: str, data: bytes, header: Header, ram: int) -> tuple[int, bytes]:
    """Return (gpa, bytes) of a kernel whose header says where it goes, its zeroed part included."""
    start = header.offset - (header.header_gpa - header.load_gpa)
    size = (header.load_end_gpa or header.load_gpa + len(data) - start) - header.load_gpa
    if start < 0 or size < 0 or header.load_gpa > header.header_gpa:
        raise InputError(f"{name}: the addresses in its Multiboot header contradict each other")
    if start + size > len(data):
        raise InputError(f"{name}: truncated: its Multiboot header loads {size:#x} bytes, the file has {len(data):#x}")
    zeros = max(header.bss_end_gpa - header.load_gpa - size, 0) if header.bss_end_gpa else 0
    check_fits(name, header.load_gpa + size + zeros, ram)
    return header.load_gpa, data[start : start + size] + bytes(zeros)


def check_fits(name: str, end_gpa: int, ram: int) -> None:
    """Raise InputError when a guest that ends before *end_gpa* is larger than *ram* bytes."""
    if end_gpa > ram:
        raise InputError(f"{name}: needs memory up to {end_gpa:#x}, and RAM ends at {ram:#x}: use a larger --ram")


def memory_map(ram: int) -> list[tuple[int, int, int]]:
    """Return (gpa, length, type) for *ram* bytes as a PC sees them; type 1 is free to use, 2 is reserved."""
    low, firmware, high = 0x9FC00, 0xF0000, 0x100000
    regions = [(0, min(low, ram), 1), (low, 0xA0000 - low, 2), (firmware, high - firmware, 2)]
    return [*regions, (high, ram - high, 1)] if ram > high else regions


def info(name: str, *, ram: int, cmdline: str, modules: Sequence[Module]) -> bytes:
    """Return the information structure and all that it points to, to be put at INFO_GPA.

    Raises InputError when the command line is too long for the place.
    """
    size = 88
    entries = b"".join(struct.pack("<IQQI", 20, *region) for region in memory_map(ram))
    map_gpa = INFO_GPA + size
    modules_gpa = map_gpa + len(entries)
    texts_gpa = modules_gpa + 16 * len(modules)
    texts, places = b"", []
    for text in (f"{name} {cmdline}".rstrip(), LOADER_NAME, *(m.cmdline for m in modules)):
        places.append(texts_gpa + len(texts))
        texts += text.encode() + b"\0"
    table = b"".join(
        struct.pack("<IIII", m.gpa, m.gpa + len(m.data), place, 0) for m, place in zip(modules, places[2:], strict=True)
    )
    flags = InfoFlags(memory=1, cmdline=1, modules=1, memory_map=1, loader_name=1)
    lower, upper = 639, max(ram // 1024 - 1024, 0)
    first = struct.pack("<7I", flags, lower, upper, 0, places[0], len(modules), modules_gpa)
    second = struct.pack("<16xII", len(entries), map_gpa)  # no kernel symbols
    third = struct.pack("<12xI20x", places[1])  # no drives, no configuration table; no APM table, no video
    result = first + second + third + entries + table + texts
    if INFO_GPA + len(result) > INFO_END:
        raise InputError(f"--append: the command line has {len(cmdline)} bytes, too many for the boot information")
    return result


def wrap(code: bytes, gpa: int, entry: int) -> bytes:
    """Return *code* for *gpa*, entered at *entry*, as a file that any Multiboot loader can boot."""
    flags = HeaderFlags(memory_info=1, addresses=1)
    header_gpa, size = gpa - SEARCH // 2, SEARCH // 2
    checksum = -(HEADER_MAGIC + flags) % 2**32
    header = struct.pack("<8I", HEADER_MAGIC, flags, checksum, header_gpa, header_gpa, gpa + len(code), 0, entry)
    return header.ljust(size, b"\0") + code
