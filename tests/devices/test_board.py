"""The devices at their ports, and the wires between them."""

from __future__ import annotations

import pytest

from hvemu.devices.board import Board
from hvemu.devices.debug_port import DebugPort

TICK = 1_000_000_000 / 1_193_182  # of the timer, in nanoseconds
FIRMWARE_PERIOD = 65536
UART = 0x3F8


class Time:
    now = 0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def board(time):
    return Board(time)


# -- where things are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "value"),
    [
        (0x21, 0xB8),  # masks as SeaBIOS leaves them
        (0xA1, 0x8E),
        (0x20, 0),  # IRR: what the timer's start requested was served
        (0x43, 0xFF),  # not readable
        (0xE9, 0xE9),
        (0xF4, 0),
        (UART + 5, 0x60),  # transmitter empty
        (0x4D0, 0),
    ],
)
def test_a_guest_finds_it_as_firmware_leaves_it(board, port, value):
    assert board.read(port, 1) == value
    assert board.unclaimed == {}


@pytest.mark.parametrize("port", [0x1F, 0x22, 0x3F, 0x44, 0x60, 0x62, 0xE8, 0xEA, 0xF3, 0xF8, 0x3F7, 0x400, 0xFFFF])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_elsewhere_there_is_nothing(board, port, size):
    free = [p for p in range(port, port + size) if p not in (0x20, 0x21, 0x40, 0x41, 0x42, 0x61, 0xE9, 0xF4, 0xF5, 0xF6)
            and not UART <= p < UART + 8]  # fmt: skip
    value = board.read(port, size)
    for p in free:
        assert value >> 8 * (p - port) & 0xFF == 0xFF
    assert sorted(board.unclaimed) == free


def test_a_device_can_be_added_and_stays_when_a_state_is_restored(board):
    seen = []
    board.add(0x402, 2, DebugPort(seen.append))
    board.write(0x402, 1, 0x41)
    board.restore(board.state())
    board.write(0x403, 1, 0x42)
    assert seen == [0x41, 0x42]
    with pytest.raises(AssertionError):
        board.add(0x403, 1, DebugPort(seen.append))


# -- console and exit -------------------------------------------------------------------------------------------------


def test_both_consoles_are_one(time):
    shown = []
    board = Board(time, shown.append)
    board.write(0xE9, 1, 0x61)
    board.write(UART, 1, 0x62)
    board.write(0xE9, 1, 0x63)
    assert bytes(board.console) == bytes(shown) == b"abc"


@pytest.mark.parametrize(
    ("port", "size", "value"), [(0xF4, 1, 0x10), (0xF4, 4, 0x1234_5678), (0xF5, 1, 7), (0xF4, 2, 0)]
)
def test_the_exit_port_keeps_the_first_value(board, port, size, value):
    assert board.exit.value is None
    board.write(port, size, value)
    board.write(0xF4, 1, 0x55)
    assert board.exit.value == value


# -- wires ------------------------------------------------------------------------------------------------------------


def test_the_timer_ticks_as_firmware_started_it(board, time):
    deadline = board.next_deadline()
    assert deadline == pytest.approx(FIRMWARE_PERIOD * TICK, abs=2 * TICK)
    time.now = deadline - 1
    board.advance()
    assert not board.pic.pending()
    time.now = deadline
    board.advance()
    assert board.pic.pending()
    assert board.pic.acknowledge() == 8
    assert board.next_deadline() == pytest.approx(deadline + FIRMWARE_PERIOD * TICK, abs=2 * TICK)


def test_the_timer_interrupts_at_its_vector_and_again_after_eoi(board, time):
    for port, value in ((0x43, 0x34), (0x40, 100), (0x40, 0)):  # every 100 ticks
        board.write(port, 1, value)
    vectors = []
    for _ in range(3):
        time.now = board.next_deadline()
        board.advance()
        vectors.append(board.pic.acknowledge())
        board.write(0x20, 1, 0x20)
    assert vectors == [8, 8, 8]
    assert time.now == pytest.approx(300 * TICK, abs=3 * TICK)


def test_a_timer_that_has_fired_once_has_no_deadline(board, time):
    for port, value in ((0x43, 0x30), (0x40, 9), (0x40, 0)):
        board.write(port, 1, value)
    time.now = board.next_deadline()
    assert time.now == pytest.approx(10 * TICK, abs=TICK)  # 8254: the count, and the clock that loads it
    board.advance()
    assert board.pic.pending()
    assert board.next_deadline() is None


def test_the_uart_interrupts_at_line_4(board):
    board.write(0x21, 1, 0xEF)  # only that line
    board.write(UART + 4, 1, 0x08)  # OUT2 gates it
    board.write(UART + 1, 1, 0x01)
    assert not board.pic.pending()
    board.type(b"x")
    assert board.pic.pending()
    assert board.pic.acknowledge() == 8 + 4
    assert board.read(UART, 1) == ord("x")
    assert not board.pic.pending()


# -- typing -----------------------------------------------------------------------------------------------------------


def test_what_is_typed_arrives_as_fast_as_it_is_read(board):
    board.type(b"hello")
    taken = bytearray()
    while board.read(UART + 5, 1) & 1:
        taken.append(board.read(UART, 1))
    assert taken == b"hello"
    assert board.read(UART + 5, 1) & 2 == 0  # nothing was overrun


def test_typing_goes_on_when_a_write_makes_room(board):
    """The guest clears the receiver, and waits for an interrupt: it may read nothing before that."""
    board.type(b"ab" * 20)
    board.write(UART + 2, 1, 0x07)  # FIFOs on, and empty
    assert board.read(UART + 5, 1) & 1


def test_an_access_asks_for_a_new_look_at_deadlines_and_lines(board):
    for action in (
        lambda: board.read(0x20, 1), lambda: board.write(0x80, 1, 0), board.advance, lambda: board.type(b"x"),
        lambda: board.restore(board.state()),
    ):  # fmt: skip
        board.changed = False
        action()
        assert board.changed


# -- snapshots --------------------------------------------------------------------------------------------------------


def test_a_restored_board_goes_on_as_the_old_one(board, time):
    for port, value in ((0x43, 0x34), (0x40, 0x34), (0x40, 0x12), (0x21, 0xE8), (UART + 4, 8), (UART + 1, 1)):
        board.write(port, 1, value)
    board.write(0xE9, 1, 0x21)
    board.type(b"typed, and more than fits")
    time.now = 1_000_000
    board.advance()
    twin = Board(time)
    twin.restore(board.state())
    assert twin.state() == board.state()
    steps = [(UART + n, None) for n in range(8)] + [(0x40, None), (0x20, 0x20), (0xF4, 3), (UART, 0x40), (0x61, 3)]
    for n in range(20):
        for port, value in steps:
            answers = [b.read(port, 1) if value is None else b.write(port, 1, value) for b in (board, twin)]
            assert answers[0] == answers[1]
        time.now += 12_345 * n
        for b in (board, twin):
            b.advance()
        assert board.pic.pending() == twin.pic.pending()
        assert board.next_deadline() == twin.next_deadline()
    assert twin.state() == board.state()
    assert bytes(twin.console) == bytes(board.console)


def test_after_a_restore_the_old_devices_drive_nothing(board, time):
    old = board.uart
    board.write(0x21, 1, 0xEF)
    board.write(UART + 4, 1, 8)
    board.write(UART + 1, 1, 1)
    board.restore(board.state())
    old.receive(0x41)
    assert not board.pic.pending()
    board.type(b"A")
    assert board.pic.pending()


def test_its_name_tells_where_everything_is(board):
    assert "0x3f8-0x3ff Uart" in repr(board)
