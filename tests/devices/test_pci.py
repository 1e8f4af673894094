"""PCI configuration by mechanism 1 (PCI Local Bus Specification), and the two bridges."""

from __future__ import annotations

import json
import random

import pytest

from hvemu.devices.bus import Bus
from hvemu.devices.pci import PciHost
from hvemu.devices.reset import ResetControl

ADDRESS, DATA, RESET = 0xCF8, 0xCFC, 0xCF9
ENABLE = 0x80000000
ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}


class Bench:
    """The host bridge at its ports."""

    def __init__(self):
        self.resets = 0
        self.control = ResetControl(reset=self._reset)
        self.attach(PciHost(reset_control=self.control))

    def attach(self, host):
        self.host, self.bus = host, Bus()
        self.bus.add(ADDRESS, 8, host, width=4)

    def _reset(self):
        self.resets += 1

    def select(self, device, register=0, *, bus=0, function=0):
        self.bus.write(ADDRESS, 4, ENABLE | bus << 16 | device << 11 | function << 8 | register)

    def read(self, device, register, size=4):
        self.select(device, register & ~3)
        return self.bus.read(DATA + (register & 3), size)


@pytest.fixture
def bench():
    return Bench()


def test_who_is_there(bench):
    found = {}
    for bus in (0, 1, 255):
        for device in range(32):
            for function in range(8):
                bench.select(device, bus=bus, function=function)
                found[bus, device, function] = bench.bus.read(DATA, 4)
    assert {place: value for place, value in found.items() if value != ONES[4]} == {
        (0, 0, 0): 0x1237_8086,
        (0, 1, 0): 0x7000_8086,
    }


# Class codes of the PCI specification: 06.00 host bridge, 06.01 ISA bridge; bit 7 of the header type: more functions.
@pytest.mark.parametrize(
    ("device", "class_code", "header"), [(0, 0x0600, 0x00), (1, 0x0601, 0x80)], ids=["host", "isa"]
)
def test_what_a_bridge_says_it_is(bench, device, class_code, header):
    assert (bench.read(device, 0x0A, 2), bench.read(device, 0x0E, 1)) == (class_code, header)
    assert [bench.read(device, register) for register in range(0x10, 0x28, 4)] == [0] * 6


def test_every_size_and_offset_reads_the_same_bytes(bench):
    space = b"".join(bench.read(1, register).to_bytes(4, "little") for register in range(0, 256, 4))
    for register in range(256):
        assert bench.read(1, register, 1) == space[register]
        if register % 4 < 3:
            assert bench.read(1, register, 2) == int.from_bytes(space[register : register + 2], "little")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_disabled_address_reaches_no_function(bench, size):
    bench.bus.write(ADDRESS, 4, 0)
    assert bench.bus.read(DATA, size) == ONES[size]
    bench.bus.write(DATA, size, 0)
    bench.select(0, 4)
    assert bench.bus.read(DATA, 2) == 0x0103


@pytest.mark.parametrize("value", [0, 0xFFFFFFFF, 0x80001234, 0x7F00FF03])
def test_reserved_bits_of_the_address_are_0(bench, value):
    bench.bus.write(ADDRESS, 4, value)
    assert bench.bus.read(ADDRESS, 4) == value & 0x80FFFFFC


def test_the_address_takes_doublewords_alone(bench):
    bench.select(1)
    for offset, size in ((0, 1), (0, 2), (2, 2), (3, 1)):
        bench.bus.write(ADDRESS + offset, size, 0)
        assert bench.bus.read(ADDRESS + offset, size) == ONES[size]
    assert bench.bus.read(DATA, 4) == 0x7000_8086


def test_bytes_at_offset_1_are_the_reset_control(bench):
    bench.bus.write(RESET, 1, 0x02)
    assert (bench.resets, bench.bus.read(RESET, 1)) == (0, 0x02)
    bench.bus.write(RESET, 1, 0x06)
    assert bench.resets == 1
    bench.bus.write(ADDRESS, 4, 0xFFFFFFFF)
    assert bench.resets == 1


@pytest.mark.parametrize("device", [0, 1])
def test_identity_and_class_are_read_only(bench, device):
    before = [bench.read(device, register) for register in (*range(4), *range(8, 64))]
    for register in (*range(4), *range(8, 64)):
        bench.select(device, register & ~3)
        bench.bus.write(DATA + (register & 3), 1, 0xA5)
    assert [bench.read(device, register) for register in (*range(4), *range(8, 64))] == before


def test_the_routes_of_the_isa_bridge_can_be_written(bench):
    bench.select(1, 0x60)
    bench.bus.write(DATA, 4, 0xFFFFFFFF)
    bench.bus.write(DATA + 1, 1, 0x05)
    assert bench.bus.read(DATA, 4) == 0x8F8F058F


def test_state_round_trip_goes_on_the_same_way(bench):
    chance = random.Random(9)

    def choices():
        for _ in range(40):
            yield chance.randrange(3), chance.randrange(3), chance.randrange(64) * 4, chance.getrandbits(32)

    def step(bus, kind, device, register, value):
        if kind == 0:
            bus.write(ADDRESS, 4, ENABLE | device << 11 | register)
        elif kind == 1:
            bus.write(DATA, 4, value)
        return bus.read(ADDRESS, 4), bus.read(DATA, 4)

    for choice in choices():
        step(bench.bus, *choice)
    twin = Bench()
    twin.attach(PciHost.from_state(json.loads(json.dumps(bench.host.state())), reset_control=twin.control))
    for choice in choices():
        assert step(twin.bus, *choice) == step(bench.bus, *choice)
    assert twin.host.state() == bench.host.state()
