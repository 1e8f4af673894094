"""The real-time clock against the MC146818A data sheet."""

from __future__ import annotations

import json
import random

import pytest

from hvemu.devices.rtc import HZ, Rtc

SECOND = 10**9
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR, A, B, C, D = range(14)
CENTURY = 0x32
SET, PIE, AIE, UIE, BINARY, HOUR24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
UIP = 0x80


class Bench:
    """A clock, virtual time, and a lamp at the interrupt line."""

    def __init__(self, **options):
        self.now, self.levels, self.options = 0, [], options
        self.rtc = Rtc(clock=lambda: self.now, irq=self.levels.append, **options)

    def __getitem__(self, index):
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def __setitem__(self, index, value):
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def pass_to(self, now):
        self.now = round(now)
        self.rtc.advance(self.now)

    def time(self):
        return [f"{self[i]:02x}" for i in (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY)]

    def set_time(self, **values):
        for name, value in values.items():
            self[globals()[name]] = value


@pytest.fixture
def bench():
    return Bench()


def test_time_begins_at_a_fixed_date(bench):
    assert "".join(bench.time()) == "2000010100000007"  # a Saturday
    assert [bench[i] for i in (A, B, C, D)] == [0x26, HOUR24, 0, 0x80]


def test_a_second_after_a_second(bench):
    bench.set_time(SECONDS=0x58, MINUTES=0x59, HOURS=0x23, DAY=0x28, MONTH=0x02, YEAR=0x99, CENTURY=0x19, WEEKDAY=1)
    shown = []
    for n in (0, 1, 2, 3):
        bench.pass_to(n * SECOND)
        shown.append("".join(bench.time()))
    assert shown == ["1999022823595801", "1999022823595901", "1999030100000002", "1999030100000102"]


def test_the_century_follows(bench):
    bench.set_time(SECONDS=0x59, MINUTES=0x59, HOURS=0x23, DAY=0x31, MONTH=0x12, YEAR=0x99, CENTURY=0x19)
    bench.pass_to(SECOND)
    assert bench.time()[:4] == ["20", "00", "01", "01"]


@pytest.mark.parametrize(("mode", "hours"), [(0, 0x83), (BINARY, 0x83), (HOUR24, 0x15), (BINARY | HOUR24, 15)])
def test_time_is_shown_in_the_chosen_format(bench, mode, hours):
    bench[B] = mode
    bench.set_time(HOURS=hours, MINUTES=0x10, SECONDS=0x09)
    bench.pass_to(SECOND)
    assert (bench[HOURS], bench[MINUTES], bench[SECONDS]) == (hours, 0x10, 0x0A if mode & BINARY else 0x10)


def test_while_set_the_time_stands_still_and_goes_on_from_there(bench):
    bench[B] = SET | HOUR24
    bench.set_time(SECONDS=0x30)
    bench.pass_to(10 * SECOND)
    assert bench[SECONDS] == 0x30
    bench[B] = HOUR24
    bench.pass_to(10.5 * SECOND)
    assert bench[SECONDS] == 0x30
    bench.pass_to(11 * SECOND)
    assert bench[SECONDS] == 0x31


def test_a_divider_chain_held_in_reset_starts_with_half_a_second(bench):
    bench.pass_to(0.3 * SECOND)
    bench[A] = 0x76
    bench.pass_to(5 * SECOND)
    assert bench[SECONDS] == 0
    bench[A] = 0x26
    bench.pass_to(5.499 * SECOND)
    assert bench[SECONDS] == 0
    bench.pass_to(5.501 * SECOND)
    assert bench[SECONDS] == 1
    bench.pass_to(6.501 * SECOND)
    assert bench[SECONDS] == 2


def test_an_update_is_announced_244_microseconds_before(bench):
    seen = []
    for microsecond in (0, 999_754, 999_757, 999_999, 1_000_000):
        bench.pass_to(microsecond * 1000)
        seen.append(bool(bench[A] & UIP))
    assert seen == [False, False, True, True, False]
    bench[B] = SET
    bench.pass_to(1_999_999_000)
    assert not bench[A] & UIP


@pytest.mark.parametrize("value", range(256))
def test_which_bits_of_the_control_registers_stick(bench, value):
    bench[A], bench[C], bench[D] = value, value, value
    assert (bench[A], bench[C], bench[D]) == (value & 0x7F, 0, 0x80)
    bench[B] = value
    assert bench[B] == (value & ~UIE if value & SET else value)


def test_the_index_port_has_seven_bits_and_masks_nmi(bench):
    assert not bench.rtc.nmi_masked
    bench.rtc.write(0, 1, 0x80 | D)
    assert (bench.rtc.nmi_masked, bench.rtc.read(1, 1), bench.rtc.read(0, 1)) == (True, 0x80, 0xFF)


def test_cmos_ram_keeps_what_is_written(bench):
    rest = [i for i in range(14, 128) if i != CENTURY]
    for i in rest:
        bench[i] = i ^ 0x55
    bench.pass_to(0.5 * SECOND)
    assert [bench[i] for i in rest] == [i ^ 0x55 for i in rest]


# What QEMU's machine shows for these sizes.
@pytest.mark.parametrize(
    ("mib", "extended", "above_16"),
    [(1, 0, 0), (8, 0x1C00, 0), (64, 0xFC00, 0x300), (128, 0xFFFF, 0x700), (3072, 0xFFFF, 0xBF00)],
)
def test_cmos_ram_says_how_large_memory_is(mib, extended, above_16):
    bench = Bench(ram=mib << 20)
    words = [bench[i] | bench[i + 1] << 8 for i in (0x15, 0x17, 0x30, 0x34)]
    assert words == [640, extended, extended, above_16]
    assert bench[0x14] == 0x06


# -- interrupts -------------------------------------------------------------------------------------------------------

RATES = {1: 256, 2: 128, **{rate: 32768 >> rate - 1 for rate in range(3, 16)}}


@pytest.mark.parametrize(("rate", "frequency"), RATES.items())
def test_periodic_interrupts_come_at_their_rate_without_drift(bench, rate, frequency):
    bench[A], bench[B] = 0x20 | rate, HOUR24 | PIE
    for n in range(1, 50):
        deadline = bench.rtc.next_deadline()
        pulses = n * HZ // frequency
        assert (deadline - 1) * HZ // SECOND < pulses <= deadline * HZ // SECOND
        bench.pass_to(deadline - 1)
        assert not bench.levels or not bench.levels[-1]
        bench.pass_to(deadline)
        assert bench.levels[-1]
        assert bench[C] & ~UF == IRQF | PF
        assert bench[C] == 0


def test_rate_0_is_off(bench):
    bench[A], bench[B] = 0x20, PIE
    bench.pass_to(0.9 * SECOND)
    assert (bench.rtc.next_deadline(), bench[C]) == (None, 0)


@pytest.mark.parametrize("enabled", range(8))
def test_flags_are_set_whether_or_not_they_interrupt(bench, enabled):
    bench[SECONDS_ALARM], bench[MINUTES_ALARM], bench[HOURS_ALARM] = 1, 0, 0
    bench[B] = HOUR24 | enabled << 4
    bench.pass_to(1.1 * SECOND)
    assert bool(bench.levels) == bool(enabled)
    assert bench[C] == PF | AF | UF | (IRQF if enabled else 0)
    assert bench.levels in ([], [True, False])


def test_enabling_what_has_happened_interrupts(bench):
    bench.pass_to(1.5 * SECOND)
    assert bench.levels == []
    bench[B] = HOUR24 | UIE
    assert bench.levels == [True]
    bench[B] = HOUR24
    assert bench.levels == [True, False]


def test_the_update_ended_interrupt_comes_with_each_second(bench):
    bench[B] = HOUR24 | UIE
    for n in range(1, 5):
        assert bench.rtc.next_deadline() == n * SECOND
        bench.pass_to(n * SECOND)
        assert bench.levels[-1]
        assert (bench.rtc.next_deadline(), bench[C] & UF) == (None, UF)


# 0xC0 and above matches anything.
@pytest.mark.parametrize(
    ("alarm", "expected"),
    [
        ((0x00, 0x00, 0x05), [5, 86405]),
        ((0xFF, 0xFF, 0x05), [5, 65, 125]),
        ((0xC0, 0x02, 0xC0), [120, 121, 122]),
        ((0x01, 0xFF, 0x00), [3600, 3660, 3720]),
        ((0x23, 0x59, 0x59), [86399]),
    ],
)
def test_an_alarm_rings_at_its_time(bench, alarm, expected):
    bench[HOURS_ALARM], bench[MINUTES_ALARM], bench[SECONDS_ALARM] = alarm
    bench[B] = HOUR24 | AIE
    rung = []
    for _ in expected:
        bench.pass_to(bench.rtc.next_deadline())
        assert bench[C] & AF
        rung.append(bench.now // SECOND)
    assert rung == expected


def test_an_alarm_that_nobody_waits_for_has_rung_all_the_same(bench):
    bench[HOURS_ALARM], bench[MINUTES_ALARM], bench[SECONDS_ALARM] = 0x12, 0x30, 0x00
    bench.pass_to((12 * 3600 + 30 * 60 - 1) * SECOND)
    assert not bench[C] & AF
    bench.pass_to((14 * 3600) * SECOND)
    assert bench[C] & AF
    bench.pass_to((24 * 3600) * SECOND)
    assert not bench[C] & AF


def test_garbage_in_the_time_is_no_reason_to_fail(bench):
    chance = random.Random(5)
    for n in range(200):
        for index in (*range(10), CENTURY):
            bench[index] = chance.getrandbits(8)
        bench[B] = chance.getrandbits(8) & 0x7F
        bench.pass_to((n + 1) * SECOND)
        assert 0 <= bench[SECONDS] <= 0xFF


def test_state_round_trip_goes_on_the_same_way(bench):
    chance = random.Random(11)

    def step(rtc, kind, index, value):
        rtc.write(0, 1, index)
        if kind:
            return rtc.read(1, 1)
        rtc.write(1, 1, value)
        return rtc.next_deadline()

    def choices():
        return [
            (chance.randrange(3), chance.randrange(14), chance.getrandbits(8), chance.randrange(10**8))
            for _ in range(40)
        ]

    for _ in range(30):
        for *choice, time in choices():
            bench.now += time
            step(bench.rtc, *choice)
        levels = []
        twin = Rtc.from_state(json.loads(json.dumps(bench.rtc.state())), clock=lambda: bench.now, irq=levels.append)
        bench.levels.clear()
        for *choice, time in choices():
            bench.now += time
            assert step(twin, *choice) == step(bench.rtc, *choice)
        assert levels == bench.levels
        assert twin.state() == bench.rtc.state()
