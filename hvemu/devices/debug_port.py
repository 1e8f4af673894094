"""The debug console at port 0xe9: every byte written is shown."""

from __future__ import annotations

from hvemu.devices.device import Output, State


class DebugPort:
    """One port. Reading it gives 0xe9, by which software finds out that it is there."""

    PRESENT = 0xE9

    def __init__(self, output: Output) -> None:
        self._output = output

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - one register
        """Return the mark of presence."""
        return self.PRESENT

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002 - one register
        """Show one byte."""
        self._output(value)

    def state(self) -> State:
        """Return nothing: the port remembers nothing."""
        return {}

    @classmethod
    def from_state(cls, state: State, output: Output) -> DebugPort:
        """Return a port that shows its bytes at *output*."""
        assert state == {}, state
        return cls(output)
