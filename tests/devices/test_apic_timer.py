"""The timer of the local APIC against a count that is stepped, one bus clock after the other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.apic_registers import Divide, TimerMode
from hvemu.devices.apic_timer import ApicTimer

DIVISORS = {0b0000: 2, 0b0001: 4, 0b0010: 8, 0b0011: 16, 0b1000: 32, 0b1001: 64, 0b1010: 128, 0b1011: 1}


class Bench:
    """A timer, a clock, and a time-stamp counter of 100 MHz that has a head start of 1,000."""

    def __init__(self, **registers):
        self.now = 0
        self.timer = ApicTimer(clock=lambda: self.now, tsc_time=lambda tsc: (tsc - 1000) * 10)
        for name, value in registers.items():
            setattr(self.timer.r, name, value)

    def pass_to(self, now):
        self.now = now
        return self.timer.advance(now)


@pytest.mark.parametrize(("value", "divisor"), DIVISORS.items())
def test_the_divide_configuration_is_scattered_over_three_bits(value, divisor):
    assert Divide(value).divisor == divisor


class Model:
    """A count that is stepped: one bus clock after the other, one reload after the other."""

    def __init__(self):
        self.mode, self.divisor, self.initial, self.count, self.phase = 0, 2, 0, 0, 0

    def step(self):
        """Let a bus clock pass; return whether the count came to 0."""
        if not self.count:
            return False
        self.phase += 1
        if self.phase < self.divisor:
            return False
        self.phase, self.count = 0, self.count - 1
        if self.count:
            return False
        self.count = self.initial if self.mode == TimerMode.PERIODIC else 0
        return True


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("initial"), st.integers(0, 9)),
        st.tuples(st.just("divide"), st.sampled_from([*DIVISORS])),
        st.tuples(st.just("mode"), st.sampled_from([TimerMode.ONE_SHOT, TimerMode.PERIODIC])),
        st.tuples(st.just("pass"), st.integers(0, 300)),
    ),
    max_size=20,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(steps=STEPS)
def test_any_sequence_agrees_with_a_stepped_count(steps):
    bench, model, now = Bench(), Model(), 0
    for what, argument in steps:
        if what == "initial":
            bench.timer.write_initial(argument)
            model.initial = model.count = argument
            model.phase = 0
        elif what == "divide":
            bench.timer.write_divide(argument)
            model.divisor, model.phase = DIVISORS[argument], 0
        elif what == "mode":
            bench.timer.set_mode(argument)
            model.mode = argument
        else:
            promised = bench.timer.expires_at()
            expiries = [now + n + 1 for n in range(argument) if model.step()]
            now += argument
            assert bench.pass_to(now) == bool(expiries)
            assert expiries[:1] == ([promised] if promised is not None and promised <= now else [])
        assert (bench.timer.current, bench.timer.r.initial) == (model.count, model.initial)


def test_a_count_that_was_not_looked_at_has_gone_on_all_the_same():
    bench = Bench()
    bench.timer.set_mode(TimerMode.PERIODIC)
    bench.timer.write_initial(10)
    bench.now = 2 * 10 * 7 + 2 * 3
    assert bench.timer.current == 7
    assert bench.timer.advance(bench.now)
    assert bench.timer.current == 7
    assert bench.timer.expires_at() == 2 * 10 * 8


def test_a_deadline_expires_once_at_its_time_and_reads_0_then():
    bench = Bench()
    bench.timer.set_mode(TimerMode.TSC_DEADLINE)
    bench.timer.write_deadline(1500)
    assert bench.timer.expires_at() == 5000
    assert [bench.pass_to(now) for now in (4999, 5000, 5001)] == [False, True, False]
    assert bench.timer.r.deadline == 0


def test_a_deadline_that_has_passed_expires_at_once_and_0_disarms():
    bench = Bench(mode=TimerMode.TSC_DEADLINE)
    bench.now = 10_000
    bench.timer.write_deadline(1)
    assert bench.timer.advance(bench.now)
    bench.timer.write_deadline(5000)
    bench.timer.write_deadline(0)
    assert bench.timer.expires_at() is None


@pytest.mark.parametrize("mode", [TimerMode.ONE_SHOT, TimerMode.PERIODIC, TimerMode.RESERVED])
def test_a_deadline_is_for_its_own_mode_alone(mode):
    bench = Bench()
    bench.timer.set_mode(mode)
    bench.timer.write_deadline(5000)
    assert (bench.timer.r.deadline, bench.timer.expires_at()) == (0, None)


def test_an_initial_count_is_not_for_the_deadline_mode():
    bench = Bench()
    bench.timer.set_mode(TimerMode.TSC_DEADLINE)
    bench.timer.write_initial(5)
    assert (bench.timer.r.initial, bench.timer.current, bench.timer.expires_at()) == (0, 0, None)


@pytest.mark.parametrize("after", [TimerMode.ONE_SHOT, TimerMode.PERIODIC, TimerMode.RESERVED])
def test_leaving_the_deadline_mode_disarms(after):
    bench = Bench()
    bench.timer.set_mode(TimerMode.TSC_DEADLINE)
    bench.timer.write_deadline(5000)
    bench.timer.set_mode(TimerMode.TSC_DEADLINE)
    assert bench.timer.r.deadline == 5000
    bench.timer.set_mode(after)
    assert bench.timer.expires_at() is None


def test_entering_the_deadline_mode_stops_the_count():
    bench = Bench()
    bench.timer.write_initial(100)
    bench.timer.set_mode(TimerMode.TSC_DEADLINE)
    bench.timer.set_mode(TimerMode.ONE_SHOT)
    assert (bench.timer.current, bench.timer.expires_at()) == (0, None)
