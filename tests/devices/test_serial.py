"""The UART against the tables of the PC16550D data sheet."""

from __future__ import annotations

import itertools
import json

import pytest

from hvemu.devices.serial import Lsr, Msr, Uart

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR
OUT2 = 0x08
LOOP = 0x10


class Bench:
    """A UART with a lamp at its interrupt pin."""

    def __init__(self, mcr=OUT2, fcr=0, ier=0):
        self.levels, self.sent = [], []
        self.uart = Uart(irq=self.levels.append, output=self.sent.append)
        self[MCR], self[FCR], self[IER] = mcr, fcr, ier

    def __getitem__(self, offset):
        return self.uart.read(offset, 1)

    def __setitem__(self, offset, value):
        self.uart.write(offset, 1, value)

    @property
    def line(self):
        return bool(self.levels and self.levels[-1])

    def receive(self, data, errors=0):
        for byte in data:
            self.uart.receive(byte, Lsr(errors))


def test_registers_after_reset():
    uart = Bench(mcr=0)
    assert [uart[r] for r in (IER, IIR, LCR, MCR, LSR)] == [0x00, 0x01, 0x00, 0x00, 0x60]


def test_modem_inputs_of_a_connected_terminal():
    assert Bench()[MSR] == 0xB0  # DCD, DSR, CTS


@pytest.mark.parametrize("value", range(256))
def test_which_bits_stick(value):
    uart = Bench()
    uart[SCR], uart[IER] = value, value
    assert (uart[SCR], uart[IER]) == (value, value & 0x0F)
    uart[MCR] = value
    assert uart[MCR] == value & 0x1F
    uart[LCR] = value
    assert uart[LCR] == value


def test_the_divisor_latch_hides_data_and_ier():
    uart = Bench(ier=0x05)
    uart[LCR] = 0x83
    uart[DATA], uart[IER] = 0x34, 0x12
    assert (uart[DATA], uart[IER]) == (0x34, 0x12)
    uart[LCR] = 0x03
    assert uart[IER] == 0x05
    assert uart.sent == []


@pytest.mark.parametrize(("lcr", "mask"), [(0, 0x1F), (1, 0x3F), (2, 0x7F), (3, 0xFF)])
def test_word_length_cuts_what_is_sent(lcr, mask):
    uart = Bench()
    uart[LCR] = lcr
    uart[DATA] = 0xFF
    assert uart.sent == [mask]


def test_lsr_and_msr_ignore_writes():
    uart = Bench()
    uart[LSR], uart[MSR] = 0, 0xFF
    assert (uart[LSR], uart[MSR]) == (0x60, 0xB0)


def test_without_fifo_an_overrun_keeps_the_newer_byte():
    uart = Bench()
    uart.receive(b"ab")
    assert uart[LSR] == 0x63
    assert uart[LSR] == 0x61
    assert uart[DATA] == ord("b")
    assert uart[LSR] == 0x60


def test_with_fifo_an_overrun_keeps_the_sixteen_older_bytes():
    uart = Bench(fcr=0x01)
    assert uart.uart.room == 16
    uart.receive(bytes(range(17)))
    assert uart.uart.room == 0
    assert uart[LSR] & 0x02
    assert [uart[DATA] for _ in range(16)] == [*range(16)]
    assert uart[LSR] == 0x60


@pytest.mark.parametrize(("code", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_fifo_trigger_levels(code, level):
    uart = Bench(fcr=code << 6 | 1, ier=0x01)
    uart.receive(bytes(level - 1))
    assert uart[IIR] == (0xCC if level > 1 else 0xC1)  # below the trigger only the timeout tells
    uart.receive(b"x")
    assert uart[IIR] == 0xC4


def test_fifo_bits_are_programmed_only_together_with_the_enable_bit():
    uart = Bench(ier=0x01)
    uart[FCR] = 0xC0
    uart.receive(b"x")
    assert uart[IIR] == 0x04


@pytest.mark.parametrize("fcr", [0x03, 0x00])
def test_clearing_and_switching_empty_the_receiver(fcr):
    uart = Bench(fcr=0x01)
    uart.receive(b"abc")
    uart[FCR] = fcr
    assert uart[LSR] == 0x60


@pytest.mark.parametrize("error", [0x04, 0x08, 0x10])
def test_a_line_error_shows_when_its_byte_is_next(error):
    uart = Bench(fcr=0x01, ier=0x04)
    uart.receive(b"a")
    uart.receive(b"b", error)
    assert uart[LSR] == 0x61 | 0x80
    assert not uart.line
    uart[DATA]
    assert uart.line
    assert uart[IIR] == 0xC6
    assert uart[LSR] == 0x61 | 0x80 | error
    assert uart[LSR] == 0x61
    assert not uart.line


SOURCES = {"line status": (0x04, 0x6), "received": (0x01, 0x4), "empty": (0x02, 0x2), "modem": (0x08, 0x0)}


@pytest.mark.parametrize("names", [c for n in range(5) for c in itertools.combinations(SOURCES, n)])
def test_the_highest_enabled_source_is_identified(names):
    uart = Bench(ier=sum(SOURCES[n][0] for n in names))
    uart.receive(b"ab")  # overrun: line status, and data
    uart.uart.set_inputs(Msr(cts=0, dsr=1, dcd=1))
    expected = next((SOURCES[n][1] for n in SOURCES if n in names), 1)
    assert uart.levels == ([True] if names else [])
    assert uart[IIR] == expected


def test_reading_iir_withdraws_the_empty_interrupt_only():
    uart = Bench(ier=0x02)
    assert uart.line
    assert (uart[IIR], uart.line, uart[IIR]) == (0x02, False, 0x01)
    uart[DATA] = 1
    assert uart.levels == [True, False, True]  # a sent byte makes a new edge
    uart.receive(b"x")
    uart[IER] = 0x03
    assert (uart[IIR], uart[IIR]) == (0x04, 0x04)


def test_the_line_falls_when_the_last_byte_is_read():
    uart = Bench(ier=0x01)
    uart.receive(b"x")
    assert uart.line
    assert uart[DATA] == ord("x")
    assert not uart.line


@pytest.mark.parametrize("mcr", range(16))
def test_out2_gates_the_interrupt_line(mcr):
    uart = Bench(mcr=mcr, ier=0x01)
    uart.receive(b"x")
    assert uart[IIR] == 0x04
    assert uart.line == bool(mcr & OUT2)


@pytest.mark.parametrize("outputs", range(16))
def test_loopback_ties_modem_outputs_to_inputs(outputs):
    dtr, rts, out1, out2 = (outputs >> n & 1 for n in range(4))
    uart = Bench(mcr=LOOP | outputs)
    assert uart[MSR] >> 4 == rts | dtr << 1 | out1 << 2 | out2 << 3


def test_loopback_returns_what_is_sent_and_shuts_the_outside_out():
    uart = Bench(mcr=LOOP)
    uart[LCR] = 0x02
    uart[DATA] = 0xC1
    uart.receive(b"x")
    assert (uart.sent, uart[LSR], uart[DATA], uart[LSR]) == ([], 0x61, 0x41, 0x60)
    assert uart.uart.room == 0


def test_a_break_in_loopback_comes_back_as_a_null_byte():
    uart = Bench(mcr=LOOP)
    uart[LCR] = 0x43
    assert (uart[LSR], uart[DATA]) == (0x71, 0)


@pytest.mark.parametrize("before", range(16))
@pytest.mark.parametrize("after", range(16))
def test_deltas_of_the_modem_inputs(before, after):
    uart = Bench()
    uart.uart.set_inputs(Msr(levels=before))
    uart[MSR]
    uart.uart.set_inputs(Msr(levels=after))
    ring = 0b0100
    delta = (before ^ after) & ~ring | (before & ~after & ring)  # RI tells only of its trailing edge
    assert uart[MSR] == after << 4 | delta
    assert uart[MSR] == after << 4


def test_state_round_trip():
    uart = Bench(fcr=0x81, ier=0x0D)
    uart[LCR] = 0x1B
    uart[SCR] = 0x5A
    uart.receive(b"hello", 0x04)
    state = json.loads(json.dumps(uart.uart.state()))
    levels = []
    twin = Uart.from_state(state, irq=levels.append, output=[].append)
    assert levels == []
    twin.write(IER, 1, 0)
    assert levels == [False]
    assert uart.line
    uart[IER] = 0
    for offset in (LSR, IIR, IER, LCR, MCR, SCR, MSR, DATA, DATA, LSR):
        assert twin.read(offset, 1) == uart[offset]
    assert twin.state() == uart.uart.state()
