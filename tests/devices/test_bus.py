"""Who answers at an address, and what happens where nobody does."""

from __future__ import annotations

import pytest

from hvemu.devices.bus import Bus
from hvemu.devices.debug_exit import DebugExit
from hvemu.devices.debug_port import DebugPort


class Probe:
    """Answers with its offset, and remembers what was asked."""

    def __init__(self):
        self.seen = []

    def read(self, offset, size):
        self.seen.append(("r", offset, size))
        return 0x40 + offset

    def write(self, offset, size, value):
        self.seen.append(("w", offset, size, value))

    def state(self):
        return {}


@pytest.fixture
def probe():
    return Probe()


def test_an_address_is_an_offset_in_its_device(probe):
    bus = Bus()
    bus.add(0x3F8, 8, probe)
    assert [bus.read(port, 1) for port in (0x3F8, 0x3FF)] == [0x40, 0x47]
    assert bus.claims(0x3FF)
    assert not bus.claims(0x400)
    assert not bus.claims(0x3F7)


def test_a_second_place_may_reach_other_registers(probe):
    bus = Bus()
    bus.add(0x20, 2, probe)
    bus.add(0xA0, 2, probe, offset=2)
    bus.write(0xA1, 1, 7)
    assert probe.seen == [("w", 3, 1, 7)]


def test_a_wide_access_to_a_byte_device_is_split_lowest_first(probe):
    bus = Bus()
    bus.add(0x40, 4, probe)
    assert bus.read(0x40, 4) == 0x43424140
    bus.write(0x41, 2, 0xBEEF)
    assert probe.seen[4:] == [("w", 1, 1, 0xEF), ("w", 2, 1, 0xBE)]


def test_a_wide_device_takes_a_wide_access_whole(probe):
    bus = Bus()
    bus.add(0xF4, 4, probe, width=4)
    bus.write(0xF4, 4, 0x12345678)
    bus.write(0xF6, 2, 0xABCD)
    assert probe.seen == [("w", 0, 4, 0x12345678), ("w", 2, 2, 0xABCD)]


def test_an_access_over_the_end_of_a_device_is_split(probe):
    bus = Bus()
    bus.add(0xF4, 4, probe, width=4)
    assert bus.read(0xF6, 4) == 0xFFFF4342
    assert bus.unclaimed == {0xF8: 1, 0xF9: 1}


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_nobody_answers_with_all_ones_and_is_counted(size, ones):
    bus = Bus()
    assert bus.read(0x300, size) == ones
    bus.write(0x300, size, 0)
    assert bus.unclaimed == {0x300 + i: 2 for i in range(size)}


@pytest.mark.parametrize("first", [0x1F, 0x20, 0x23, 0x18])
def test_two_devices_at_one_address_are_a_bug(probe, first):
    bus = Bus()
    bus.add(0x20, 4, probe)
    with pytest.raises(AssertionError, match="overlaps"):
        bus.add(first, 16, probe)


def test_the_debug_console_shows_what_is_written_and_says_that_it_is_there():
    shown = []
    port = DebugPort(shown.append)
    port.write(0, 1, ord("A"))
    assert port.read(0, 1) == 0xE9
    assert shown == [ord("A")]
    assert DebugPort.from_state(port.state(), shown.append).read(0, 1) == 0xE9


def test_the_exit_port_keeps_the_first_value():
    port = DebugExit()
    assert port.value is None
    port.write(0, 4, 0x10)
    port.write(0, 1, 3)
    assert port.value == 0x10
    assert DebugExit.from_state(port.state()).value == 0x10
