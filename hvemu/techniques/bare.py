"""No hypervisor: the guest has the machine to itself. The reference for all other techniques."""

from __future__ import annotations

from hvemu.cpu.linear import Linear
from hvemu.memory.physical import Physical
from hvemu.techniques.base import Outcome
from hvemu.techniques.vm import Vm
from hvemu.vmx.exit import VmExit
from hvemu.x86.state import CpuState, load_state
from hvemu.x86.vectors import Fault


class Bare:
    """The silicon alone. There are no VM exits."""

    name, memory = "bare", "none"
    vm: Vm
    physical: Physical

    def install(self, vm: Vm, boot: CpuState) -> None:
        """Map the guest's RAM at address 0 and put *boot* into the processor."""
        self.vm, self.physical = vm, vm.ram
        vm.engine.second_level.map(0, vm.ram.base, vm.ram.size)
        vm.engine.flush_tlb()
        load_state(vm.cpu.state, boot)
        vm.cpu.arm()

    def run(self, limit: int) -> VmExit | None:
        """Let the processor run."""
        return self.vm.cpu.run(limit)

    def handle(self, exit_: VmExit) -> Outcome:
        """Never happens."""
        raise AssertionError(f"{exit_} on a machine without hypervisor")

    def inject(self, fault: Fault) -> None:
        """Never happens either."""
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
