"""The I/O APIC against the 82093AA data sheet."""

from __future__ import annotations

import json
import random

import pytest

from hvemu.devices.apic_message import DeliveryMode, Message
from hvemu.devices.ioapic import IoApic

SELECT, WINDOW, EOI = 0x00, 0x10, 0x40
MASKED, LEVEL, REMOTE_IRR, LOW = 0x10000, 0x8000, 0x4000, 0x2000
STICKS = 0xFF000000_0001AFFF
MODES = range(8)


class Bench:
    """Registers by index, `pins[0x10] = ...`, and the messages that were sent; *accepts* is what the APICs answer."""

    def __init__(self):
        self.sent, self.accepts = [], True
        self.chip = self.another()

    def another(self):
        return IoApic(deliver=self._deliver)

    def _deliver(self, message):
        self.sent.append(message)
        return self.accepts

    def __getitem__(self, index):
        self.chip.write(SELECT, 4, index)
        return self.chip.read(WINDOW, 4)

    def __setitem__(self, index, value):
        self.chip.write(SELECT, 4, index)
        self.chip.write(WINDOW, 4, value)

    def entry(self, pin):
        return self[0x10 + 2 * pin] | self[0x11 + 2 * pin] << 32

    def program(self, pin, entry):
        self[0x11 + 2 * pin] = entry >> 32
        self[0x10 + 2 * pin] = entry & 0xFFFFFFFF

    def vectors(self):
        """Return the vectors sent since the last call."""
        seen = [message.vector for message in self.sent]
        self.sent.clear()
        return seen

    def pulse(self, pin):
        self.chip.set_pin(pin, True)
        self.chip.set_pin(pin, False)


@pytest.fixture
def bench():
    return Bench()


def test_registers_after_reset(bench):
    table = dict.fromkeys(range(16, 64, 2), MASKED)
    assert {i: bench[i] for i in range(256) if bench[i]} == {1: 0x00170020, **table}


def test_the_id_goes_to_the_arbitration_register_too(bench):
    bench[0] = 0xFFFFFFFF
    assert (bench[0], bench[2]) == (0x0F000000, 0x0F000000)
    bench[1] = bench[2] = 0
    assert (bench[1], bench[2]) == (0x00170020, 0x0F000000)


@pytest.mark.parametrize("pin", range(24))
def test_which_bits_of_an_entry_stick(bench, pin):
    chance = random.Random(pin)
    for _ in range(20):
        entry = chance.getrandbits(64)
        bench.program(pin, entry)
        assert bench.entry(pin) == entry & STICKS
    assert [bench.entry(other) for other in range(24) if other != pin] == [MASKED] * 23


@pytest.mark.parametrize(("offset", "size"), [(WINDOW, 1), (WINDOW, 2), (WINDOW + 4, 4), (0x20, 4), (0x110, 4)])
def test_other_accesses_reach_nothing(bench, offset, size):
    bench.program(0, 0x45)
    bench[0x10] = 0x45
    bench.chip.write(offset, size, 0x77)
    assert (bench.chip.read(offset, size), bench.entry(0)) == (0, 0x45)


def test_the_select_register_has_eight_bits(bench):
    bench.chip.write(SELECT, 4, 0xABCDEF01)
    assert (bench.chip.read(SELECT, 4), bench.chip.read(WINDOW, 4)) == (0x01, 0x00170020)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", [0, LEVEL])
@pytest.mark.parametrize("logical", [0, 0x800])
@pytest.mark.parametrize("destination", [0, 3, 0xFF])
def test_a_pin_becomes_the_message_of_its_entry(bench, mode, level, logical, destination):
    bench.program(5, destination << 56 | level | logical | mode << 8 | 0x52)
    bench.chip.set_pin(5, True)
    is_level = bool(level) and mode in {0, 1}
    assert bench.sent == [
        Message(
            DeliveryMode(mode),
            0x52,
            destination,
            logical=bool(logical),
            broadcast=destination == 0xFF,
            level=is_level,
        )
    ]
    assert bool(bench.entry(5) & REMOTE_IRR) == is_level


def test_an_edge_is_sent_once_for_each_rise(bench):
    bench.program(4, 0x34)
    for level in (True, True, False, False, True):
        bench.chip.set_pin(4, level)
    assert bench.vectors() == [0x34, 0x34]


def test_an_edge_at_a_masked_pin_is_lost(bench):
    bench.program(4, MASKED | 0x34)
    bench.chip.set_pin(4, True)
    bench.program(4, 0x34)
    assert bench.vectors() == []
    bench.chip.set_pin(4, True)
    assert bench.vectors() == []
    bench.pulse(4)
    bench.pulse(4)
    assert bench.vectors() == [0x34]


@pytest.mark.parametrize("end", ["broadcast", "register"])
def test_a_level_is_sent_again_after_each_end_while_it_is_asserted(bench, end):
    def finish(vector):
        if end == "broadcast":
            bench.chip.end_of_interrupt(vector)
        else:
            bench.chip.write(EOI, 4, vector)

    bench.program(9, LEVEL | 0x39)
    bench.chip.set_pin(9, True)
    bench.chip.set_pin(9, True)
    assert bench.vectors() == [0x39]
    finish(0x38)
    assert bench.vectors() == []
    finish(0x39)
    assert (bench.vectors(), bench.entry(9)) == ([0x39], LEVEL | REMOTE_IRR | 0x39)
    bench.chip.set_pin(9, False)
    assert bench.entry(9) & REMOTE_IRR
    finish(0x39)
    assert (bench.vectors(), bench.entry(9)) == ([], LEVEL | 0x39)


def test_a_level_behind_a_mask_waits(bench):
    bench.program(9, MASKED | LEVEL | 0x39)
    bench.chip.set_pin(9, True)
    assert bench.vectors() == []
    bench.program(9, LEVEL | 0x39)
    assert bench.vectors() == [0x39]


def test_masking_does_not_end_a_level(bench):
    bench.program(9, LEVEL | 0x39)
    bench.chip.set_pin(9, True)
    bench.program(9, MASKED | LEVEL | 0x39)
    bench.program(9, LEVEL | 0x39)
    assert (bench.vectors(), bool(bench.entry(9) & REMOTE_IRR)) == ([0x39], True)


def test_a_level_that_no_apic_accepts_is_not_in_service(bench):
    bench.accepts = False
    bench.program(9, 7 << 56 | LEVEL | 0x39)
    bench.chip.set_pin(9, True)
    assert not bench.entry(9) & REMOTE_IRR
    bench.accepts = True
    bench.program(9, LEVEL | 0x39)
    assert bench.entry(9) & REMOTE_IRR


def test_becoming_an_edge_ends_a_level(bench):
    bench.program(9, LEVEL | 0x39)
    bench.chip.set_pin(9, True)
    bench.program(9, MASKED | 0x39)
    bench.program(9, LEVEL | 0x39)
    assert bench.vectors() == [0x39, 0x39]


def test_pins_that_share_a_vector_end_together(bench):
    for pin in (9, 10, 11):
        bench.program(pin, LEVEL | (0x39 if pin < 11 else 0x40))
        bench.chip.line(pin)(True)
    bench.chip.set_pin(9, False)
    assert bench.vectors() == [0x39, 0x39, 0x40]
    bench.chip.end_of_interrupt(0x39)
    assert bench.vectors() == [0x39]
    assert [bool(bench.entry(pin) & REMOTE_IRR) for pin in (9, 10, 11)] == [False, True, True]


def test_polarity_is_kept_and_changes_nothing(bench):
    bench.program(9, LEVEL | LOW | 0x39)
    assert bench.vectors() == []
    bench.chip.set_pin(9, True)
    assert bench.vectors() == [0x39]


def test_state_round_trip_goes_on_the_same_way(bench):
    chance = random.Random(3)

    def step(chip, kind, pin, value):
        if kind == 0:
            chip.set_pin(pin, bool(value & 1))
        elif kind == 1:
            chip.end_of_interrupt(0x30 + value % 4)
        else:
            chip.write(SELECT, 4, 0x10 + pin * 2 + (value & 1))
            chip.write(WINDOW, 4, value & ~0xFF | 0x30 + value % 4 if value & 2 else value)
        return chip.read(WINDOW, 4)

    def choices():
        return [(chance.randrange(3), chance.randrange(24), chance.getrandbits(18)) for _ in range(60)]

    for _ in range(30):
        for choice in choices():
            step(bench.chip, *choice)
        twin = Bench()
        twin.chip = IoApic.from_state(json.loads(json.dumps(bench.chip.state())), deliver=twin._deliver)
        bench.sent.clear()
        for choice in choices():
            assert step(twin.chip, *choice) == step(bench.chip, *choice)
        assert twin.sent == bench.sent
        assert twin.chip.state() == bench.chip.state()
