"""The board: devices at their ports, and one more where a machine wants it."""

from __future__ import annotations

import pytest

from hvemu.devices.board import Board


class Register:
    """Two bytes."""

    def __init__(self):
        self.bytes = bytearray(2)

    def read(self, offset, size):
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset, size, value):
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")

    def state(self):
        return {}


@pytest.fixture
def board():
    return Board(lambda: 0)


def test_an_added_device_answers_at_its_ports_and_nobody_beside_it(board):
    board.add(0x510, 2, Register(), width=2)
    board.write(0x510, 2, 0x1234)
    assert [board.read(0x50F, 1), board.read(0x510, 2), board.read(0x511, 1), board.read(0x512, 1)] == [
        0xFF,
        0x1234,
        0x12,
        0xFF,
    ]


def test_an_added_device_stays_when_the_board_returns_to_a_saved_state(board):
    device = Register()
    board.add(0x510, 2, device)
    board.write(0xE9, 1, ord("x"))
    saved = board.state()
    board.write(0x511, 1, 0x56)
    board.write(0xE9, 1, ord("y"))
    board.restore(saved)
    assert (bytes(board.console), board.read(0x511, 1), device.bytes[1]) == (b"x", 0x56, 0x56)


def test_two_devices_at_one_port_are_a_bug(board):
    with pytest.raises(AssertionError, match="overlaps"):
        board.add(0x3FF, 1, Register())
