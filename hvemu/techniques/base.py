"""What a technique is, and what its handlers answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hvemu.errors import GuestVisible
from hvemu.vmx.exit import VmExit
from hvemu.x86.state import CpuState
from hvemu.x86.vectors import Fault

if TYPE_CHECKING:
    from hvemu.cpu.linear import Linear
    from hvemu.memory.physical import Physical
    from hvemu.techniques.vm import Vm


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to happen after an exit was handled. A Fault that a handler raises is INJECT(fault)."""

    name: str
    fault: Fault | None = None


RESUME = Outcome("RESUME")
"""Go on with the guest."""
STOP = Outcome("STOP")
"""End the run."""


def INJECT(fault: Fault) -> Outcome:  # noqa: N802 - reads as the two constants above
    """Go on with *fault* in the guest."""
    return Outcome("INJECT", fault)


class Shutdown(GuestVisible):
    """The guest cannot go on; the argument says why, for a person."""


class Technique(Protocol):
    """One way to run a guest. `install` is called once, with the guest in memory and nothing in the processor yet.

    *physical* is guest-physical memory, *view* the registers and *linear* the memory as the guest believes them to be;
    debuggers and tests use these three.
    """

    name: str
    memory: str
    physical: Physical

    def install(self, vm: Vm, boot: CpuState) -> None:
        """Prepare the processor so that `run` starts the guest in the state *boot*."""
        ...

    def run(self, limit: int) -> VmExit | None:
        """Enter the guest, for at most *limit* instructions; return the exit, recorded, or None."""
        ...

    def handle(self, exit_: VmExit) -> Outcome:
        """Do what the hypervisor does about *exit_*. Raises Fault to inject it."""
        ...

    def inject(self, fault: Fault) -> None:
        """Make the guest see *fault* at its current instruction. Raises TripleFault."""
        ...

    def tick(self) -> None:
        """Let the timer of the machine fire: a device has something to do by itself."""
        ...

    def wake(self) -> None:
        """End the HLT of a guest whose devices request an interrupt."""
        ...

    @property
    def halted(self) -> bool:
        """Whether the guest waits for an interrupt."""
        ...

    @property
    def view(self) -> CpuState:
        """The registers as the guest believes them to be."""
        ...

    @property
    def linear(self) -> Linear:
        """Memory by the guest's linear addresses."""
        ...
