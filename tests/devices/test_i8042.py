"""The keyboard controller, by the command tables of IBM's technical reference, without keyboard and mouse."""

from __future__ import annotations

import json
import random

import pytest

from hvemu.devices.i8042 import I8042

DATA, COMMAND = 0, 1
FULL, MOUSE_FULL = 0x01, 0x20


class Bench:
    """The controller, the levels of its lines and of A20, and how often it reset the processor."""

    def __init__(self):
        self.keyboard, self.mouse, self.a20, self.resets = [], [], [], 0
        self.chip = I8042(**self.wires())

    def wires(self):
        return {"irqs": (self.keyboard.append, self.mouse.append), "a20": self.a20.append, "reset": self._reset}

    def _reset(self):
        self.resets += 1

    def command(self, value, *data):
        self.chip.write(COMMAND, 1, value)
        for byte in data:
            self.chip.write(DATA, 1, byte)

    @property
    def status(self):
        return self.chip.read(COMMAND, 1)

    def get(self):
        return self.chip.read(DATA, 1)

    def ask(self, value):
        self.command(value)
        assert self.status & FULL
        return self.get()


@pytest.fixture
def bench():
    return Bench()


def test_what_firmware_leaves(bench):
    assert (bench.status, bench.ask(0x20), bench.ask(0xD0), bench.status) == (0x1C, 0x61, 0xCF, 0x1C)


# Self test, keyboard and mouse line tests, and the input port with the keyboard unlocked.
@pytest.mark.parametrize(("command", "answer"), [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00), (0xC0, 0x80)])
def test_commands_that_answer(bench, command, answer):
    assert bench.ask(command) == answer
    assert not bench.status & FULL
    assert bench.get() == answer  # the buffer keeps its byte


@pytest.mark.parametrize(("off", "on", "bit"), [(0xAD, 0xAE, 0x10), (0xA7, 0xA8, 0x20)])
def test_switching_keyboard_and_mouse(bench, off, on, bit):
    for command, expected in ((off, bit), (on, 0), (off, bit)):
        bench.command(command)
        assert bench.ask(0x20) & bit == expected


@pytest.mark.parametrize("mode", [0x00, 0x45, 0x7F, 0xFF])
def test_the_command_byte(bench, mode):
    bench.command(0x60, mode)
    assert bench.ask(0x20) == mode
    assert bool(bench.status & 0x04) == bool(mode & 0x04)
    assert bench.ask(0xAA) == 0x55
    assert bench.status & 0x04


def test_the_status_tells_which_port_was_written_last(bench):
    seen = []
    for port in (COMMAND, DATA, COMMAND):
        bench.chip.write(port, 1, 0)
        seen.append(bench.status & 0x08)
    assert seen == [0x08, 0, 0x08]


@pytest.mark.parametrize("value", range(256))
def test_the_output_port_drives_a20_and_reset(bench, value):
    bench.command(0xD1, value)
    assert bench.a20 == [bool(value & 2)]
    assert bench.resets == (not value & 1)
    assert bench.ask(0xD0) == value & ~0x30


def test_the_output_port_shows_the_output_buffer(bench):
    for command, bits in ((0xD2, 0x10), (0xD3, 0x20)):
        bench.command(command, 0x77)
        assert bench.chip._lines() & 0x30 == bits


@pytest.mark.parametrize(("command", "level"), [(0xDD, False), (0xDF, True)])
def test_a20_by_one_command(bench, command, level):
    bench.command(command)
    assert bench.a20 == [level]
    assert bool(bench.ask(0xD0) & 2) == level


@pytest.mark.parametrize("command", range(0xF0, 0x100))
def test_a_pulse_resets_when_its_lowest_bit_is_0(bench, command):
    bench.command(command)
    assert bench.resets == (not command & 1)
    assert bench.ask(0xD0) & 1


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize(("command", "enabled", "full"), [(0xD2, 1, FULL), (0xD3, 2, FULL | MOUSE_FULL)])
def test_a_full_buffer_interrupts_if_its_source_may(bench, mode, command, enabled, full):
    bench.command(0x60, mode)
    bench.command(command, 0x5A)
    assert bench.status & (FULL | MOUSE_FULL) == full
    mine, other = (bench.keyboard, bench.mouse) if enabled == 1 else (bench.mouse, bench.keyboard)
    assert (mine, other) == (([True], []) if mode & enabled else ([], []))
    assert bench.get() == 0x5A
    assert mine == ([True, False] if mode & enabled else [])


def test_bytes_for_keyboard_and_mouse_are_lost(bench):
    bench.chip.write(DATA, 1, 0xF4)
    bench.command(0xD4, 0xF4)
    assert not bench.status & FULL


def test_a_command_cancels_one_that_waits_for_its_byte(bench):
    bench.command(0x60)
    bench.command(0xAA)
    bench.chip.write(DATA, 1, 0)
    assert bench.ask(0x20) == 0x61


def test_state_round_trip_goes_on_the_same_way(bench):
    chance = random.Random(6)
    commands = [0x20, 0x60, 0xA7, 0xA8, 0xAA, 0xAD, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xDD, 0xDF, 0xFE]

    def choices():
        return [(chance.randrange(4), chance.choice(commands), chance.getrandbits(8)) for _ in range(40)]

    def step(chip, kind, command, value):
        if kind < 2:
            return chip.read(kind, 1)
        return chip.write(kind - 2, 1, value if kind == 2 else command)

    for _ in range(20):
        for choice in choices():
            step(bench.chip, *choice)
        twin = Bench()
        twin.chip = I8042.from_state(json.loads(json.dumps(bench.chip.state())), **twin.wires())
        for record in (bench.keyboard, bench.mouse, bench.a20):
            record.clear()
        bench.resets = 0
        for choice in choices():
            assert step(twin.chip, *choice) == step(bench.chip, *choice)
        mine = (bench.keyboard, bench.mouse, bench.a20, bench.resets, bench.chip.state())
        assert (twin.keyboard, twin.mouse, twin.a20, twin.resets, twin.chip.state()) == mine
