"""Dates of the real-time clock against Python's calendar, and alarms against a search of every second."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.rtc_calendar import Format, Moment, days_of, seconds_until

DAY = 86400
# Years in which the clock's calendar, where each fourth year is a leap year, is the real one.
WHEN = st.datetimes(datetime.fromisoformat("1904-01-01"), datetime.fromisoformat("2096-01-01"))


def moment(when):
    second = when.hour * 3600 + when.minute * 60 + when.second
    return Moment(second, when.isoweekday() % 7 + 1, when.day, when.month, when.year)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(when=WHEN, seconds=st.one_of(st.integers(0, 10), st.integers(0, 400 * DAY)))
def test_time_passes_as_in_the_calendar(when, seconds):
    assert moment(when).after(seconds) == moment(when + timedelta(seconds=seconds))


def test_each_fourth_year_is_a_leap_year_to_the_clock():
    assert [days_of(2, year) for year in (1999, 2000, 2001, 2004, 2100)] == [28, 29, 28, 29, 29]


FORMATS = [Format(binary=b, hour24=h) for b in (False, True) for h in (False, True)]


@pytest.mark.parametrize("number", [0, 7, 9, 10, 42, 59, 99])
def test_numbers_in_bcd_and_binary(number):
    assert Format(binary=True, hour24=True).encode(number) == number
    assert Format(binary=False, hour24=True).encode(number) == int(str(number), 16)
    assert [f.decode(f.encode(number)) for f in FORMATS] == [number] * 4


# MC146818A data sheet: 12-hour mode has AM 01-12, and PM with the highest bit.
@pytest.mark.parametrize(
    ("hour", "bcd12", "binary12"),
    [(0, 0x12, 12), (1, 0x01, 1), (11, 0x11, 11), (12, 0x92, 0x8C), (13, 0x81, 0x81), (23, 0x91, 0x8B)],
)
def test_hours_in_12_hour_mode(hour, bcd12, binary12):
    assert Format(binary=False, hour24=False).encode_hour(hour) == bcd12
    assert Format(binary=True, hour24=False).encode_hour(hour) == binary12


@pytest.mark.parametrize("format_", FORMATS)
def test_hours_come_back_from_every_format(format_):
    assert [format_.decode_hour(format_.encode_hour(hour)) for hour in range(24)] == [*range(24)]


FIELD = st.one_of(st.none(), st.integers(0, 23))


@settings(derandomize=True, deadline=None, max_examples=15)
@given(hour=FIELD, minute=FIELD, within=FIELD, now=st.integers(0, DAY - 1))
def test_the_wait_for_an_alarm_is_what_a_search_of_every_second_finds(hour, minute, within, now):
    def rings(time):
        shown = (time // 3600, time // 60 % 60, time % 60)
        return all(a in {None, b} for a, b in zip((hour, minute, within), shown, strict=True))

    expected = next(wait for wait in range(1, DAY + 1) if rings((now + wait) % DAY))
    assert seconds_until((hour, minute, within), now) == expected


@pytest.mark.parametrize("alarm", [(24, 0, 0), (0, 60, 0), (0, 0, 99), (None, None, 60), (None, 75, None)])
def test_an_alarm_for_no_time_never_rings(alarm):
    assert seconds_until(alarm, 4711) is None
