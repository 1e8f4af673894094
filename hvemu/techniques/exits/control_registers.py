"""Control registers whose bits the hypervisor shares with the guest."""

from __future__ import annotations

from hvemu.cpu import control
from hvemu.techniques.base import Outcome
from hvemu.techniques.exits.table import handles
from hvemu.techniques.hardware import Hardware
from hvemu.vmx.reasons import CrAccess, Reason


@handles(Reason.CR_ACCESS, CrAccess)
def handle_cr_access(vm: Hardware, q: CrAccess) -> Outcome:
    """Give the guest the register that it wants, and the processor the bits that VMX needs besides.

    Raises Fault(#GP) for a value that the processor would refuse.
    """
    view = vm.guest_view
    if q.kind is CrAccess.Kind.CLTS:
        control.clts(view)
    elif q.kind is CrAccess.Kind.LMSW:
        control.lmsw(view, q.lmsw_source, vm.ram.read)
    elif q.kind is CrAccess.Kind.MOV_FROM_CR:
        vm.state.set_gpr(q.gpr, {3: view.cr3, 8: view.cr8}[q.cr])
    else:
        value = vm.state.gpr(q.gpr)
        vm.exit.detail = f"CR{q.cr} becomes {value:#x}"
        control.write_cr(view, q.cr, value, vm.ram.read)
    return vm.advance()
