from __future__ import annotations

import pytest

from hvemu.cpu.clock import HZ, NANOSECONDS_PER_CYCLE, CountedClock, FreeClock


class Counter:
    instructions = 0


def test_a_cycle_is_a_whole_number_of_nanoseconds():
    assert HZ * NANOSECONDS_PER_CYCLE == 1_000_000_000


def test_counted_time_is_what_retired_and_what_was_charged():
    counter = Counter()
    clock = CountedClock(counter)
    assert clock.now == 0
    counter.instructions = 5
    clock.charge(1000)
    clock.charge(10)
    counter.instructions += 3
    assert clock.now == 1018
    assert clock.counted


@pytest.mark.parametrize(("cycle", "now"), [(50, 100), (100, 100), (101, 101), (10**9, 10**9)])
def test_counted_time_jumps_forwards_only(cycle, now):
    counter = Counter()
    clock = CountedClock(counter)
    counter.instructions = 100
    clock.advance_to(cycle)
    assert clock.now == now
    counter.instructions += 1
    assert clock.now == now + 1


def test_counted_time_is_restored_with_its_counter():
    counter = Counter()
    clock = CountedClock(counter)
    counter.instructions = 7
    clock.charge(100)
    saved = clock.state()
    clock.charge(5)
    other = Counter()
    other.instructions = 7
    twin = CountedClock(other)
    twin.restore(saved)
    assert twin.now == 107


@pytest.fixture
def host(monkeypatch):
    """The host's clock, in nanoseconds, as the test sets it."""
    time = [1_000_000]
    monkeypatch.setattr("hvemu.cpu.clock.time.monotonic_ns", lambda: time[0])
    return time


def test_free_time_is_the_hosts(host):
    clock = FreeClock()
    assert clock.now == 0
    host[0] += 25
    assert clock.now == 2  # whole cycles
    clock.charge(1000)
    assert clock.now == 2
    assert not clock.counted


def test_free_time_jumps_forwards_only(host):
    clock = FreeClock()
    clock.advance_to(500)
    assert clock.now == 500
    clock.advance_to(400)
    assert clock.now == 500
    host[0] += 10 * NANOSECONDS_PER_CYCLE
    assert clock.now == 510


def test_free_time_goes_on_from_where_it_was_saved(host):
    clock = FreeClock()
    host[0] += 1000 * NANOSECONDS_PER_CYCLE
    saved = clock.state()
    host[0] += 10**9
    twin = FreeClock()
    twin.restore(saved)
    assert twin.now == 1000
    host[0] += 3 * NANOSECONDS_PER_CYCLE
    assert twin.now == 1003
