"""The exit port at 0xf4: a write ends the run, and its value says how."""

from __future__ import annotations

from hvemu.devices.device import State


class DebugExit:
    """Four ports that act as one, like the isa-debug-exit device of other emulators.

    *value* is what the guest wrote first, as wide as it wrote it, or None. 0 is success. The run loop looks at it.
    """

    def __init__(self, value: int | None = None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"DebugExit({'running' if self.value is None else hex(self.value)})"

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - no readable register
        """Return 0."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002 - one register
        """Record the exit value, once."""
        if self.value is None:
            self.value = value

    def state(self) -> State:
        """Return the recorded value."""
        return {"value": self.value}

    @classmethod
    def from_state(cls, state: State) -> DebugExit:
        """Return a port with the recorded value."""
        return cls(**state)
