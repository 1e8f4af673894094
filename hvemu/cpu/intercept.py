"""Who is told before something happens in the guest, and may make a VM exit of it."""

from __future__ import annotations

from typing import Protocol

from hvemu.cpu.deliver import Event
from hvemu.engine.traps import Stop
from hvemu.errors import GuestVisible
from hvemu.memory.ept_walk import EptMisconfiguration, EptViolation
from hvemu.vmx.exit import VmExit


class Intercepted(GuestVisible):
    """*exit_* takes the place of what the processor was doing."""

    def __init__(self, exit_: VmExit) -> None:
        super().__init__(exit_)
        self.exit = exit_


class Interception(Protocol):
    """What the processor reports to its hypervisor instead of doing it: the silicon's part of a technique.

    Every method returns the VmExit, or None when the processor goes on by itself. A processor without a hypervisor
    has no Interception.
    """

    @property
    def wants_window(self) -> bool:
        """Whether `window` is to be asked as soon as an external interrupt could be delivered."""
        ...

    @property
    def wants_nmi_window(self) -> bool:
        """The same for `nmi_window` and NMIs."""
        ...

    def instruction(self, stop: Stop) -> VmExit | None:
        """Decide about the instruction at which the engine stopped; RIP is on it. Faults for CPL have come first."""
        ...

    def event(self, event: Event, vectoring: Event | None) -> VmExit | None:
        """Decide about *event* before it is delivered. *vectoring* is the event whose delivery caused it, if any."""
        ...

    def interrupt(self) -> VmExit | None:
        """Decide about the external interrupt that is pending, whatever IF says."""
        ...

    def nmi(self) -> VmExit | None:
        """Decide about a nonmaskable interrupt."""
        ...

    def nmi_window(self) -> VmExit | None:
        """Decide now whether an NMI could be delivered to a program that waits for it."""
        ...

    def window(self) -> VmExit | None:
        """Decide now that an external interrupt could be delivered."""
        ...

    def second_level(self, stop: Stop) -> VmExit | None:
        """Translate the physical address of *stop* for the engine, or report that it cannot be."""
        ...

    def ept_fault(self, miss: EptViolation | EptMisconfiguration, vectoring: Event | None) -> VmExit:
        """Report an access of the CPU model to guest-physical memory that EPT stopped, perhaps during a delivery."""
        ...

    def triple_fault(self, chain: str) -> VmExit:
        """Report that the guest shut down; *chain* says which exceptions led there."""
        ...
