"""CPUID, MSRs, the time-stamp counter: what the guest may know of the processor."""

from __future__ import annotations

from hvemu.techniques.base import Outcome
from hvemu.techniques.exits.table import handles
from hvemu.techniques.hardware import Hardware
from hvemu.vmx.reasons import Reason
from hvemu.x86.cpuid import cpuid
from hvemu.x86.registers import Gpr
from hvemu.x86.vectors import Fault, Vector

_DWORD = 0xFFFF_FFFF


@handles(Reason.CPUID, int)
def handle_cpuid(vm: Hardware, _qualification: int) -> Outcome:
    """Show the processor as it is: the guest may not notice that it has a hypervisor."""
    regs = vm.state.regs
    regs[0], regs[3], regs[1], regs[2] = cpuid(regs[0] & _DWORD, regs[1] & _DWORD, vm.view)
    return vm.advance()


@handles(Reason.RDMSR, int)
def handle_rdmsr(vm: Hardware, _qualification: int) -> Outcome:
    """Read the guest's own MSR. Raises Fault(#GP) for one that does not exist."""
    index = vm.state.gpr(Gpr.RCX) & _DWORD
    value = vm.msrs.read(index)
    vm.state.set_gpr(Gpr.RAX, value & _DWORD)
    vm.state.set_gpr(Gpr.RDX, value >> 32)
    vm.exit.detail = f"MSR {index:#x} is {value:#x}"
    return vm.advance()


@handles(Reason.WRMSR, int)
def handle_wrmsr(vm: Hardware, _qualification: int) -> Outcome:
    """Write the guest's own MSR. Raises Fault(#GP) for a value that the processor would refuse."""
    index = vm.state.gpr(Gpr.RCX) & _DWORD
    value = (vm.state.gpr(Gpr.RDX) & _DWORD) << 32 | vm.state.gpr(Gpr.RAX) & _DWORD
    vm.exit.detail = f"MSR {index:#x} becomes {value:#x}"
    vm.msrs.write(index, value)
    return vm.advance()


@handles(Reason.INVD, int)
@handles(Reason.WBINVD_OR_WBNOINVD, int)
@handles(Reason.PAUSE, int)
def handle_nothing(vm: Hardware, _qualification: int) -> Outcome:
    """Caches and other processors there are none."""
    return vm.advance()


@handles(Reason.HLT, int)
def handle_hlt(vm: Hardware, _qualification: int) -> Outcome:
    """Let the guest sleep until one of its devices interrupts it."""
    vm.asleep = True
    return vm.advance()


@handles(Reason.VMCALL, int)
@handles(Reason.VMCLEAR, int)
@handles(Reason.VMLAUNCH, int)
@handles(Reason.VMPTRLD, int)
@handles(Reason.VMPTRST, int)
@handles(Reason.VMREAD, int)
@handles(Reason.VMRESUME, int)
@handles(Reason.VMWRITE, int)
@handles(Reason.VMXOFF, int)
@handles(Reason.VMXON, int)
@handles(Reason.INVEPT, int)
@handles(Reason.INVVPID, int)
def handle_vmx_instruction(_vm: Hardware, _qualification: int) -> Outcome:
    """Be a processor without VMX, as CPUID says. Raises Fault(#UD)."""
    raise Fault(Vector.UD)
