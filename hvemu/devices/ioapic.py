"""The I/O APIC (Intel 82093AA data sheet), with the EOI register and the version of later chipsets.

Its pins carry whether something is asserted: the polarity bits are kept and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hvemu.bits import Register, bit, bits
from hvemu.bits import field as bit_field
from hvemu.devices.apic_message import VECTORED, Delivery, DeliveryMode, Message
from hvemu.devices.device import Line, State

PINS = 24
VERSION_NUMBER = 0x20
BROADCAST = 0xFF


class Select(Register):
    """IOREGSEL."""

    index = bits(7, 0)


class Id(Register):
    """IOAPICID, and IOAPICARB."""

    id = bits(27, 24)


class Version(Register):
    """IOAPICVER."""

    version = bits(7, 0)
    last_entry = bits(23, 16)


class Entry(Register):
    """A redirection table entry."""

    vector = bits(7, 0)
    mode = bit_field(10, 8, DeliveryMode)
    logical = bit(11)
    delivery_status = bit(12)
    active_low = bit(13)
    remote_irr = bit(14)
    level = bit(15)
    masked = bit(16)
    destination = bits(63, 56)
    low = bits(31, 0)
    high = bits(63, 32)

    @property
    def is_level(self) -> bool:
        """Whether an interrupt stays until it is ended. Modes without a vector of their own are edges."""
        return self.level and self.mode in VECTORED


WRITABLE = int(
    Entry(vector=0xFF, mode=DeliveryMode.EXTINT, logical=1, active_low=1, level=1, masked=1, destination=BROADCAST)
)
ID, VERSION, ARBITRATION, TABLE = 0x00, 0x01, 0x02, 0x10
"""Registers that IOREGSEL selects; the table has two for each pin."""


@dataclass(slots=True)
class Registers:
    """All that an I/O APIC remembers."""

    select: int = 0
    id: int = 0
    arbitration: int = 0
    levels: list[bool] = field(default_factory=lambda: [False] * PINS)
    entries: list[int] = field(default_factory=lambda: [int(Entry(masked=1))] * PINS)


class IoApic:
    """24 pins, and the registers IOREGSEL, IOWIN and EOI in a page. *deliver* sends a message to the local APICs."""

    SELECT, WINDOW, EOI = 0x00, 0x10, 0x40

    def __init__(self, *, deliver: Delivery, registers: Registers | None = None) -> None:
        self._deliver, self.r = deliver, registers or Registers()

    def __repr__(self) -> str:
        shown = (f"{n}: {Entry(e)!r}" for n, e in enumerate(self.r.entries) if not Entry(e).masked)
        return f"IoApic({', '.join(shown)})"

    def state(self) -> State:
        """Return the registers, and the levels of the pins."""
        r = self.r
        return {
            "select": r.select,
            "id": r.id,
            "arbitration": r.arbitration,
            "levels": [*r.levels],
            "entries": [*r.entries],
        }

    @classmethod
    def from_state(cls, state: State, *, deliver: Delivery) -> IoApic:
        """Return an I/O APIC as it was; nothing is delivered anew."""
        lists = {"levels": [*state["levels"]], "entries": [*state["entries"]]}
        return cls(deliver=deliver, registers=Registers(**{**state, **lists}))

    def line(self, pin: int) -> Line:
        """Return the wire to *pin*."""
        return lambda level: self.set_pin(pin, level)

    def set_pin(self, pin: int, level: bool) -> None:
        """Assert or negate *pin*. An edge at a masked pin is lost."""
        rises, self.r.levels[pin] = level and not self.r.levels[pin], level
        entry = Entry(self.r.entries[pin])
        if entry.is_level:
            self._sample(pin)
        elif rises and not entry.masked:
            self._send(entry)

    def end_of_interrupt(self, vector: int) -> None:
        """Hear that a level-triggered interrupt has ended; a pin that is still asserted interrupts again."""
        for pin, value in enumerate(self.r.entries):
            entry = Entry(value)
            if entry.remote_irr and entry.vector == vector:
                self.r.entries[pin] = int(entry.replace(remote_irr=0))
                self._sample(pin)

    def read(self, offset: int, size: int) -> int:
        """Read a register. IOWIN takes 32-bit accesses alone."""
        if offset == self.SELECT:
            return self.r.select
        return self._get(self.r.select) if offset == self.WINDOW and size == 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        if offset == self.SELECT:
            self.r.select = Select(value).index
        elif offset == self.WINDOW and size == 4:
            self._put(self.r.select, value)
        elif offset == self.EOI:
            self.end_of_interrupt(Entry(value).vector)

    def _get(self, index: int) -> int:
        pin, high = divmod(index - TABLE, 2)
        if 0 <= pin < PINS:
            entry = Entry(self.r.entries[pin])
            return entry.high if high else entry.low
        version = Version(version=VERSION_NUMBER, last_entry=PINS - 1)
        return {ID: self.r.id, VERSION: int(version), ARBITRATION: self.r.arbitration}.get(index, 0)

    def _put(self, index: int, value: int) -> None:
        pin, high = divmod(index - TABLE, 2)
        if 0 <= pin < PINS:
            old = Entry(self.r.entries[pin])
            self._put_entry(pin, old.replace(high=value) if high else old.replace(low=value))
        elif index == ID:
            self.r.id = self.r.arbitration = int(Id(id=Id(value).id))  # the new ID goes to the arbitration register too

    def _put_entry(self, pin: int, written: Entry) -> None:
        """Store what can be written. Remote IRR is read-only, and falls when the pin becomes an edge."""
        entry = Entry(written & WRITABLE)
        if entry.level:
            entry = entry.replace(remote_irr=Entry(self.r.entries[pin]).remote_irr)
        self.r.entries[pin] = int(entry)
        self._sample(pin)

    def _sample(self, pin: int) -> None:
        """Send the interrupt of a level-triggered pin that is asserted, unless its last one has not ended."""
        entry = Entry(self.r.entries[pin])
        waits = self.r.levels[pin] and entry.is_level and not (entry.masked or entry.remote_irr)
        if waits and self._send(entry):
            self.r.entries[pin] = int(entry.replace(remote_irr=1))

    def _send(self, entry: Entry) -> bool:
        to = entry.destination
        everyone = to == BROADCAST
        message = Message(entry.mode, entry.vector, to, logical=entry.logical, broadcast=everyone, level=entry.is_level)
        return self._deliver(message)
