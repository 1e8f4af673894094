"""A processor without VMX, in a ring below the monitor's: whatever uses the IDT reaches the monitor, and nothing else.

Instructions that neither trap nor are privileged run as on silicon, whatever they show or ignore.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvemu.cpu.deliver import Event, Source
from hvemu.engine.traps import Stop
from hvemu.memory.ept_walk import EptMisconfiguration, EptViolation
from hvemu.vmx.exit import VmExit
from hvemu.vmx.reasons import EventType, Interruption, Reason

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_TYPES = {
    Source.EXCEPTION: EventType.HARDWARE_EXCEPTION,
    Source.NMI: EventType.NMI,
    Source.SOFTWARE_INT: EventType.SOFTWARE_INTERRUPT,
    Source.SOFTWARE_EXCEPTION: EventType.SOFTWARE_EXCEPTION,
    Source.PRIVILEGED: EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
}


_INFORMATION = {
    (source, has_code): int(Interruption(type=kind, error_code_valid=has_code, valid=1))
    for source, kind in _TYPES.items()
    for has_code in (False, True)
}


class Monitored:
    """The Interception of a processor whose IDT is the monitor's. Every gate there has DPL 3, so that INT n arrives."""

    wants_window = wants_nmi_window = False

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu

    def instruction(self, stop: Stop) -> None:
        """Let the processor do what it does."""

    def event(self, event: Event, vectoring: Event | None) -> VmExit | None:
        """Enter the monitor, with what the processor pushes and CR2."""
        assert vectoring is None, f"{event} while {vectoring} was delivered to the monitor"
        information = _INFORMATION[event.source, event.error_code is not None] | event.vector
        length = event.return_rip - self._cpu.state.rip if event.source is not Source.EXCEPTION else 0
        return VmExit(Reason.EXCEPTION_OR_NMI, event.cr2 or 0, length, information, event.error_code or 0)

    def interrupt(self) -> VmExit:
        """Enter the monitor through its gate for the host's timer; the real IF is always 1."""
        vector = self._cpu.interrupts.acknowledge()
        information = Interruption(vector=vector, type=EventType.EXTERNAL_INTERRUPT, valid=1)
        return VmExit(Reason.EXTERNAL_INTERRUPT, interruption_information=int(information))

    def nmi(self) -> None:
        """Nobody drives the NMI pin of such a machine."""

    def nmi_window(self) -> None:
        """Nor does anybody wait for NMIs."""

    def window(self) -> None:
        """Interrupts need no window of their own."""

    def second_level(self, stop: Stop) -> VmExit | None:
        """The shadow maps nothing but the guest's RAM and the monitor's pages."""
        raise AssertionError(f"{stop} outside the machine's memory")

    def ept_fault(self, miss: EptViolation | EptMisconfiguration, vectoring: Event | None) -> VmExit:
        """There is no EPT."""
        raise AssertionError(f"{miss} while {vectoring} was delivered, without EPT")

    def triple_fault(self, chain: str) -> VmExit:
        """Delivery to the monitor does not fail."""
        raise AssertionError(f"triple fault of the monitor: {chain}")
