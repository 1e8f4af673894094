"""The high precision event timer (IA-PC HPET Specification 1.0a): a counter of 10 ns and three comparators.

Messages in place of interrupt lines are not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from hvemu.bits import Register, bit, bits
from hvemu.devices.device import Clock, Line, State

TICK = 10
"""Nanoseconds per count."""
TIMERS = 3
ROUTES = 0b100
"""The I/O APIC pins to which a timer can be routed, as a set of bits."""


class Capabilities(Register):
    """General capabilities and ID."""

    revision = bits(7, 0)
    last_timer = bits(12, 8)
    wide = bit(13)
    legacy_replacement = bit(15)
    vendor = bits(31, 16)
    femtoseconds = bits(63, 32)
    low = bits(31, 0)


class General(Register):
    """General configuration."""

    enable = bit(0)
    legacy = bit(1)
    writable = bits(1, 0)


class Config(Register):
    """Configuration of a timer."""

    level = bit(1)
    interrupt = bit(2)
    periodic = bit(3)
    can_be_periodic = bit(4)
    wide = bit(5)
    set_value = bit(6)
    narrow = bit(8)
    route = bits(13, 9)
    routes = bits(63, 32)


class Status(Register):
    """General interrupt status, of the level-triggered timers."""

    active = bits(TIMERS - 1, 0)


class Halves(Register):
    """A 64-bit register as two of 32 bits."""

    low = bits(31, 0)
    high = bits(63, 32)


CAPABILITIES = Capabilities(
    revision=1,
    last_timer=TIMERS - 1,
    wide=1,
    legacy_replacement=1,
    vendor=0x8086,
    femtoseconds=TICK * 10**6,
)
OFFERED = Config(can_be_periodic=1, wide=1, routes=ROUTES)
_CHOSEN = ("level", "interrupt", "periodic", "set_value", "narrow")


@dataclass(slots=True)
class Timer:
    """A comparator. A periodic one adds *period* at each match."""

    config: int = int(OFFERED)
    comparator: int = 2**64 - 1
    period: int = 0
    level: bool = False

    @property
    def modulus(self) -> int:
        """After how many counts the comparator matches again."""
        return 2**32 if Config(self.config).narrow else 2**64

    def matches_in(self, counter: int) -> int:
        """Return in how many counts the counter reaches the comparator."""
        return (self.comparator - counter - 1) % self.modulus + 1

    def count(self, counter: int, counts: int) -> bool:
        """Let *counts* pass from *counter*, and return whether the comparator matched, once or more often."""
        first = self.matches_in(counter)
        if counts < first:
            return False
        if Config(self.config).periodic and self.period:
            matches = (counts - first) // self.period + 1
            self.comparator = (self.comparator + matches * self.period) % self.modulus
        return True


@dataclass(slots=True)
class Registers:
    """All but the timers. The counter showed *counter* at *tick*, in units of TICK."""

    general: int = 0
    status: int = 0
    counter: int = 0
    tick: int = 0
    timers: list[Timer] = field(default_factory=lambda: [Timer() for _ in range(TIMERS)])


@dataclass(frozen=True, slots=True)
class HpetWires:
    """*pins* drives a pin of the I/O APIC; *irq0* and *irq8* are the lines that the first two timers can take over."""

    clock: Clock
    irq0: Line
    irq8: Line
    pins: Callable[[int, bool], None]


class Hpet:
    """A block of 1 KiB of 64-bit registers.

    With legacy replacement the first two timers drive the lines 0 and 8 of a PC. Until then `drive` takes the levels
    of the PIT and the clock to them.
    """

    CAPABILITIES, GENERAL, STATUS, COUNTER, TIMER, NEXT_TIMER = 0x00, 0x10, 0x20, 0xF0, 0x100, 0x20

    def __init__(self, *, wires: HpetWires) -> None:
        self._clock, self._pins = wires.clock, wires.pins
        self._legacy = {0: wires.irq0, 8: wires.irq8}
        self.r = Registers()

    def __repr__(self) -> str:
        return f"Hpet({General(self.r.general)!r} counter={self.r.counter:#x} {self.r.timers!r})"

    def state(self) -> State:
        """Return all registers."""
        return asdict(self.r)

    @classmethod
    def from_state(cls, state: State, *, wires: HpetWires) -> Hpet:
        """Return a timer as it was; its interrupt lines keep the levels they had."""
        hpet = cls(wires=wires)
        hpet.r = Registers(**{**state, "timers": [Timer(**timer) for timer in state["timers"]]})
        return hpet

    def drive(self, irq: int, level: bool) -> None:
        """Take the level of line 0 or 8 from its usual owner, and pass it on unless a timer has replaced that."""
        if not General(self.r.general).legacy:
            self._legacy[irq](level)

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Let virtual time reach *now* nanoseconds."""
        r, tick = self.r, now // TICK
        counts, r.tick = tick - r.tick, tick
        assert counts >= 0, "time runs backwards"
        if not General(r.general).enable:
            return
        counter, r.counter = r.counter, (r.counter + counts) % 2**64
        for n, timer in enumerate(r.timers):
            if timer.count(counter, counts):
                self._interrupt(n)

    def next_deadline(self) -> int | None:
        """Return the virtual time in nanoseconds at which a timer interrupts next, or None if none will."""
        r = self.r
        if not General(r.general).enable:
            return None
        waits = [t.matches_in(r.counter) for t in r.timers if Config(t.config).interrupt]
        return (r.tick + min(waits)) * TICK if waits else None

    def _interrupt(self, n: int) -> None:
        """Let timer *n* match: an edge, or a level until its status bit is written."""
        timer = self.r.timers[n]
        if Config(timer.config).level:
            self.r.status |= 2**n
            self._drive(n)
        elif Config(timer.config).interrupt:
            self._line(n)(True)
            self._line(n)(False)

    def _line(self, n: int) -> Line:
        if General(self.r.general).legacy and n < 2:
            return self._legacy[8 * n]
        pin = Config(self.r.timers[n].config).route
        return lambda level: self._pins(pin, level)

    def _drive(self, n: int) -> None:
        """Drive the line of a level-triggered timer."""
        timer = self.r.timers[n]
        level = bool(self.r.status & 2**n) and Config(timer.config).interrupt
        if level != timer.level:
            timer.level = level
            self._line(n)(level)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read all or part of a register."""
        self.advance(self._clock())
        base, byte = offset - offset % 8, offset % 8
        return int.from_bytes(self._get(base).to_bytes(8, "little")[byte : byte + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register or one half of it. Other accesses are lost."""
        self.advance(self._clock())
        if (size, offset % 8) not in {(8, 0), (4, 0), (4, 4)}:
            return
        base = offset - offset % 8
        old = Halves(self._get(base))
        if size == 4:
            value = old.replace(high=value) if offset % 8 else old.replace(low=value)
        timer, register = divmod(base - self.TIMER, self.NEXT_TIMER)
        if 0 <= timer < TIMERS:
            self._put_timer(timer, register, value)
        else:
            self._put(base, value)

    def _get(self, base: int) -> int:
        r = self.r
        timer, register = divmod(base - self.TIMER, self.NEXT_TIMER)
        if 0 <= timer < TIMERS:
            return {0: r.timers[timer].config, 8: r.timers[timer].comparator}.get(register, 0)
        return {
            self.CAPABILITIES: int(CAPABILITIES),
            self.GENERAL: r.general,
            self.STATUS: r.status,
            self.COUNTER: r.counter,
        }.get(base, 0)

    def _put(self, base: int, value: int) -> None:
        r = self.r
        if base == self.GENERAL:
            self._reroute(General(value).writable)
        elif base == self.STATUS:
            r.status &= ~Status(value).active
            for n in range(TIMERS):
                self._drive(n)
        elif base == self.COUNTER and not General(r.general).enable:
            r.counter = value

    def _reroute(self, general: int) -> None:
        """Change the general configuration; a level goes down on its old line and up on its new one."""
        asserted = [n for n, timer in enumerate(self.r.timers) if timer.level]
        for n in asserted:
            self._line(n)(False)
        self.r.general = general
        for n in asserted:
            self._line(n)(True)

    def _put_timer(self, n: int, register: int, value: int) -> None:
        timer = self.r.timers[n]
        if register == 0:
            self._put_config(n, Config(value))
        elif register == 8:
            config = Config(timer.config)
            value %= timer.modulus
            if not config.periodic or config.set_value:
                timer.comparator = value
            if config.periodic:
                timer.period = value
            timer.config = int(config.replace(set_value=0))

    def _put_config(self, n: int, written: Config) -> None:
        """Store what can be chosen: a pin only among those that are offered."""
        timer = self.r.timers[n]
        if timer.level:
            self._line(n)(False)
            timer.level = False
        route = written.route if ROUTES & 2**written.route else 0
        chosen = {name: getattr(written, name) for name in _CHOSEN}
        timer.config = int(OFFERED.replace(route=route, **chosen))
        timer.comparator %= timer.modulus
        if not written.level:
            self.r.status &= ~(2**n)
        self._drive(n)
