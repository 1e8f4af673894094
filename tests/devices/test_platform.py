"""The devices wired to each other: what one does arrives at the others."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from hvemu.devices.bus import Bus
from hvemu.devices.pic import PicPair
from hvemu.devices.platform import LAPIC_MSRS, Platform, Wires, firmware_tables

LAPIC, IOAPIC, HPET = 0xFEE00000, 0xFEC00000, 0xFED00000
EOI = 0xB0
SECOND = 10**9


class Bench:
    """The platform at its addresses, and a record of what leads out of it."""

    def __init__(self):
        self.now, self.out = 0, []
        self.pic = PicPair.as_firmware_leaves_it()
        self.platform = Platform(
            clock=lambda: self.now,
            tsc_time=lambda tsc: tsc * 10,
            pic=self.pic,
            wires=Wires(
                nmi=lambda: self.out.append("nmi"),
                reset=lambda: self.out.append("reset"),
                power_off=lambda: self.out.append("off"),
                a20=lambda level: self.out.append(("a20", level)),
            ),
            ram=64 << 20,
        )
        self.wire()

    def wire(self):
        self.ports, self.memory = Bus(), Bus()
        for bus, places in ((self.ports, self.platform.ports()), (self.memory, self.platform.memory())):
            for first, number, device, offset, width in places:
                bus.add(first, number, device, offset=offset, width=width)

    def restored(self):
        """Return another bench in the same state."""
        twin, states = Bench(), json.loads(json.dumps([self.platform.state(), self.pic.state()]))
        twin.now, twin.pic = self.now, PicPair.from_state(states[1])
        twin.platform.restore(states[0], twin.pic)
        twin.wire()
        twin.out.clear()
        return twin

    def io(self, index, value):
        self.memory.write(IOAPIC, 4, index)
        self.memory.write(IOAPIC + 0x10, 4, value)

    def take_all(self):
        apic, taken = self.platform.lapic, []
        while apic.pending():
            taken.append(apic.acknowledge())
            if taken[-1] >= 0x80:
                self.memory.write(LAPIC + EOI, 4, 0)
            else:
                self.pic.write(PicPair.SLAVE, 1, 0x20)
                self.pic.write(PicPair.MASTER, 1, 0x20)
        return taken


@pytest.fixture
def bench():
    return Bench()


@pytest.mark.parametrize("irq", [0, 1, *range(3, 16)])
def test_an_isa_interrupt_goes_to_both_kinds_of_controllers(bench, irq):
    for offset in (PicPair.MASTER, PicPair.SLAVE):
        bench.pic.write(offset + 1, 1, 0)
    pin = 2 if irq == 0 else irq
    bench.io(0x10 + 2 * pin, 0x90)
    line = bench.platform.line(irq)
    line(True)
    line(False)
    # A pulse is too short for a line that is a level.
    taken = bench.take_all()
    legacy = 8 + irq if irq < 8 else 0x70 + irq - 8
    assert taken == ([legacy] if irq not in {10, 11} else [0x77]) + [0x90]


def test_a_level_through_the_io_apic_ends_with_the_local_apic(bench):
    bench.io(0x10 + 2 * 9, 0x8099)
    line = bench.platform.line(9)
    line(True)
    apic = bench.platform.lapic
    for _ in range(2):
        assert (apic.pending(), apic.acknowledge()) == (True, 0x99)
        bench.memory.write(LAPIC + EOI, 4, 0)
    assert apic.acknowledge() == 0x99
    line(False)
    bench.memory.write(LAPIC + EOI, 4, 0)
    assert not apic.pending()


def test_the_clock_interrupts_at_pin_8_and_at_the_line_that_firmware_leaves_open(bench):
    bench.io(0x10 + 2 * 8, 0x98)
    for index, value in ((0x70, 0x0B), (0x71, 0x12)):
        bench.ports.write(index, 1, value)
    assert bench.platform.next_deadline() == SECOND
    bench.now = SECOND
    bench.platform.advance()
    assert bench.take_all() == [0x70, 0x98]


def test_an_event_timer_takes_the_line_of_the_timer_and_the_clock(bench):
    bench.io(0x10 + 2 * 2, 0x92)
    bench.io(0x10 + 2 * 8, 0x98)
    bench.memory.write(HPET + 0x10, 4, 3)
    for n in range(2):
        bench.memory.write(HPET + 0x100 + 0x20 * n, 4, 4)
        bench.memory.write(HPET + 0x108 + 0x20 * n, 8, 100)
    bench.platform.line(0)(True)
    bench.platform.line(8)(True)
    assert bench.take_all() == []
    bench.now = bench.platform.next_deadline()
    assert bench.now == 1000
    bench.platform.advance()
    assert bench.take_all() == [0x08, 0x70, 0x98, 0x92]


def test_the_earliest_deadline_counts(bench):
    assert bench.platform.next_deadline() is None
    bench.memory.write(HPET + 0x10, 4, 1)
    bench.memory.write(HPET + 0x100, 4, 4)
    bench.memory.write(HPET + 0x108, 8, 100)
    assert bench.platform.next_deadline() == 1000
    bench.memory.write(LAPIC + 0x320, 4, 0x90)
    bench.memory.write(LAPIC + 0x380, 4, 100)
    assert bench.platform.next_deadline() == 200


@pytest.mark.parametrize(
    ("accesses", "out"),
    [
        ([(0x64, 1, 0xFE)], ["reset"]),
        ([(0x92, 1, 0x01)], [("a20", False), "reset"]),
        ([(0xCF9, 1, 0x06)], ["reset"]),
        ([(0x64, 1, 0xD1), (0x60, 1, 0xDD)], [("a20", False)]),
        ([(0x604, 2, 0x2000)], ["off"]),
        ([(0xB2, 1, 0xF1), (0x604, 2, 0x2001)], ["off"]),
    ],
)
def test_what_leads_out(bench, accesses, out):
    for port, size, value in accesses:
        bench.ports.write(port, size, value)
    assert bench.out == out


def test_the_index_port_of_the_clock_keeps_nmis_of_the_chipset_away(bench):
    bench.ports.write(0x70, 1, 0x80)
    bench.platform.set_nmi(True)
    bench.platform.set_nmi(False)
    assert bench.out == []
    bench.ports.write(0x70, 1, 0)
    bench.platform.set_nmi(True)
    assert bench.out == ["nmi"]


def test_firmware_leaves_interrupts_to_the_8259as(bench):
    bench.platform.line(0)(True)
    assert bench.take_all() == [8]
    assert (bench.pic.read(PicPair.ELCR, 1), bench.pic.read(PicPair.ELCR + 1, 1)) == (0, 0x0C)


def test_the_msrs_of_the_local_apic(bench):
    assert {0x1B, 0x6E0, 0x800, 0x8FF} <= LAPIC_MSRS
    assert len(LAPIC_MSRS) == 258
    assert bench.platform.lapic.read_msr(0x1B) == 0xFEE00900


def test_what_firmware_leaves_in_memory():
    placed = sorted(firmware_tables(0, 0))
    assert all(a + len(data) <= b for (a, data), (b, _) in itertools.pairwise(placed))
    assert dict(placed)[0x40E] == b"\xc0\x9f"
    assert dict(placed)[0x413] == b"\x7f\x02"
    assert {gpa for gpa, _ in placed if gpa >= 0x500} <= {*range(0xF0000, 0x100000)}


def test_a_restored_platform_goes_on_the_same_way(bench):
    chance = random.Random(12)
    ports = [0x60, 0x64, 0x70, 0x71, 0x92, 0xB2, 0x511, 0x600, 0x602, 0xCF8, 0xCFC]
    places = [IOAPIC, IOAPIC + 0x10, HPET + 0x10, HPET + 0x100, HPET + 0x108, HPET + 0xF0]
    places += [LAPIC + offset for offset in (0x80, 0xB0, 0x300, 0x320, 0x350, 0x380, 0x3E0)]

    def choices():
        for _ in range(60):
            yield chance.randrange(5), chance.random(), chance.getrandbits(chance.choice((4, 8, 16, 32)))

    def step(bench, kind, where, value):
        platform = bench.platform
        port, place = ports[int(where * len(ports))], places[int(where * len(places))]
        bench.now += int(where * 10**7)
        if kind == 0:
            bench.ports.write(port, 1, value % 256)
        elif kind == 1:
            bench.memory.write(place, 4, value)
        elif kind == 2:
            platform.line((0, 1, 4, 8, 9, 12)[value % 6])(bool(value & 8))
        platform.advance()
        pending = platform.lapic.pending()
        return (
            bench.ports.read(port, 1),
            bench.memory.read(place, 4),
            platform.next_deadline(),
            platform.lapic.acknowledge() if pending else None,
        )

    for _ in range(12):
        for choice in choices():
            step(bench, *choice)
        twin = bench.restored()
        bench.out.clear()
        for choice in choices():
            assert step(twin, *choice) == step(bench, *choice)
        assert (twin.out, twin.platform.state(), twin.pic.state()) == (
            bench.out,
            bench.platform.state(),
            bench.pic.state(),
        )
