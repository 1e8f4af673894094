"""The registers of a local APIC: their fields, and who may read and write each in xAPIC and in x2APIC mode."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from hvemu.bits import Register, bit, bits, field
from hvemu.devices.apic_message import DeliveryMode


class Reg(IntEnum):
    """Registers by number: MMIO offset 16 times the number, MSR 0x800 plus it.

    The names are those of SDM 3A "x2APIC Register Address Space".
    """

    ID, VERSION = 0x02, 0x03
    TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x08, 0x09, 0x0A, 0x0B, 0x0D, 0x0E, 0x0F
    ISR, TMR, IRR = 0x10, 0x18, 0x20
    ESR, ICR, ICR_HIGH = 0x28, 0x30, 0x31
    LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x32, 0x38)
    INITIAL_COUNT, CURRENT_COUNT, DIVIDE = 0x38, 0x39, 0x3E
    SELF_IPI = 0x3F


BANK = 8
"""Registers in each of ISR, TMR and IRR, 32 vectors each."""
LVTS = (Reg.LVT_TIMER, Reg.LVT_THERMAL, Reg.LVT_PERFORMANCE, Reg.LVT_LINT0, Reg.LVT_LINT1, Reg.LVT_ERROR)


class TimerMode(IntEnum):
    """What makes the timer expire."""

    ONE_SHOT, PERIODIC, TSC_DEADLINE, RESERVED = range(4)


class Shorthand(IntEnum):
    """Destinations that need no ID."""

    NONE, SELF, ALL, OTHERS = range(4)


class Id(Register):
    """Local APIC ID register in xAPIC mode."""

    id = bits(31, 24)


class Version(Register):
    """Local APIC version register."""

    version = bits(7, 0)
    max_lvt = bits(23, 16)


class Tpr(Register):
    """A priority: TPR, PPR, or a vector (SDM 3A "Task and Processor Priorities")."""

    sub_class = bits(3, 0)
    priority_class = bits(7, 4)
    all = bits(7, 0)


class Ldr(Register):
    """Logical destination register in xAPIC mode."""

    id = bits(31, 24)


class Dfr(Register):
    """Destination format register: all ones for the flat model, 0 for the cluster model. Its other bits are ones."""

    others = bits(27, 0)
    model = bits(31, 28)


class Svr(Register):
    """Spurious-interrupt vector register. EOI-broadcast suppression is not offered."""

    vector = bits(7, 0)
    enable = bit(8)
    focus_disabled = bit(9)


class Esr(Register):
    """Error status register (SDM 3A "Error Handling")."""

    send_illegal_vector = bit(5)
    receive_illegal_vector = bit(6)
    illegal_register_address = bit(7)


class Icr(Register):
    """Interrupt command register, both halves (SDM 3A "Interrupt Command Register (ICR)")."""

    vector = bits(7, 0)
    mode = field(10, 8, DeliveryMode)
    logical = bit(11)
    delivery_status = bit(12)
    assert_ = bit(14)
    level = bit(15)
    shorthand = field(19, 18, Shorthand)
    low = bits(31, 0)
    destination = bits(63, 32)
    xapic_destination = bits(63, 56)


class Lvt(Register):
    """An entry of the local vector table; which fields it has depends on the entry (SDM 3A "Local Vector Table")."""

    vector = bits(7, 0)
    mode = field(10, 8, DeliveryMode)
    delivery_status = bit(12)
    active_low = bit(13)
    remote_irr = bit(14)
    level = bit(15)
    masked = bit(16)
    timer_mode = field(18, 17, TimerMode)


class Divide(Register):
    """Divide configuration register: bits 3, 1 and 0 choose a power of two."""

    low = bits(1, 0)
    high = bit(3)

    @property
    def divisor(self) -> int:
        """How many clocks make a count: 2, 4, ... 128 and 1."""
        return int(2 ** ((4 * self.high + self.low + 1) % 8))


ONES = 0xFFFF_FFFF
VERSION = Version(version=0x14, max_lvt=len(LVTS) - 1)
LVT_RESET = Lvt(masked=1)
RESET = {
    Reg.TPR: 0,
    Reg.LDR: 0,
    Reg.DFR: ONES,
    Reg.SVR: int(Svr(vector=0xFF)),
    Reg.DIVIDE: 0,
    **dict.fromkeys(LVTS, int(LVT_RESET)),
}
"""What plain registers hold after RESET (SDM 3A "Local APIC State After Power-Up or Reset")."""


@dataclass(frozen=True, slots=True)
class Access:
    """How software may use a register: "r" and "w" in *xapic* and *x2apic* mode, and which bits it may *write*.

    *ignored* bits are read-only; a write of 1 to any other one is refused in x2APIC mode.
    """

    xapic: str
    x2apic: str
    write: int = 0
    ignored: int = 0


_LVT = Lvt(vector=0xFF, masked=1)
_LVT_MODE = int(_LVT.replace(mode=DeliveryMode.EXTINT))
_LVT_PIN = int(Lvt(_LVT_MODE, active_low=1, level=1))
_STATUS = int(Lvt(delivery_status=1))
_PIN_STATUS = int(Lvt(delivery_status=1, remote_irr=1))
_COMMAND = Icr(vector=0xFF, mode=DeliveryMode.EXTINT, logical=1, assert_=1, level=1, shorthand=Shorthand.OTHERS)
ACCESS: dict[int, Access] = {
    Reg.ID: Access("rw", "r", int(Id(id=0xFF))),
    Reg.VERSION: Access("r", "r"),
    Reg.TPR: Access("rw", "rw", int(Tpr(all=0xFF))),
    Reg.APR: Access("r", ""),
    Reg.PPR: Access("r", "r"),
    Reg.EOI: Access("w", "w"),
    Reg.LDR: Access("rw", "r", int(Ldr(id=0xFF))),
    Reg.DFR: Access("rw", "", int(Dfr(model=0xF))),
    Reg.SVR: Access("rw", "rw", int(Svr(vector=0xFF, enable=1, focus_disabled=1))),
    **{bank + n: Access("r", "r") for bank in (Reg.ISR, Reg.TMR, Reg.IRR) for n in range(BANK)},
    Reg.ESR: Access("rw", "rw"),
    Reg.ICR: Access("rw", "rw", int(_COMMAND), _STATUS),
    Reg.ICR_HIGH: Access("rw", "", int(Id(id=0xFF))),
    Reg.LVT_TIMER: Access("rw", "rw", int(_LVT.replace(timer_mode=TimerMode.RESERVED)), _STATUS),
    Reg.LVT_THERMAL: Access("rw", "rw", _LVT_MODE, _STATUS),
    Reg.LVT_PERFORMANCE: Access("rw", "rw", _LVT_MODE, _STATUS),
    Reg.LVT_LINT0: Access("rw", "rw", _LVT_PIN, _PIN_STATUS),
    Reg.LVT_LINT1: Access("rw", "rw", _LVT_PIN, _PIN_STATUS),
    Reg.LVT_ERROR: Access("rw", "rw", int(_LVT), _STATUS),
    Reg.INITIAL_COUNT: Access("rw", "rw", ONES),
    Reg.CURRENT_COUNT: Access("r", "r"),
    Reg.DIVIDE: Access("rw", "rw", int(Divide(low=3, high=1))),
    Reg.SELF_IPI: Access("", "w", int(Tpr(all=0xFF))),
}
