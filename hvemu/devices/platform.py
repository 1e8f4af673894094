"""The chipset beyond the first devices of a PC, wired together as QEMU's `pc` is, and where software finds each part.

The pair of 8259As, the timer and the UART belong to the board: it drives `line(irq)` in place of the lines of the pair.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from hvemu.devices import acpi_tables, mp_table
from hvemu.devices.acpi_pm import AcpiPm
from hvemu.devices.acpi_tables import (
    HPET_GPA,
    IOAPIC_GPA,
    ISA_TO_PIN,
    LAPIC_GPA,
    PM1_EVENT,
    SMI_COMMAND,
    Placed,
)
from hvemu.devices.apic_timer import TscTime
from hvemu.devices.device import Clock, Device, Line, State
from hvemu.devices.fw_cfg import FwCfg
from hvemu.devices.hpet import Hpet, HpetWires
from hvemu.devices.i8042 import I8042
from hvemu.devices.ioapic import IoApic
from hvemu.devices.lapic import FIRST_MSR, TSC_DEADLINE, LocalApic
from hvemu.devices.pci import PciHost
from hvemu.devices.pic import PicPair
from hvemu.devices.reset import ResetControl, SystemControl
from hvemu.devices.rtc import Rtc
from hvemu.x86.msrs import APIC_BASE

TIMER_IRQ, KEYBOARD_IRQ, CLOCK_IRQ, SCI_IRQ, MOUSE_IRQ = 0, 1, 8, 9, 12
LAPIC_MSRS = frozenset({APIC_BASE, TSC_DEADLINE, *range(FIRST_MSR, FIRST_MSR + 0x100)})
"""The MSRs that LocalApic.read_msr and write_msr take."""
ELCR_OF_FIRMWARE = 0x0C
"""What firmware writes to port 0x4d1: the lines where a PC has its PCI interrupts, 10 and 11, are levels."""
BIOS_DATA_GPA = 0x400
SERIAL_PORT, EBDA_SEGMENT, BASE_KIB = 0x3F8, 0x9FC0, 639


class Place(NamedTuple):
    """Where *number* addresses from *first* reach *device*, the first one at *offset*, *width* bytes at once at most.

    These are the arguments of Bus.add.
    """

    first: int
    number: int
    device: Device
    offset: int
    width: int


@dataclass(frozen=True, slots=True)
class Wires:
    """What leads out of the platform.

    *nmi*, *reset* and *power_off* are called when that happens, *a20* with the level of the gate.
    """

    nmi: Callable[[], None]
    reset: Callable[[], None]
    power_off: Callable[[], None]
    a20: Line


class Platform:
    """All of these devices as firmware leaves them, for a machine with *ram* bytes.

    *clock* is virtual time, *tsc_time* says when the time-stamp counter reaches a value, *x2apic* whether the processor
    offers that mode. `lapic` is the processor's interrupt controller; *pic* is wired to its LINT0.
    """

    def __init__(
        self, *, clock: Clock, tsc_time: TscTime, pic: PicPair, wires: Wires, ram: int, x2apic: bool = True
    ) -> None:
        self._clock, self._pic, self._wires = clock, pic, wires
        self.lapic = LocalApic(
            clock=clock,
            tsc_time=tsc_time,
            pic=pic,
            nmi=wires.nmi,
            end_of_interrupt=self._end_of_interrupt,
            x2apic=x2apic,
        )
        self.lapic.start_as_firmware_does()
        pic.write(PicPair.ELCR + 1, 1, ELCR_OF_FIRMWARE)
        self.ioapic = IoApic(deliver=self.lapic.receive)
        self.hpet = Hpet(wires=self._hpet_wires())
        self.rtc = Rtc(clock=clock, irq=self.line(CLOCK_IRQ), ram=ram)
        self.pm = AcpiPm(clock=clock, sci=self.line(SCI_IRQ), power_off=wires.power_off)
        self.keyboard = I8042(irqs=self._keyboard_lines(), a20=wires.a20, reset=wires.reset)
        self.port_a = SystemControl.as_firmware_leaves_it(a20=wires.a20, reset=wires.reset)
        self.reset_control = ResetControl(reset=wires.reset)
        self.pci = PciHost(reset_control=self.reset_control)
        self.fw_cfg = FwCfg(ram=ram)

    def __repr__(self) -> str:
        return f"Platform({self.lapic!r}, {self.ioapic!r})"

    # -- wires --------------------------------------------------------------------------------------------------------

    def line(self, irq: int) -> Line:
        """Return the wire of ISA interrupt *irq*: to the 8259As and to the I/O APIC.

        The timer's and the clock's lead through the HPET, which can take their place.
        """
        if irq in {TIMER_IRQ, CLOCK_IRQ}:
            return partial(self._drive_unless_replaced, irq)
        return partial(self._drive, irq)

    def set_nmi(self, level: bool) -> None:
        """Drive the NMI pin of the chipset. The clock's index port can keep it from the processor."""
        self.lapic.set_lint(1, level and not self.rtc.nmi_masked)

    def _drive_unless_replaced(self, irq: int, level: bool) -> None:
        self.hpet.drive(irq, level)

    def _drive(self, irq: int, level: bool) -> None:
        self._pic.set_line(irq, level)
        self.ioapic.set_pin(ISA_TO_PIN.get(irq, irq), level)

    def _drive_pin(self, pin: int, level: bool) -> None:
        self.ioapic.set_pin(pin, level)

    def _end_of_interrupt(self, vector: int) -> None:
        self.ioapic.end_of_interrupt(vector)

    def _hpet_wires(self) -> HpetWires:
        return HpetWires(
            clock=self._clock,
            irq0=partial(self._drive, TIMER_IRQ),
            irq8=partial(self._drive, CLOCK_IRQ),
            pins=self._drive_pin,
        )

    def _keyboard_lines(self) -> tuple[Line, Line]:
        return self.line(KEYBOARD_IRQ), self.line(MOUSE_IRQ)

    # -- where software finds it --------------------------------------------------------------------------------------

    def ports(self) -> list[Place]:
        """Return where everything is in the port space."""
        return [
            Place(0x60, 1, self.keyboard, I8042.DATA, 1),
            Place(0x64, 1, self.keyboard, I8042.COMMAND, 1),
            Place(0x70, 2, self.rtc, 0, 1),
            Place(0x92, 1, self.port_a, 0, 1),
            Place(SMI_COMMAND, 2, self.pm, AcpiPm.COMMAND, 1),
            Place(0x510, 2, self.fw_cfg, 0, 2),
            Place(PM1_EVENT, 12, self.pm, 0, 4),
            Place(0xCF8, 8, self.pci, 0, 4),
        ]

    def memory(self) -> list[Place]:
        """Return where everything is in the physical address space.

        The page of the local APIC is first. It can move, or vanish: `lapic.mmio_gpa` says where it is.
        """
        return [
            Place(LAPIC_GPA, 0x1000, self.lapic, 0, 8),
            Place(IOAPIC_GPA, 0x1000, self.ioapic, 0, 8),
            Place(HPET_GPA, 0x400, self.hpet, 0, 8),
        ]

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Let every device reach the present."""
        now = self._clock()
        for device in (self.lapic, self.hpet, self.rtc, self.pm):
            device.advance(now)

    def next_deadline(self) -> int | None:
        """Return the virtual time in nanoseconds at which a device will act next by itself, or None."""
        times = [device.next_deadline() for device in (self.lapic, self.hpet, self.rtc, self.pm)]
        return min((time for time in times if time is not None), default=None)

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return the state of every device."""
        return {
            "lapic": self.lapic.state(),
            "ioapic": self.ioapic.state(),
            "hpet": self.hpet.state(),
            "rtc": self.rtc.state(),
            "pm": self.pm.state(),
            "keyboard": self.keyboard.state(),
            "port_a": self.port_a.state(),
            "reset_control": self.reset_control.state(),
            "pci": self.pci.state(),
            "fw_cfg": self.fw_cfg.state(),
        }

    def restore(self, state: State, pic: PicPair) -> None:
        """Return to a saved state, with *pic* in its own. All devices but the local APIC are new objects."""
        clock, wires = self._clock, self._wires
        self._pic = self.lapic.core.pic = pic
        self.lapic.restore(state["lapic"])
        self.ioapic = IoApic.from_state(state["ioapic"], deliver=self.lapic.receive)
        self.hpet = Hpet.from_state(state["hpet"], wires=self._hpet_wires())
        self.rtc = Rtc.from_state(state["rtc"], clock=clock, irq=self.line(CLOCK_IRQ))
        self.pm = AcpiPm.from_state(state["pm"], clock=clock, sci=self.line(SCI_IRQ), power_off=wires.power_off)
        lines = self._keyboard_lines()
        self.keyboard = I8042.from_state(state["keyboard"], irqs=lines, a20=wires.a20, reset=wires.reset)
        self.port_a = SystemControl.from_state(state["port_a"], a20=wires.a20, reset=wires.reset)
        self.reset_control = ResetControl.from_state(state["reset_control"], reset=wires.reset)
        self.pci = PciHost.from_state(state["pci"], reset_control=self.reset_control)
        self.fw_cfg = FwCfg.from_state(state["fw_cfg"])


def bios_data() -> Placed:
    """Return what old software looks for in the BIOS data area: the serial port, the EBDA, and how large memory is."""
    return [
        (BIOS_DATA_GPA, struct.pack("<H", SERIAL_PORT)),
        (BIOS_DATA_GPA + 0x0E, struct.pack("<H", EBDA_SEGMENT)),
        (BIOS_DATA_GPA + 0x13, struct.pack("<H", BASE_KIB)),
    ]


def firmware_tables(signature: int, features: int) -> Placed:
    """Return what firmware leaves in memory. *signature* and *features* are EAX and EDX of CPUID leaf 1."""
    return [*bios_data(), *acpi_tables.tables(), *mp_table.tables(signature, features)]
