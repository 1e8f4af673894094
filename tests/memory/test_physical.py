from __future__ import annotations

import mmap

import pytest

from hvemu.memory.physical import Ram

SIZE = 16


@pytest.fixture(params=["bytearray", "mmap"])
def buffer(request):
    """32 bytes counting from 0: *bytearray* or *mmap*, cut to a size that no page fixes."""
    if request.param == "bytearray":
        return bytearray(range(32))
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[:32] = bytes(range(32))
    return memory


@pytest.fixture
def ram(buffer):
    return Ram(buffer, 8, SIZE)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("gpa", range(20))
def test_bytes_past_the_end_read_as_ones(ram, gpa, size):
    there = [8 + a if a < SIZE else 0xFF for a in range(gpa, gpa + size)]
    assert ram.read_bytes(gpa, size) == bytes(there)
    assert ram.read(gpa, size) == sum(byte << 8 * n for n, byte in enumerate(there))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("gpa", range(20))
def test_bytes_past_the_end_are_lost(ram, buffer, gpa, size):
    value = 0xA7A6_A5A4_A3A2_A1A0 & (1 << 8 * size) - 1
    expected = bytearray(range(32))
    for n in range(size):
        if gpa + n < SIZE:
            expected[8 + gpa + n] = 0xA0 + n
    ram.write(gpa, size, value)
    assert bytes(buffer[:32]) == bytes(expected)
    assert len(buffer) == (32 if isinstance(buffer, bytearray) else mmap.PAGESIZE)


def test_the_default_is_the_whole_buffer_and_what_follows_the_base():
    assert (Ram(bytearray(32)).size, Ram(bytearray(32), 8).size) == (32, 24)


def test_a_far_address_is_outside(ram):
    assert ram.read(1 << 51, 8) == (1 << 64) - 1
    ram.write(1 << 51, 8, 0)


@pytest.mark.parametrize(("base", "size"), [(-1, 4), (33, None), (0, 33), (30, 3), (0, -1)])
def test_a_window_outside_the_buffer_is_refused(base, size):
    with pytest.raises(ValueError, match="not inside"):
        Ram(bytearray(32), base, size)


def test_a_value_that_does_not_fit_is_a_bug_of_the_caller(ram):
    with pytest.raises(OverflowError):
        ram.write(0, 1, 0x100)
