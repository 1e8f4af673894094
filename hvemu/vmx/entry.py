"""VM entry, step by step (SDM 3C "VM Entries")."""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.errors import GuestVisible
from hvemu.vmx.checks import Check, CheckArea
from hvemu.vmx.clauses import plan, plan_for
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fail import VmFail
from hvemu.vmx.fields import Field
from hvemu.vmx.guest_state import GUEST_FIELDS, LOADS, SEGMENTS, segment_field, setters
from hvemu.vmx.msr_load import MsrFailure, Write, entries, load_msrs
from hvemu.vmx.processor import HVEMU, UNKNOWN, Surroundings
from hvemu.vmx.reasons import EntryInterruption, EventType, Interruptibility, Reason
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.state import AccessRights, CpuState, Segment


@dataclass(frozen=True, slots=True)
class EntryEvent:
    """The event that VM entry injects. *instruction_length*, in bytes, counts for software events alone."""

    vector: int
    type: EventType
    error_code: int | None
    instruction_length: int


class EntryFailed(GuestVisible):
    """VM entry failed on guest state or MSRs: the VMM sees *exit_*, a VM exit with bit 31 of its reason set.

    *why* names the clause for a person. The VMCS keeps the guest state, whether it was loaded (MSRs) or not.
    """

    def __init__(self, exit_: VmExit, why: str) -> None:
        super().__init__(exit_, why)
        self.exit, self.why = exit_, why

    def __str__(self) -> str:
        return f"VM entry failed: {self.exit!r}\n{self.why}"


_INJECTION = Field.VM_ENTRY_INTERRUPTION_INFORMATION
_VALID = int(EntryInterruption(valid=1))


def vm_entry(
    vmcs: Vmcs,
    state: CpuState,
    *,
    launch: bool,
    around: Surroundings = UNKNOWN,
    write_msr: Write | None = None,
) -> EntryEvent | None:
    """Enter the guest of *vmcs* on *state*: VMLAUNCH when *launch*, else VMRESUME.

    Returns the event to inject, if any; delivering it is the caller's. When nothing was written since the last VM
    entry, nothing needs to be done. Raises VmFail 4, 5, 7 or 8, or EntryFailed; then the VMCS stays as it is. Clauses
    on what *around* leaves open are not judged. The MSR-load area is processed if *around* can read memory and
    *write_msr* is given: WRMSR, which raises Fault; else it is the caller's.
    """
    # 1. SDM 3C "VM Entries", basic checks.
    if launch is vmcs.launched:
        raise VmFail(4 if launch else 5)
    if vmcs.dirty or not vmcs.valid or vmcs.state is not state or around is not UNKNOWN:
        # 2. SDM 3C "Checks on VMX Controls and Host-State Area", then "Checking and Loading Guest State".
        _check(vmcs, around)
        # 3. SDM 3C "Loading Guest State".
        _load(vmcs, state)
    for field in vmcs.reloaded:
        GUEST_FIELDS[field].set(state, vmcs.values[field])
    # 4. SDM 3C "Loading MSRs".
    if around.read is not None and write_msr is not None and vmcs.values[Field.VM_ENTRY_MSR_LOAD_COUNT]:
        failure = load_msrs(entries(vmcs.values, around.read), write_msr)
        if failure is not None:
            _fail_loading(failure)
    vmcs.launched = True
    # 5. SDM 3C "Event Injection"; step 6, clearing the valid bit, is the next VM exit's.
    return _event(vmcs) if vmcs.values[_INJECTION] & _VALID else None


def _check(vmcs: Vmcs, around: Surroundings) -> None:
    """Run the clauses that *vmcs* may have come to violate."""
    known = around is not UNKNOWN
    some = plan_for(frozenset(vmcs.dirty), around=known) if vmcs.valid else plan()
    row = some.first_failure(vmcs, HVEMU, around)
    if row is not None:
        _fail(row, row.explain(vmcs))


def _fail_loading(failure: MsrFailure) -> None:
    exit_ = VmExit(Reason.ENTRY_FAILURE_MSR_LOADING, failure.number, entry_failure=True)
    raise EntryFailed(exit_, failure.explain())


def _fail(row: Check, why: str) -> None:
    if row.area is CheckArea.CONTROLS:
        raise VmFail(7, why)
    if row.area is CheckArea.HOST_STATE:
        raise VmFail(8, why)
    raise EntryFailed(VmExit(Reason.ENTRY_FAILURE_GUEST_STATE, row.qualification, entry_failure=True), why)


def _load(vmcs: Vmcs, state: CpuState) -> None:
    """Bring the guest into *state*; what was written to an attached VMCS is there already."""
    if vmcs.state is not state:
        if vmcs.state is not None:
            vmcs.detach()
        load_guest_state(vmcs, state)
        vmcs.attach(state)
    elif vmcs.routes_changed:
        vmcs.save_all()
        load_guest_state(vmcs, state)
        vmcs.route()
    vmcs.values[Field.GUEST_INTERRUPTIBILITY_STATE] &= ~_SHADOWS
    vmcs.dirty.clear()
    vmcs.valid = True


_SHADOWS = int(Interruptibility(blocking_by_sti=1, blocking_by_mov_ss=1))
"""From VM entry on, the processor's own flag says whether there is a shadow."""
_PARTS = ("selector", "base", "limit", "rights")
_WHOLE = {segment_field(register, part): register for register in SEGMENTS for part in _PARTS}


def load_guest_state(vmcs: Vmcs, state: CpuState) -> None:
    """Load every guest-state field that the VM-entry controls let load, segment registers whole."""
    seen: set[str] = set()
    for field, put in setters(vmcs.values[Field.VM_ENTRY_CONTROLS] & LOADS).items():
        register = _WHOLE.get(field)
        if register is None:
            put(state, vmcs.values[field])
        elif register not in seen:
            seen.add(register)
            SEGMENTS[register].set(state, _segment(vmcs, register))


def _segment(vmcs: Vmcs, register: str) -> Segment:
    selector, base, limit, rights = (vmcs.values[segment_field(register, part)] for part in _PARTS)
    return Segment(selector, base, limit, AccessRights(rights))


def _event(vmcs: Vmcs) -> EntryEvent:
    information = EntryInterruption(vmcs.values[_INJECTION])
    code = vmcs.values[Field.VM_ENTRY_EXCEPTION_ERROR_CODE] if information.deliver_error_code else None
    return EntryEvent(information.vector, information.type, code, vmcs.values[Field.VM_ENTRY_INSTRUCTION_LENGTH])
