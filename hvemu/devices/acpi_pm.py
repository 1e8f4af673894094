"""The power management registers of a PC's chipset: PM1 event and control, and the timer (ACPI 1.0, "Fixed Hardware").

How much of it is there is what the FADT of acpi_tables says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from hvemu.bits import Register, bit, bits
from hvemu.devices.device import Clock, Line, State

HZ = 3_579_545
"""Counts per second of the timer."""
NANOSECONDS = 10**9
COUNTS = 2**24
HALF = COUNTS // 2
"""The timer sets its status bit each time its highest bit changes: after so many counts."""
ACPI_ENABLE, ACPI_DISABLE = 0xF1, 0xF0
"""What firmware takes at the SMI command port."""
SOFT_OFF = 0
"""The sleep type of S5."""


class Event(Register):
    """PM1 status and PM1 enable."""

    timer = bit(0)
    global_lock = bit(5)
    power_button = bit(8)
    clock = bit(10)
    wake = bit(15)


class Control(Register):
    """PM1 control."""

    sci_enable = bit(0)
    bus_master_reload = bit(1)
    sleep_type = bits(12, 10)
    sleep_enable = bit(13)


INTERRUPTING = int(Event(timer=1, global_lock=1, power_button=1, clock=1))
STATUS_BITS = int(Event(INTERRUPTING, wake=1))


@dataclass(slots=True)
class Registers:
    """All that the block remembers. *count* is the last count of the timer that was seen, all bits of it."""

    status: int = 0
    enable: int = 0
    control: int = 0
    command: int = 0
    command_status: int = 0
    count: int = 0
    level: bool = False


class AcpiPm:
    """Offsets 0-11 are the PM1 registers and the timer, COMMAND and the next one the SMI command port.

    *sci* is the interrupt line; *power_off* is called when software goes to S5.
    """

    STATUS, ENABLE, CONTROL, TIMER, COMMAND = 0, 2, 4, 8, 16

    def __init__(self, *, clock: Clock, sci: Line, power_off: Callable[[], None]) -> None:
        self._clock, self._sci, self._power_off = clock, sci, power_off
        self.r = Registers()

    def __repr__(self) -> str:
        r = self.r
        return f"AcpiPm({Event(r.status)!r} {Event(r.enable)!r} {Control(r.control)!r} count={r.count % COUNTS:#x})"

    def state(self) -> State:
        """Return all registers."""
        return asdict(self.r)

    @classmethod
    def from_state(cls, state: State, *, clock: Clock, sci: Line, power_off: Callable[[], None]) -> AcpiPm:
        """Return a block as it was; its interrupt line keeps the level it had."""
        pm = cls(clock=clock, sci=sci, power_off=power_off)
        pm.r = Registers(**state)
        return pm

    def advance(self, now: int) -> None:
        """Let virtual time reach *now* nanoseconds."""
        r, count = self.r, now * HZ // NANOSECONDS
        assert count >= r.count, "time runs backwards"
        if count // HALF > r.count // HALF:
            r.status = int(Event(r.status, timer=1))
        r.count = count
        self._update()

    def next_deadline(self) -> int | None:
        """Return the virtual time in nanoseconds at which the timer interrupts next, or None if it will not."""
        r = self.r
        if not Event(r.enable).timer or Event(r.status).timer or not Control(r.control).sci_enable:
            return None
        return -(-(r.count // HALF + 1) * HALF * NANOSECONDS // HZ)

    def read(self, offset: int, size: int) -> int:
        """Read one or more bytes of the registers."""
        self.advance(self._clock())
        r = self.r
        image = bytearray(self.COMMAND + 2)
        for at, value, width in (
            (self.STATUS, r.status, 2),
            (self.ENABLE, r.enable, 2),
            (self.CONTROL, r.control, 2),
            (self.TIMER, r.count % COUNTS, 4),
            (self.COMMAND, r.command, 1),
            (self.COMMAND + 1, r.command_status, 1),
        ):
            image[at : at + width] = value.to_bytes(width, "little")
        return int.from_bytes(image[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one or more bytes. A status bit is cleared by writing it as 1; the timer is read-only."""
        self.advance(self._clock())
        written = dict(enumerate(value.to_bytes(size, "little"), offset))
        r = self.r
        r.status &= ~self._word(0, self.STATUS, written)
        r.enable = self._word(r.enable, self.ENABLE, written) & INTERRUPTING
        if written.keys() & {self.CONTROL, self.CONTROL + 1}:
            self._control(Control(self._word(r.control, self.CONTROL, written)))
        if self.COMMAND in written:
            self._command(written[self.COMMAND])
        r.command_status = written.get(self.COMMAND + 1, r.command_status)
        self._update()

    @staticmethod
    def _word(old: int, offset: int, written: dict[int, int]) -> int:
        """Return the word *old* at *offset* with the bytes that were *written* to it."""
        low, high = old.to_bytes(2, "little")
        return int.from_bytes([written.get(offset, low), written.get(offset + 1, high)], "little")

    def _control(self, control: Control) -> None:
        """Sleep, if asked to: S5 is the only sleep there is. The bit that asks reads as 0."""
        self.r.control = int(Control(control, sleep_enable=0))
        if control.sleep_enable and control.sleep_type == SOFT_OFF:
            self._power_off()

    def _command(self, command: int) -> None:
        """Do what firmware does at the SMI that a command makes."""
        self.r.command = command
        if command in {ACPI_ENABLE, ACPI_DISABLE}:
            self.r.control = int(Control(self.r.control, sci_enable=command == ACPI_ENABLE))

    def _update(self) -> None:
        r = self.r
        level = bool(r.status & r.enable & INTERRUPTING) and Control(r.control).sci_enable
        if level != r.level:
            r.level = level
            self._sci(level)
