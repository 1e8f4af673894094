"""A guest, ready to be put into memory: found by name or by file, in any of the accepted formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from hvemu.errors import InputError
from hvemu.guest import elf, multiboot
from hvemu.guest.asm import Program, assemble
from hvemu.guest.manifest import guests_dir, load_manifest
from hvemu.guest.multiboot import Module

MiB = 2**20
DEFAULT_RAM = 64 * MiB
ORIGINS = {16: 0x7C00, 32: MiB, 64: MiB}
"""Where flat code goes, by mode: a boot sector's place, and the first address above the firmware's."""
MODULE_ALIGNMENT = 4096
Kind = Literal["flat", "multiboot"]


@dataclass(frozen=True, slots=True)
class Image:
    """A guest in memory. *segments* are (gpa, bytes); *entry* is a gpa; *mode* is 16, 32 or 64.

    *symbols* are addresses as the guest's own tools gave them. *program* has the listing of an assembled guest.
    """

    name: str
    mode: int
    segments: tuple[tuple[int, bytes], ...]
    entry: int
    symbols: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = "flat"
    cmdline: str = ""
    modules: tuple[Module, ...] = ()
    program: Program | None = None

    def __repr__(self) -> str:
        places = " ".join(f"{gpa:#x}-{gpa + len(data):#x}" for gpa, data in self.segments)
        return f"Image({self.name} {self.kind} mode={self.mode} entry={self.entry:#x} {places})"


def load(
    spec: str,
    *,
    mode: int | None = None,
    ram: int = DEFAULT_RAM,
    cmdline: str = "",
    initrd: str | None = None,
) -> Image:
    """Return the guest *spec*: a name from guests.toml, an assembly source, a Multiboot kernel or a flat binary.

    *mode* is needed for a flat binary only. *initrd* is a file that a 32-bit guest finds as its first Multiboot module.
    Raises InputError, one line, when there is no such guest, when it is damaged, or when it is larger than *ram* bytes.
    """
    image = replace(_find(spec, mode, ram), cmdline=cmdline)
    for gpa, data in image.segments:
        multiboot.check_fits(image.name, gpa + len(data), ram)
    if image.mode != 32 and (cmdline or initrd):
        option = "--append" if cmdline else "--initrd"
        raise InputError(f"{option}: {image.name} starts in {image.mode}-bit mode, where no boot loader passes it on")
    if initrd is None:
        return image
    path = Path(initrd)
    end = max(gpa + len(data) for gpa, data in image.segments)
    module = Module(-(-end // MODULE_ALIGNMENT) * MODULE_ALIGNMENT, _read(path), path.name)
    multiboot.check_fits(initrd, module.gpa + len(module.data), ram)
    return replace(image, modules=(module,))


def _find(spec: str, mode: int | None, ram: int) -> Image:
    manifest = load_manifest()
    if spec in manifest:
        guest = manifest[spec]
        if mode not in {None, guest.mode}:
            raise InputError(f"--mode {mode}: the guest {spec} starts in {guest.mode}-bit mode")
        return replace(_from_file(guest.source, guest.mode), name=spec)
    path = Path(spec)
    if not path.exists():
        near = get_close_matches(spec, manifest, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the guests are {', '.join(manifest)}"
        raise InputError(f"{spec}: no such guest and no such file; {hint}")
    if path.suffix == ".asm":
        return _from_file(path, mode or 32)
    return _from_binary(path.name, _read(path), mode, ram)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if not data:
        raise InputError(f"{path}: the file is empty")
    return data


def _from_file(path: Path, mode: int) -> Image:
    try:
        text = _read(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file: byte {error.start:#x} is not UTF-8") from error
    return from_source(text, mode=mode, path=path)


def from_source(text: str, *, mode: int = 32, path: str | Path = "kernel.asm") -> Image:
    """Return the guest whose assembly source is *text*, started in *mode*-bit code (16, 32 or 64).

    It may include what lies in guests/ and beside *path*, a file that need not exist and gives the guest its name.
    Raises InputError: one line with the file, the line and the problem.
    """
    path, origin = Path(path), ORIGINS[mode]
    program = assemble(text, mode=mode, origin=origin, name=str(path), include_dirs=(path.parent, guests_dir()))
    entry = next((program.symbols[s] for s in ("_start", "start") if s in program.symbols), origin)
    return Image(path.stem, mode, ((origin, program.code),), entry, program.symbols, program=program)


def _from_binary(name: str, data: bytes, mode: int | None, ram: int) -> Image:
    if data.startswith(elf.MAGIC):
        return _from_elf(name, data, mode, ram)
    header = multiboot.find_header(data)
    if header is not None and mode in {None, 32}:
        multiboot.check_flags(name, header)
        if header.flags.addresses:
            segment = multiboot.load_by_addresses(name, data, header, ram)
            return Image(name, 32, (segment,), header.entry_gpa, kind="multiboot")
        if mode is None:
            raise InputError(f"{name}: no ELF file, and its Multiboot header does not say where it goes (flag 16)")
    if mode is None and is_bzimage(data):
        raise InputError(f"{name}: a Linux kernel (bzImage) is not supported yet")
    if mode is None:
        raise InputError(f"{name}: a flat binary needs --mode 16, 32 or 64")
    return Image(name, mode, ((ORIGINS[mode], data),), ORIGINS[mode])


def _from_elf(name: str, data: bytes, mode: int | None, ram: int) -> Image:
    if mode not in {None, 32}:
        raise InputError(f"--mode {mode}: {name} is an ELF file, and Multiboot starts it in 32-bit mode")
    symbols = elf.symbols(name, data)
    header = multiboot.find_header(data)
    if header is None:
        raise InputError(f"{name}: no Multiboot 1 header in the first {multiboot.SEARCH} bytes of the ELF file")
    multiboot.check_flags(name, header)
    if header.flags.addresses:  # then the program headers do not count
        segment = multiboot.load_by_addresses(name, data, header, ram)
        return Image(name, 32, (segment,), header.entry_gpa, symbols, kind="multiboot")
    loaded = elf.load(name, data, ram)
    if loaded.entry >= 2**32:
        raise InputError(f"{name}: its entry point {loaded.entry:#x} is not a 32-bit address")
    return Image(name, 32, loaded.segments, loaded.entry, symbols, kind="multiboot")


def is_bzimage(data: bytes) -> bool:
    """Return whether *data* has the setup header of a Linux kernel."""
    return data[0x1FE:0x200] == b"\x55\xaa" and data[0x202:0x206] == b"HdrS"
