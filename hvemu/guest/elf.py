"""Kernels in ELF files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from hvemu.errors import InputError
from hvemu.guest.multiboot import check_fits

MAGIC = b"\x7fELF"
X86_64 = "EM_X86_64"
MACHINES = {"EM_386", X86_64}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an ELF file puts into memory: *segments* as (gpa, bytes), and the *entry* as a gpa."""

    segments: tuple[tuple[int, bytes], ...]
    entry: int


def load(name: str, data: bytes, ram: int) -> Loaded:
    """Return what the ELF file *data* loads at its physical addresses.

    Raises InputError when it is truncated, for another machine, damaged, or larger than *ram* bytes; and when it is for
    x86-64, for its code would start in 32-bit mode.
    """
    return _read(name, data, lambda elf: _load(name, elf, data, ram))


def symbols(name: str, data: bytes) -> dict[str, int]:
    """Return the symbols of the ELF file *data*, as linked.

    Raises InputError when it is truncated, for another machine, or damaged.
    """
    return _read(name, data, _symbols)


def _read(name: str, data: bytes, action: Callable[[ELFFile], T]) -> T:
    try:
        elf = ELFFile(io.BytesIO(data))
        machine = elf["e_machine"]
        if machine not in MACHINES or not elf.little_endian:
            raise InputError(f"{name}: an ELF file for another machine ({machine}), not x86")
        _check_whole(name, elf, len(data))
        return action(elf)
    except (ELFError, ConstructError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # The reader of the format meets a damaged file with any of these.
        raise InputError(f"{name}: truncated or damaged ELF file") from error


def _check_whole(name: str, elf: ELFFile, size: int) -> None:
    tables = (("e_phoff", "e_phnum", "e_phentsize"), ("e_shoff", "e_shnum", "e_shentsize"))
    ends = [elf[offset] + elf[number] * elf[entry] for offset, number, entry in tables]
    ends += [s["p_offset"] + s["p_filesz"] for s in elf.iter_segments("PT_LOAD")]
    if max(ends) > size:
        raise InputError(f"{name}: truncated ELF file: {size:#x} bytes of {max(ends):#x}")


def _load(name: str, elf: ELFFile, data: bytes, ram: int) -> Loaded:
    if elf["e_machine"] == X86_64:
        raise InputError(
            f"{name}: an x86-64 kernel, and Multiboot starts a kernel in 32-bit mode: link it for i386 (objcopy -O "
            "elf32-i386), or say in its Multiboot header where it goes (flag 16)"
        )
    segments, entry = [], None
    for s in elf.iter_segments("PT_LOAD"):
        gpa, gva, offset, size, total = (s[f"p_{key}"] for key in ("paddr", "vaddr", "offset", "filesz", "memsz"))
        if size > total:
            raise InputError(f"{name}: damaged ELF file: a segment has more bytes in the file than in memory")
        if not total:
            continue
        check_fits(name, gpa + total, ram)
        segments.append((gpa, data[offset : offset + size] + bytes(total - size)))
        if entry is None and gva <= elf["e_entry"] < gva + total:
            entry = elf["e_entry"] - gva + gpa  # the header gives the entry as linked, which need not be where it lies
    if entry is None:
        raise InputError(f"{name}: the entry point {elf['e_entry']:#x} is in no segment that the ELF file loads")
    return Loaded(tuple(segments), entry)


def _symbols(elf: ELFFile) -> dict[str, int]:
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return {}
    return {s.name: s["st_value"] for s in table.iter_symbols() if s.name and s["st_info"]["type"] != "STT_FILE"}
