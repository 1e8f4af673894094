"""Virtual time, in cycles of a processor that retires one instruction per cycle.

What takes no instruction takes a fixed charge: an exit, or an instruction that hvemu emulates. Otherwise a loop that
waits by reading a port would wait for ever.
"""

from __future__ import annotations

import time
from typing import Protocol

HZ = 100_000_000
"""Cycles per second of virtual time."""
NANOSECONDS_PER_CYCLE = 1_000_000_000 // HZ


class Counter(Protocol):
    """Counts retired instructions."""

    instructions: int


class CountedClock:
    """Time is what *counter* retired, plus what was charged. The same run reads the same times on every host."""

    counted = True

    def __init__(self, counter: Counter) -> None:
        self._counter, self._charged = counter, 0

    @property
    def now(self) -> int:
        """Cycles since the machine started."""
        return self._counter.instructions + self._charged

    def charge(self, cycles: int) -> None:
        """Let *cycles* pass in which no instruction retires."""
        self._charged += cycles

    def advance_to(self, cycle: int) -> None:
        """Let time jump to *cycle*, for a processor that is halted until then. Never backwards."""
        self._charged += max(0, cycle - self.now)

    def state(self) -> dict[str, int]:
        """Return what `restore` needs, besides the counter's own value."""
        return {"charged": self._charged}

    def restore(self, state: dict[str, int]) -> None:
        """Return to a saved time."""
        self._charged = state["charged"]


class FreeClock:
    """Time is the host's, for guests that run uncounted: fast, and different in every run."""

    counted = False

    def __init__(self) -> None:
        self._start = time.monotonic_ns()
        self._skipped = 0

    @property
    def now(self) -> int:
        """Cycles since the machine started."""
        return (time.monotonic_ns() - self._start) // NANOSECONDS_PER_CYCLE + self._skipped

    def charge(self, cycles: int) -> None:
        """Charge nothing: the host's clock has moved already."""

    def advance_to(self, cycle: int) -> None:
        """Let time jump to *cycle*, for a processor that is halted until then. Never backwards."""
        self._skipped += max(0, cycle - self.now)

    def state(self) -> dict[str, int]:
        """Return the time that has passed."""
        return {"now": self.now}

    def restore(self, state: dict[str, int]) -> None:
        """Return to a saved time."""
        self._start, self._skipped = time.monotonic_ns(), state["now"]


Clock = CountedClock | FreeClock
