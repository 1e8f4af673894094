"""The timer chip on virtual time, and port 0x61."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from hvemu.devices.pit import HZ, Pit

CONTROL, PORT61 = 3, 4
SECOND = 10**9


class Bench:
    """A timer, a clock that the test sets, and a count of the edges at the interrupt line."""

    def __init__(self):
        self.now, self.levels = 0, []
        self.pit = Pit(clock=lambda: self.now, irq=self.levels.append)

    def out(self, offset, *values):
        for value in values:
            self.pit.write(offset, 1, value)

    def get(self, offset):
        return self.pit.read(offset, 1)

    def edges(self):
        return self.levels.count(True)

    def sleep(self):
        self.now = self.pit.next_deadline()
        self.pit.advance(self.now)


@pytest.fixture
def bench():
    return Bench()


def test_a_timer_that_was_never_programmed_asks_for_nothing(bench):
    assert bench.pit.next_deadline() is None
    bench.pit.advance(SECOND)
    assert bench.levels == []


@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("divisor", [2, 3, 1193, 11932, 65536])
def test_a_periodic_counter_interrupts_at_exact_times_without_drift(bench, mode, divisor):
    bench.out(CONTROL, 0x30 | mode << 1)
    bench.out(0, *(divisor % 65536).to_bytes(2, "little"))
    bench.levels.clear()
    for n in range(1, 200):
        bench.sleep()
        pulse = 1 + n * divisor  # the first pulse loads the count
        assert (bench.now * HZ) // SECOND == pulse
        assert ((bench.now - 1) * HZ) // SECOND == pulse - 1
        assert bench.edges() == n


def test_a_deadline_missed_many_times_is_one_edge(bench):
    bench.out(CONTROL, 0x34)
    bench.out(0, 100, 0)
    bench.levels.clear()
    bench.pit.advance(SECOND)
    assert bench.levels in ([False, True], [False, True, False])


def test_a_one_shot_count_interrupts_once(bench):
    bench.out(CONTROL, 0x30)
    bench.out(0, 0xE8, 0x03)
    bench.sleep()
    assert bench.now * HZ // SECOND == 1001
    assert bench.levels == [True]
    assert bench.pit.next_deadline() is None


def test_firmware_leaves_a_tick_of_18_2_hz(bench):
    bench.pit.start_as_firmware_does()
    bench.levels.clear()
    while bench.pit.next_deadline() < 10 * SECOND:
        bench.sleep()
    assert bench.edges() == 182


def test_the_three_counters_are_separate_and_read_back_together(bench):
    for n, count in enumerate((0x1111, 0x2222, 0x3333)):
        bench.out(CONTROL, n << 6 | 0x34)
        bench.out(n, *count.to_bytes(2, "little"))
    bench.out(PORT61, 1)
    bench.now = 1 * SECOND // HZ + 1
    bench.out(CONTROL, 0xDE)  # read back counts of all three
    bench.now += 100 * SECOND // HZ
    assert [[bench.get(n), bench.get(n)] for n in range(3)] == [[0x11, 0x11], [0x22, 0x22], [0x33, 0x33]]
    bench.out(CONTROL, 0xE8)  # status of counter 2
    assert bench.get(2) == 0x80 | 0x34


@pytest.mark.parametrize("n", range(3))
def test_the_latch_command_latches_its_counter(bench, n):
    bench.out(PORT61, 1)
    bench.out(CONTROL, n << 6 | 0x34)
    bench.out(n, 0x00, 0x80)
    bench.now = SECOND // HZ + 1
    bench.out(CONTROL, n << 6)
    bench.now += SECOND // 100
    assert (bench.get(n), bench.get(n)) == (0x00, 0x80)
    assert (bench.get(n), bench.get(n)) != (0x00, 0x80)


@pytest.mark.parametrize("value", range(256))
def test_which_bits_of_port_61_stick(bench, value):
    bench.out(PORT61, value)
    assert bench.get(PORT61) & 0xCF == value & 0x0F


def test_port_61_gates_counter_2_and_shows_its_output(bench):
    bench.out(CONTROL, 0xB0)
    bench.out(2, 0xE8, 0x03)
    bench.now = SECOND
    assert not bench.get(PORT61) & 0x20
    bench.out(PORT61, 1)
    bench.now += 1000 * SECOND // HZ
    assert not bench.get(PORT61) & 0x20
    bench.now += 2 * SECOND // HZ
    assert bench.get(PORT61) & 0x20


def test_the_refresh_bit_toggles_every_15_microseconds(bench):
    seen = []
    for bench.now in range(0, 1_000_000, 1000):
        seen.append(bench.get(PORT61) & 0x10)
    toggles = sum(a != b for a, b in pairwise(seen))
    assert toggles == 1_000_000 // 15_085


def test_the_control_word_cannot_be_read(bench):
    assert bench.get(CONTROL) == 0xFF


def test_state_round_trip(bench):
    bench.out(CONTROL, 0x36)
    bench.out(0, 0x34, 0x12)
    bench.out(PORT61, 3)
    bench.now = 12_345_678
    bench.pit.advance(bench.now)
    levels = []
    twin = Pit.from_state(json.loads(json.dumps(bench.pit.state())), clock=lambda: bench.now, irq=levels.append)
    assert twin.next_deadline() == bench.pit.next_deadline()
    assert levels == []
    bench.levels.clear()
    for _ in range(3):
        bench.sleep()
        twin.advance(bench.now)
    assert levels == bench.levels
    assert twin.state() == bench.pit.state()
