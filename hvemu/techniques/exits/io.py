"""Port I/O: the guest's devices are objects of the hypervisor."""

from __future__ import annotations

from hvemu.cpu.port_io import port_io
from hvemu.techniques.base import Outcome
from hvemu.techniques.exits.table import handles
from hvemu.techniques.hardware import Hardware
from hvemu.vmx.reasons import IoInstruction, Reason
from hvemu.x86.registers import Gpr
from hvemu.x86.segments import replace_low, truncate


@handles(Reason.IO_INSTRUCTION, IoInstruction)
def handle_io(vm: Hardware, q: IoInstruction) -> Outcome:
    """Let the device at the port answer; of a repeated string instruction, one item an exit."""
    vm.requests_changed = True
    vm.exit.detail = f"{'IN' if q.in_ else 'OUT'} {q.port:#x}, {q.size} bytes"
    if q.string:
        length = port_io(vm.state, vm.linear, vm.cpu.instruction(), vm.board)
        return vm.advance(length)
    rax = vm.state.gpr(Gpr.RAX)
    if q.in_:
        vm.state.set_gpr(Gpr.RAX, replace_low(rax, vm.board.read(q.port, q.size), q.size))
    else:
        vm.board.write(q.port, q.size, truncate(rax, q.size))
    return vm.advance()
