"""The board: the devices of the machine, at the ports where a PC has them."""

from __future__ import annotations

from collections.abc import Callable

from hvemu.devices.bus import Bus
from hvemu.devices.debug_exit import DebugExit
from hvemu.devices.debug_port import DebugPort
from hvemu.devices.device import Clock, Device, State
from hvemu.devices.pic import Eoi, Ocw2, PicPair
from hvemu.devices.pit import Pit
from hvemu.devices.serial import Uart

TIMER_IRQ, SERIAL_IRQ = 0, 4
_Place = tuple[int, int, Device, int, int]
"""First port, number of ports, device, offset of the first port in it, widest access."""


class Board:
    """Devices wired to each other, and the two spaces where software finds them.

    *clock* is virtual time in nanoseconds. *console* collects what the guest printed, as bytes; *on_output* sees each
    byte as it comes. *changed*: an access may have moved the next deadline or an interrupt line.
    """

    def __init__(self, clock: Clock, on_output: Callable[[int], None] | None = None) -> None:
        self._clock, self._on_output = clock, on_output
        self.console = bytearray()
        self.pic = PicPair.as_firmware_leaves_it()
        self.pit = Pit(clock=clock, irq=self.pic.line(TIMER_IRQ))
        self.pit.start_as_firmware_does()
        self.pic.acknowledge()  # the request that this makes is served when a guest starts
        self.pic.write(PicPair.MASTER, 1, Ocw2(command=Eoi.NON_SPECIFIC))
        self.uart = Uart.as_firmware_leaves_it(irq=self.pic.line(SERIAL_IRQ), output=self.print)
        self.debug, self.exit = DebugPort(self.print), DebugExit()
        self._input, self._added = bytearray(), list[_Place]()
        self._wire()

    def add(self, first: int, count: int, device: Device, *, width: int = 1) -> None:
        """Put one more *device* at *count* ports from *first*. It is no part of `state`, and `restore` leaves it alone.

        *width* is the widest access in bytes that it takes at once.
        """
        self._added.append((first, count, device, 0, width))
        self._ports.add(first, count, device, width=width)

    def _wire(self) -> None:
        """Put the devices at their ports."""
        self.changed = True
        self._ports, self.memory = Bus(), Bus()
        pic, pit = self.pic, self.pit
        places: tuple[_Place, ...] = (
            (0x20, 2, pic, pic.MASTER, 1),
            (0xA0, 2, pic, pic.SLAVE, 1),
            (0x4D0, 2, pic, pic.ELCR, 1),
            (0x40, 4, pit, 0, 1),
            (0x61, 1, pit, pit.SYSTEM_PORT, 1),
            (0xE9, 1, self.debug, 0, 1),
            (0xF4, 4, self.exit, 0, 4),
            (0x3F8, 8, self.uart, 0, 1),
            *self._added,
        )
        for first, count, device, offset, width in places:
            self._ports.add(first, count, device, offset=offset, width=width)

    def __repr__(self) -> str:
        return f"Board({self._ports!r})"

    def print(self, byte: int) -> None:
        """Show one byte on the console."""
        self.console.append(byte)
        if self._on_output is not None:
            self._on_output(byte)

    def type(self, data: bytes) -> None:
        """Let *data* arrive at the UART, as fast as the guest takes it."""
        self._input += data
        self._feed()

    def _feed(self) -> None:
        while self._input and self.uart.room > 0:
            self.uart.receive(self._input.pop(0))
            self.changed = True

    def read(self, port: int, size: int) -> int:
        """Read *size* bytes at *port*."""
        self.changed = True
        value = self._ports.read(port, size)
        if self._input:
            self._feed()
        return value

    def write(self, port: int, size: int, value: int) -> None:
        """Write *size* bytes at *port*."""
        self.changed = True
        self._ports.write(port, size, value)
        if self._input:
            self._feed()

    @property
    def unclaimed(self) -> dict[int, int]:
        """Bytes accessed at ports where there is no device, by port."""
        return self._ports.unclaimed

    def advance(self) -> None:
        """Let every device reach the present."""
        self.changed = True
        self.pit.advance(self._clock())

    def next_deadline(self) -> int | None:
        """Return the virtual time in nanoseconds at which a device will act next by itself, or None."""
        return self.pit.next_deadline()

    def state(self) -> State:
        """Return the state of every device, the console and what is still to be typed."""
        return {
            "pic": self.pic.state(),
            "pit": self.pit.state(),
            "uart": self.uart.state(),
            "exit": self.exit.state(),
            "console": self.console.hex(),
            "input": self._input.hex(),
        }

    def restore(self, state: State) -> None:
        """Return to a saved state; the devices are new objects."""
        self.pic = PicPair.from_state(state["pic"])
        self.pit = Pit.from_state(state["pit"], clock=self._clock, irq=self.pic.line(TIMER_IRQ))
        self.uart = Uart.from_state(state["uart"], irq=self.pic.line(SERIAL_IRQ), output=self.print)
        self.exit = DebugExit.from_state(state["exit"])
        self.console[:] = bytes.fromhex(state["console"])
        self._input = bytearray.fromhex(state["input"])
        self._wire()
