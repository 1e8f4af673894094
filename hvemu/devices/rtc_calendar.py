"""Dates and times in the registers of a real-time clock: BCD or binary, 12 or 24 hours, and alarms."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hvemu.bits import Register, bit, bits
from hvemu.devices.counter import from_bcd, to_bcd

MINUTE_SECONDS, HOUR_SECONDS, DAY_SECONDS = 60, 3600, 86400
_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class Hours12(Register):
    """The hours register in 12-hour mode."""

    hours = bits(6, 0)
    pm = bit(7)


class AlarmByte(Register):
    """An alarm register: with both of its upper bits set it matches whatever the clock shows."""

    any = bits(7, 6)


@dataclass(frozen=True, slots=True)
class Format:
    """How numbers are written: *binary* or BCD, 24 *hours* or 12 with a flag for the afternoon."""

    binary: bool
    hour24: bool

    def encode(self, number: int) -> int:
        """Return *number* as a register holds it, cut to its digits."""
        return number % 256 if self.binary else to_bcd(number % 100)

    def decode(self, byte: int) -> int:
        """Return the number that a register holds."""
        return byte if self.binary else from_bcd(byte)

    def encode_hour(self, hour: int) -> int:
        """Return an hour, 0 to 23, as the hours register holds it."""
        if self.hour24:
            return self.encode(hour)
        afternoon, twelfth = divmod(hour, 12)
        return Hours12(hours=self.encode(twelfth or 12), pm=afternoon)

    def decode_hour(self, byte: int) -> int:
        """Return the hour that the hours register holds."""
        if self.hour24:
            return self.decode(byte)
        shown = Hours12(byte)
        return self.decode(shown.hours) % 12 + 12 * shown.pm


@dataclass(frozen=True, slots=True)
class Moment:
    """A date, and the *second* of its day. Weekday 1 is Sunday; *year* has its century."""

    second: int
    weekday: int
    day: int
    month: int
    year: int

    def after(self, seconds: int) -> Moment:
        """Return the moment *seconds* later."""
        days, second = divmod(self.second + seconds, DAY_SECONDS)
        moment = self
        for _ in range(days):
            moment = moment._tomorrow()
        return replace(moment, second=second)

    def _tomorrow(self) -> Moment:
        weekday, day, month, year = self.weekday % 7 + 1, self.day + 1, self.month, self.year
        if day > days_of(month, year):
            day, month = 1, month + 1
        if month > 12:
            month, year = 1, year + 1
        return replace(self, weekday=weekday, day=day, month=month, year=year)


def days_of(month: int, year: int) -> int:
    """Return the length of a month, as the clock counts: each fourth year is a leap year."""
    return 29 if month == 2 and year % 4 == 0 else _LENGTHS[(month - 1) % 12]


def seconds_until(alarm: tuple[int | None, int | None, int | None], second: int) -> int | None:
    """Return in how many seconds, 1 to DAY_SECONDS, the clock shows *alarm*, or None if it never does.

    *alarm* is (hour, minute, second), where None matches anything; *second* is the second of the day now.
    """
    hour, minute, within = alarm
    wait = 1
    while wait <= DAY_SECONDS:
        time = (second + wait) % DAY_SECONDS
        if hour not in {None, time // HOUR_SECONDS}:
            wait += HOUR_SECONDS - time % HOUR_SECONDS
        elif minute not in {None, time % HOUR_SECONDS // MINUTE_SECONDS}:
            wait += MINUTE_SECONDS - time % MINUTE_SECONDS
        elif within not in {None, time % MINUTE_SECONDS}:
            wait += 1
        else:
            return wait
    return None
