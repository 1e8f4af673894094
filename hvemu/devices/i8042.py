"""The keyboard controller of a PC (Intel 8042 as IBM programmed it): A20, reset, and no keyboard or mouse behind it.

Bytes for the keyboard and the mouse are lost, and nothing answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum

from hvemu.bits import Register, bit, bits
from hvemu.devices.device import Line, State


class Status(Register):
    """Port 0x64, read."""

    output_full = bit(0)
    system = bit(2)
    command = bit(3)
    unlocked = bit(4)
    mouse_full = bit(5)


class Mode(Register):
    """The command byte."""

    keyboard_interrupt = bit(0)
    mouse_interrupt = bit(1)
    system = bit(2)
    keyboard_off = bit(4)
    mouse_off = bit(5)
    translate = bit(6)


class OutputPort(Register):
    """The output port of the 8042."""

    not_reset = bit(0)
    a20 = bit(1)
    unused = bits(3, 2)
    keyboard_full = bit(4)
    mouse_full = bit(5)
    keyboard_lines = bits(7, 6)


class Command(IntEnum):
    """What port 0x64 takes."""

    READ_MODE, WRITE_MODE = 0x20, 0x60
    MOUSE_OFF, MOUSE_ON, TEST_MOUSE = 0xA7, 0xA8, 0xA9
    SELF_TEST, TEST_KEYBOARD, KEYBOARD_OFF, KEYBOARD_ON = 0xAA, 0xAB, 0xAD, 0xAE
    READ_INPUT_PORT, READ_OUTPUT_PORT, WRITE_OUTPUT_PORT = 0xC0, 0xD0, 0xD1
    WRITE_KEYBOARD_OUTPUT, WRITE_MOUSE_OUTPUT, WRITE_MOUSE = 0xD2, 0xD3, 0xD4
    A20_OFF, A20_ON = 0xDD, 0xDF
    PULSE = 0xF0


class Pulse(Register):
    """The last sixteen commands: the output lines whose bits are 0 fall for a moment."""

    not_reset = bit(0)


SELF_TEST_PASSED, LINE_TEST_PASSED, INPUT_PORT = 0x55, 0x00, 0x80
ANSWERS = {
    Command.SELF_TEST: SELF_TEST_PASSED,
    Command.TEST_KEYBOARD: LINE_TEST_PASSED,
    Command.TEST_MOUSE: LINE_TEST_PASSED,
    Command.READ_INPUT_PORT: INPUT_PORT,
}
SWITCHES = {
    Command.MOUSE_OFF: {"mouse_off": 1},
    Command.MOUSE_ON: {"mouse_off": 0},
    Command.KEYBOARD_OFF: {"keyboard_off": 1},
    Command.KEYBOARD_ON: {"keyboard_off": 0},
}
WITH_DATA = frozenset(
    {
        Command.WRITE_MODE,
        Command.WRITE_OUTPUT_PORT,
        Command.WRITE_KEYBOARD_OUTPUT,
        Command.WRITE_MOUSE_OUTPUT,
        Command.WRITE_MOUSE,
    }
)
"""The commands that take the next byte at port 0x60."""


@dataclass(slots=True)
class Registers:
    """All that the controller remembers.

    *system* is the flag that tells of a self test; *command* is one that waits for its byte, or 0.
    """

    mode: int = int(Mode(keyboard_interrupt=1, mouse_off=1, translate=1))
    system: bool = True
    output_port: int = int(OutputPort(not_reset=1, a20=1, unused=3, keyboard_lines=3))
    command: int = 0
    output: int = 0
    full: bool = False
    from_mouse: bool = False
    last_was_command: bool = True
    levels: tuple[bool, bool] = (False, False)


class I8042:
    """Offset 0 is port 0x60, offset 1 port 0x64, as firmware leaves them.

    *irqs* are the lines of keyboard and mouse, 1 and 12; *a20* is told the level of the gate; *reset* is called when
    the processor is to be reset.
    """

    DATA, COMMAND = 0, 1

    def __init__(self, *, irqs: tuple[Line, Line], a20: Line, reset: Callable[[], None]) -> None:
        self._irqs, self._a20, self._reset = irqs, a20, reset
        self.r = Registers()

    def __repr__(self) -> str:
        return f"I8042({self.status!r} {Mode(self.r.mode)!r} {OutputPort(self.r.output_port)!r})"

    def state(self) -> State:
        """Return all registers."""
        return {**asdict(self.r), "levels": [*self.r.levels]}

    @classmethod
    def from_state(cls, state: State, *, irqs: tuple[Line, Line], a20: Line, reset: Callable[[], None]) -> I8042:
        """Return a controller as it was; its lines keep the levels they had."""
        controller = cls(irqs=irqs, a20=a20, reset=reset)
        keyboard, mouse = state["levels"]
        controller.r = Registers(**{**state, "levels": (keyboard, mouse)})
        return controller

    @property
    def status(self) -> Status:
        """What port 0x64 reads."""
        r = self.r
        return Status(
            output_full=r.full,
            system=r.system,
            command=r.last_was_command,
            unlocked=1,
            mouse_full=r.full and r.from_mouse,
        )

    def read(self, offset: int, size: int) -> int:
        """Read the status, or the output buffer, which keeps its byte when it has been read."""
        assert size == 1
        if offset == self.COMMAND:
            return self.status
        self.r.full = False
        self._update()
        return self.r.output

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a command, or the byte that the last command waits for."""
        assert size == 1
        self.r.last_was_command = offset == self.COMMAND
        if offset == self.COMMAND:
            self._command(value)
        else:
            waiting, self.r.command = self.r.command, 0
            self._data(waiting, value)

    def _command(self, value: int) -> None:
        r = self.r
        r.command = value if value in WITH_DATA else 0
        r.system = r.system or value == Command.SELF_TEST
        if value in ANSWERS:
            self._answer(ANSWERS[Command(value)])
        elif value in SWITCHES:
            self._set_mode(Mode(r.mode, **SWITCHES[Command(value)]))
        elif value == Command.READ_MODE:
            self._answer(r.mode)
        elif value == Command.READ_OUTPUT_PORT:
            self._answer(self._lines())
        elif value in {Command.A20_OFF, Command.A20_ON}:
            self._set_output_port(OutputPort(r.output_port, a20=value == Command.A20_ON))
        elif value >= Command.PULSE and not Pulse(value).not_reset:
            self._reset()

    def _data(self, command: int, value: int) -> None:
        if command == Command.WRITE_MODE:
            self.r.system = Mode(value).system
            self._set_mode(Mode(value))
        elif command == Command.WRITE_OUTPUT_PORT:
            self._set_output_port(OutputPort(value))
        elif command in {Command.WRITE_KEYBOARD_OUTPUT, Command.WRITE_MOUSE_OUTPUT}:
            self._answer(value, from_mouse=command == Command.WRITE_MOUSE_OUTPUT)

    def _set_mode(self, mode: Mode) -> None:
        self.r.mode = int(mode)
        self._update()

    def _set_output_port(self, port: OutputPort) -> None:
        """Drive the lines of the output port. The reset line low resets the processor."""
        self.r.output_port = int(port.replace(keyboard_full=0, mouse_full=0))
        self._a20(port.a20)
        if not port.not_reset:
            self._reset()

    def _lines(self) -> OutputPort:
        """Return the output port, with the two bits that are the state of the output buffer."""
        r = self.r
        return OutputPort(r.output_port, keyboard_full=r.full and not r.from_mouse, mouse_full=r.full and r.from_mouse)

    def _answer(self, byte: int, *, from_mouse: bool = False) -> None:
        r = self.r
        r.output, r.full, r.from_mouse = byte, True, from_mouse
        self._update()

    def _update(self) -> None:
        """Drive the interrupt lines: the output buffer is full, and its source may interrupt."""
        r, mode = self.r, Mode(self.r.mode)
        keyboard = r.full and not r.from_mouse and mode.keyboard_interrupt
        mouse = r.full and r.from_mouse and mode.mouse_interrupt
        for line, old, new in zip(self._irqs, r.levels, (keyboard, mouse), strict=True):
            if new != old:
                line(new)
        r.levels = keyboard, mouse
