"""The firmware configuration device, as QEMU's specification describes it."""

from __future__ import annotations

import json
import struct

import pytest

from hvemu.devices.bus import Bus
from hvemu.devices.fw_cfg import FwCfg

RAM = 64 << 20


class Bench:
    """The device at its ports."""

    def __init__(self, device=None):
        self.device = device or FwCfg(ram=RAM, files={"opt/a": b"first", "opt/b": b""})
        self.bus = Bus()
        self.bus.add(0x510, 2, self.device, width=2)

    def read(self, key, count):
        self.bus.write(0x510, 2, key)
        return bytes(self.bus.read(0x511, 1) for _ in range(count))


@pytest.fixture
def bench():
    return Bench()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (0x00, b"QEMU"),
        (0x01, b"\1\0\0\0"),
        (0x02, bytes(16)),
        (0x03, struct.pack("<Q", RAM)),
        (0x05, b"\1\0"),
        (0x0F, b"\1\0"),
        (0x10, b""),
        (0x77, b""),
        (0x8000, b""),
    ],
)
def test_an_item_ends_in_zeros(bench, key, expected):
    assert bench.read(key, len(expected) + 3) == expected + bytes(3)


def test_files_are_found_in_the_directory(bench):
    (count,) = struct.unpack(">I", bench.read(0x19, 4))
    entries = [struct.unpack(">IHH56s", bench.read(0x19, 4 + 64 * (n + 1))[-64:]) for n in range(count)]
    files = {name.rstrip(b"\0").decode(): bench.read(key, size) for size, key, _, name in entries}
    assert files == {"etc/e820": struct.pack("<QQI", 0, RAM, 1), "opt/a": b"first", "opt/b": b""}
    assert [key for _, key, _, _ in entries] == [0x20, 0x21, 0x22]


def test_selecting_starts_from_the_beginning(bench):
    assert bench.read(0, 2) + bench.read(0, 4) == b"QEQEMU"


@pytest.mark.parametrize(("port", "size"), [(0x510, 1), (0x511, 1), (0x511, 2)])
def test_other_writes_are_lost(bench, port, size):
    first = bench.read(0, 1)
    bench.bus.write(port, size, 0)
    assert first + bytes(bench.bus.read(0x511, 1) for _ in range(3)) == b"QEMU"


def test_a_word_at_the_select_port_reads_0_and_takes_no_byte(bench):
    bench.bus.write(0x510, 2, 0)
    assert bench.bus.read(0x510, 2) == 0
    assert bench.bus.read(0x511, 1) == ord("Q")


def test_state_round_trip_goes_on_with_the_next_byte(bench):
    bench.read(0x20, 3)
    twin = Bench(FwCfg.from_state(json.loads(json.dumps(bench.device.state()))))
    assert [twin.bus.read(0x511, 1) for _ in range(20)] == [bench.bus.read(0x511, 1) for _ in range(20)]
    assert twin.read(0x21, 6) == bench.read(0x21, 6)
