"""VMX non-root operation: a VMCS decides what leaves the guest (SDM 3C "VMX Non-Root Operation")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvemu.cpu.control import check_dr_write, check_umip
from hvemu.cpu.deliver import Event, Source
from hvemu.cpu.emulate import source
from hvemu.cpu.exit_information import address_size, displacement, information
from hvemu.cpu.io_permission import check_io
from hvemu.cpu.operand import operand_gva
from hvemu.cpu.port_io import describe
from hvemu.cpu.second_dimension import Miss, SecondDimension
from hvemu.cpu.transition import SOURCES, Transition
from hvemu.cpu.view import ShadowedView
from hvemu.engine.traps import Kind, Stop
from hvemu.memory.ept_walk import EptMisconfiguration, EptViolation
from hvemu.memory.physical import Physical, Ram
from hvemu.vmx import cr_access, intercepts
from hvemu.vmx.controls import PrimaryProcessorBased
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import UNKNOWN, Surroundings
from hvemu.vmx.reasons import DebugException, EventType, IdtVectoring, IoInstruction, Reason, StringInformation
from hvemu.vmx.reasons import EptViolation as Qualification
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.instruction import Mem, Reg, RegKind
from hvemu.x86.registers import Cr0, Dr6, Dr7, Gpr, Rflags
from hvemu.x86.segments import truncate
from hvemu.x86.state import CpuMode, mode
from hvemu.x86.vectors import Fault, Vector

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_TYPES = {kind: event_type for event_type, kind in SOURCES.items()}
_SIMPLE = {
    Kind.HLT: Reason.HLT,
    Kind.INVD: Reason.INVD,
    Kind.WBINVD: Reason.WBINVD_OR_WBNOINVD,
    Kind.PAUSE: Reason.PAUSE,
    Kind.RDPMC: Reason.RDPMC,
    Kind.CPUID: Reason.CPUID,
}
_TABLES = {
    **dict.fromkeys((Kind.GDTR_READ, Kind.IDTR_READ, Kind.GDTR_WRITE, Kind.IDTR_WRITE), Reason.ACCESS_TO_GDTR_OR_IDTR),
    **dict.fromkeys((Kind.LDTR_READ, Kind.TR_READ, Kind.LDTR_WRITE, Kind.TR_WRITE), Reason.ACCESS_TO_LDTR_OR_TR),
}
_STORES = frozenset({Kind.GDTR_READ, Kind.IDTR_READ, Kind.LDTR_READ, Kind.TR_READ})
_NEVER = frozenset({Source.EXTERNAL, Source.NMI, Source.SOFTWARE_INT})
_VMX = {
    "vmcall": Reason.VMCALL, "vmclear": Reason.VMCLEAR, "vmlaunch": Reason.VMLAUNCH, "vmptrld": Reason.VMPTRLD,
    "vmptrst": Reason.VMPTRST, "vmread": Reason.VMREAD, "vmresume": Reason.VMRESUME, "vmwrite": Reason.VMWRITE,
    "vmxoff": Reason.VMXOFF, "vmxon": Reason.VMXON, "invept": Reason.INVEPT, "invvpid": Reason.INVVPID,
}  # fmt: skip
_OF_KERNELS = {"monitor": Reason.MONITOR, "mwait": Reason.MWAIT}
_DEBUG = int(DebugException(b=15, bd=1, bs=1))
_DWORD = 0xFFFF_FFFF
_PRIMARY = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_WITHOUT_VMX = frozenset({CpuMode.REAL, CpuMode.VM86, CpuMode.COMPATIBILITY})
_MOV_DR = int(PrimaryProcessorBased(mov_dr_exiting=1))
_DB = 1 << Vector.DB
_DR6, _BS = 6, int(Dr6(bs=1))


class NonRoot:
    """The Interception of a processor in VMX non-root operation under *vmcs*, whose EPT lies in *host* memory."""

    def __init__(self, cpu: Cpu, vmcs: Vmcs, host: Ram) -> None:
        self._cpu, self._vmcs, self._host = cpu, vmcs, host
        self._dimension = SecondDimension(cpu, host)
        self._transition = Transition(cpu, vmcs, self._dimension)
        self._dr6 = 0
        self.take()
        self._decide: dict[Kind, Callable[[Stop], VmExit | None]] = {
            Kind.RDTSC: self._rdtsc,
            Kind.CR_READ: self._cr_read,
            Kind.CR_WRITE: self._cr_write,
            Kind.DR_READ: self._mov_dr,
            Kind.DR_WRITE: self._mov_dr,
            Kind.MSR: self._msr,
            Kind.IO: self._io,
            Kind.INVLPG: self._invlpg,
            Kind.EXCEPTION: self._undefined,
            **dict.fromkeys(_TABLES, self._table),
            **{kind: self._simple(reason) for kind, reason in _SIMPLE.items()},
        }

    def take(self) -> None:
        """Take the processor into non-root operation: from now on it asks here."""
        self._cpu.interception, self._cpu.view = self, ShadowedView(self._cpu.state, self._vmcs)

    @property
    def physical(self) -> Physical:
        """Memory by guest-physical address, through EPT."""
        return self._dimension.physical

    @property
    def wants_window(self) -> bool:
        """The "interrupt-window exiting" control, as of the last VM entry."""
        return self._transition.wants_window

    @property
    def wants_nmi_window(self) -> bool:
        """The "NMI-window exiting" control."""
        return self._transition.wants_nmi_window

    def enter(self, around: Surroundings = UNKNOWN) -> VmExit | None:
        """Perform VM entry: VMLAUNCH or VMRESUME by the VMCS's launch state, and inject the event that waits in it.

        Clauses on what *around* leaves open are not judged, and without memory to read no MSRs are loaded.
        Return the VM exit that the injection met, or None: the guest is ready to run. Raises VmFail, EntryFailed.
        """
        event = self._transition.enter(around)
        if self._vmcs.values[Field.EXCEPTION_BITMAP] & _DB:
            self._dr6 = self._cpu.state.dr6
        return None if event is None else self._transition.deliver(event)

    def leave(self, exit_: VmExit) -> None:
        """Perform VM exit, but for loading host state."""
        self._transition.leave(exit_)

    def invalidate(self) -> None:
        """Forget every translation through EPT, as INVEPT does."""
        self._dimension.invalidate()

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
            return cr_access.lmsw(vmcs, truncate(value, 2), instruction.length, gva=gva)
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
        cpu, instruction = self._cpu, self._cpu.instruction()
        from_dr = stop.kind is Kind.DR_READ
        operand = instruction.operands[0 if from_dr else -1]
        assert isinstance(operand, Reg), instruction
        exit_ = intercepts.mov_dr(self._vmcs, stop.detail, operand.index, instruction.length, from_dr=from_dr)
        if exit_ is None and not from_dr and not Dr7(cpu.state.dr7).gd:
            number, value = check_dr_write(cpu.state, stop.detail, source(cpu, instruction))
            self._dr6 = value if number == _DR6 else self._dr6
        return exit_

    def _table(self, stop: Stop) -> VmExit | None:
        """Decide about LGDT, SIDT, LTR and the like, after UMIP, which is a matter of privilege."""
        cpu, instruction = self._cpu, self._cpu.instruction()
        if stop.kind in _STORES:
            check_umip(cpu.state)
        return intercepts.instruction(
            self._vmcs, _TABLES[stop.kind], instruction.length, qualification=displacement(cpu.state, instruction),
            information=information(cpu.state, instruction),
        )  # fmt: skip

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
        string = 0
        if access.string:
            assert access.segment is not None
            string = int(StringInformation(address_size=address_size(instruction), segment=access.segment))
        return intercepts.io(
            self._vmcs, qualification, instruction.length, self._host.read, linear=access.gva, information=string
        )

    def _invlpg(self, _stop: Stop) -> VmExit | None:
        instruction = self._cpu.instruction()
        gva = operand_gva(self._cpu.state, instruction)
        return intercepts.instruction(self._vmcs, Reason.INVLPG, instruction.length, qualification=gva)

    def _undefined(self, _stop: Stop) -> VmExit | None:
        """Decide about what the engine does not decode.

        VMX instructions leave the guest at any CPL, and only VMCALL in every mode (SDM 3C "VMX Instruction Reference").
        """
        state, instruction = self._cpu.state, self._cpu.instruction()
        reason = _VMX.get(instruction.mnemonic)
        if reason is None:
            reason = _OF_KERNELS.get(instruction.mnemonic) if state.cpl == 0 else None
        elif reason is not Reason.VMCALL and mode(state) in _WITHOUT_VMX:
            reason = None
        if reason is None:
            return None
        return intercepts.instruction(
            self._vmcs, reason, instruction.length, qualification=displacement(state, instruction),
            information=information(state, instruction),
        )  # fmt: skip

    # -- events -------------------------------------------------------------------------------------------------

    def event(self, event: Event, vectoring: Event | None) -> VmExit | None:
        """Decide about an exception by the exception bitmap; interrupts of the guest's own are never intercepted."""
        if event.source in _NEVER:
            return None
        fault = event.fault or Fault(Vector(event.vector))
        if fault.vector is Vector.GP and self._vmcs.values[_PRIMARY] & _MOV_DR and (exit_ := self._unprivileged()):
            return exit_
        debug = self._debug() if event.source is Source.EXCEPTION and fault.vector is Vector.DB else 0
        length = event.return_rip - self._cpu.state.rip if event.source is not Source.EXCEPTION else 0
        exit_ = intercepts.exception(self._vmcs, fault, kind=_TYPES[event.source], length=length, debug=debug)
        if exit_ is None:
            return None
        if fault.vector is Vector.DB:
            self._cpu.state.dr6 = self._dr6
        self._save_flags(event)
        if vectoring is not None and fault.vector is not Vector.DF:
            self._record(exit_, vectoring)
        return exit_

    def _unprivileged(self) -> VmExit | None:
        """MOV DR leaves the guest at any CPL (SDM 3C "Instructions That Cause VM Exits Conditionally")."""
        instruction = self._cpu.instruction()
        dr = [n for n, o in enumerate(instruction.operands) if isinstance(o, Reg) and o.kind is RegKind.DR]
        if not dr or self._cpu.state.cpl == 0:
            return None
        register, gpr = instruction.operands[dr[0]], instruction.operands[1 - dr[0]]
        assert isinstance(register, Reg)
        assert isinstance(gpr, Reg)
        return intercepts.mov_dr(self._vmcs, register.index, gpr.index, instruction.length, from_dr=dr[0] == 1)

    def _debug(self) -> int:
        """Return the qualification of a #DB: what is new in DR6 (SDM 3C "Exit Qualification")."""
        state = self._cpu.state
        found = state.dr6 & _DEBUG
        new = found & ~self._dr6 | (found & _BS if Rflags(state.rflags).tf else 0)
        return new or found

    def _record(self, exit_: VmExit, vectoring: Event) -> None:
        """Record the event whose delivery met *exit_* (SDM 3C "Information for VM Exits That Occur During Event
        Delivery").
        """
        kind = _TYPES[vectoring.source]
        has_code = vectoring.error_code is not None and bool(Cr0(self._cpu.state.cr0).pe)
        vector = IdtVectoring(vector=vectoring.vector, type=kind, error_code_valid=has_code, valid=1)
        exit_.idt_vectoring, exit_.idt_error_code = int(vector), (vectoring.error_code or 0) if has_code else 0
        if kind >= EventType.SOFTWARE_INTERRUPT:
            exit_.instruction_length = vectoring.return_rip - self._cpu.state.rip

    def _save_flags(self, event: Event) -> None:
        """Set RF as the frame of *event* would have it (SDM 3C "Saving RIP, RSP, RFLAGS, and SSP")."""
        state = self._cpu.state
        state.rflags = event.flags_image(state.rflags)

    def interrupt(self) -> VmExit | None:
        """Decide about the external interrupt that is pending; an open window comes first."""
        return self.window() or intercepts.external_interrupt(self._vmcs, self._cpu.interrupts.acknowledge)

    def nmi(self) -> VmExit | None:
        """Decide about an NMI."""
        return intercepts.nmi(self._vmcs)

    def nmi_window(self) -> VmExit | None:
        """Decide now that nothing blocks NMIs."""
        self._transition.note_blocking()
        return intercepts.nmi_window(self._vmcs)

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
        try:
            return self._dimension.stopped(stop)
        except (EptViolation, EptMisconfiguration) as miss:
            return self.ept_fault(miss, None)

    def ept_fault(self, miss: Miss, vectoring: Event | None) -> VmExit:
        """Return the VM exit of *miss*, met by an access of the guest or while *vectoring* was delivered."""
        if isinstance(miss, EptMisconfiguration):
            exit_ = intercepts.ept_misconfiguration(miss.gpa)
        else:
            known = miss.gva is not None
            qualification = Qualification(
                read=miss.access.read, write=miss.access.write, fetch=miss.access.fetch, readable=miss.rights.read,
                writable=miss.rights.write, executable=miss.rights.execute, linear_valid=known,
                linear_is_gpa=known and miss.final,
            )  # fmt: skip
            exit_ = intercepts.ept_violation(int(qualification), miss.gpa, miss.gva)
        exit_.detail = str(miss)
        if vectoring is not None:
            self._record(exit_, vectoring)
            self._save_flags(vectoring)
        return exit_
