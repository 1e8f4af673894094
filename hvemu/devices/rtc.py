"""The real-time clock of a PC and its CMOS RAM (Motorola MC146818A data sheet), on virtual time.

Time begins at a fixed date, so that a run does not depend on when it is made. An update of the clock takes no time; the
244 microseconds before it are announced.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.bits import Register, bit, bits
from hvemu.devices.device import Clock, Line, State
from hvemu.devices.rtc_calendar import DAY_SECONDS, AlarmByte, Format, Moment, seconds_until

HZ = 32768
"""Pulses per second of its crystal."""
NANOSECONDS = 10**9
ANNOUNCED = 8
"""Pulses before an update in which the clock says that it is near."""
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = range(10, 14)
EQUIPMENT, CENTURY, CENTURY_PS2 = 0x14, 0x32, 0x37
BASE_KIB, EXTENDED_KIB, EXTENDED_KIB_AGAIN, ABOVE_16_MIB = 0x15, 0x17, 0x30, 0x34
START = Moment(second=0, weekday=7, day=1, month=1, year=2000)


class Index(Register):
    """Port 0x70."""

    index = bits(6, 0)
    nmi_masked = bit(7)


class A(Register):
    """Register A."""

    rate = bits(3, 0)
    divider = bits(6, 4)
    writable = bits(6, 0)
    update_in_progress = bit(7)


class B(Register):
    """Register B."""

    hour24 = bit(1)
    binary = bit(2)
    update_ended = bit(4)
    alarm = bit(5)
    periodic = bit(6)
    enables = bits(6, 4)
    set = bit(7)


class C(Register):
    """Register C: what has happened since it was read."""

    update_ended = bit(4)
    alarm = bit(5)
    periodic = bit(6)
    flags = bits(6, 4)
    interrupt = bit(7)


class D(Register):
    """Register D."""

    valid = bit(7)


NORMAL = 2
"""The divider setting for a crystal of 32768 Hz; all others stop the clock."""


@dataclass(slots=True)
class Time:
    """*pulse* is the last pulse of the crystal that was counted; a second begins at *phase*."""

    pulse: int = 0
    phase: int = 0
    level: bool = False


def memory_bytes(ram: int) -> dict[int, int]:
    """Return the CMOS bytes by which firmware says how large *ram* bytes are, by index."""
    extended = min(max(ram // 1024 - 1024, 0), 0xFFFF)
    above_16 = min(max(ram - 2**24, 0) // 2**16, 0xFFFF)
    words = {BASE_KIB: 640, EXTENDED_KIB: extended, EXTENDED_KIB_AGAIN: extended, ABOVE_16_MIB: above_16}
    found = {}
    for index, word in words.items():
        found[index + 1], found[index] = divmod(word, 256)
    return found


class Rtc:
    """Offset 0 is the index, offset 1 the byte that it chooses. *irq* follows the flag of register C."""

    INDEX, DATA = 0, 1

    def __init__(self, *, clock: Clock, irq: Line, ram: int = 0) -> None:
        self._clock, self._irq = clock, irq
        self._index, self._time = Index(0), Time()
        self._bytes = bytearray(128)
        self._bytes[REGISTER_A] = A(divider=NORMAL, rate=6)
        self._bytes[REGISTER_B] = B(hour24=1)
        self._bytes[REGISTER_D] = D(valid=1)
        self._bytes[EQUIPMENT] = 0x06  # a coprocessor, and the pointing device's port
        for index, byte in memory_bytes(ram).items():
            self._bytes[index] = byte
        self._show(START)

    def __repr__(self) -> str:
        return f"Rtc({self._moment()!r} {A(self._bytes[REGISTER_A])!r} {B(self._bytes[REGISTER_B])!r})"

    def state(self) -> State:
        """Return the CMOS RAM, the index, and where the crystal is."""
        t = self._time
        return {"bytes": self._bytes.hex(), "index": int(self._index), "time": [t.pulse, t.phase, t.level]}

    @classmethod
    def from_state(cls, state: State, *, clock: Clock, irq: Line) -> Rtc:
        """Return a clock as it was; its interrupt line keeps the level it had."""
        rtc = cls(clock=clock, irq=irq)
        rtc._bytes[:] = bytes.fromhex(state["bytes"])
        rtc._index, rtc._time = Index(state["index"]), Time(*state["time"])
        return rtc

    @property
    def nmi_masked(self) -> bool:
        """Whether bit 7 of the index port keeps NMIs from the processor."""
        return self._index.nmi_masked

    # -- ports --------------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read the chosen byte; the index cannot be read. Reading register C clears it."""
        assert size == 1
        if offset == self.INDEX:
            return 0xFF
        self.advance(self._clock())
        index = self._index.index
        byte = self._bytes[index]
        if index == REGISTER_A:
            return A(byte, update_in_progress=self._is_announced())
        if index == REGISTER_C:
            self._bytes[REGISTER_C] = 0
            self._update()
        return byte

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the index, or the chosen byte; registers C and D are read-only."""
        assert size == 1
        self.advance(self._clock())
        index = self._index.index
        if offset == self.INDEX:
            self._index = Index(value)
        elif index == REGISTER_A:
            self._write_a(A(value))
        elif index == REGISTER_B:
            self._bytes[index] = B(value, update_ended=0) if B(value).set else value  # SET clears UIE
            self._update()
        elif index not in {REGISTER_C, REGISTER_D}:
            self._bytes[index] = value

    def _write_a(self, a: A) -> None:
        if a.divider == NORMAL and not self._is_running():
            self._time.phase = self._time.pulse - HZ // 2  # the first update comes half a second after the reset ends
        self._bytes[REGISTER_A] = a.writable

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Let virtual time reach *now* nanoseconds. However often something happened, its flag is set once."""
        t, pulse = self._time, now * HZ // NANOSECONDS
        before, t.pulse = t.pulse, pulse
        assert pulse >= before, "time runs backwards"
        if pulse == before or not self._is_running():
            return
        flags = C(self._bytes[REGISTER_C])
        period = self._period()
        if period and (pulse - t.phase) // period > (before - t.phase) // period:
            flags = flags.replace(periodic=1)
        seconds = (pulse - t.phase) // HZ - (before - t.phase) // HZ
        if seconds and not B(self._bytes[REGISTER_B]).set:
            alarm = self._alarm_in()
            flags = flags.replace(update_ended=1, alarm=flags.alarm or (alarm is not None and alarm <= seconds))
            self._show(self._moment().after(seconds))
        self._bytes[REGISTER_C] = flags
        self._update()

    def next_deadline(self) -> int | None:
        """Return the virtual time in nanoseconds at which the line rises next, or None if it will not."""
        t, b, period = self._time, B(self._bytes[REGISTER_B]), self._period()
        if t.level or not self._is_running():
            return None
        pulses = []
        if b.periodic and period:
            pulses.append(t.pulse + period - (t.pulse - t.phase) % period)
        update, alarm = t.pulse + HZ - (t.pulse - t.phase) % HZ, self._alarm_in()
        if b.update_ended and not b.set:
            pulses.append(update)
        if b.alarm and not b.set and alarm is not None:
            pulses.append(update + (alarm - 1) * HZ)
        return -(-min(pulses) * NANOSECONDS // HZ) if pulses else None

    def _is_running(self) -> bool:
        return A(self._bytes[REGISTER_A]).divider == NORMAL

    def _is_announced(self) -> bool:
        into = (self._time.pulse - self._time.phase) % HZ
        return self._is_running() and not B(self._bytes[REGISTER_B]).set and into >= HZ - ANNOUNCED

    def _period(self) -> int:
        """Return the pulses between two periodic interrupts, or 0. The two fastest rates are as slow as two others."""
        rate = A(self._bytes[REGISTER_A]).rate
        return 2 ** ({1: 8, 2: 9}.get(rate, rate) - 1) if rate else 0

    def _update(self) -> None:
        """Set the interrupt flag of register C, and drive the line."""
        b, c = B(self._bytes[REGISTER_B]), C(self._bytes[REGISTER_C])
        level = bool(b.enables & c.flags)
        self._bytes[REGISTER_C] = c.replace(interrupt=level)
        if level != self._time.level:
            self._time.level = level
            self._irq(level)

    # -- the clock in the registers -----------------------------------------------------------------------------------

    @property
    def _format(self) -> Format:
        b = B(self._bytes[REGISTER_B])
        return Format(binary=b.binary, hour24=b.hour24)

    def _moment(self) -> Moment:
        shown, f = self._bytes, self._format
        minutes = f.decode_hour(shown[HOURS]) * 60 + f.decode(shown[MINUTES])
        return Moment(
            second=(minutes * 60 + f.decode(shown[SECONDS])) % DAY_SECONDS,
            weekday=f.decode(shown[WEEKDAY]),
            day=f.decode(shown[DAY]),
            month=f.decode(shown[MONTH]),
            year=f.decode(shown[CENTURY]) * 100 + f.decode(shown[YEAR]),
        )

    def _show(self, moment: Moment) -> None:
        shown, f = self._bytes, self._format
        hours, second = divmod(moment.second, 3600)
        shown[MINUTES], shown[SECONDS] = (f.encode(n) for n in divmod(second, 60))
        shown[HOURS] = f.encode_hour(hours)
        shown[WEEKDAY], shown[DAY], shown[MONTH] = (f.encode(n) for n in (moment.weekday, moment.day, moment.month))
        century, year = divmod(moment.year, 100)
        shown[CENTURY] = shown[CENTURY_PS2] = f.encode(century % 100)
        shown[YEAR] = f.encode(year)

    def _alarm_in(self) -> int | None:
        """Return in how many seconds the alarm comes, or None."""
        shown, f = self._bytes, self._format
        hour, minute, second = (shown[i] for i in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM))
        alarm = (
            None if _matches_all(hour) else f.decode_hour(hour),
            None if _matches_all(minute) else f.decode(minute),
            None if _matches_all(second) else f.decode(second),
        )
        return seconds_until(alarm, self._moment().second)


def _matches_all(byte: int) -> bool:
    return AlarmByte(byte).any == AlarmByte.any.mask
