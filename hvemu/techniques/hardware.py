"""Hardware assist: the guest runs in VMX non-root operation, and a VMCS says what it may not do alone."""

from __future__ import annotations

from typing import Final

from hvemu.cpu.linear import Linear
from hvemu.cpu.memory import PagedMemory
from hvemu.cpu.nonroot import NonRoot
from hvemu.cpu.view import ShadowedView
from hvemu.engine.second_level import SecondLevelCode
from hvemu.engine.traps import Kind, Stop
from hvemu.memory.ept import PAGE_2M, EptPaging
from hvemu.memory.ept_tables import EptTables
from hvemu.memory.nested import NestedPhysical
from hvemu.memory.physical import Physical, Ram
from hvemu.techniques.base import RESUME, Outcome, Shutdown
from hvemu.techniques.exits.table import HANDLERS, Handler
from hvemu.techniques.host_timer import HostTimer
from hvemu.techniques.vm import Vm
from hvemu.vmx import cr_access
from hvemu.vmx.capabilities import CR0_FIXED0, CR4_FIXED0, ENTRY, PIN, PRIMARY, SECONDARY, WRITE_BACK
from hvemu.vmx.controls import Entry, EptPointer, Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.guest_state import GUEST_FIELDS
from hvemu.vmx.reasons import EntryInterruption, EptViolation, EventType, Interruption, Reason
from hvemu.vmx.template import minimal_host
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.registers import Cr0, Cr4, Efer, Rflags
from hvemu.x86.state import CpuState, load_state
from hvemu.x86.vectors import Fault, Vector, combine

GUEST_CR0: Final = int(Cr0(ts=1, mp=1, em=1, am=1, wp=1))
"""Bits of CR0 that the guest may change without asking; the rest belong to the host."""
GUEST_CR4: Final = int(Cr4(tsd=1, de=1, pge=1, pce=1, osfxsr=1, osxmmexcpt=1, fsgsbase=1))
_UNRESTRICTED_FIXED0 = CR0_FIXED0 & ~int(Cr0(pe=1, pg=1))
_INJECTION = Field.VM_ENTRY_INTERRUPTION_INFORMATION
_ERROR_CODE = Field.VM_ENTRY_EXCEPTION_ERROR_CODE
_LENGTH = Field.VM_ENTRY_INSTRUCTION_LENGTH
_PRIMARY = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS


class GuestView(ShadowedView):
    """The guest's CR0 and CR4 as the hypervisor writes them: the shadow as the guest wants it, the rest as VMX does."""

    @property
    def cr0(self) -> int:
        """CR0 as the guest reads it."""
        return cr_access.CR0.read(self._vmcs)

    @cr0.setter
    def cr0(self, value: int) -> None:
        self._vmcs[Field.CR0_READ_SHADOW] = value
        self._vmcs[Field.GUEST_CR0] = value | _UNRESTRICTED_FIXED0

    @property
    def cr4(self) -> int:
        """CR4 as the guest reads it."""
        return cr_access.CR4.read(self._vmcs)

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._vmcs[Field.CR4_READ_SHADOW] = value
        self._vmcs[Field.GUEST_CR4] = value | CR4_FIXED0


class Hardware:
    """A small hypervisor on VT-x with EPT. Handlers get this object as *vm*.

    *vmcs* is current; *state* are the guest's registers, live; *view* is what the guest believes of them, *guest_view*
    the same for the hypervisor to write. *exit* is the VM exit in hand. *requests_changed*: look again whether an
    interrupt of the guest's devices can be injected.
    """

    name, memory = "hardware", "ept"
    physical: Physical
    linear: Linear

    def __init__(self, handlers: dict[Reason, Handler] | None = None) -> None:
        self.handlers = {**HANDLERS, **(handlers or {})}
        self.timer, self.asleep, self.requests_changed = HostTimer(), False, True
        self._inside, self._met = False, None  # type: tuple[bool, VmExit | None]
        self.exit = VmExit(Reason.VMCALL)

    # -- Technique ----------------------------------------------------------------------------------------------

    def install(self, vm: Vm, boot: CpuState) -> None:
        """Write a VMCS for a guest that starts as *boot*, and an EPT that maps nothing yet."""
        self.vm, self.cpu, self.state, self.board, self.ram = vm, vm.cpu, vm.cpu.state, vm.board, vm.ram
        self.msrs = vm.cpu.msrs
        host = Ram(vm.engine.ram, wrote=vm.engine.code_changed)
        self.ept = EptTables(host, vm.frames, largest=PAGE_2M)
        self.vmcs = minimal_host()
        _set_controls(self.vmcs, self.ept.root, long=bool(Efer(boot.efer).lma))
        _set_guest(self.vmcs, boot)
        load_state(self.state, boot)  # what a VMCS has no field for, and what debuggers see before the first VM entry
        self.nonroot = NonRoot(vm.cpu, self.vmcs, host)
        self.physical = NestedPhysical(EptPaging(self.ept.root), host)
        self.view, self.linear = vm.cpu.view, PagedMemory(self.state, vm.ram)
        self.guest_view = GuestView(self.state, self.vmcs)
        vm.cpu.interrupts = self.timer

    def run(self, limit: int) -> VmExit | None:
        """VM entry, unless the guest runs already, and on to the next VM exit."""
        exit_, self._met = self._met, None
        if exit_ is None and not self._inside:
            exit_ = self._enter()
        if exit_ is None:
            exit_ = self.cpu.run(limit)
        if exit_ is not None:
            self._inside = False
            self.nonroot.leave(exit_)
        return exit_

    def handle(self, exit_: VmExit) -> Outcome:
        """Call the handler of the exit's reason. Raises Shutdown when there is none."""
        self.exit = exit_
        if exit_.idt_vectoring:
            self.reflect(Interruption(exit_.idt_vectoring), error_code=exit_.idt_error_code)
        handler = self.handlers.get(exit_.reason)
        if handler is None:
            raise Shutdown(f"no handler for the VM exit {exit_!r}")
        return handler(self, exit_.qualification)

    def inject(self, fault: Fault) -> None:
        """Let the next VM entry deliver *fault*, or what it makes together with an exception already waiting."""
        waiting = EntryInterruption(self.vmcs[_INJECTION])
        if waiting.valid and waiting.type is EventType.HARDWARE_EXCEPTION:
            fault = combine(Fault(Vector(waiting.vector), self.vmcs[_ERROR_CODE] or None), fault)
        if fault.cr2 is not None:
            self.state.cr2 = fault.cr2
        self._set_injection(fault.vector, EventType.HARDWARE_EXCEPTION, fault.error_code)

    def tick(self) -> None:
        """Let the host's timer interrupt the guest."""
        self.timer.fire()
        self.cpu.attention = True

    def wake(self) -> None:
        """Inject the interrupt at the next VM entry; a processor that halts by itself must be fetched first."""
        self.asleep, self.requests_changed = False, True
        if self.cpu.halted:
            self.tick()

    @property
    def halted(self) -> bool:
        """Whether the guest executed HLT and nothing woke it yet."""
        return self.asleep or self.cpu.halted

    # -- what handlers use --------------------------------------------------------------------------------------

    def advance(self, length: int | None = None) -> Outcome:
        """End the instruction that caused the exit; *length* in bytes, if it is not the exit's."""
        self.cpu.retire(self.exit.instruction_length if length is None else length)
        return RESUME

    def map_ram(self, gpa: int) -> None:
        """Map the 2 MiB of the guest's RAM around *gpa* in EPT, or as much of them as there is."""
        start = gpa // PAGE_2M * PAGE_2M
        self.ept.map(start, self.ram.base + start, min(PAGE_2M, self.ram.size - start))

    def emulate_mmio(self, gpa: int, q: EptViolation) -> None:
        """Perform the guest's access to *gpa*, where there is no RAM. Raises Fault."""
        code = SecondLevelCode(wr=q.write, id=q.fetch)
        self._met = self.cpu.mmio.access(self.cpu, Stop(Kind.SECOND_LEVEL, 0, int(code), gpa))

    def reflect(self, event: Interruption, *, error_code: int | None = None) -> None:
        """Let the next VM entry deliver *event*, of the exit in hand, to the guest as it was."""
        self._set_injection(event.vector, event.type, error_code if event.error_code_valid else None)
        self.vmcs[_LENGTH] = self.exit.instruction_length

    # -- VM entry -----------------------------------------------------------------------------------------------

    def _enter(self) -> VmExit | None:
        if self.requests_changed:
            self._inject_request()
        exit_ = self.nonroot.enter()
        self._inside = True
        return exit_

    def _inject_request(self) -> None:
        """Inject the interrupt that the guest's devices ask for, or wait until the guest can take one."""
        self.requests_changed = False
        pic = self.board.pic
        if not pic.pending():
            self._watch_window(False)
            return
        free = not self.vmcs[_INJECTION] & _VALID
        if free and Rflags(self.state.rflags).if_ and not self.state.blocking_by_sti_or_mov_ss:
            self._set_injection(pic.acknowledge(), EventType.EXTERNAL_INTERRUPT, None)
        self._watch_window(pic.pending())

    def _watch_window(self, wanted: bool) -> None:
        old = PrimaryProcessorBased(self.vmcs[_PRIMARY])
        if old.interrupt_window_exiting != wanted:
            self.vmcs[_PRIMARY] = old.replace(interrupt_window_exiting=wanted)

    def _set_injection(self, vector: int, kind: EventType, error_code: int | None) -> None:
        has_code = error_code is not None and bool(Cr0(self.state.cr0).pe)
        information = EntryInterruption(vector=vector, type=kind, deliver_error_code=has_code, valid=1)
        self.vmcs[_INJECTION] = int(information)
        if has_code:
            self.vmcs[_ERROR_CODE] = error_code or 0


_VALID = int(EntryInterruption(valid=1))


def _set_controls(vmcs: Vmcs, ept_root: int, *, long: bool) -> None:
    """What this hypervisor wants to know, and the bits that the processor insists on."""
    vmcs[Field.PIN_BASED_VM_EXECUTION_CONTROLS] = PIN.adjust(PinBased(external_interrupt_exiting=1, nmi_exiting=1))
    vmcs[_PRIMARY] = PRIMARY.adjust(
        PrimaryProcessorBased(hlt_exiting=1, unconditional_io_exiting=1, activate_secondary_controls=1)
    )
    vmcs[Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS] = SECONDARY.adjust(
        SecondaryProcessorBased(enable_ept=1, unrestricted_guest=1, enable_rdtscp=1)
    )
    exit_controls = Exit(vmcs[Field.VM_EXIT_CONTROLS])
    vmcs[Field.VM_EXIT_CONTROLS] = exit_controls.replace(acknowledge_interrupt_on_exit=1)
    vmcs[Field.VM_ENTRY_CONTROLS] = ENTRY.adjust(Entry(ia32e_mode_guest=long, load_debug_controls=1, load_ia32_efer=1))
    vmcs[Field.EPT_POINTER] = int(EptPointer(memory_type=WRITE_BACK, walk_length=3, frame=ept_root >> _PAGE_BITS))
    vmcs[Field.CR0_GUEST_HOST_MASK] = _WORD & ~GUEST_CR0
    vmcs[Field.CR4_GUEST_HOST_MASK] = _WORD & ~GUEST_CR4


_PAGE_BITS, _WORD = 12, 0xFFFF_FFFF


def _set_guest(vmcs: Vmcs, boot: CpuState) -> None:
    """Fill the guest-state area."""
    for field, home in GUEST_FIELDS.items():
        if field is not Field.VM_ENTRY_CONTROLS:
            vmcs[field] = home.get(boot, vmcs[field])
    for guest, shadow, fixed in (
        (Field.GUEST_CR0, Field.CR0_READ_SHADOW, _UNRESTRICTED_FIXED0),
        (Field.GUEST_CR4, Field.CR4_READ_SHADOW, CR4_FIXED0),
    ):
        vmcs[shadow] = vmcs[guest]
        vmcs[guest] |= fixed
