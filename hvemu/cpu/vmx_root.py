"""The VMX instructions of software at CPL 0, and the way into a guest and back (SDM 3C "VMX Instruction Reference").

While the processor is in root operation this is nobody's Interception: only #UD brings an instruction here, because the
engine decodes none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvemu.cpu.control import Rules
from hvemu.cpu.msr_areas import load_msrs, store_msrs
from hvemu.cpu.nonroot import NonRoot
from hvemu.cpu.operand import checked_gva
from hvemu.cpu.second_dimension import SecondDimension
from hvemu.cpu.tables import long_mode, require
from hvemu.memory.physical import Ram
from hvemu.vmx.capabilities import CR0_FIXED0, CR0_FIXED1, CR4_FIXED0, CR4_FIXED1
from hvemu.vmx.controls import Exit
from hvemu.vmx.entry import EntryFailed
from hvemu.vmx.exit import VmExit, deliver_exit, load_host_state
from hvemu.vmx.fail import VmFail, VmxAbort
from hvemu.vmx.fields import Field
from hvemu.vmx.operation import NO_VMCS, VmxOperation, check_invept, check_invvpid, fail, succeed
from hvemu.vmx.processor import Surroundings
from hvemu.vmx.reasons import EventType, Interruption, Reason
from hvemu.x86 import msrs
from hvemu.x86.cpuid import Offer
from hvemu.x86.instruction import Instruction, Mem, Reg
from hvemu.x86.registers import Cr0, Cr4
from hvemu.x86.segments import replace_low, truncate
from hvemu.x86.state import CpuMode, mode
from hvemu.x86.vectors import Fault, Vector

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_WITHOUT_VMX = frozenset({CpuMode.REAL, CpuMode.VM86, CpuMode.COMPATIBILITY})
_POINTER, _DESCRIPTOR = 8, 16
_OFFER = Offer(vmx=True)
_HOST_MSRS = {
    Field.HOST_IA32_SYSENTER_CS: msrs.SYSENTER_CS,
    Field.HOST_IA32_SYSENTER_ESP: msrs.SYSENTER_ESP,
    Field.HOST_IA32_SYSENTER_EIP: msrs.SYSENTER_EIP,
}


class VmxRoot:
    """VMX operation of *cpu*, whose physical memory is *host*.

    *guest* is what runs in non-root operation now. *why* explains the last failure of a VMX instruction, for a person,
    and *tell* is told of each.
    """

    def __init__(self, cpu: Cpu, host: Ram) -> None:
        self._cpu, self.operation = cpu, VmxOperation(host)
        self._host, self._nonroot = host, dict[int, NonRoot]()
        self._dimension = SecondDimension(cpu, host)
        self._dimension.use(None)
        self.guest: NonRoot | None = None
        self.why = ""
        self.tell: Callable[[str], None] = lambda _why: None
        self._execute: dict[str, Callable[[Instruction], VmExit | None]] = {
            "vmxon": self._vmxon, "vmxoff": self._vmxoff, "vmclear": self._vmclear, "vmptrld": self._vmptrld,
            "vmptrst": self._vmptrst, "vmread": self._vmread, "vmwrite": self._vmwrite, "vmlaunch": self._vmlaunch,
            "vmresume": self._vmlaunch, "vmcall": self._vmcall, "invept": self._invept, "invvpid": self._invvpid,
        }  # fmt: skip

    def instruction(self, instruction: Instruction) -> VmExit | None:
        """Execute *instruction*, which is at RIP and caused #UD; return the exit that a VM entry met, if any.

        Raises Fault(#UD) for everything that is no VMX instruction, or not one here.
        """
        cpu = self._cpu
        execute = self._execute.get(instruction.mnemonic)
        if execute is None:
            raise Fault(Vector.UD)
        self._check_mode(instruction)
        require(cpu.state.cpl == 0, Vector.GP)
        self.why, here = "", cpu.state.rip
        try:
            exit_ = execute(instruction)
        except VmFail as failure:
            self._fail(failure)
            exit_ = None
        if self.guest is None and cpu.state.rip == here:  # neither in a guest now nor back at the host's RIP
            cpu.retire(instruction.length)
        return exit_

    def _check_mode(self, instruction: Instruction) -> None:
        on = self.operation.on if instruction.mnemonic != "vmxon" else Cr4(self._cpu.state.cr4).vmxe
        if not on or mode(self._cpu.state) in _WITHOUT_VMX:
            raise Fault(Vector.UD)

    def _fail(self, failure: VmFail) -> None:
        state, operation = self._cpu.state, self.operation
        vmcs = operation.vmcs if operation.current != NO_VMCS else None
        state.rflags = fail(state.rflags, vmcs, failure)
        self._explain(str(failure))

    def _explain(self, why: str) -> None:
        self.why = why
        self.tell(why)

    def _succeed(self) -> None:
        self._cpu.state.rflags = succeed(self._cpu.state.rflags)

    # -- VMX operation ------------------------------------------------------------------------------------------

    def _vmxon(self, instruction: Instruction) -> None:
        state = self._cpu.state
        if not self.operation.on:
            cr0, cr4 = Cr0(state.cr0), Cr4(state.cr4)
            fixed = not (CR0_FIXED0 & ~cr0 or cr0 & ~CR0_FIXED1 or CR4_FIXED0 & ~cr4 or cr4 & ~CR4_FIXED1)
            control = msrs.FeatureControl(self._cpu.msrs.read(msrs.FEATURE_CONTROL))
            require(fixed and control.lock and control.vmx_outside_smx, Vector.GP)
        self.operation.enter(self._pointer(instruction))
        self._cpu.rules = Rules(_OFFER, CR0_FIXED0, CR4_FIXED0)
        self._succeed()

    def _vmxoff(self, _instruction: Instruction) -> None:
        self.operation.leave()
        self._nonroot.clear()
        self._cpu.rules = Rules(_OFFER)
        self._succeed()

    def _vmcall(self, _instruction: Instruction) -> None:
        raise VmFail(1)

    # -- VMCS ---------------------------------------------------------------------------------------------------

    def _vmclear(self, instruction: Instruction) -> None:
        pointer = self._pointer(instruction)
        self.operation.clear(pointer)
        self._nonroot.pop(pointer, None)
        self._succeed()

    def _vmptrld(self, instruction: Instruction) -> None:
        self.operation.load(self._pointer(instruction))
        self._succeed()

    def _vmptrst(self, instruction: Instruction) -> None:
        gva = checked_gva(self._cpu.state, instruction, _POINTER, write=True)
        self._cpu.memory.write(gva, _POINTER, self.operation.current, user=False)
        self._succeed()

    def _vmread(self, instruction: Instruction) -> None:
        target, source = instruction.operands
        assert isinstance(source, Reg), instruction
        size = instruction.operand_size
        value = truncate(self.operation.vmcs.vmread(truncate(self._cpu.state.gpr(source.index), size)), size)
        if isinstance(target, Reg):
            self._cpu.state.set_gpr(target.index, replace_low(self._cpu.state.gpr(target.index), value, size))
        else:
            gva = checked_gva(self._cpu.state, instruction, size, write=True)
            self._cpu.memory.write(gva, size, value, user=False)
        self._succeed()

    def _vmwrite(self, instruction: Instruction) -> None:
        target, source = instruction.operands
        assert isinstance(target, Reg), instruction
        size = instruction.operand_size
        vmcs = self.operation.vmcs
        if isinstance(source, Reg):
            value = truncate(self._cpu.state.gpr(source.index), size)
        else:
            gva = checked_gva(self._cpu.state, instruction, size, write=False)
            value = self._cpu.memory.read(gva, size, user=False)
        vmcs.vmwrite(truncate(self._cpu.state.gpr(target.index), size), value)
        self._succeed()

    # -- into a guest and back ----------------------------------------------------------------------------------

    def _vmlaunch(self, instruction: Instruction) -> VmExit | None:
        """VMLAUNCH and VMRESUME. After a failure on guest state the host goes on as after a VM exit."""
        cpu, vmcs = self._cpu, self.operation.vmcs
        launch = instruction.mnemonic == "vmlaunch"
        if launch is vmcs.launched:
            raise VmFail(4 if launch else 5)
        nonroot = self._nonroot.get(self.operation.current)
        if nonroot is None:
            nonroot = self._nonroot[self.operation.current] = NonRoot(cpu, vmcs, self._host)
        self.guest = nonroot
        nonroot.take()
        try:
            return nonroot.enter(Surroundings(self._host.read_bytes, long_mode(cpu.state), self.operation.current))
        except EntryFailed as failed:
            self._explain(str(failed))
            self.leave(failed.exit)
            return None
        except VmFail:
            self._return()
            raise

    def leave(self, exit_: VmExit) -> None:
        """Perform VM exit to the host that the current VMCS describes. Raises VmxAbort."""
        cpu, vmcs, guest = self._cpu, self.operation.vmcs, self.guest
        assert guest is not None, f"{exit_} without a guest"
        if exit_.entry_failure:  # nothing else of the VMCS changes
            deliver_exit(vmcs, cpu.state, exit_)
        else:
            guest.leave(exit_)
            store_msrs(cpu, self._host, vmcs)
        nmi = exit_.reason is Reason.EXCEPTION_OR_NMI and Interruption(exit_.interruption_information)
        self._return()
        load_host_state(vmcs, cpu.state)
        for field, index in _HOST_MSRS.items():
            cpu.msrs.write(index, vmcs[field])
        if Exit(vmcs[Field.VM_EXIT_CONTROLS]).load_ia32_pat:
            cpu.msrs.write(msrs.PAT, vmcs[Field.HOST_IA32_PAT])
        if load_msrs(cpu, self._host, vmcs):
            raise VmxAbort(4, "the MSR-load area of VM exit cannot be loaded")
        cpu.block_nmi(bool(nmi and nmi.type is EventType.NMI))

    def _return(self) -> None:
        """Give the processor back to root operation."""
        cpu, self.guest = self._cpu, None
        cpu.interception, cpu.view, cpu.wanted = None, cpu.state, frozenset()
        cpu.rules = Rules(_OFFER, CR0_FIXED0, CR4_FIXED0)
        cpu.virtual_nmis, cpu.iret_unblocks_nmis, cpu.msrs.guest_offset = False, True, 0
        self._dimension.use(None)
        cpu.arm()
        cpu.attention = True

    # -- translations -------------------------------------------------------------------------------------------

    def _invept(self, instruction: Instruction) -> None:
        kind, descriptor = self._invalidation(instruction)
        check_invept(kind, descriptor)
        for nonroot in self._nonroot.values():
            nonroot.invalidate()
        self._succeed()

    def _invvpid(self, instruction: Instruction) -> None:
        check_invvpid(*self._invalidation(instruction))
        self._cpu.engine.flush_tlb()
        self._succeed()

    def _invalidation(self, instruction: Instruction) -> tuple[int, int]:
        """Return the type in the register and the 128-bit descriptor in memory."""
        register, operand = instruction.operands
        assert isinstance(register, Reg), instruction
        assert isinstance(operand, Mem), instruction
        gva = checked_gva(self._cpu.state, instruction, _DESCRIPTOR, write=False)
        descriptor = int.from_bytes(self._cpu.memory.read_bytes(gva, _DESCRIPTOR, user=False), "little")
        return truncate(self._cpu.state.gpr(register.index), instruction.operand_size), descriptor

    def _pointer(self, instruction: Instruction) -> int:
        """Return the physical address in the 8-byte memory operand."""
        gva = checked_gva(self._cpu.state, instruction, _POINTER, write=False)
        return self._cpu.memory.read(gva, _POINTER, user=False)
