"""A hypervisor that asks for one more kind of exit, from some moment on, and skips the instruction that makes it."""

from __future__ import annotations

from hvemu.techniques.base import Outcome
from hvemu.techniques.hardware import Hardware
from hvemu.vmx.controls import PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Reason

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
    """Sets the control *name* at the guest's first CPUID; exits for *reason* do nothing but end the instruction."""

    def __init__(self, reason: Reason, name: str) -> None:
        super().__init__({reason: lambda vm, _qualification: vm.advance(), Reason.CPUID: self._begin})
        self._field, self._bit = control(name)

    def _begin(self, _vm: Hardware, _qualification: int) -> Outcome:
        self.vmcs[self._field] |= self._bit
        return self.advance()
