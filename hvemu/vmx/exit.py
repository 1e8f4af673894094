"""VM exits: what is recorded, and the host state that is loaded (SDM 3C "VM Exits")."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hvemu.vmx.controls import Exit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import EntryInterruption, ExitReason, Interruption, Reason
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.registers import Cr0, Cr4, Dr7, Efer, Gpr, Sreg
from hvemu.x86.state import AccessRights, CpuState, Segment, TableRegister


@dataclass(slots=True)
class VmExit:
    """A VM exit, before it is recorded in a VMCS.

    *instruction_length* is in bytes. *guest_linear* (gva) and *guest_physical* (gpa) are None where the manual leaves
    their fields undefined. *idt_vectoring* is the event whose delivery met the exit, if any. *entry_failure* marks the
    exits that a failing VM entry causes. *what* and *detail* are for people: a name better than the reason's, and what
    the handler found out.
    """

    reason: Reason
    qualification: int = 0
    instruction_length: int = 0
    interruption_information: int = 0
    error_code: int = 0
    instruction_information: int = 0
    guest_linear: int | None = None
    guest_physical: int | None = None
    idt_vectoring: int = 0
    idt_error_code: int = 0
    entry_failure: bool = False
    what: str = ""
    detail: str = ""

    def __repr__(self) -> str:
        values = ((f.name, getattr(self, f.name)) for f in fields(self)[1:])
        parts = [f"{name}={value:#x}" for name, value in values if value and not isinstance(value, str)]
        return f"VmExit({', '.join([self.reason.name, *parts])})"


# Bound once: reading a member of an enumeration takes longer than storing a field.
_REASON, _QUALIFICATION, _LENGTH = Field.VM_EXIT_REASON, Field.EXIT_QUALIFICATION, Field.VM_EXIT_INSTRUCTION_LENGTH
_INFORMATION, _ERROR_CODE = Field.VM_EXIT_INTERRUPTION_INFORMATION, Field.VM_EXIT_INTERRUPTION_ERROR_CODE
_INSTRUCTION, _LINEAR = Field.VM_EXIT_INSTRUCTION_INFORMATION, Field.GUEST_LINEAR_ADDRESS
_PHYSICAL, _IDT, _IDT_ERROR_CODE = (
    Field.GUEST_PHYSICAL_ADDRESS, Field.IDT_VECTORING_INFORMATION, Field.IDT_VECTORING_ERROR_CODE,
)  # fmt: skip
_INJECTION = Field.VM_ENTRY_INTERRUPTION_INFORMATION
_VALID = int(EntryInterruption(valid=1))
_HAS_ERROR_CODE = int(Interruption(error_code_valid=1))
_ENTRY_FAILURE = int(ExitReason(entry_failure=1))


def deliver_exit(vmcs: Vmcs, state: CpuState, exit_: VmExit) -> None:
    """Record *exit_* in *vmcs*, and let *state* be its guest-state area.

    The steps of SDM 3C "VM Exits"; the next one, loading host state, is load_host_state.
    """
    values = vmcs.values
    # 1. SDM 3C "Recording VM-Exit Information and Updating VM-Entry Control Fields".
    values[_QUALIFICATION] = exit_.qualification
    if exit_.entry_failure:
        values[_REASON] = exit_.reason | _ENTRY_FAILURE
        return  # SDM 3C "VM-Entry Failures During or After Loading Guest State": nothing else is touched
    values[_REASON] = exit_.reason
    values[_LENGTH] = exit_.instruction_length
    values[_INSTRUCTION] = exit_.instruction_information
    values[_INFORMATION] = information = exit_.interruption_information
    if information & _HAS_ERROR_CODE:
        values[_ERROR_CODE] = exit_.error_code
    if exit_.guest_linear is not None:
        values[_LINEAR] = exit_.guest_linear
    if exit_.guest_physical is not None:
        values[_PHYSICAL] = exit_.guest_physical
    # 2. SDM 3C "Information for VM Exits That Occur During Event Delivery".
    values[_IDT] = vectoring = exit_.idt_vectoring
    if vectoring & _HAS_ERROR_CODE:
        values[_IDT_ERROR_CODE] = exit_.idt_error_code
    # 3. Every VM exit clears the valid bit of the event to inject.
    if values[_INJECTION] & _VALID:
        values[_INJECTION] &= ~_VALID
    # 4. SDM 3C "Saving Guest State": from here on the fields are read where they are.
    if vmcs.state is not state:
        vmcs.attach(state)


_DATA = AccessRights(type=3, s=1, p=1, db=1, g=1)
_FLAT_LIMIT, _TSS_LIMIT, _TABLE_LIMIT = 0xFFFF_FFFF, 0x67, 0xFFFF
_TSS = AccessRights(type=11, p=1)
_UNUSABLE = AccessRights(unusable=1)
# SDM 3C "Loading Host State": VM exit does not modify these bits of CR0.
_CR0_KEPT = int(Cr0(et=1, nw=1, cd=1))


def load_host_state(vmcs: Vmcs, state: CpuState) -> None:
    """Give *state* to the host that *vmcs* describes; the VMCS keeps the guest's (SDM 3C "Loading Host State").

    MSRs without a home in CpuState (SYSENTER, PAT) are the caller's to load.
    """
    if vmcs.state is not None:
        vmcs.detach()
    _load_host_control_registers(vmcs, state)
    _load_host_segments(vmcs, state)
    # SDM 3C "Non-Register State Loaded by VM Exits" and the registers that need no checks.
    state.set_gpr(Gpr.RSP, vmcs[Field.HOST_RSP])
    state.rip = vmcs[Field.HOST_RIP]
    state.rflags = 2
    state.blocking_by_sti_or_mov_ss = False


def _load_host_control_registers(vmcs: Vmcs, state: CpuState) -> None:
    controls = Exit(vmcs[Field.VM_EXIT_CONTROLS])
    long = controls.host_address_space_size
    efer = vmcs[Field.HOST_IA32_EFER] if controls.load_ia32_efer else state.efer
    cr4 = Cr4(vmcs[Field.HOST_CR4])
    state.cr4 = int(cr4.replace(pae=1) if long else cr4.replace(pcide=0))
    state.cr3 = vmcs[Field.HOST_CR3]
    state.efer = int(Efer(efer, lma=long, lme=long))
    state.cr0 = state.cr0 & _CR0_KEPT | vmcs[Field.HOST_CR0] & ~_CR0_KEPT
    state.dr7 = Dr7.INIT


def _load_host_segments(vmcs: Vmcs, state: CpuState) -> None:
    long = Exit(vmcs[Field.VM_EXIT_CONTROLS]).host_address_space_size
    bases = {Sreg.FS: vmcs[Field.HOST_FS_BASE], Sreg.GS: vmcs[Field.HOST_GS_BASE]}
    for sreg in Sreg:
        selector, base = vmcs[Field[f"HOST_{sreg.name}_SELECTOR"]], bases.get(sreg, 0)
        if sreg is Sreg.CS:
            rights = AccessRights(type=11, s=1, p=1, l=long, db=not long, g=1)
        else:
            rights = _DATA if selector else AccessRights(_DATA, unusable=1)
        state.set_segment(sreg, Segment(selector, base, _FLAT_LIMIT, rights))
    state.ldtr = Segment(0, 0, 0, _UNUSABLE)
    state.tr = Segment(vmcs[Field.HOST_TR_SELECTOR], vmcs[Field.HOST_TR_BASE], _TSS_LIMIT, _TSS)
    state.gdtr = TableRegister(vmcs[Field.HOST_GDTR_BASE], _TABLE_LIMIT)
    state.idtr = TableRegister(vmcs[Field.HOST_IDTR_BASE], _TABLE_LIMIT)
