"""The 8254 interval timer of a PC, and the port 0x61 that drives its third counter."""

from __future__ import annotations

from dataclasses import asdict

from hvemu.bits import Register, bit, bits
from hvemu.devices.counter import Access, Control, Counter, Mode
from hvemu.devices.device import Clock, Line, State

HZ = 1_193_182
"""Clock pulses per second."""
NANOSECONDS = 10**9
REFRESH_PULSES = 18
"""Pulses between two refresh requests, by which software sees time pass at port 0x61."""
READ_BACK = 3


class ReadBack(Register):
    """The read-back command: which counters to latch, and, when a bit is 0, what of them."""

    counter0 = bit(1)
    counter1 = bit(2)
    counter2 = bit(3)
    no_status = bit(4)
    no_count = bit(5)


class SystemPort(Register):
    """Port 0x61 (system control port B)."""

    gate2 = bit(0)
    speaker = bit(1)
    writable = bits(3, 0)
    refresh = bit(4)
    out2 = bit(5)


class Pit:
    """Offsets 0-2 are the counters, 3 the control word, 4 is port 0x61. *irq* follows the output of counter 0.

    Pulse *n* comes at n/HZ seconds of virtual time, so nothing drifts.
    """

    CONTROL, SYSTEM_PORT = 3, 4

    def __init__(self, *, clock: Clock, irq: Line) -> None:
        self._clock, self._irq = clock, irq
        self.counters = [Counter(), Counter(), Counter(gate=False)]
        self._pulse = 0
        self._port = SystemPort(0)
        self._level = False

    def __repr__(self) -> str:
        return "Pit(" + ", ".join(f"{c.mode.name} count={c.count} out={c.out:d}" for c in self.counters) + ")"

    def state(self) -> State:
        """Return the counters, the last pulse counted, port 0x61 and the level of the interrupt line."""
        counters = [asdict(counter) for counter in self.counters]
        return {"counters": counters, "pulse": self._pulse, "port": int(self._port), "level": self._level}

    @classmethod
    def from_state(cls, state: State, *, clock: Clock, irq: Line) -> Pit:
        """Return a timer as it was; its interrupt line keeps the level it had."""
        pit = cls(clock=clock, irq=irq)
        pit.counters = [Counter(**counter) for counter in state["counters"]]
        pit._pulse, pit._port, pit._level = state["pulse"], SystemPort(state["port"]), state["level"]
        return pit

    def start_as_firmware_does(self) -> None:
        """Let counter 0 tick 18.2 times a second."""
        self.write(self.CONTROL, 1, Control(counter=0, access=Access.BOTH, mode_bits=Mode.RATE_GENERATOR))
        self.write(0, 1, 0)
        self.write(0, 1, 0)

    def advance(self, now: int) -> None:
        """Let virtual time reach *now* nanoseconds. However often the output rose, it makes one request."""
        pulse = now * HZ // NANOSECONDS
        pulses, self._pulse = pulse - self._pulse, pulse
        assert pulses >= 0, "time runs backwards"
        edges = [counter.advance(pulses) for counter in self.counters]
        if edges[0]:
            self._drive(False)
            self._drive(True)
        self._drive(self.counters[0].out)

    def next_deadline(self) -> int | None:
        """Return the virtual time in nanoseconds at which counter 0 rises next, or None if it will not."""
        rise = self.counters[0].next_rise()
        return None if rise is None else -(-(self._pulse + rise) * NANOSECONDS // HZ)

    def read(self, offset: int, size: int) -> int:
        """Read a byte of a counter, or port 0x61. The control word cannot be read."""
        assert size == 1
        self.advance(self._clock())
        if offset == self.SYSTEM_PORT:
            refresh = self._pulse // REFRESH_PULSES % 2
            return self._port.replace(refresh=refresh, out2=self.counters[2].out)
        return 0xFF if offset == self.CONTROL else self.counters[offset].read()

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a byte of a count, a control word, or port 0x61."""
        assert size == 1
        self.advance(self._clock())
        if offset == self.SYSTEM_PORT:
            self._port = SystemPort(writable=SystemPort(value).writable)
            self.counters[2].set_gate(self._port.gate2)
        elif offset == self.CONTROL:
            self._command(value)
        else:
            self.counters[offset].write(value)
        self._drive(self.counters[0].out)

    def _command(self, value: int) -> None:
        control = Control(value)
        if control.counter == READ_BACK:
            self._read_back(ReadBack(value))
        elif control.access is Access.LATCH:
            self.counters[control.counter].latch()
        else:
            self.counters[control.counter] = self.counters[control.counter].programmed(control)

    def _read_back(self, command: ReadBack) -> None:
        chosen = (command.counter0, command.counter1, command.counter2)
        for counter, wanted in zip(self.counters, chosen, strict=True):
            if wanted and not command.no_count:
                counter.latch()
            if wanted and not command.no_status:
                counter.latch_status()

    def _drive(self, level: bool) -> None:
        if level != self._level:
            self._level = level
            self._irq(level)
