"""One counter of the 8254 (Intel 8254 data sheet), in clock pulses.

A counter is not stepped: how many pulses it has counted since it was loaded says what its count and its output are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from hvemu.bits import Register, bit, bits, field


class Mode(IntEnum):
    """Operating modes, by the data sheet's names. 6 and 7 are other ways to write 2 and 3."""

    TERMINAL_COUNT, ONE_SHOT, RATE_GENERATOR, SQUARE_WAVE, SOFTWARE_STROBE, HARDWARE_STROBE = range(6)


class Access(IntEnum):
    """Which bytes of a count are written and read; LATCH is a command."""

    LATCH, LSB, MSB, BOTH = range(4)


class Control(Register):
    """Control word. Counter 3 is the read-back command."""

    bcd = bit(0)
    mode_bits = bits(3, 1)
    access = field(5, 4, Access)
    programmed = bits(5, 0)
    counter = bits(7, 6)

    @property
    def mode(self) -> Mode:
        """The mode."""
        return Mode({6: 2, 7: 3}.get(self.mode_bits, self.mode_bits))


class Status(Register):
    """The status byte of the read-back command."""

    programmed = bits(5, 0)
    null_count = bit(6)
    out = bit(7)


PERIODIC = frozenset({Mode.RATE_GENERATOR, Mode.SQUARE_WAVE})
TRIGGERED = frozenset({Mode.ONE_SHOT, Mode.HARDWARE_STROBE})
WAITING = -1
"""`elapsed` of a counter that is loaded at the next pulse."""


def from_bcd(digits: int) -> int:
    """Return the number that four decimal digits mean."""
    return sum(int(digit, 16) * 10**i for i, digit in enumerate(f"{digits:x}"[::-1]))


def to_bcd(number: int) -> int:
    """Return *number*, 0 to 9999, as four decimal digits."""
    return int(str(number), 16)


def high_half(n: int) -> int:
    """Return for how many of *n* pulses a square wave is high."""
    return (n + 1) // 2


@dataclass(slots=True)
class Counter:
    """A counter and its latches.

    *register* is the number that software wrote, *count* the one loaded, *elapsed* how many pulses it has counted
    since: None while it does not count, WAITING until the pulse that loads it; then *held_out* and *held_value* still
    show. *successor* is the number that a periodic counter loads when *elapsed* reaches *successor_at*.
    """

    control: int = int(Control(access=Access.BOTH))
    gate: bool = True
    register: int | None = None
    count: int = 1
    elapsed: int | None = None
    successor: int | None = None
    successor_at: int = 0
    held_out: bool = False
    held_value: int = 0
    null_count: bool = True
    low_byte: int | None = None
    high_next: bool = False
    latched: int | None = None
    latched_status: int | None = None

    @property
    def mode(self) -> Mode:
        """The programmed mode."""
        return Control(self.control).mode

    @property
    def modulus(self) -> int:
        """How many numbers there are: what a count of 0 means."""
        return 10**4 if Control(self.control).bcd else 2**16

    @property
    def out(self) -> bool:
        """The level of the output pin."""
        e, n = self.elapsed, self.count
        if self.mode in PERIODIC and not self.gate:
            return True
        if e is None or e < 0:
            return self.held_out
        match self.mode:
            case Mode.TERMINAL_COUNT | Mode.ONE_SHOT:
                return e >= n
            case Mode.RATE_GENERATOR:
                return e % n != n - 1
            case Mode.SQUARE_WAVE:
                return e % n < high_half(n)
            case _:
                return e != n

    @property
    def value(self) -> int:
        """What the counting element holds, as software reads it."""
        e, n = self.elapsed, self.count
        if e is None or e < 0:
            return self.held_value
        match self.mode:
            case Mode.RATE_GENERATOR:
                number = n - e % n
            case Mode.SQUARE_WAVE:
                phase, high = e % n, high_half(n)
                number = n - n % 2 - 2 * (phase if phase < high else phase - high)
            case _:
                number = n - e
        number %= self.modulus
        return to_bcd(number) if Control(self.control).bcd else number

    def programmed(self, control: Control) -> Counter:
        """Return the counter after a control word: it waits for a count, and nothing is latched."""
        out = control.mode is not Mode.TERMINAL_COUNT
        return Counter(int(control.replace(counter=0)), gate=self.gate, held_out=out, held_value=self.value)

    def advance(self, pulses: int) -> int:
        """Count *pulses*, and return how many rising edges the output made."""
        if self.elapsed is None or not pulses:
            return 0
        edges = 0
        if self.elapsed < 0:
            before, self.elapsed, self.null_count, pulses = self.out, 0, False, pulses - 1
            edges += self.out and not before
        if not self._counting:
            return edges
        if self.successor is not None and self.elapsed + pulses >= self.successor_at:
            step = self.successor_at - self.elapsed
            edges += self._run(step)
            pulses -= step
            self._load_successor(self.successor)
        return edges + self._run(pulses)

    def next_rise(self) -> int | None:
        """Return in how many pulses the output rises next, or None while nothing leads there."""
        if self.elapsed is None:
            return None
        if self.elapsed == WAITING:
            loaded = replace(self)
            rise = 0 if loaded.advance(1) else loaded.next_rise()
            return None if rise is None else 1 + rise
        if not self._counting:
            return None
        if self.successor is not None and self.mode is Mode.SQUARE_WAVE and self.out:
            return self.successor_at - self.elapsed + self.successor - high_half(self.successor)
        return self._next_rise_from(self.elapsed)

    def set_gate(self, level: bool) -> None:
        """Drive the gate pin. Its rising edge triggers a one-shot or strobe and restarts a periodic counter."""
        rises = level and not self.gate
        if rises and self.register is not None and self.mode in PERIODIC | TRIGGERED:
            self._reload(self.register)
        self.gate = level

    def write(self, byte: int) -> None:
        """Take a byte of a new count."""
        match Control(self.control).access:
            case Access.LSB:
                self._write_count(byte, 0)
            case Access.MSB:
                self._write_count(0, byte)
            case _ if self.low_byte is None:
                self.low_byte = byte
                if self.mode is Mode.TERMINAL_COUNT:
                    self._stop()
            case _:
                low, self.low_byte = self.low_byte, None
                self._write_count(low, byte)

    def read(self) -> int:
        """Return a byte of the latched status, of the latched count, or of the running count."""
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        both = self.value if self.latched is None else self.latched
        low, high = both.to_bytes(2, "little")
        access = Control(self.control).access
        if access is Access.BOTH:
            self.high_next = not self.high_next
            if self.high_next:
                return low
        self.latched = None
        return low if access is Access.LSB else high

    def latch(self) -> None:
        """Hold the count until it is read."""
        if self.latched is None:
            self.latched = self.value

    def latch_status(self) -> None:
        """Hold the status until it is read."""
        if self.latched_status is None:
            programmed = Control(self.control).programmed
            self.latched_status = int(Status(programmed=programmed, null_count=self.null_count, out=self.out))

    @property
    def _counting(self) -> bool:
        return self.gate or self.mode in TRIGGERED

    def _run(self, pulses: int) -> int:
        assert self.elapsed is not None
        before, self.elapsed = self.elapsed, self.elapsed + pulses
        if self.mode in PERIODIC:
            return self.elapsed // self.count - before // self.count if self.count > 1 else 0
        rise = self._next_rise_from(before)
        return int(rise is not None and rise <= pulses)

    def _next_rise_from(self, e: int) -> int | None:
        n = self.count
        if self.mode in PERIODIC:
            return n - e % n if n > 1 else None  # the data sheet forbids a count of 1 here
        rises_at = n if self.mode in {Mode.TERMINAL_COUNT, Mode.ONE_SHOT} else n + 1
        return rises_at - e if e < rises_at else None

    def _write_count(self, low: int, high: int) -> None:
        raw = int.from_bytes((low, high), "little")
        number = from_bcd(raw) if Control(self.control).bcd else raw
        self.register = n = number % self.modulus or self.modulus
        self.null_count = True
        if self.mode in TRIGGERED:
            if self.elapsed == WAITING:
                self.count = n
            return
        if self.mode in PERIODIC and self.elapsed is not None and self.elapsed >= 0:
            self.successor, self.successor_at = n, self._end_of_cycle(self.elapsed)
            return
        if self.mode is Mode.TERMINAL_COUNT:
            self._stop()
        self._reload(n)

    def _end_of_cycle(self, e: int) -> int:
        """Return the *elapsed* at which a new count takes over: when a cycle or half of a square wave ends."""
        start, n = e - e % self.count, self.count
        half = high_half(n)
        return start + half if self.mode is Mode.SQUARE_WAVE and e - start < half else start + n

    def _load_successor(self, n: int) -> None:
        assert self.elapsed is not None
        enters_low_half = self.elapsed % self.count != 0
        self.elapsed = high_half(n) if enters_low_half else 0
        self.count, self.successor, self.null_count = n, None, False

    def _reload(self, n: int) -> None:
        self.held_out, self.held_value = self.out, self.value
        self.count, self.elapsed, self.successor = n, WAITING, None

    def _stop(self) -> None:
        self.held_value, self.held_out, self.elapsed = self.value, False, None
