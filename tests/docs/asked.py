"""A hypervisor that asks for one more kind of exit, and skips the instruction that makes it."""

from __future__ import annotations

from hvemu.techniques.hardware import Hardware
from hvemu.techniques.vm import Vm
from hvemu.vmx.controls import PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Reason
from hvemu.x86.state import CpuState

REGISTERS = {
    PrimaryProcessorBased: Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    SecondaryProcessorBased: Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
}


def control(name: str) -> tuple[Field, int]:
    """Return the field of the control that the manual calls *name*, and its bit."""
    attribute = name.lower().replace(" ", "_").replace("-", "_").replace("/", "")
    (register,) = [r for r in REGISTERS if attribute in r.fields]
    return REGISTERS[register], int(register(**{attribute: 1}))


class Asking(Hardware):
    """Sets the control *name*; exits for *reason* do nothing but end the instruction."""

    def __init__(self, reason: Reason, name: str) -> None:
        super().__init__({reason: lambda vm, _qualification: vm.advance()})
        self._field, self._bit = control(name)

    def install(self, vm: Vm, boot: CpuState) -> None:
        super().install(vm, boot)
        self.vmcs[self._field] |= self._bit
