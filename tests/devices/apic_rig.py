"""A local APIC on a bench: a clock, a controller at LINT0, and counts of what comes out."""

from __future__ import annotations

from hvemu.devices.lapic import LocalApic
from hvemu.x86.vectors import Fault, Vector

ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
TIMER, THERMAL, PERFORMANCE, LINT0, LINT1, ERROR = range(0x320, 0x380, 0x10)
INITIAL, CURRENT, DIVIDE, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0
LVTS = (TIMER, THERMAL, PERFORMANCE, LINT0, LINT1, ERROR)
BASE, DEADLINE = 0x1B, 0x6E0
ENABLED, X2APIC = 0xFEE00900, 0xFEE00D00
GP = Fault(Vector.GP, 0)


class External:
    """A pair of 8259As with vectors to give."""

    def __init__(self):
        self.vectors = []

    def pending(self):
        return bool(self.vectors)

    def acknowledge(self):
        return self.vectors.pop(0) if self.vectors else 15


class Bench:
    """Registers by offset, `apic[TPR] = 0x20`; *x2* puts the APIC into x2APIC mode, where offsets become MSRs."""

    def __init__(self, *, svr=0x1FF, x2=False, **options):
        self.now, self.nmis, self.ended, self.pic = 0, 0, [], External()
        self.options = options
        self.apic = self.another()
        self.x2 = x2
        if x2:
            self.apic.write_msr(BASE, X2APIC)
        self[SVR] = svr

    def another(self):
        return LocalApic(
            clock=lambda: self.now,
            tsc_time=lambda tsc: tsc * 10,
            pic=self.pic,
            nmi=self._nmi,
            end_of_interrupt=self.ended.append,
            **self.options,
        )

    def _nmi(self):
        self.nmis += 1

    def __getitem__(self, offset):
        if self.x2:
            return self.apic.read_msr(0x800 + offset // 16)
        return self.apic.read(offset, 4)

    def __setitem__(self, offset, value):
        if self.x2:
            self.apic.write_msr(0x800 + offset // 16, value)
        else:
            self.apic.write(offset, 4, value)

    def vectors(self, bank):
        return {32 * n + bit for n in range(8) for bit in range(32) if self[bank + 16 * n] >> bit & 1}

    def take_all(self):
        """Serve all interrupts, and return their vectors."""
        taken = []
        while self.apic.pending():
            taken.append(self.apic.acknowledge())
            self[EOI] = 0
        return taken

    def errors(self):
        self[ESR] = 0
        return self[ESR]

    def pass_to(self, now):
        self.now = now
        self.apic.advance(now)


def fault(action, *arguments):
    """Return the fault that a call raises, or None."""
    try:
        action(*arguments)
    except Fault as caught:
        return caught
    return None
