"""The MSRs of one processor: RDMSR and WRMSR by the rows of the table, wherever each register lives.

Most live here. The emulator keeps those that it consults itself, the processor's state has IA32_EFER and the bases of
FS and GS, and the time-stamp counter is a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from hvemu.cpu import control
from hvemu.engine.layout import MSR_SLOTS
from hvemu.vmx.capabilities import WRITE_BACK
from hvemu.x86 import msrs
from hvemu.x86.cpuid import PLAIN, Offer
from hvemu.x86.msrs import ApicBase, FeatureControl, MtrrDefType
from hvemu.x86.registers import Sreg
from hvemu.x86.segments import truncate
from hvemu.x86.state import CpuState
from hvemu.x86.vectors import Fault, Vector


class Slots(Protocol):
    """The MSRs that the emulator itself consults, by index: those of engine.layout.MSR_SLOTS."""

    def read_msr(self, index: int) -> int:
        """Read all 64 bits."""
        ...

    def write_msr(self, index: int, value: int) -> None:
        """Write all 64 bits."""
        ...


Home = tuple[Callable[[], int], Callable[[int], None]]
"""How to read and write a register that lives elsewhere."""


class MsrFile:
    """MSRs of the processor of *state*, fresh from RESET.

    *clock* returns cycles and never runs backwards; *constants* are read-only MSRs that the table does not know, as
    those that report VMX capabilities. *guest_offset* is added to the time-stamp counter where it is read, in VMX
    non-root operation with "use TSC offsetting"; *writes* counts.
    """

    def __init__(
        self,
        state: CpuState,
        slots: Slots,
        clock: Callable[[], int],
        *,
        offer: Offer = PLAIN,
        constants: Mapping[int, int] | None = None,
    ) -> None:
        self._state, self._slots, self._clock = state, slots, clock
        self._constants = dict(constants or {})
        self._rows = {row.index: row for row in msrs.ROWS if row.needs(offer)}
        self._offer, self._tsc_offset = offer, 0
        self.guest_offset = self.writes = 0
        self._homes: dict[int, Home] = {
            msrs.TSC: (lambda: self.tsc, self._set_tsc),
            msrs.EFER: (lambda: state.efer, self._set_efer),
            msrs.FS_BASE: self._base(Sreg.FS),
            msrs.GS_BASE: self._base(Sreg.GS),
        }
        self._values = {index: row.reset for index, row in self._rows.items() if index not in self._homes}
        for index in MSR_SLOTS:
            slots.write_msr(index, self._values.pop(index))

    def start_as_firmware_does(self) -> None:
        """Leave what kernels find: memory is write-back where no range says otherwise, and VMX is enabled for good."""
        self.write(msrs.MTRR_DEF_TYPE, int(MtrrDefType(type=WRITE_BACK, fe=1, e=1)))
        if self._offer.vmx:
            self.write(msrs.FEATURE_CONTROL, int(FeatureControl(lock=1, vmx_outside_smx=1)))

    # -- RDMSR and WRMSR --------------------------------------------------------------------------------------------

    def read(self, index: int) -> int:
        """Return MSR *index* as RDMSR does. Raises Fault(#GP, 0) for one that is not there."""
        if index in self._values:
            return self._values[index]
        if index in self._homes:
            return self._homes[index][0]()
        if index in MSR_SLOTS:
            return self._slots.read_msr(index)
        if index in self._constants:
            return self._constants[index]
        raise Fault(Vector.GP, 0)

    def write(self, index: int, value: int) -> None:
        """Write MSR *index* as WRMSR does (SDM 2D "WRMSR-Write to Model Specific Register").

        Raises Fault(#GP, 0), and changes nothing then, when there is no such register or it may not hold *value*.
        """
        row = self._rows.get(index)
        stored = None if row is None else row.rule(self.read(index), value)
        if stored is None:
            raise Fault(Vector.GP, 0)
        self._put(index, stored)

    def _put(self, index: int, value: int) -> None:
        self.writes += 1
        if index in self._homes:
            self._homes[index][1](value)
        elif index in MSR_SLOTS:
            self._slots.write_msr(index, value)
        else:
            self._values[index] = value

    # -- homes ------------------------------------------------------------------------------------------------------

    @property
    def tsc(self) -> int:
        """The time-stamp counter, as RDTSC reads it."""
        return truncate(self._clock() + self._tsc_offset + self.guest_offset, 8)

    @property
    def apic_enabled(self) -> bool:
        """Whether IA32_APIC_BASE has the local APIC on; False where there is none."""
        return ApicBase(self._values.get(msrs.APIC_BASE, 0)).enable

    def _set_tsc(self, value: int) -> None:
        self._tsc_offset = value - self._clock()

    def _set_efer(self, value: int) -> None:
        control.write_efer(self._state, value, self._offer)

    def _base(self, sreg: Sreg) -> Home:
        def put(value: int) -> None:
            self._state.set_segment(sreg, replace(self._state.segment(sreg), base=value))

        return (lambda: self._state.segment(sreg).base), put

    # -- snapshots --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return all that does not live in the processor's state, fit for JSON."""
        indexes = (*self._values, *MSR_SLOTS)
        return {"values": {f"{index:#x}": self.read(index) for index in indexes}, "tsc_offset": self._tsc_offset}

    def restore(self, state: dict[str, Any]) -> None:
        """Return to a saved `state` of a processor that offers the same."""
        for index, value in state["values"].items():
            self._put(int(index, 0), value)
        self._tsc_offset = state["tsc_offset"]


def read_counter(_counter: int) -> int:
    """RDPMC. There are no counters, so no number of one is valid. Raises Fault(#GP, 0), whatever CR4.PCE says."""
    raise Fault(Vector.GP, 0)
