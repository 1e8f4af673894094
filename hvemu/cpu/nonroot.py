"""VMX non-root operation: a VMCS decides what leaves the guest (SDM 3C "VMX Non-Root Operation")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvemu.cpu.deliver import Event, Source
from hvemu.cpu.emulate import source
from hvemu.cpu.io_permission import check_io
from hvemu.cpu.memory import PagedMemory
from hvemu.cpu.operand import operand_gva
from hvemu.cpu.port_io import describe
from hvemu.cpu.reach import reach
from hvemu.cpu.view import ShadowedView
from hvemu.engine.second_level import SecondLevelCode
from hvemu.engine.traps import Kind, Stop
from hvemu.memory.ept import EptPaging
from hvemu.memory.ept_walk import EptAccess, EptMisconfiguration, EptViolation, walk_ept
from hvemu.memory.nested import NestedPhysical
from hvemu.memory.physical import Physical
from hvemu.vmx import cr_access, intercepts
from hvemu.vmx.controls import EptPointer, PrimaryProcessorBased
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import (
    DebugException,
    EventType,
    IdtVectoring,
    IoInstruction,
    Reason,
    StringInformation,
)
from hvemu.vmx.reasons import (
    EptViolation as Qualification,
)
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.instruction import Mem, Reg
from hvemu.x86.registers import Gpr
from hvemu.x86.vectors import Fault, Vector

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_TYPES = {
    Source.EXTERNAL: EventType.EXTERNAL_INTERRUPT,
    Source.NMI: EventType.NMI,
    Source.EXCEPTION: EventType.HARDWARE_EXCEPTION,
    Source.SOFTWARE_INT: EventType.SOFTWARE_INTERRUPT,
    Source.SOFTWARE_EXCEPTION: EventType.SOFTWARE_EXCEPTION,
    Source.PRIVILEGED: EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
}
_SIMPLE = {
    Kind.HLT: Reason.HLT,
    Kind.INVD: Reason.INVD,
    Kind.WBINVD: Reason.WBINVD_OR_WBNOINVD,
    Kind.PAUSE: Reason.PAUSE,
    Kind.RDPMC: Reason.RDPMC,
    Kind.MONITOR: Reason.MONITOR,
    Kind.MWAIT: Reason.MWAIT,
}
_ADDRESS_SIZES = {2: 0, 4: 1, 8: 2}
_NEVER = frozenset({Source.EXTERNAL, Source.NMI, Source.SOFTWARE_INT})
_VMX = {
    "vmcall": Reason.VMCALL, "vmclear": Reason.VMCLEAR, "vmlaunch": Reason.VMLAUNCH, "vmptrld": Reason.VMPTRLD,
    "vmptrst": Reason.VMPTRST, "vmread": Reason.VMREAD, "vmresume": Reason.VMRESUME, "vmwrite": Reason.VMWRITE,
    "vmxoff": Reason.VMXOFF, "vmxon": Reason.VMXON, "invept": Reason.INVEPT, "invvpid": Reason.INVVPID,
}  # fmt: skip
_DEBUG = int(DebugException(b=15, bd=1, bs=1))
_DWORD = 0xFFFF_FFFF
_PAGE, _LARGE = 0x1000, 0x20_0000


class NonRoot:
    """The Interception of a processor in VMX non-root operation under *vmcs*, whose EPT lies in *host* memory.

    *wants_window*: the "interrupt-window exiting" control, as of the last `controls_changed`.
    """

    def __init__(self, cpu: Cpu, vmcs: Vmcs, host: Physical) -> None:
        self._cpu, self._vmcs, self._host = cpu, vmcs, host
        self.wants_window = False
        pointer = EptPointer(vmcs[Field.EPT_POINTER])
        self.ept = EptPaging(pointer.frame * _PAGE, accessed_dirty=pointer.enable_accessed_dirty)
        self.physical = NestedPhysical(self.ept, host)
        cpu.interception, cpu.view = self, ShadowedView(cpu.state, vmcs)
        cpu.memory, cpu.physical = PagedMemory(cpu.state, self.physical), self.physical
        self._decide: dict[Kind, Callable[[Stop], VmExit | None]] = {
            Kind.CPUID: lambda _stop: VmExit(Reason.CPUID, 0, cpu.instruction().length),
            Kind.RDTSC: self._rdtsc,
            Kind.CR_READ: self._cr_read,
            Kind.CR_WRITE: self._cr_write,
            Kind.DR_READ: self._mov_dr,
            Kind.DR_WRITE: self._mov_dr,
            Kind.MSR: self._msr,
            Kind.IO: self._io,
            Kind.INVLPG: self._invlpg,
            Kind.EXCEPTION: self._undefined,
            **{kind: self._simple(reason) for kind, reason in _SIMPLE.items()},
        }

    def controls_changed(self) -> None:
        """Arm the processor for the controls, which were written since the last VM entry."""
        primary = PrimaryProcessorBased(self._vmcs[Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS])
        self.wants_window = primary.interrupt_window_exiting
        wanted = set()
        if primary.invlpg_exiting:
            wanted.add(Kind.INVLPG)
        if primary.mov_dr_exiting:
            wanted.add(Kind.DR_READ)
        if primary.cr3_store_exiting or self._vmcs[Field.CR0_GUEST_HOST_MASK] or self._vmcs[Field.CR4_GUEST_HOST_MASK]:
            wanted.add(Kind.CR_READ)
        if frozenset(wanted) != self._cpu.wanted:
            self._cpu.wanted = frozenset(wanted)
            self._cpu.arm()
        self._cpu.attention = True

    # -- instructions -------------------------------------------------------------------------------------------

    def instruction(self, stop: Stop) -> VmExit | None:
        """Decide about the instruction at RIP."""
        decide = self._decide.get(stop.kind)
        return None if decide is None else decide(stop)

    def _simple(self, reason: Reason) -> Callable[[Stop], VmExit | None]:
        return lambda _stop: intercepts.instruction(self._vmcs, reason, self._cpu.instruction().length)

    def _rdtsc(self, _stop: Stop) -> VmExit | None:
        instruction = self._cpu.instruction()
        reason = Reason.RDTSCP if instruction.mnemonic == "rdtscp" else Reason.RDTSC
        return intercepts.instruction(self._vmcs, reason, instruction.length)

    def _msr(self, stop: Stop) -> VmExit | None:
        index = self._cpu.state.regs[Gpr.RCX] & _DWORD
        length = self._cpu.instruction().length
        return intercepts.msr(self._vmcs, index, length, self._host.read, write=bool(stop.detail))

    def _cr_write(self, stop: Stop) -> VmExit | None:
        cpu, vmcs = self._cpu, self._vmcs
        instruction = cpu.instruction()
        if instruction.mnemonic == "clts":
            return cr_access.clts(vmcs, instruction.length)
        value = source(cpu, instruction)
        operand = instruction.operands[-1]
        if instruction.mnemonic == "lmsw":
            gva = operand_gva(cpu.state, instruction) if isinstance(operand, Mem) else None
            return cr_access.lmsw(vmcs, value, instruction.length, gva=gva)
        assert isinstance(operand, Reg), instruction
        return cr_access.mov_to_cr(vmcs, stop.detail, value, operand.index, instruction.length)

    def _cr_read(self, stop: Stop) -> VmExit | None:
        instruction = self._cpu.instruction()
        if instruction.mnemonic == "smsw":
            return None
        operand = instruction.operands[0]
        assert isinstance(operand, Reg), instruction
        return cr_access.mov_from_cr(self._vmcs, stop.detail, operand.index, instruction.length)

    def _mov_dr(self, stop: Stop) -> VmExit | None:
        instruction = self._cpu.instruction()
        from_dr = stop.kind is Kind.DR_READ
        operand = instruction.operands[0 if from_dr else -1]
        assert isinstance(operand, Reg), instruction
        return intercepts.mov_dr(self._vmcs, stop.detail, operand.index, instruction.length, from_dr=from_dr)

    def _io(self, _stop: Stop) -> VmExit | None:
        """Decide about port I/O; the checks of IOPL and the TSS come first (SDM 3C "Relative Priority of Faults and VM
        Exits").
        """
        cpu = self._cpu
        instruction = cpu.instruction()
        access = describe(cpu.state, instruction)
        check_io(cpu.state, cpu.memory, access.port, access.size)
        qualification = IoInstruction(
            size_code=access.size - 1, in_=access.input, string=access.string, rep=access.rep,
            immediate=access.immediate, port=access.port,
        )  # fmt: skip
        information = 0
        if access.string:
            assert access.segment is not None
            size = _ADDRESS_SIZES[instruction.address_size]
            information = int(StringInformation(address_size=size, segment=access.segment))
        return intercepts.io(
            self._vmcs, qualification, instruction.length, self._host.read, linear=access.gva, information=information
        )

    def _invlpg(self, _stop: Stop) -> VmExit | None:
        instruction = self._cpu.instruction()
        gva = operand_gva(self._cpu.state, instruction)
        return intercepts.instruction(self._vmcs, Reason.INVLPG, instruction.length, qualification=gva)

    def _undefined(self, _stop: Stop) -> VmExit | None:
        """VMX instructions, which the engine does not decode. They leave the guest at any CPL."""
        instruction = self._cpu.instruction()
        reason = _VMX.get(instruction.mnemonic)
        return None if reason is None else intercepts.instruction(self._vmcs, reason, instruction.length)

    # -- events -------------------------------------------------------------------------------------------------

    def event(self, event: Event, vectoring: Event | None) -> VmExit | None:
        """Decide about an exception by the exception bitmap; interrupts of the guest's own are never intercepted."""
        if event.source in _NEVER:
            return None
        fault = event.fault or Fault(Vector(event.vector))
        debug = int(DebugException(self._cpu.state.dr6 & _DEBUG)) if fault.vector is Vector.DB else 0
        length = event.return_rip - self._cpu.state.rip if event.source is not Source.EXCEPTION else 0
        exit_ = intercepts.exception(self._vmcs, fault, kind=_TYPES[event.source], length=length, debug=debug)
        if exit_ is not None and vectoring is not None:
            self._record(exit_, vectoring)
        return exit_

    def _record(self, exit_: VmExit, vectoring: Event) -> None:
        """Record the event whose delivery met *exit_* (SDM 3C "Information for VM Exits That Occur During Event
        Delivery").
        """
        kind = _TYPES[vectoring.source]
        has_code = vectoring.error_code is not None
        information = IdtVectoring(vector=vectoring.vector, type=kind, error_code_valid=has_code, valid=1)
        exit_.idt_vectoring, exit_.idt_error_code = int(information), vectoring.error_code or 0
        if kind >= EventType.SOFTWARE_INTERRUPT:
            exit_.instruction_length = vectoring.return_rip - self._cpu.state.rip

    def interrupt(self) -> VmExit | None:
        """Decide about the external interrupt that is pending."""
        return intercepts.external_interrupt(self._vmcs, self._cpu.interrupts.acknowledge)

    def nmi(self) -> VmExit | None:
        """Decide about an NMI."""
        return intercepts.nmi(self._vmcs)

    def window(self) -> VmExit | None:
        """Decide now that the interrupt window is open."""
        return intercepts.interrupt_window(self._vmcs, self._cpu.state)

    def triple_fault(self, chain: str) -> VmExit:
        """Report shutdown."""
        exit_ = intercepts.triple_fault()
        exit_.detail = chain
        return exit_

    # -- EPT ----------------------------------------------------------------------------------------------------

    def second_level(self, stop: Stop) -> VmExit | None:
        """Walk EPT for the engine, which keeps the result; report what the walk cannot translate."""
        code = SecondLevelCode(stop.error_code)
        access = EptAccess(read=not code.wr and not code.id, write=code.wr, fetch=code.id)
        try:
            walked = walk_ept(self.ept, self._host.read, stop.address, access, self._host.write)
        except (EptViolation, EptMisconfiguration) as miss:
            return self.ept_fault(miss, None)
        size = min(walked.page_size, _LARGE)
        offset = stop.address % size
        place = (stop.address - offset, walked.hpa - offset, size)
        try:
            self._cpu.engine.second_level.map(*place, writable=bool(walked.rights.write))
        except MemoryError:
            self.invalidate()
            self._cpu.engine.second_level.map(*place, writable=bool(walked.rights.write))
        return None

    def ept_fault(self, miss: EptViolation | EptMisconfiguration, vectoring: Event | None) -> VmExit:
        """Return the VM exit of *miss*, met by an access of the guest or while *vectoring* was delivered."""
        if isinstance(miss, EptMisconfiguration):
            exit_ = intercepts.ept_misconfiguration(miss.gpa)
        else:
            gva, final = (
                reach(self._cpu, miss.gpa, fetch=bool(miss.access.fetch)) if vectoring is None else (None, False)
            )
            qualification = Qualification(
                read=miss.access.read, write=miss.access.write, fetch=miss.access.fetch, readable=miss.rights.read,
                writable=miss.rights.write, executable=miss.rights.execute, linear_valid=gva is not None,
                linear_is_gpa=final,
            )  # fmt: skip
            exit_ = intercepts.ept_violation(int(qualification), miss.gpa, gva)
        exit_.detail = str(miss)
        if vectoring is not None:
            self._record(exit_, vectoring)
        return exit_

    def invalidate(self) -> None:
        """Forget every translation through EPT, as INVEPT does."""
        self.physical.flush()
        self._cpu.engine.second_level.clear()
        self._cpu.engine.flush_tlb()
