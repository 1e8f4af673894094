"""How each mode starts."""

from __future__ import annotations

import struct

import pytest

from hvemu.errors import InputError
from hvemu.guest.boot import boot
from hvemu.guest.image import Image
from hvemu.guest.multiboot import Module
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import CpuMode, code_size, mode

RAM = 64 * 2**20
CODE = b"\xf4"


def start(bits, gpa=0x100000, **options):
    return boot(Image("kernel", bits, ((gpa, CODE),), gpa, **options), ram=RAM)


def flatten(memory):
    ram = bytearray(2 * 2**20)
    for gpa, data in memory:
        ram[gpa : gpa + len(data)] = data
    return ram


@pytest.mark.parametrize(("bits", "cpu_mode"), [(16, CpuMode.REAL), (32, CpuMode.PROTECTED), (64, CpuMode.LONG64)])
def test_each_mode_is_what_it_says(bits, cpu_mode):
    state = start(bits).state
    assert (mode(state), code_size(state), state.cpl, state.rflags) == (cpu_mode, bits, 0, 2)
    assert state.rip == 0x100000


def test_a_boot_sector_starts_like_under_firmware():
    started = start(16, 0x7C00)
    assert (started.state.segment(Sreg.CS).selector, started.state.rip) == (0, 0x7C00)
    assert started.state.gpr(Gpr.RDX) == 0x80
    assert (started.state.idtr.base, started.state.idtr.limit) == (0, 0x3FF)
    assert started.memory == ((0x7C00, CODE),)


# SDM 3A "Segment Descriptors": flat 4 GiB, present, DPL 0, accessed; code readable, data writable.
DESCRIPTORS = {32: 0x00CF9B000000FFFF, 64: 0x00AF9B000000FFFF}
DATA_DESCRIPTOR = 0x00CF93000000FFFF


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_are_flat_and_their_table_is_in_memory(bits):
    started = start(bits)
    state = started.state
    assert [state.segment(r).selector for r in Sreg] == [0x10, 0x08, 0x10, 0x10, 0x10, 0x10]
    assert {(state.segment(r).base, state.segment(r).limit) for r in Sreg} == {(0, 0xFFFFFFFF)}
    table = flatten(started.memory)[state.gdtr.base : state.gdtr.base + state.gdtr.limit + 1]
    assert struct.unpack("<3Q", table) == (0, DESCRIPTORS[bits], DATA_DESCRIPTOR)


def test_multiboot_registers_point_to_the_information():
    started = start(32, modules=(Module(0x180000, b"files", "initrd"),), cmdline="x=1")
    state, ram = started.state, flatten(started.memory)
    assert (state.gpr(Gpr.RAX), state.cr0) == (0x2BADB002, 0x11)
    cmdline, count = struct.unpack_from("<II", ram, state.gpr(Gpr.RBX) + 16)
    assert ram[cmdline:].startswith(b"kernel x=1\0")
    assert count == 1
    assert ram[0x180000:].startswith(b"files")


def test_what_the_loader_adds_lies_below_4_kib_in_protected_mode():
    added = [(gpa, data) for gpa, data in start(32).memory if data != CODE]
    assert added
    assert all(0x500 <= gpa < gpa + len(data) <= 0x1000 for gpa, data in added)


def test_long_mode_maps_the_first_gib_to_itself():
    started = start(64)
    state, ram = started.state, flatten(started.memory)
    assert (state.cr0, state.cr4, state.efer) == (0x80000011, 0x20, 0x500)

    def entries(gpa):
        return struct.unpack_from("<512Q", ram, gpa)

    root, middle = entries(state.cr3), entries(entries(state.cr3)[0] - 3)
    large = entries(middle[0] - 3)
    assert (root.count(0), middle.count(0)) == (511, 511)
    assert [*large] == [i * 0x200000 | 0x83 for i in range(512)]


@pytest.mark.parametrize(("bits", "gpa"), [(32, 0x500), (32, 0xFE0), (64, 0x1000), (64, 0x3FFF)])
def test_a_guest_on_the_loaders_tables_is_refused(bits, gpa):
    with pytest.raises(InputError, match="over the boot information"):
        start(bits, gpa)


@pytest.mark.parametrize("gpa", [0x500, 0x1000])
def test_a_boot_sector_may_lie_anywhere(gpa):
    assert start(16, gpa).memory == ((gpa, CODE),)
