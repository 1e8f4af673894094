"""Interrupts, exceptions and shutdown: what reaches the processor from outside or goes wrong inside."""

from __future__ import annotations

from hvemu.techniques.base import INJECT, RESUME, Outcome, Shutdown
from hvemu.techniques.exits.table import handles
from hvemu.techniques.hardware import Hardware
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import EventType, Interruption, Reason
from hvemu.x86.registers import Dr6
from hvemu.x86.vectors import Fault, Vector

_DR6 = int(Dr6(b=15, bd=1, bs=1))
"""The bits of DR6 that the exit qualification of a #DB has too, at the same places."""


@handles(Reason.EXTERNAL_INTERRUPT, int)
def handle_external_interrupt(vm: Hardware, _qualification: int) -> Outcome:
    """The host's own timer: let the guest's devices reach the present. What they request goes in at VM entry."""
    vm.board.advance()
    vm.requests_changed = True
    return RESUME


@handles(Reason.INTERRUPT_WINDOW, int)
def handle_interrupt_window(vm: Hardware, _qualification: int) -> Outcome:
    """The guest can take an interrupt now: VM entry injects the one that waits."""
    vm.requests_changed = True
    return RESUME


@handles(Reason.EXCEPTION_OR_NMI, int)
def handle_exception(vm: Hardware, qualification: int) -> Outcome:
    """An exception that the bitmap names, or an NMI: give it back to the guest. This hypervisor asks for none itself.

    What an exception turns into that met the delivery of another one is the hypervisor's to find out.
    """
    information = Interruption(vm.vmcs[Field.VM_EXIT_INTERRUPTION_INFORMATION])
    vm.exit.detail = f"vector {information.vector}"
    if information.type is not EventType.HARDWARE_EXCEPTION:
        vm.reflect(information)
        return RESUME
    vector = Vector(information.vector)
    if vector is Vector.DB:
        vm.state.dr6 |= qualification & _DR6
    code = vm.vmcs[Field.VM_EXIT_INTERRUPTION_ERROR_CODE] if information.error_code_valid else None
    return INJECT(Fault(vector, code, cr2=qualification if vector is Vector.PF else None))


@handles(Reason.TRIPLE_FAULT, int)
def handle_triple_fault(vm: Hardware, _qualification: int) -> Outcome:
    """Nothing can follow."""
    raise Shutdown(vm.exit.detail)
