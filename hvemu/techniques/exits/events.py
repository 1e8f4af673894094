"""Interrupts, exceptions and shutdown: what reaches the processor from outside or goes wrong inside."""

from __future__ import annotations

from hvemu.techniques.base import RESUME, Outcome, Shutdown
from hvemu.techniques.exits.table import handles
from hvemu.techniques.hardware import Hardware
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Interruption, Reason


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
    """An exception that the bitmap names: give it back to the guest. This hypervisor asks for none by itself."""
    information = Interruption(vm.vmcs[Field.VM_EXIT_INTERRUPTION_INFORMATION])
    vm.exit.detail = f"vector {information.vector}"
    vm.reflect(information, qualification)
    return RESUME


@handles(Reason.TRIPLE_FAULT, int)
def handle_triple_fault(vm: Hardware, _qualification: int) -> Outcome:
    """Nothing can follow."""
    raise Shutdown(vm.exit.detail)
