"""EPT: memory is given to the guest when it first asks for it."""

from __future__ import annotations

from hvemu.techniques.base import RESUME, Outcome, Shutdown
from hvemu.techniques.exits.table import handles
from hvemu.techniques.hardware import Hardware
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import EptViolation, Reason


@handles(Reason.EPT_VIOLATION, EptViolation)
def handle_ept_violation(vm: Hardware, q: EptViolation) -> Outcome:
    """Map the piece of the guest's RAM that was touched, or emulate an access to where there is none."""
    gpa = vm.vmcs[Field.GUEST_PHYSICAL_ADDRESS]
    kind = "fetch" if q.fetch else "write" if q.write else "read"
    if gpa < vm.ram.size:
        vm.exit.detail = f"{kind} at gpa {gpa:#x}: mapped"
        vm.map_ram(gpa)
    else:
        vm.exit.detail = f"{kind} at gpa {gpa:#x}: no RAM there"
        if vm.exit.idt_vectoring:
            raise Shutdown(
                f"{vm.exit.detail}, and an event was being delivered: this hypervisor does not do that by hand"
            )
        vm.emulate_mmio(gpa, q)
    return RESUME


@handles(Reason.EPT_MISCONFIGURATION, int)
def handle_ept_misconfiguration(vm: Hardware, _qualification: int) -> Outcome:
    """No such entry comes from this hypervisor: whoever changed the tables is told what is wrong."""
    raise Shutdown(vm.exit.detail)
