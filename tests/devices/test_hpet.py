"""The high precision event timer against the IA-PC HPET specification, and a model that counts one by one."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.hpet import Hpet, HpetWires

CAPABILITIES, GENERAL, STATUS, COUNTER = 0x00, 0x10, 0x20, 0xF0
ENABLE, LEGACY = 1, 2
LEVEL, INTERRUPT, PERIODIC, SET_VALUE, NARROW = 2, 4, 8, 0x40, 0x100
FIXED_BITS = 0x4_0000_0030  # may be periodic, 64 bits wide, can be routed to pin 2
ONES = 2**64 - 1


def config(n):
    return 0x100 + 0x20 * n


def comparator(n):
    return 0x108 + 0x20 * n


class Bench:
    """Registers of 64 bits, and a record of (line, level): "irq0", "irq8" or the number of a pin."""

    def __init__(self):
        self.now, self.seen = 0, []
        self.hpet = Hpet(wires=self.wires())

    def wires(self):
        def line(name):
            return lambda level: self.seen.append((name, level))

        return HpetWires(
            clock=lambda: self.now,
            irq0=line("irq0"),
            irq8=line("irq8"),
            pins=lambda pin, level: self.seen.append((pin, level)),
        )

    def __getitem__(self, offset):
        return self.hpet.read(offset, 8)

    def __setitem__(self, offset, value):
        self.hpet.write(offset, 8, value)

    def count(self, counts):
        self.now += counts * 10
        self.hpet.advance(self.now)

    def take(self):
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture
def bench():
    return Bench()


def test_registers_after_reset(bench):
    shown = {offset: bench[offset] for offset in range(0, 0x400, 8) if bench[offset]}
    timers = {offset: value for n in range(3) for offset, value in ((config(n), FIXED_BITS), (comparator(n), ONES))}
    assert shown == {CAPABILITIES: 0x00989680_8086A201, **timers}


@pytest.mark.parametrize("seed", range(40))
def test_which_bits_of_a_configuration_stick(bench, seed):
    value = random.Random(seed).getrandbits(64) & ~INTERRUPT
    bench[config(1)] = value
    route = 2 if value >> 9 & 0x1F == 2 else 0
    assert bench[config(1)] == FIXED_BITS | value & (LEVEL | PERIODIC | SET_VALUE | NARROW) | route << 9
    bench[GENERAL], bench[CAPABILITIES] = value, value
    assert (bench[GENERAL], bench[CAPABILITIES]) == (value & 3, 0x00989680_8086A201)


@pytest.mark.parametrize("offset", [COUNTER, comparator(0), comparator(2)])
def test_registers_are_written_whole_or_by_halves(bench, offset):
    bench[offset] = 0x11223344_55667788
    assert [bench.hpet.read(offset + at, 4) for at in (0, 4)] == [0x55667788, 0x11223344]
    bench.hpet.write(offset + 4, 4, 0xAABBCCDD)
    bench.hpet.write(offset, 4, 0xEEFF0011)
    assert bench[offset] == 0xAABBCCDD_EEFF0011
    for at, size in ((0, 1), (2, 2), (2, 4), (1, 1)):
        bench.hpet.write(offset + at, size, 0)
    assert bench[offset] == 0xAABBCCDD_EEFF0011
    assert [bench.hpet.read(offset + at, 1) for at in range(8)] == [0x11, 0, 0xFF, 0xEE, 0xDD, 0xCC, 0xBB, 0xAA]


def test_the_counter_counts_while_it_is_enabled_and_is_written_while_it_is_not(bench):
    bench.count(5)
    bench[COUNTER] = 1000
    bench[GENERAL] = ENABLE
    bench.count(7)
    bench[COUNTER] = 5
    assert bench[COUNTER] == 1007
    bench[GENERAL] = 0
    bench.count(100)
    assert bench[COUNTER] == 1007


def test_the_counter_wraps(bench):
    bench[COUNTER] = ONES
    bench[GENERAL] = ENABLE
    bench.count(3)
    assert bench[COUNTER] == 2


def test_an_edge_at_the_comparator(bench):
    bench[config(2)], bench[comparator(2)], bench[GENERAL] = INTERRUPT | 2 << 9, 100, ENABLE
    assert bench.hpet.next_deadline() == 1000
    bench.count(99)
    assert bench.take() == []
    bench.count(1)
    assert bench.take() == [(2, True), (2, False)]
    assert bench[STATUS] == 0
    bench.count(10**6)
    assert bench.take() == []


def test_a_level_stays_until_its_status_is_written(bench):
    bench[config(1)], bench[comparator(1)], bench[GENERAL] = LEVEL | INTERRUPT | 2 << 9, 100, ENABLE
    bench.count(100)
    assert (bench.take(), bench[STATUS]) == ([(2, True)], 0b010)
    bench[STATUS] = 0b101
    assert (bench.take(), bench[STATUS]) == ([], 0b010)
    bench[STATUS] = 0b010
    assert (bench.take(), bench[STATUS]) == ([(2, False)], 0)


def test_a_level_without_interrupts_shows_in_the_status(bench):
    bench[config(1)], bench[comparator(1)], bench[GENERAL] = LEVEL, 100, ENABLE
    assert bench.hpet.next_deadline() is None
    bench.count(100)
    assert (bench.take(), bench[STATUS]) == ([], 0b010)
    bench[config(1)] = LEVEL | INTERRUPT | 2 << 9
    assert bench.take() == [(2, True)]
    bench[config(1)] = INTERRUPT | 2 << 9
    assert (bench.take(), bench[STATUS]) == ([(2, False)], 0)


@pytest.mark.parametrize(("n", "line"), [(0, "irq0"), (1, "irq8"), (2, 2)])
def test_legacy_replacement_takes_the_lines_of_timer_and_clock(bench, n, line):
    bench[config(n)], bench[comparator(n)] = INTERRUPT | 2 << 9, 10
    bench[GENERAL] = ENABLE | LEGACY
    bench.count(10)
    assert bench.take() == [(line, True), (line, False)]


@pytest.mark.parametrize("irq", [0, 8])
def test_legacy_replacement_cuts_off_the_usual_owner(bench, irq):
    bench.hpet.drive(irq, True)
    bench[GENERAL] = LEGACY
    bench.hpet.drive(irq, False)
    bench[GENERAL] = 0
    bench.hpet.drive(irq, False)
    assert bench.take() == [(f"irq{irq}", True), (f"irq{irq}", False)]


def test_a_level_moves_with_legacy_replacement(bench):
    bench[config(0)], bench[comparator(0)], bench[GENERAL] = LEVEL | INTERRUPT | 2 << 9, 10, ENABLE
    bench.count(10)
    bench[GENERAL] = ENABLE | LEGACY
    bench[STATUS] = 1
    assert bench.take() == [(2, True), (2, False), ("irq0", True), ("irq0", False)]


def test_a_periodic_timer_is_set_by_one_write_or_by_two(bench):
    bench[config(0)] = INTERRUPT | PERIODIC | SET_VALUE | 2 << 9
    bench[comparator(0)] = 30
    assert not bench[config(0)] & SET_VALUE
    bench[comparator(0)] = 100  # without SET_VALUE this is the period alone
    bench[GENERAL] = ENABLE
    deadlines = []
    for _ in range(4):
        deadlines.append(bench.hpet.next_deadline() // 10)
        bench.count(deadlines[-1] - bench.now // 10)
        assert bench.take() == [(2, True), (2, False)]
    assert deadlines == [30, 130, 230, 330]


def test_many_periods_at_once_are_one_interrupt(bench):
    bench[config(0)] = INTERRUPT | PERIODIC | SET_VALUE | 2 << 9
    bench[comparator(0)] = 100
    bench[GENERAL] = ENABLE
    bench.count(1050)
    assert (bench.take(), bench[comparator(0)]) == ([(2, True), (2, False)], 1100)


def test_a_narrow_timer_matches_again_after_32_bits(bench):
    bench[config(0)], bench[comparator(0)], bench[GENERAL] = INTERRUPT | NARROW | 2 << 9, 0x5_0000_0064, ENABLE
    assert bench[comparator(0)] == 100
    for deadline in (100, 2**32 + 100):
        assert bench.hpet.next_deadline() == deadline * 10
        bench.count(deadline - bench.now // 10)
        assert bench.take() == [(2, True), (2, False)]


class Model:
    """Comparators as the specification tells them, one count after the other."""

    def __init__(self):
        self.counter, self.comparators, self.periods = 0, [0] * 3, [0] * 3

    def step(self, periodic):
        """Count once; return which timers match."""
        self.counter += 1
        matched = [n for n in range(3) if self.comparators[n] == self.counter]
        for n in matched:
            if periodic[n]:
                self.comparators[n] += self.periods[n]
        return matched


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    timers=st.tuples(*[st.tuples(st.booleans(), st.integers(1, 40), st.integers(1, 9))] * 3),
    rest=st.lists(st.integers(0, 30), max_size=12),
)
def test_matches_agree_with_a_model_that_counts_one_by_one(timers, rest):
    bench, model = Bench(), Model()
    for n, (periodic, first, period) in enumerate(timers):
        bench[config(n)] = LEVEL | INTERRUPT | (PERIODIC | SET_VALUE if periodic else 0)
        bench[comparator(n)] = first
        if periodic:
            bench[comparator(n)] = period
        model.comparators[n], model.periods[n] = first, period
    bench[GENERAL] = ENABLE
    kinds = [periodic for periodic, _, _ in timers]
    for counts in rest:
        promised = bench.hpet.next_deadline()
        at = {}
        for _ in range(counts):
            for n in model.step(kinds):
                at.setdefault(n, model.counter * 10)
        bench.count(counts)
        assert bench[STATUS] == sum(1 << n for n in at)
        assert min(at.values(), default=None) == (promised if promised <= bench.now else None)
        bench[STATUS] = 7


def test_state_round_trip_goes_on_the_same_way(bench):
    chance = random.Random(2)
    offsets = [GENERAL, STATUS, COUNTER, *map(config, range(3)), *map(comparator, range(3))]

    def choices():
        for _ in range(40):
            bits = chance.choice((4, 10, 64))
            yield chance.choice(offsets), chance.getrandbits(bits), chance.randrange(2000), chance.random() < 0.5

    def step(hpet, offset, value, write):
        if write:
            hpet.write(offset, 8, value)
        return hpet.read(offset, 8), hpet.next_deadline()

    for _ in range(30):
        for offset, value, time, write in choices():
            bench.now += time
            step(bench.hpet, offset, value, write)
        other = Bench()
        other.now = bench.now
        other.hpet = Hpet.from_state(json.loads(json.dumps(bench.hpet.state())), wires=other.wires())
        bench.take()
        for offset, value, time, write in choices():
            bench.now += time
            other.now = bench.now
            assert step(other.hpet, offset, value, write) == step(bench.hpet, offset, value, write)
        assert other.take() == bench.take()
        assert other.hpet.state() == bench.hpet.state()
