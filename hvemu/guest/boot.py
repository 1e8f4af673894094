"""How a guest starts: the registers and the memory that a boot loader leaves behind, by mode."""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.bits import Register, bit
from hvemu.errors import InputError
from hvemu.guest import multiboot
from hvemu.guest.image import Image
from hvemu.x86.registers import Cr0, Cr4, Efer, Gpr, Sreg
from hvemu.x86.segments import Descriptor
from hvemu.x86.state import AccessRights, PlainState, Segment, TableRegister

STACK = 0x7C00
"""A first stack, growing down from here: a guest need not bring its own."""
GDT_GPA = multiboot.INFO_END
TABLES_GPA = 0x1000
PAGE, LARGE_PAGE = 4096, 2**21
BOOT_DRIVE = 0x80
CODE, DATA = 0x08, 0x10
"""The selectors of a kernel that starts in protected or long mode."""


class Entry(Register):
    """An entry of the page tables that long mode starts with."""

    p = bit(0)
    rw = bit(1)
    ps = bit(7)


@dataclass(frozen=True, slots=True)
class Boot:
    """The first *state* of the processor, and *memory* as (gpa, bytes): the image and what the loader adds to it."""

    state: PlainState
    memory: tuple[tuple[int, bytes], ...]


def boot(image: Image, *, ram: int) -> Boot:
    """Return how *image* starts with *ram* bytes of memory. Raises InputError when it lies on the loader's tables."""
    state, added = {16: _real_mode, 32: _protected_mode, 64: _long_mode}[image.mode](image, ram)
    state.rip = image.entry
    state.set_gpr(Gpr.RSP, STACK)
    modules = tuple((m.gpa, m.data) for m in image.modules)
    for gpa, data in added:
        for guest_gpa, guest_data in image.segments:
            if gpa < guest_gpa + len(guest_data) and guest_gpa < gpa + len(data):
                raise InputError(f"{image.name}: loads at {guest_gpa:#x}, over the boot information at {gpa:#x}")
    return Boot(state, (*image.segments, *modules, *added))


Added = list[tuple[int, bytes]]


def _real_mode(image: Image, ram: int) -> tuple[PlainState, Added]:  # noqa: ARG001 - one signature for all modes
    """A boot sector: CS:IP 0:0x7c00, the boot drive in DL."""
    state = PlainState(cr0=Cr0(et=1), idtr=TableRegister(0, 0x3FF))
    state.set_gpr(Gpr.RDX, BOOT_DRIVE)
    return state, []


def _protected_mode(image: Image, ram: int) -> tuple[PlainState, Added]:
    """Multiboot: flat segments, paging off, the magic number in EAX and the information at EBX."""
    state = PlainState(cr0=Cr0(pe=1, et=1), idtr=TableRegister(0, 0))
    state.set_gpr(Gpr.RAX, multiboot.BOOT_MAGIC)
    state.set_gpr(Gpr.RBX, multiboot.INFO_GPA)
    info = multiboot.info(image.name, ram=ram, cmdline=image.cmdline, modules=image.modules)
    return state, [(multiboot.INFO_GPA, info), _load_gdt(state, _descriptor(code=True, db=1))]


def _long_mode(image: Image, ram: int) -> tuple[PlainState, Added]:  # noqa: ARG001 - one signature for all modes
    """64-bit code, the first GiB of memory mapped to itself by 2 MiB pages that only supervisors may use."""
    state = PlainState(
        cr0=Cr0(pe=1, et=1, pg=1),
        cr3=TABLES_GPA,
        cr4=Cr4(pae=1),
        efer=Efer(lme=1, lma=1),
        idtr=TableRegister(0, 0),
    )
    present = Entry(p=1, rw=1)
    root, middle = (int(present) + TABLES_GPA + PAGE * level for level in (1, 2))
    large = [int(present.replace(ps=1)) + LARGE_PAGE * i for i in range(512)]
    tables = _page([root]) + _page([middle]) + _page(large)
    return state, [(TABLES_GPA, tables), _load_gdt(state, _descriptor(code=True, l=1))]


def _page(entries: list[int]) -> bytes:
    return b"".join(entry.to_bytes(8, "little") for entry in entries).ljust(PAGE, b"\0")


def _descriptor(*, code: bool, db: int = 0, l: int = 0) -> Descriptor:  # noqa: E741 - the manual's name
    return Descriptor.make(0, 0xFFFFF, type=0b1011 if code else 0b0011, s=1, p=1, g=1, db=db, l=l)


def _load_gdt(state: PlainState, code: Descriptor) -> tuple[int, bytes]:
    data = _descriptor(code=False, db=1)
    for register in Sreg:
        state.set_segment(register, data.segment(DATA))
    state.set_segment(Sreg.CS, code.segment(CODE))
    table = b"".join(entry.to_bytes(8, "little") for entry in (0, code, data))
    state.gdtr, state.ldtr = TableRegister(GDT_GPA, len(table) - 1), Segment(rights=AccessRights(unusable=1))
    return GDT_GPA, table
