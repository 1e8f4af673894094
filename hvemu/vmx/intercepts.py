"""Whether an instruction or event in VMX non-root operation causes a VM exit, and which.

Each function returns the VmExit, or None when the guest goes on (SDM 3C "Instructions That Cause VM Exits
Conditionally" and "Other Causes of VM Exits"). Faults that come before the VM exit, such as #GP for CPL, are the
caller's (SDM 3C "Relative Priority of Faults and VM Exits").
"""

from __future__ import annotations

from collections.abc import Callable

from hvemu.vmx.controls import Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import DrAccess, EventType, Interruptibility, Interruption, IoInstruction, Reason
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.registers import Cr0, Rflags
from hvemu.x86.state import CpuState
from hvemu.x86.vectors import Fault, Vector

ReadMemory = Callable[[int, int], int]
"""read(hpa, size in bytes) -> value"""

_PIN = Field.PIN_BASED_VM_EXECUTION_CONTROLS
_PRIMARY = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_SECONDARY = Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_ACTIVATE_SECONDARY = int(PrimaryProcessorBased(activate_secondary_controls=1))

# SDM 3C "Instructions That Cause VM Exits Unconditionally". VMREAD and VMWRITE are here because VMCS shadowing is
# not offered.
UNCONDITIONAL = frozenset({
    Reason.CPUID, Reason.GETSEC, Reason.INVD, Reason.XSETBV, Reason.INVEPT, Reason.INVVPID, Reason.VMCALL,
    Reason.VMCLEAR, Reason.VMLAUNCH, Reason.VMPTRLD, Reason.VMPTRST, Reason.VMREAD, Reason.VMRESUME, Reason.VMWRITE,
    Reason.VMXOFF, Reason.VMXON, Reason.TASK_SWITCH,
})  # fmt: skip
# Exits exactly when the control is 1.
_IF_PRIMARY: dict[Reason, int] = {
    Reason.HLT: PrimaryProcessorBased(hlt_exiting=1),
    Reason.INVLPG: PrimaryProcessorBased(invlpg_exiting=1),
    Reason.MWAIT: PrimaryProcessorBased(mwait_exiting=1),
    Reason.RDPMC: PrimaryProcessorBased(rdpmc_exiting=1),
    Reason.RDTSC: PrimaryProcessorBased(rdtsc_exiting=1),
    Reason.RDTSCP: PrimaryProcessorBased(rdtsc_exiting=1),
    Reason.MOV_DR: PrimaryProcessorBased(mov_dr_exiting=1),
    Reason.MONITOR: PrimaryProcessorBased(monitor_exiting=1),
    Reason.PAUSE: PrimaryProcessorBased(pause_exiting=1),
}
_IF_SECONDARY: dict[Reason, int] = {
    Reason.ACCESS_TO_GDTR_OR_IDTR: SecondaryProcessorBased(descriptor_table_exiting=1),
    Reason.ACCESS_TO_LDTR_OR_TR: SecondaryProcessorBased(descriptor_table_exiting=1),
    Reason.WBINVD_OR_WBNOINVD: SecondaryProcessorBased(wbinvd_exiting=1),
    Reason.RDRAND: SecondaryProcessorBased(rdrand_exiting=1),
    Reason.RDSEED: SecondaryProcessorBased(rdseed_exiting=1),
}
# SDM 3C "Changes to Instruction Behavior in VMX Non-Root Operation": #UD while the control is 0.
_ENABLED_BY: dict[Reason, int] = {Reason.RDTSCP: SecondaryProcessorBased(enable_rdtscp=1)}


def secondary(vmcs: Vmcs) -> int:
    """Return the secondary controls as they act: all 0 unless the primary controls activate them."""
    return vmcs.values[_SECONDARY] if vmcs.values[_PRIMARY] & _ACTIVATE_SECONDARY else 0


def instruction(
    vmcs: Vmcs, reason: Reason, length: int, *, qualification: int = 0, information: int = 0
) -> VmExit | None:
    """Decide for every instruction whose exit depends on one control, or on none.

    *length* is the instruction's, in bytes. *qualification*: the gva of INVLPG, the displacement of a memory operand,
    a DrAccess, a TaskSwitch. *information* is the VM-exit instruction information. Raises Fault(#UD) for an
    instruction that the controls do not enable.
    """
    if reason not in UNCONDITIONAL:
        enabled = _ENABLED_BY.get(reason)
        if enabled is not None and not secondary(vmcs) & enabled:
            raise Fault(Vector.UD)
        wanted = _IF_PRIMARY.get(reason)
        on = vmcs.values[_PRIMARY] & wanted if wanted is not None else secondary(vmcs) & _IF_SECONDARY[reason]
        if not on:
            return None
    return VmExit(reason, qualification, length, instruction_information=information)


def mov_dr(vmcs: Vmcs, dr: int, gpr: int, length: int, *, from_dr: bool) -> VmExit | None:
    """MOV to or from debug register *dr*."""
    return instruction(vmcs, Reason.MOV_DR, length, qualification=int(DrAccess(dr=dr, from_dr=from_dr, gpr=gpr)))


_BITMAP_A, _BITMAP_B = Field.IO_BITMAP_A_ADDRESS, Field.IO_BITMAP_B_ADDRESS
_USE_IO_BITMAPS = int(PrimaryProcessorBased(use_io_bitmaps=1))
_UNCONDITIONAL_IO = int(PrimaryProcessorBased(unconditional_io_exiting=1))


def _bit_set(read: ReadMemory, bitmap_hpa: int, number: int) -> bool:
    return bool(read(bitmap_hpa + (number >> 3), 1) >> (number & 7) & 1)


def io_exits(vmcs: Vmcs, port: int, size: int, read: ReadMemory) -> bool:
    """Whether an access to *size* bytes from *port* causes a VM exit (SDM 3C "I/O-Bitmap Addresses")."""
    if not vmcs.values[_PRIMARY] & _USE_IO_BITMAPS:
        return bool(vmcs.values[_PRIMARY] & _UNCONDITIONAL_IO)
    if port + size > 0x10000:  # an access that wraps around the port space always exits
        return True
    a, b = vmcs.values[_BITMAP_A], vmcs.values[_BITMAP_B]
    return any(_bit_set(read, b if p & 0x8000 else a, p & 0x7FFF) for p in range(port, port + size))


def io(
    vmcs: Vmcs, access: IoInstruction, length: int, read: ReadMemory, *, linear: int | None = None, information: int = 0
) -> VmExit | None:
    """IN, OUT, INS or OUTS. *linear* is the gva of a string operand, *information* a StringInformation."""
    if not io_exits(vmcs, access.port, access.size, read):
        return None
    return VmExit(Reason.IO_INSTRUCTION, int(access), length, instruction_information=information, guest_linear=linear)


_USE_MSR_BITMAPS = int(PrimaryProcessorBased(use_msr_bitmaps=1))
# SDM 3C "MSR-Bitmap Address": four bitmaps of 1 KiB; low MSRs from 0, high MSRs from C0000000H.
_HIGH_MSRS, _MSRS_PER_BITMAP, _WRITE_BITMAPS, _HIGH_BITMAP = 0xC000_0000, 0x2000, 2048, 1024


def msr(vmcs: Vmcs, index: int, length: int, read: ReadMemory, *, write: bool) -> VmExit | None:
    """RDMSR or, when *write*, WRMSR of MSR *index*."""
    exit_ = VmExit(Reason.WRMSR if write else Reason.RDMSR, 0, length)
    if not vmcs.values[_PRIMARY] & _USE_MSR_BITMAPS:
        return exit_
    high = index >= _HIGH_MSRS
    number = index - _HIGH_MSRS if high else index
    if number >= _MSRS_PER_BITMAP:
        return exit_
    bitmap_hpa = vmcs.values[Field.MSR_BITMAP_ADDRESS] + _WRITE_BITMAPS * write + _HIGH_BITMAP * high
    return exit_ if _bit_set(read, bitmap_hpa, number) else None


_SOFTWARE = {Vector.BP: EventType.SOFTWARE_EXCEPTION, Vector.OF: EventType.SOFTWARE_EXCEPTION}


def exception_exits(vmcs: Vmcs, fault: Fault) -> bool:
    """Whether *fault* causes a VM exit (SDM 3C "Exception Bitmap")."""
    wanted = bool(vmcs.values[Field.EXCEPTION_BITMAP] >> fault.vector & 1)
    if fault.vector is not Vector.PF:
        return wanted
    assert fault.error_code is not None
    mask, match = vmcs.values[Field.PAGE_FAULT_ERROR_CODE_MASK], vmcs.values[Field.PAGE_FAULT_ERROR_CODE_MATCH]
    return wanted if fault.error_code & mask == match else not wanted


def exception(
    vmcs: Vmcs,
    fault: Fault,
    *,
    kind: EventType | None = None,
    length: int = 0,
    debug: int = 0,
    nmi_unblocking: bool = False,
) -> VmExit | None:
    """An exception. *debug* is the DebugException of a #DB.

    *kind* is wanted for INT1 alone: INT3 and INTO follow from the vector. *length* is that of those three instructions.
    """
    if not exception_exits(vmcs, fault):
        return None
    kind = kind or _SOFTWARE.get(fault.vector, EventType.HARDWARE_EXCEPTION)
    # No error code in real-address mode (SDM 3C "Information for VM Exits Due to Vectored Events").
    has_code = fault.error_code is not None and Cr0(vmcs[Field.GUEST_CR0]).pe
    information = Interruption(
        vector=fault.vector, type=kind, error_code_valid=has_code, nmi_unblocking_due_to_iret=nmi_unblocking, valid=1
    )
    qualification = {Vector.PF: fault.cr2 or 0, Vector.DB: debug}.get(fault.vector, 0)
    return VmExit(Reason.EXCEPTION_OR_NMI, qualification, length, int(information), fault.error_code or 0)


_EXTERNAL_INTERRUPT_EXITING = int(PinBased(external_interrupt_exiting=1))
_ACKNOWLEDGE = int(Exit(acknowledge_interrupt_on_exit=1))
_NMI_EXITING = int(PinBased(nmi_exiting=1))
_NMI = int(Interruption(vector=Vector.NMI, type=EventType.NMI, valid=1))


def external_interrupt(vmcs: Vmcs, acknowledge: Callable[[], int]) -> VmExit | None:
    """An external interrupt is pending. *acknowledge* takes it from its controller and returns the vector."""
    if not vmcs.values[_PIN] & _EXTERNAL_INTERRUPT_EXITING:
        return None
    if not vmcs.values[Field.VM_EXIT_CONTROLS] & _ACKNOWLEDGE:
        return VmExit(Reason.EXTERNAL_INTERRUPT)
    information = Interruption(vector=acknowledge(), type=EventType.EXTERNAL_INTERRUPT, valid=1)
    return VmExit(Reason.EXTERNAL_INTERRUPT, interruption_information=int(information))


def nmi(vmcs: Vmcs) -> VmExit | None:
    """A nonmaskable interrupt arrived."""
    if not vmcs.values[_PIN] & _NMI_EXITING:
        return None
    return VmExit(Reason.EXCEPTION_OR_NMI, interruption_information=_NMI)


_INTERRUPT_WINDOW = int(PrimaryProcessorBased(interrupt_window_exiting=1))
_NMI_WINDOW = int(PrimaryProcessorBased(nmi_window_exiting=1))
_NMI_BLOCKED = int(Interruptibility(blocking_by_nmi=1, blocking_by_mov_ss=1))


def interrupt_window(vmcs: Vmcs, state: CpuState) -> VmExit | None:
    """Between instructions: RFLAGS.IF is 1 and nothing blocks interrupts (SDM 3C "Other Causes of VM Exits")."""
    if not vmcs.values[_PRIMARY] & _INTERRUPT_WINDOW:
        return None
    is_open = Rflags(state.rflags).if_ and not state.blocking_by_sti_or_mov_ss
    return VmExit(Reason.INTERRUPT_WINDOW) if is_open else None


def nmi_window(vmcs: Vmcs) -> VmExit | None:
    """Between instructions: nothing blocks virtual NMIs."""
    if not vmcs.values[_PRIMARY] & _NMI_WINDOW or vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] & _NMI_BLOCKED:
        return None
    return VmExit(Reason.NMI_WINDOW)


def triple_fault() -> VmExit:
    """The guest met a fault while it delivered a #DF (SDM 3C "Other Causes of VM Exits")."""
    return VmExit(Reason.TRIPLE_FAULT)


def ept_violation(qualification: int, gpa: int, gva: int | None) -> VmExit:
    """An access that EPT does not allow; *qualification* is an EptViolation (SDM 3C "EPT Violations")."""
    return VmExit(Reason.EPT_VIOLATION, qualification, guest_linear=gva, guest_physical=gpa)


def ept_misconfiguration(gpa: int) -> VmExit:
    """The walk for *gpa* met an EPT entry that is not legal (SDM 3C "EPT Misconfigurations")."""
    return VmExit(Reason.EPT_MISCONFIGURATION, guest_physical=gpa)
