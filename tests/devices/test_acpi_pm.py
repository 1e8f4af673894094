"""The power management registers against ACPI's chapter on fixed hardware."""

from __future__ import annotations

import json
import random
from fractions import Fraction

import pytest

from hvemu.devices.acpi_pm import AcpiPm

STATUS, ENABLE, CONTROL, TIMER, COMMAND = 0, 2, 4, 8, 16
HZ, SECOND = 3_579_545, 10**9
TIMER_BIT, SCI_ENABLE, SLEEP = 1, 1, 0x2000
HALF = 2**23


class Bench:
    """The block, virtual time, a lamp at SCI, and how often the machine went off."""

    def __init__(self):
        self.now, self.levels, self.offs = 0, [], 0
        self.pm = AcpiPm(**self.wires())

    def wires(self):
        return {"clock": lambda: self.now, "sci": self.levels.append, "power_off": self._off}

    def _off(self):
        self.offs += 1

    def word(self, offset):
        return self.pm.read(offset, 2)

    def pass_to(self, now):
        self.now = now
        self.pm.advance(now)


@pytest.fixture
def bench():
    return Bench()


@pytest.mark.parametrize("now", [0, 279, 280, 10**6, 4_687_000_000, 10**13 + 7])
def test_the_timer_has_24_bits_of_3_579545_mhz(bench, now):
    bench.now = now
    assert bench.pm.read(TIMER, 4) == int(Fraction(now * HZ, SECOND)) % 2**24
    bench.pm.write(TIMER, 4, 0)
    assert bench.pm.read(TIMER, 4) == int(Fraction(now * HZ, SECOND)) % 2**24


def test_the_timer_status_is_set_whenever_the_highest_bit_changes(bench):
    bench.pm.write(COMMAND, 1, 0xF1)
    bench.pm.write(ENABLE, 2, TIMER_BIT)
    for n in range(1, 5):
        deadline = bench.pm.next_deadline()
        assert (deadline - 1) * HZ // SECOND < n * HALF <= deadline * HZ // SECOND
        bench.pass_to(deadline - 1)
        assert bench.word(STATUS) == 0
        bench.pass_to(deadline)
        assert (bench.word(STATUS), bench.levels[-1], bench.pm.next_deadline()) == (TIMER_BIT, True, None)
        bench.pm.write(STATUS, 2, TIMER_BIT)
        assert (bench.word(STATUS), bench.levels[-1]) == (0, False)
    assert bench.levels == [True, False] * 4


@pytest.mark.parametrize("enable", [0, TIMER_BIT])
@pytest.mark.parametrize("acpi", [0xF0, 0xF1])
def test_the_interrupt_needs_both_enables(bench, enable, acpi):
    bench.pm.write(COMMAND, 1, acpi)
    bench.pm.write(ENABLE, 2, enable)
    fires = bool(enable) and acpi == 0xF1
    assert (bench.pm.next_deadline() is not None) == fires
    bench.pass_to(5 * SECOND)
    assert bench.levels == ([True] if fires else [])


def test_firmware_switches_between_acpi_and_legacy_mode(bench):
    bench.pm.write(COMMAND, 1, 0xF1)
    assert bench.word(CONTROL) == SCI_ENABLE
    bench.pm.write(COMMAND, 1, 0x12)
    assert (bench.word(CONTROL), bench.pm.read(COMMAND, 1)) == (SCI_ENABLE, 0x12)
    bench.pm.write(COMMAND, 1, 0xF0)
    assert bench.word(CONTROL) == 0
    bench.pm.write(COMMAND + 1, 1, 0x34)
    assert bench.pm.read(COMMAND, 2) == 0x34F0


@pytest.mark.parametrize("sleep_type", range(8))
@pytest.mark.parametrize("enable", [0, SLEEP])
def test_only_s5_powers_off(bench, sleep_type, enable):
    bench.pm.write(CONTROL, 2, sleep_type << 10 | enable)
    assert bench.offs == (sleep_type == 0 and enable == SLEEP)
    assert bench.word(CONTROL) == sleep_type << 10


def test_registers_can_be_accessed_by_bytes_and_doublewords(bench):
    bench.pm.write(STATUS, 4, 0x0121_FFFF)
    assert bench.pm.read(STATUS, 4) == 0x0121_0000
    bench.pm.write(ENABLE + 1, 1, 0x04)
    assert (bench.word(ENABLE), bench.pm.read(ENABLE, 1), bench.pm.read(ENABLE + 1, 1)) == (0x0421, 0x21, 0x04)
    bench.pm.write(CONTROL + 1, 1, 0x20)
    assert bench.offs == 1


def test_reserved_enables_do_not_stick(bench):
    bench.pm.write(ENABLE, 2, 0xFFFF)
    assert bench.word(ENABLE) == 0x0521


def test_state_round_trip_goes_on_the_same_way(bench):
    chance = random.Random(4)

    def choices():
        places = [(STATUS, 2), (ENABLE, 2), (CONTROL, 2), (TIMER, 4), (COMMAND, 1)]
        for _ in range(30):
            yield *chance.choice(places), chance.choice((0, 1, 0xF0, 0xF1, 0x2000, 0x21)), chance.randrange(3 * 10**9)

    def step(pm, offset, size, value):
        before = pm.read(offset, size)
        pm.write(offset, size, value % 256**size)
        return before, pm.read(offset, size), pm.next_deadline()

    for _ in range(20):
        for *choice, time in choices():
            bench.now += time
            step(bench.pm, *choice)
        other = Bench()
        other.now, other.offs = bench.now, bench.offs
        other.pm = AcpiPm.from_state(json.loads(json.dumps(bench.pm.state())), **other.wires())
        bench.levels.clear()
        for *choice, time in choices():
            bench.now += time
            other.now = bench.now
            assert step(other.pm, *choice) == step(bench.pm, *choice)
        assert (other.levels, other.offs, other.pm.state()) == (bench.levels, bench.offs, bench.pm.state())
