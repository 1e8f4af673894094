"""The timer of a local APIC, computed from virtual time and not stepped (SDM 3A "APIC Timer")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvemu.devices.apic_registers import Divide, TimerMode
from hvemu.devices.device import Clock

BUS_NANOSECONDS = 1
"""Virtual time of one clock of the bus that the timer divides."""
TscTime = Callable[[int], int]
"""From a value of the time-stamp counter to the virtual time in nanoseconds at which it is reached."""


@dataclass(slots=True)
class Registers:
    """*initial* is the initial count, *loaded* the count at time *since*, 0 for a timer that has stopped.

    *deadline* is the value of the time-stamp counter at which an armed timer expires, or 0.
    """

    mode: int = TimerMode.ONE_SHOT
    divide: int = 0
    initial: int = 0
    loaded: int = 0
    since: int = 0
    deadline: int = 0


class ApicTimer:
    """Counts down, or waits for the time-stamp counter. *clock* is virtual time."""

    def __init__(self, *, clock: Clock, tsc_time: TscTime, registers: Registers | None = None) -> None:
        self._clock, self._tsc_time, self.r = clock, tsc_time, registers or Registers()

    def __repr__(self) -> str:
        r = self.r
        return f"ApicTimer({TimerMode(r.mode).name} initial={r.initial:#x} deadline={r.deadline:#x})"

    @property
    def current(self) -> int:
        """The current count. It is 0 while the timer is stopped and in TSC-deadline mode."""
        r = self.r
        if not r.loaded:
            return 0
        counted = (self._clock() - r.since) // self._period
        if counted < r.loaded:
            return r.loaded - counted
        if r.mode == TimerMode.ONE_SHOT:
            return 0
        return r.initial - (counted - r.loaded) % r.initial

    @property
    def _period(self) -> int:
        """Nanoseconds of one count."""
        return Divide(self.r.divide).divisor * BUS_NANOSECONDS

    def write_initial(self, count: int) -> None:
        """Start at *count*; 0 stops the timer. Ignored in TSC-deadline mode."""
        r = self.r
        if r.mode in {TimerMode.ONE_SHOT, TimerMode.PERIODIC}:
            r.initial = r.loaded = count
            r.since = self._clock()

    def write_divide(self, divide: int) -> None:
        """Go on from the current count at another rate."""
        r = self.r
        r.loaded, r.since = self.current, self._clock()
        r.divide = divide

    def set_mode(self, mode: TimerMode) -> None:
        """Change the mode. A count goes on in the other counting mode; every other change disarms the timer."""
        r = self.r
        counting = {TimerMode.ONE_SHOT, TimerMode.PERIODIC}
        if mode != r.mode and not {mode, r.mode} <= counting:
            r.initial = r.loaded = r.deadline = 0
        r.mode = mode

    def write_deadline(self, tsc: int) -> None:
        """Arm the timer for when the time-stamp counter reaches *tsc*; 0 disarms. Ignored in the other modes."""
        if self.r.mode == TimerMode.TSC_DEADLINE:
            self.r.deadline = tsc

    def expires_at(self) -> int | None:
        """Return the virtual time in nanoseconds at which the timer expires next, or None. It may have passed."""
        r = self.r
        if r.deadline:
            return self._tsc_time(r.deadline)
        return r.since + r.loaded * self._period if r.loaded else None

    def advance(self, now: int) -> bool:
        """Let virtual time reach *now*, and return whether the timer has expired, once or more often."""
        r, time = self.r, self.expires_at()
        if time is None or time > now:
            return False
        r.deadline = r.loaded = 0
        if r.mode == TimerMode.PERIODIC:
            cycle = r.initial * self._period
            r.loaded, r.since = r.initial, time + (now - time) // cycle * cycle
        return True
