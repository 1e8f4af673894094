"""No hypervisor: the guest has the machine to itself. The reference for all other techniques."""

from __future__ import annotations

from hvemu.cpu.linear import Linear
from hvemu.cpu.vmx_root import VmxRoot
from hvemu.memory.physical import Physical
from hvemu.techniques.base import RESUME, Outcome
from hvemu.techniques.vm import Vm
from hvemu.vmx.exit import VmExit
from hvemu.x86.state import CpuState, load_state
from hvemu.x86.vectors import Fault


class Bare:
    """The silicon alone. There are no VM exits, unless the guest is a hypervisor itself: then they are its own."""

    name, memory = "bare", "none"
    vm: Vm
    physical: Physical

    def install(self, vm: Vm, boot: CpuState) -> None:
        """Map the guest's RAM at address 0 and put *boot* into the processor."""
        self.vm, self.physical = vm, vm.ram
        self.vmx = VmxRoot(vm.cpu, vm.ram)
        self.vmx.tell = vm.note
        if vm.cpu.rules.offer.vmx:
            vm.cpu.vmx = self.vmx
        load_state(vm.cpu.state, boot)
        vm.cpu.arm()

    def run(self, limit: int) -> VmExit | None:
        """Let the processor run."""
        return self.vm.cpu.run(limit)

    def handle(self, exit_: VmExit) -> Outcome:
        """Give the processor back to the hypervisor in the guest, as a VM exit does."""
        self.vmx.leave(exit_)
        return RESUME

    def inject(self, fault: Fault) -> None:
        """Never happens."""
        raise AssertionError(f"{fault} injected by nobody")

    def tick(self) -> None:
        """The devices interrupt the processor themselves."""
        self.vm.board.advance()
        self.vm.cpu.attention = True

    def wake(self) -> None:
        """The request itself wakes the processor."""
        self.vm.cpu.attention = True

    @property
    def halted(self) -> bool:
        """Whether the processor is in the HLT state."""
        return self.vm.cpu.halted

    @property
    def view(self) -> CpuState:
        """The truth."""
        return self.vm.cpu.state

    @property
    def linear(self) -> Linear:
        """The truth."""
        return self.vm.cpu.memory
