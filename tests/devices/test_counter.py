"""One 8254 counter against the data sheet: its waveform figures, and a pulse-by-pulse model of its mode definitions."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.counter import Control, Counter


def programmed(mode, *, bcd=False, access=3, gate=True):
    return Counter(gate=gate).programmed(Control(mode_bits=mode, bcd=bcd, access=access))


def write(counter, number):
    for byte in number.to_bytes(2, "little"):
        counter.write(byte)


def wave(counter, pulses):
    """Return the output after each pulse, H or L, and the count."""
    outs, counts = "", []
    for _ in range(pulses):
        counter.advance(1)
        outs += "H" if counter.out else "L"
        counts.append(counter.value)
    return outs, counts


# The first figure of each mode in the data sheet: counts and output after each clock pulse from the write on.
@pytest.mark.parametrize(
    ("mode", "number", "outs", "counts"),
    [
        (0, 4, "LLLLHHH", [4, 3, 2, 1, 0, 0xFFFF, 0xFFFE]),
        (2, 3, "HHLHHLH", [3, 2, 1, 3, 2, 1, 3]),
        (3, 4, "HHLLHHLLHH", [4, 2, 4, 2, 4, 2, 4, 2, 4, 2]),
        (3, 5, "HHHLLHHHLL", [4, 2, 0, 4, 2, 4, 2, 0, 4, 2]),
        (4, 3, "HHHLHHH", [3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD]),
        (6, 3, "HHLHHLH", [3, 2, 1, 3, 2, 1, 3]),
        (7, 4, "HHLLHHLL", [4, 2, 4, 2, 4, 2, 4, 2]),
    ],
)
def test_figures_of_the_modes_that_a_write_starts(mode, number, outs, counts):
    counter = programmed(mode)
    assert counter.out == (mode != 0)
    write(counter, number)
    assert wave(counter, len(outs)) == (outs, counts)


@pytest.mark.parametrize(
    ("mode", "number", "outs", "counts"),
    [(1, 3, "LLLHHH", [3, 2, 1, 0, 0xFFFF, 0xFFFE]), (5, 3, "HHHLHH", [3, 2, 1, 0, 0xFFFF, 0xFFFE])],
)
def test_figures_of_the_modes_that_the_gate_starts(mode, number, outs, counts):
    counter = programmed(mode, gate=False)
    write(counter, number)
    counter.advance(10)
    assert counter.out
    counter.set_gate(True)
    counter.set_gate(False)
    assert wave(counter, len(outs)) == (outs, counts)


class Reference:
    """The counter as the data sheet tells it, one clock pulse at a time."""

    def __init__(self, mode, modulus):
        self.mode, self.modulus = mode, modulus
        self.out, self.gate, self.ce = mode != 0, True, 0
        self.cr = self.size = None
        self.load = self.running = self.strobed = False

    def write(self, n):
        first, self.cr = self.cr is None, n or self.modulus
        if self.mode == 0:
            self.out = self.running = False
        if self.mode in {0, 4} or (self.mode in {2, 3} and first):
            self.load = True

    def set_gate(self, level):
        rises, self.gate = level and not self.gate, level
        if self.mode in {2, 3} and not level:
            self.out = True
        if rises and self.mode in {1, 2, 3, 5} and self.cr is not None:
            self.load = True

    def pulse(self):
        if self.load:
            self.load, self.running, self.strobed = False, True, False
            self.reload()
            self.out = self.mode not in {0, 1}
        elif self.running and (self.gate or self.mode in {1, 5}):
            [self.down, self.down, self.rate, self.square, self.strobe, self.strobe][self.mode]()

    def reload(self):
        self.size = self.cr
        self.ce = self.cr - self.cr % 2 if self.mode == 3 else self.cr

    def down(self):
        self.ce = (self.ce - 1) % self.modulus
        self.out = self.out or self.ce == 0

    def rate(self):
        self.ce -= 1
        self.out = self.ce != 1
        if self.ce == 0:
            self.reload()
            self.out = self.ce != 1

    def square(self):
        if self.out and self.size % 2 and self.ce == 0:
            self.out = False
            self.reload()
            return
        self.ce -= 2
        if self.ce == 0 and not (self.out and self.size % 2):
            self.out = not self.out
            self.reload()

    def strobe(self):
        self.ce = (self.ce - 1) % self.modulus
        self.out = self.strobed or self.ce != 0
        self.strobed |= self.ce == 0


NUMBERS = st.one_of(st.integers(2, 12), st.sampled_from([0, 9999]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), NUMBERS),
        st.tuples(st.just("pulses"), st.one_of(st.integers(0, 40), st.just(10_500))),
        st.tuples(st.just("gate"), st.booleans()),
    ),
    max_size=14,
)


def read_number(counter, *, bcd):
    return int(f"{counter.value:x}") if bcd else counter.value


@pytest.mark.parametrize("bcd", [False, True])
@pytest.mark.parametrize("mode", range(6))
@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps=STEPS)
def test_any_sequence_agrees_with_the_pulse_by_pulse_model(mode, bcd, steps):
    model = Reference(mode, 10_000 if bcd else 65_536)
    counter = programmed(mode, bcd=bcd)
    for what, argument in steps:
        if what == "write":
            model.write(argument)
            write(counter, int(str(argument), 16) if bcd else argument)
        elif what == "gate":
            model.set_gate(argument)
            counter.set_gate(argument)
        else:
            promised, rises = counter.next_rise(), []
            for i in range(argument):
                before = model.out
                model.pulse()
                if model.out and not before:
                    rises.append(i + 1)
            assert counter.advance(argument) == len(rises)
            assert rises[:1] == ([promised] if promised is not None and promised <= argument else [])
        assert counter.out == model.out
        if model.size is not None:
            assert read_number(counter, bcd=bcd) == model.ce % model.modulus


def test_bcd_counts_are_read_as_decimal_digits():
    for number in range(10_000):
        counter = programmed(4, bcd=True)
        digits = int(str(number), 16)
        write(counter, digits)
        counter.advance(1)
        assert counter.value == digits


@pytest.mark.parametrize(
    ("access", "written", "count", "read"),
    [(1, [0x34], 0x34, [0x34, 0x34]), (2, [0x12], 0x1200, [0x12, 0x12]), (3, [0x34, 0x12], 0x1234, [0x34, 0x12])],
)
def test_which_bytes_of_a_count_are_written_and_read(access, written, count, read):
    counter = programmed(2, access=access)
    for byte in written:
        counter.write(byte)
    counter.advance(1)
    assert counter.value == count
    assert [counter.read() for _ in read] == read


def test_a_latched_count_stays_until_it_is_read_whole():
    counter = programmed(2)
    write(counter, 0x1234)
    counter.advance(1)
    counter.latch()
    counter.advance(0x100)
    counter.latch()
    assert [counter.read() for _ in range(4)] == [0x34, 0x12, 0x34, 0x11]


def test_latched_status_is_read_before_the_latched_count():
    counter = programmed(3)
    write(counter, 0x1234)
    counter.advance(1)
    counter.latch()
    counter.latch_status()
    assert [counter.read() for _ in range(3)] == [0x80 | 0x30 | 3 << 1, 0x34, 0x12]


def test_the_null_count_tells_whether_the_count_has_arrived():
    def null():
        counter.latch_status()
        return bool(counter.read() & 0x40)

    counter = programmed(2)
    seen = [null()]
    write(counter, 5)
    seen.append(null())
    counter.advance(1)
    seen.append(null())
    write(counter, 7)
    counter.advance(4)
    seen.append(null())
    counter.advance(1)
    seen.append(null())
    assert seen == [True, True, False, True, False]


@pytest.mark.parametrize("control", range(0x40))
def test_the_status_gives_the_control_word_back(control):
    if control >> 4 == 0:
        return  # that is the latch command
    counter = Counter().programmed(Control(control))
    counter.latch_status()
    assert counter.read() & 0x3F == control


def test_the_first_byte_of_a_count_stops_mode_0():
    counter = programmed(0)
    write(counter, 3)
    counter.advance(4)
    assert counter.out
    counter.write(9)
    assert not counter.out
    counter.advance(100)
    assert not counter.out
    counter.write(0)
    assert counter.next_rise() == 10


def test_state_round_trip():
    counter = programmed(3)
    write(counter, 9)
    counter.advance(3)
    write(counter, 6)
    counter.latch()
    twin = Counter(**asdict(counter))
    assert [twin.read(), twin.read()] == [counter.read(), counter.read()]
    assert wave(twin, 20) == wave(counter, 20)
