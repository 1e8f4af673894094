"""The hypervisor's own timer: it interrupts the processor when a device of the guest has something to do."""

from __future__ import annotations

VECTOR = 0x20


class HostTimer:
    """What drives INTR when a hypervisor owns the machine; the guest's own interrupt controller is a model."""

    def __init__(self) -> None:
        self._fired = False

    def fire(self) -> None:
        """Request an interrupt."""
        self._fired = True

    def pending(self) -> bool:
        """Whether an interrupt is requested."""
        return self._fired

    def acknowledge(self) -> int:
        """Take the interrupt; return its vector."""
        self._fired = False
        return VECTOR
