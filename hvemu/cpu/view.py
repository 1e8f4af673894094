"""The registers as software believes them to be, where a hypervisor shows it something else than the truth."""

from __future__ import annotations

from typing import Any

from hvemu.vmx import cr_access
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.state import CpuState, Segment


def _through(name: str) -> Any:
    """Return a property that is *name* of the real state."""
    return property(lambda view: getattr(view.real, name), lambda view, value: setattr(view.real, name, value))


class StateView:
    """A CpuState that is *real*, but for what a subclass changes."""

    rip = _through("rip")
    rflags = _through("rflags")
    cr0 = _through("cr0")
    cr2 = _through("cr2")
    cr3 = _through("cr3")
    cr4 = _through("cr4")
    cr8 = _through("cr8")
    efer = _through("efer")
    dr6 = _through("dr6")
    dr7 = _through("dr7")
    ldtr = _through("ldtr")
    tr = _through("tr")
    gdtr = _through("gdtr")
    idtr = _through("idtr")
    cpl = _through("cpl")
    blocking_by_sti_or_mov_ss = _through("blocking_by_sti_or_mov_ss")

    def __init__(self, real: CpuState) -> None:
        self.real = real

    def gpr(self, index: int) -> int:
        """Read a general-purpose register."""
        return self.real.gpr(index)

    def set_gpr(self, index: int, value: int) -> None:
        """Write a general-purpose register."""
        self.real.set_gpr(index, value)

    def dr(self, number: int) -> int:
        """Read DR0 to DR3."""
        return self.real.dr(number)

    def set_dr(self, number: int, value: int) -> None:
        """Write DR0 to DR3."""
        self.real.set_dr(number, value)

    def segment(self, index: int) -> Segment:
        """Read a segment register."""
        return self.real.segment(index)

    def set_segment(self, index: int, value: Segment) -> None:
        """Write a segment register."""
        self.real.set_segment(index, value)

    def retire(self, next_rip: int) -> bool:
        """End the current instruction."""
        return self.real.retire(next_rip)


class ShadowedView(StateView):
    """In VMX non-root operation: CR0 and CR4 behind their masks.

    SDM 3C "Guest/Host Masks and Shadows for CR0 and CR4".
    Reading gives what MOV from CR gives; writing keeps the bits that the host owns.
    """

    def __init__(self, real: CpuState, vmcs: Vmcs) -> None:
        super().__init__(real)
        self._vmcs = vmcs

    @property
    def cr0(self) -> int:
        """CR0 as MOV from CR0 reads it."""
        return cr_access.CR0.read(self._vmcs)

    @cr0.setter
    def cr0(self, value: int) -> None:
        self.real.cr0 = cr_access.CR0.written(self._vmcs, value)

    @property
    def cr4(self) -> int:
        """CR4 as MOV from CR4 reads it."""
        return cr_access.CR4.read(self._vmcs)

    @cr4.setter
    def cr4(self, value: int) -> None:
        self.real.cr4 = cr_access.CR4.written(self._vmcs, value)
