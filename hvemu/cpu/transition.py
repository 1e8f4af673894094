"""Into VMX non-root operation and out of it: what VM entry and VM exit do to a processor besides its registers.

The registers are the business of vmx/entry.py and vmx/exit.py. Here are the controls that arm the processor, MSRs, and
what Intel calls non-register state: activity and blocking by NMI (SDM 3C "VM Entries", "VM Exits").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvemu.cpu.control import Rules
from hvemu.cpu.deliver import Event, Source
from hvemu.cpu.intercept import Intercepted
from hvemu.cpu.second_dimension import SecondDimension
from hvemu.engine.traps import Kind
from hvemu.memory.ept import EptPaging
from hvemu.vmx import intercepts
from hvemu.vmx.capabilities import CR0_FIXED0, CR4_FIXED0
from hvemu.vmx.controls import Entry, EptPointer, Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.entry import EntryEvent, vm_entry
from hvemu.vmx.exit import VmExit, deliver_exit
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import Surroundings
from hvemu.vmx.reasons import Activity, EventType, Interruptibility
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86 import msrs
from hvemu.x86.cpuid import Offer
from hvemu.x86.paging import PAGE
from hvemu.x86.registers import Cr0, Dr7
from hvemu.x86.vectors import Vector

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_PIN, _PRIMARY = Field.PIN_BASED_VM_EXECUTION_CONTROLS, Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_SECONDARY, _ENTRY = Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, Field.VM_ENTRY_CONTROLS
_ACTIVITY, _INTERRUPTIBILITY = Field.GUEST_ACTIVITY_STATE, Field.GUEST_INTERRUPTIBILITY_STATE
_ACTIVE = int(Activity.ACTIVE)
_CR0_MASK, _CR4_MASK = Field.CR0_GUEST_HOST_MASK, Field.CR4_GUEST_HOST_MASK
_ALL, _NONE = frozenset(Field), frozenset[Field]()
_CONTROLS = frozenset({_PIN, _PRIMARY, _SECONDARY, _CR0_MASK, _CR4_MASK, Field.TSC_OFFSET})
_EPT = frozenset({_PRIMARY, _SECONDARY, Field.EPT_POINTER})
_TABLES = frozenset({
    Kind.GDTR_READ, Kind.IDTR_READ, Kind.LDTR_READ, Kind.TR_READ,
    Kind.GDTR_WRITE, Kind.IDTR_WRITE, Kind.LDTR_WRITE, Kind.TR_WRITE,
})  # fmt: skip
_BLOCKED = int(Interruptibility(blocking_by_nmi=1))
_SYSENTER = {
    Field.GUEST_IA32_SYSENTER_CS: msrs.SYSENTER_CS,
    Field.GUEST_IA32_SYSENTER_ESP: msrs.SYSENTER_ESP,
    Field.GUEST_IA32_SYSENTER_EIP: msrs.SYSENTER_EIP,
}
_OFFER = Offer(vmx=True)
_UNRESTRICTED = int(Cr0(pe=1, pg=1))
SOURCES = {
    EventType.EXTERNAL_INTERRUPT: Source.EXTERNAL,
    EventType.NMI: Source.NMI,
    EventType.HARDWARE_EXCEPTION: Source.EXCEPTION,
    EventType.SOFTWARE_INTERRUPT: Source.SOFTWARE_INT,
    EventType.PRIVILEGED_SOFTWARE_EXCEPTION: Source.PRIVILEGED,
    EventType.SOFTWARE_EXCEPTION: Source.SOFTWARE_EXCEPTION,
}
_AFTER = frozenset({Source.SOFTWARE_INT, Source.PRIVILEGED, Source.SOFTWARE_EXCEPTION})


class Transition:
    """The two ways between root and non-root operation under *vmcs*.

    *wants_window* and *wants_nmi_window* are the two controls of that kind, as of the last VM entry.
    """

    def __init__(self, cpu: Cpu, vmcs: Vmcs, dimension: SecondDimension) -> None:
        self._cpu, self._vmcs, self._dimension = cpu, vmcs, dimension
        self.wants_window = self.wants_nmi_window = False
        self._seen = -1  # writes to MSRs, as of the last VM entry

    # -- VM entry -----------------------------------------------------------------------------------------------

    def enter(self, around: Surroundings) -> EntryEvent | None:
        """Perform VM entry; return the event to inject. Raises VmFail, EntryFailed."""
        vmcs, cpu = self._vmcs, self._cpu
        fresh = not vmcs.valid or vmcs.state is not cpu.state
        changed = _ALL if fresh else frozenset(vmcs.dirty) if vmcs.dirty else _NONE
        event = vm_entry(vmcs, cpu.state, launch=not vmcs.launched, around=around, write_msr=cpu.msrs.write)
        if changed or cpu.msrs.writes != self._seen:
            self._load(changed)
        if vmcs.values[_ACTIVITY]:
            self._rest(Activity(vmcs.values[_ACTIVITY]), woken=event is not None)
        return event

    def _rest(self, activity: Activity, *, woken: bool) -> None:
        """Enter an inactive state, unless injection ends it at once (SDM 3C "Event Blocking")."""
        cpu = self._cpu
        cpu.halted, cpu.attention = not woken, True
        cpu.hears_interrupts = woken or activity is Activity.HLT
        cpu.hears_nmis = activity is not Activity.WAIT_FOR_SIPI

    def _activity(self) -> Activity:
        """Return the state in which an exit finds the processor."""
        cpu = self._cpu
        if not cpu.halted:
            return Activity.ACTIVE
        if cpu.hears_interrupts:
            return Activity.HLT
        return Activity.SHUTDOWN if cpu.hears_nmis else Activity.WAIT_FOR_SIPI

    def _load(self, changed: frozenset[Field]) -> None:
        """Follow what was written since the last VM entry."""
        if not changed.isdisjoint(_EPT):
            self._load_ept()
        if not changed.isdisjoint(_CONTROLS):
            self._arm()
        self._load_msrs(changed)
        if _INTERRUPTIBILITY in changed:
            self._cpu.block_nmi(bool(self._vmcs.values[_INTERRUPTIBILITY] & _BLOCKED))

    def _load_ept(self) -> None:
        """Translate by the EPT that the EPTP names, or by none."""
        ept = None
        if SecondaryProcessorBased(intercepts.secondary(self._vmcs)).enable_ept:
            pointer = EptPointer(self._vmcs.values[Field.EPT_POINTER])
            ept = EptPaging(pointer.frame * PAGE, accessed_dirty=pointer.enable_accessed_dirty)
        self._dimension.use(ept)

    def _arm(self) -> None:
        """Stop the processor where the controls want to know."""
        cpu, values = self._cpu, self._vmcs.values
        pin, primary = PinBased(values[_PIN]), PrimaryProcessorBased(values[_PRIMARY])
        secondary = SecondaryProcessorBased(intercepts.secondary(self._vmcs))
        self.wants_window, self.wants_nmi_window = primary.interrupt_window_exiting, primary.nmi_window_exiting
        cpu.virtual_nmis = pin.virtual_nmis
        cpu.iret_unblocks_nmis = pin.virtual_nmis or not pin.nmi_exiting
        cpu.rules = Rules(
            _OFFER, CR0_FIXED0 & ~(_UNRESTRICTED if secondary.unrestricted_guest else 0), CR4_FIXED0,
            cr0_kept=values[_CR0_MASK], cr4_kept=values[_CR4_MASK],
        )  # fmt: skip
        cpu.msrs.guest_offset = values[Field.TSC_OFFSET] if primary.use_tsc_offsetting else 0
        reads = primary.cr3_store_exiting or values[_CR0_MASK] or values[_CR4_MASK]
        cpu.wanted = frozenset(
            ({Kind.INVLPG} if primary.invlpg_exiting else set())
            | ({Kind.DR_READ} if primary.mov_dr_exiting else set())
            | ({Kind.CR_READ} if reads else set())
            | (_TABLES if secondary.descriptor_table_exiting else set())
        )
        cpu.arm()
        cpu.attention = True

    def _load_msrs(self, changed: frozenset[Field]) -> None:
        """Load the MSRs that have a field, after either may have been written."""
        cpu, values = self._cpu, self._vmcs.values
        pat = {Field.GUEST_IA32_PAT: msrs.PAT} if Entry(values[_ENTRY]).load_ia32_pat else {}
        for field, index in (_SYSENTER | pat).items():
            if field in changed or cpu.msrs.writes != self._seen:
                cpu.msrs.write(index, values[field])
        self._seen = cpu.msrs.writes

    # -- events -------------------------------------------------------------------------------------------------

    def event(self, entry: EntryEvent) -> Event:
        """Return what the processor delivers for the event that VM entry injects (SDM 3C "Event Injection")."""
        source, rip = SOURCES[entry.type], self._cpu.state.rip
        after = self._cpu.after(entry.instruction_length) if source in _AFTER else rip
        return Event(entry.vector, source, entry.error_code, after)

    def deliver(self, entry: EntryEvent) -> VmExit | None:
        """Deliver *entry*; return the exit that its delivery meets, if any."""
        cpu = self._cpu
        general_detect = Dr7(cpu.state.dr7).gd
        if entry.type is EventType.NMI:
            cpu.block_nmi(True)
        try:
            return cpu.inject(self.event(entry))
        except Intercepted as caught:
            return caught.exit
        finally:
            if entry.vector == Vector.DB:  # injecting it leaves the debug registers alone
                cpu.state.dr7 = int(Dr7(cpu.state.dr7).replace(gd=general_detect))

    # -- VM exit ------------------------------------------------------------------------------------------------

    def leave(self, exit_: VmExit) -> None:
        """Perform VM exit, but for loading host state."""
        vmcs, cpu = self._vmcs, self._cpu
        values = vmcs.values
        values[_ACTIVITY] = self._activity() if cpu.halted else _ACTIVE
        cpu.halted, cpu.hears_interrupts, cpu.hears_nmis = False, True, True
        self.note_blocking()
        if cpu.msrs.writes != self._seen:
            self._save_msrs()
        deliver_exit(vmcs, cpu.state, exit_)

    def note_blocking(self) -> None:
        """Bring blocking by NMI, which the processor changes, into the VMCS."""
        values = self._vmcs.values
        if self._cpu.nmi_blocked is not bool(values[_INTERRUPTIBILITY] & _BLOCKED):
            values[_INTERRUPTIBILITY] ^= _BLOCKED

    def _save_msrs(self) -> None:
        """SDM 3C "Saving Control Registers, Debug Registers, and MSRs"."""
        values, cpu = self._vmcs.values, self._cpu
        pat = {Field.GUEST_IA32_PAT: msrs.PAT} if Exit(values[Field.VM_EXIT_CONTROLS]).save_ia32_pat else {}
        for field, index in (_SYSENTER | pat).items():
            values[field] = cpu.msrs.read(index)
