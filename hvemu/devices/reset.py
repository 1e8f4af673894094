"""Two ways to reset a PC: system control port A, which drives the A20 gate too, and the chipset's reset control."""

from __future__ import annotations

from collections.abc import Callable

from hvemu.bits import Register, bit
from hvemu.devices.device import Line, State


class PortA(Register):
    """Port 0x92."""

    fast_reset = bit(0)
    a20 = bit(1)


class ResetControlBits(Register):
    """Port 0xcf9 (Intel 82371SB data sheet)."""

    hard = bit(1)
    reset = bit(2)


class SystemControl:
    """Port 0x92. *a20* is told the level of the gate, *reset* is called when the fast reset bit rises."""

    def __init__(self, *, a20: Line, reset: Callable[[], None], value: int = 0) -> None:
        self._a20, self._reset, self._value = a20, reset, PortA(value)

    def __repr__(self) -> str:
        return f"SystemControl({self._value!r})"

    @classmethod
    def as_firmware_leaves_it(cls, *, a20: Line, reset: Callable[[], None]) -> SystemControl:
        """Return the port with the gate open."""
        return cls(a20=a20, reset=reset, value=PortA(a20=1))

    def state(self) -> State:
        """Return the value."""
        return {"value": int(self._value)}

    @classmethod
    def from_state(cls, state: State, *, a20: Line, reset: Callable[[], None]) -> SystemControl:
        """Return a port as it was; the gate keeps its level."""
        return cls(a20=a20, reset=reset, value=state["value"])

    def read(self, offset: int, size: int) -> int:
        """Read what was written."""
        assert (offset, size) == (0, 1)
        return int(self._value)

    def write(self, offset: int, size: int, value: int) -> None:
        """Drive the gate, and reset."""
        assert (offset, size) == (0, 1)
        old, self._value = self._value, PortA(value)
        self._a20(self._value.a20)
        if self._value.fast_reset and not old.fast_reset:
            self._reset()


class ResetControl:
    """Port 0xcf9. *reset* is called when the reset bit rises."""

    def __init__(self, *, reset: Callable[[], None], value: int = 0) -> None:
        self._reset, self._value = reset, ResetControlBits(value)

    def __repr__(self) -> str:
        return f"ResetControl({self._value!r})"

    def state(self) -> State:
        """Return the value."""
        return {"value": int(self._value)}

    @classmethod
    def from_state(cls, state: State, *, reset: Callable[[], None]) -> ResetControl:
        """Return a port as it was."""
        return cls(reset=reset, value=state["value"])

    def read(self, offset: int, size: int) -> int:
        """Read which kind of reset is chosen."""
        assert (offset, size) == (0, 1)
        return int(self._value)

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose the kind of reset, and reset. The reset ends by itself, and its bit with it."""
        assert (offset, size) == (0, 1)
        written = ResetControlBits(value)
        self._value = ResetControlBits(hard=written.hard)
        if written.reset:
            self._reset()
