"""Ring deprivileging: the guest's kernel runs in ring 1, and everything that ring 0 alone may do traps to the monitor.

This is how CP-67 ran its guests, on a processor that was not made for it: what does not trap in ring 1 is not seen. The
monitor infers what it cannot see: a program in ring 3 runs with interrupts enabled, and so does a kernel that halts.
"""

from __future__ import annotations

from collections.abc import Callable

from hvemu.cpu.deliver import Event, Source, deliver_or_escalate
from hvemu.cpu.memory import PagedMemory
from hvemu.cpu.msr_file import MsrFile
from hvemu.engine.layout import MSR_SLOTS
from hvemu.errors import InputError
from hvemu.memory.physical import Physical, Ram
from hvemu.techniques.base import RESUME, Outcome, Shutdown
from hvemu.techniques.host_timer import HostTimer
from hvemu.techniques.monitored import Monitored
from hvemu.techniques.privileged import find
from hvemu.techniques.ring import NO_VM86, RingView
from hvemu.techniques.shadow_space import ShadowSpace, TracedRam
from hvemu.techniques.vm import Vm
from hvemu.vmx.exit import VmExit
from hvemu.vmx.reasons import EventType, Interruption, Reason
from hvemu.x86.decode import Truncated
from hvemu.x86.registers import Cr0, Dr7, Gpr, Rflags, Sreg
from hvemu.x86.segments import ErrorCode
from hvemu.x86.state import CpuState
from hvemu.x86.vectors import FACTS, Fault, Vector

POLL = 5000
"""Cycles after which the monitor looks again whether an interrupt that waits can be delivered."""
_SOURCES = {
    EventType.SOFTWARE_INTERRUPT: Source.SOFTWARE_INT,
    EventType.SOFTWARE_EXCEPTION: Source.SOFTWARE_EXCEPTION,
    EventType.PRIVILEGED_SOFTWARE_EXCEPTION: Source.PRIVILEGED,
}
_DECODED = frozenset({Vector.GP, Vector.NP, Vector.SS, Vector.TS, Vector.UD})


class _Slots:
    """The guest's values of MSRs that the processor itself consults, which hold the monitor's."""

    def __init__(self) -> None:
        self._values = dict.fromkeys(MSR_SLOTS, 0)

    def read_msr(self, index: int) -> int:
        return self._values[index]

    def write_msr(self, index: int, value: int) -> None:
        self._values[index] = value


class Deprivilege:
    """The monitor. *view* is the guest's processor as the guest knows it; emulation acts on it.

    *exit* is the trap in hand; *asleep* says that the guest halted.
    """

    name, memory = "deprivilege", "shadow"
    physical: Physical

    def __init__(self) -> None:
        self.timer, self.asleep = HostTimer(), False
        self._met: VmExit | None = None
        self._look_at: int | None = None
        self.exit = VmExit(Reason.EXTERNAL_INTERRUPT)

    # -- Technique ----------------------------------------------------------------------------------------------

    def install(self, vm: Vm, boot: CpuState) -> None:
        """Take ring 0 for the monitor, and put the guest into ring 1 behind shadow tables. Raises InputError."""
        if not Cr0(boot.cr0).pe or boot.efer:
            raise InputError("deprivilege+shadow: 32-bit guests only; real mode and long mode have no ring to hide in")
        self.cpu, self.board, self.clock, self.engine = vm.cpu, vm.board, vm.clock, vm.engine
        vm.engine.second_level.map(0, 0, len(vm.engine.ram))
        vm.engine.flush_tlb()
        vm.cpu.physical = Ram(vm.engine.ram)
        vm.cpu.memory = PagedMemory(vm.cpu.state, vm.cpu.physical)
        self.view = RingView(vm.cpu.state, boot, self._changed)
        self.space = ShadowSpace(vm, self.view)
        self.physical = TracedRam(vm.ram, self.space)
        self.linear = PagedMemory(self.view, self.physical)
        self.msrs = MsrFile(self.view, _Slots(), lambda: vm.clock.now)
        self.msrs.start_as_firmware_does()
        vm.cpu.interrupts, vm.cpu.interception = self.timer, Monitored(vm.cpu)
        self.view.rflags, self.view.rip = boot.rflags, boot.rip
        for gpr in Gpr:
            self.view.set_gpr(gpr, boot.gpr(gpr))
        for sreg in Sreg:
            self.view.set_segment(sreg, boot.segment(sreg))
        vm.cpu.arm()

    def run(self, limit: int) -> VmExit | None:
        """Deliver a waiting interrupt if the guest can take it, and run the guest."""
        exit_, self._met = self._met, None
        if exit_ is not None:
            return exit_
        pending = self.board.pic.pending()
        if pending and not self._interruptible():
            if self.view.takes_interrupts:
                self.tick()  # only a shadow holds it back: look again after the next instruction
                return self.cpu.run(limit)
            return self._wait(limit)
        self._look_at = None
        if pending:
            self._deliver(Event(self.board.pic.acknowledge(), Source.EXTERNAL, None, self.view.rip))
        return self.cpu.run(limit)

    def _wait(self, limit: int) -> VmExit | None:
        """Run the guest while an interrupt waits; POLL cycles after the last trap the timer lets the monitor look."""
        if self._look_at is None:
            self._look_at = self.clock.now + POLL
        exit_ = self.cpu.run(min(limit, max(1, self._look_at - self.clock.now)))
        due = self.clock.now >= self._look_at
        if due and exit_ is None:
            self.tick()
        if due or exit_ is not None:
            self._look_at = None
        return exit_

    def handle(self, exit_: VmExit) -> Outcome:
        """Emulate what trapped, or reflect it to the guest's own handler. Raises Fault, TripleFault, Shutdown."""
        self.exit = exit_
        if Rflags(self.cpu.state.rflags).vm:
            raise Shutdown(NO_VM86)
        self.view.interrupts = self.view.takes_interrupts
        if exit_.reason is Reason.EXTERNAL_INTERRUPT:
            self.board.advance()
            return RESUME
        information = Interruption(exit_.interruption_information)
        if information.type is EventType.HARDWARE_EXCEPTION:
            self._exception(exit_, Vector(information.vector))
        else:
            exit_.what = f"INT_{information.vector:#x}"
            after = self.cpu.after(exit_.instruction_length)
            chain = self._deliver(Event(information.vector, _SOURCES[information.type], None, after))
            self.engine.instructions += not chain
        return RESUME

    def inject(self, fault: Fault) -> None:
        """Deliver *fault* through the guest's own IDT."""
        if not self.exit.what:
            self.exit.what = f"GUEST_{fault.vector.name}"
        self._deliver(Event.exception(fault, self.view.rip))

    def tick(self) -> None:
        """Let the host's timer interrupt the guest."""
        self.timer.fire()
        self.cpu.attention = True

    def wake(self) -> None:
        """Go on: `run` delivers the interrupt."""
        self.asleep = False

    @property
    def halted(self) -> bool:
        """Whether the guest executed HLT and nothing woke it yet."""
        return self.asleep

    # -- what emulation uses ------------------------------------------------------------------------------------

    def advance(self, length: int) -> None:
        """End an emulated instruction of *length* bytes. Raises Fault(#DB) for a single-step trap."""
        self.cpu.retire(length)

    def transfer(self, perform: Callable[[], None]) -> None:
        """End an emulated instruction that sets RIP itself. Raises what *perform* does, and Fault(#DB)."""
        stepping = Rflags(self.view.rflags).tf
        perform()
        self.cpu.retired(stepping=bool(stepping))

    def invalidate_page(self, gva: int) -> None:
        """INVLPG."""
        self.space.invalidate_page(gva)

    # -- traps --------------------------------------------------------------------------------------------------

    def _interruptible(self) -> bool:
        return self.view.takes_interrupts and not self.view.blocking_by_sti_or_mov_ss

    def _deliver(self, event: Event) -> tuple[Fault, ...]:
        """Deliver *event* as the guest's processor would, on the guest's own tables; return what was met on the way."""
        if event.vector == Vector.DB:
            self.view.dr7 = int(Dr7(self.view.dr7).replace(gd=0))
        return deliver_or_escalate(self.view, self.linear, event)

    def _exception(self, exit_: VmExit, vector: Vector) -> None:
        if vector is Vector.PF:
            self._page_fault(exit_)
            return
        code = exit_.error_code if FACTS[vector].error_code else None
        if vector in _DECODED:
            if vector in (Vector.NP, Vector.SS) and self.space.reveal(ErrorCode(exit_.error_code), self.linear):
                exit_.what = "HIDDEN_DESCRIPTOR"
                return
            if self._emulate(exit_):
                return
        raise Fault(vector, code)

    def _emulate(self, exit_: VmExit) -> bool:
        """Emulate the instruction at RIP, if the guest's kernel may expect it to work."""
        try:
            instruction = self.cpu.instruction()
        except (Fault, Truncated):
            return False
        emulation = find(instruction, self.view.cpl)
        if emulation is None:
            return False
        if self.view.cpl == 0:
            exit_.what = instruction.mnemonic.upper()
        emulation(self, instruction)
        exit_.what = exit_.what or instruction.mnemonic.upper()
        return True

    def _page_fault(self, exit_: VmExit) -> None:
        """Find out whose fault it is: the guest's own, or that of tables that the guest does not see."""
        self._met = self.space.page_fault(exit_)

    def _changed(self, register: str) -> None:
        if register in ("gdtr", "ldtr"):
            self.space.tables_changed()
        else:
            self.space.paging_changed()
