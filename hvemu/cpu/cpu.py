"""One logical processor: it runs on the engine, and does itself what the engine stops at.

Whoever virtualizes the processor hands it an Interception, and is told what happens before it happens. Without one,
this is the bare machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hvemu.cpu import emulate
from hvemu.cpu.breakpoints import Breakpoints
from hvemu.cpu.clock import Clock
from hvemu.cpu.control import DEFAULT
from hvemu.cpu.deliver import Event, Source, deliver_or_escalate
from hvemu.cpu.intercept import Intercepted, Interception
from hvemu.cpu.memory import PagedMemory
from hvemu.cpu.mmio import Mmio
from hvemu.cpu.msr_file import MsrFile
from hvemu.cpu.port_io import Ports
from hvemu.engine.engine import Engine
from hvemu.engine.traps import Kind, Stop
from hvemu.memory.ept_walk import EptMisconfiguration, EptViolation
from hvemu.memory.physical import Physical
from hvemu.vmx.exit import VmExit
from hvemu.x86.decode import Truncated, decode
from hvemu.x86.instruction import Instruction
from hvemu.x86.registers import Cr4, Dr7, Rflags, Sreg
from hvemu.x86.state import CpuState
from hvemu.x86.vectors import FACTS, Fault, TripleFault, Vector

STOP_CYCLES = 1000
"""What everything costs, in cycles of virtual time, that is not a plain instruction."""
_CR_WRITES = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 8
_CR8 = 1 << 8  # which the emulator reads from its own interrupt controller
_ALL_DR = 0xFF
_UMIP = (Kind.IDTR_READ, Kind.GDTR_READ, Kind.LDTR_READ, Kind.TR_READ)


class InterruptController(Protocol):
    """What drives the processor's INTR pin."""

    def pending(self) -> bool:
        """Whether an interrupt is requested."""
        ...

    def acknowledge(self) -> int:
        """Take the interrupt; return its vector."""
        ...


class VmxInstructions(Protocol):
    """What executes VMX instructions outside VMX non-root operation, on a processor that has them."""

    def instruction(self, instruction: Instruction) -> VmExit | None:
        """Execute *instruction*, at RIP; return the VM exit that a VM entry met. Raises Fault(#UD) for others."""
        ...


class Cpu:
    """A logical processor on *engine*.

    *physical* is memory by guest-physical address, *ports* the I/O space, *interrupts* what drives INTR. *memory* is
    linear memory as the current program sees it; *view* the registers as its instructions read and write them.
    *halted*: waiting for an interrupt. *attention* is set by whoever changes what may interrupt the processor. *rules*
    say what control registers may hold. *virtual_nmis*: what is blocked by NMI are not the NMIs that arrive at the pin.
    *hears_interrupts* and *hears_nmis*: what wakes a halted processor; in shutdown the first does not.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        physical: Physical,
        ports: Ports,
        mmio: Mmio,
        msrs: MsrFile,
        clock: Clock,
        interrupts: InterruptController,
    ) -> None:
        self.engine, self.state, self.clock, self.msrs = engine, engine.state, clock, msrs
        self.physical, self.ports, self.mmio, self.interrupts = physical, ports, mmio, interrupts
        self.memory = PagedMemory(self.state, physical)
        self.breakpoints = Breakpoints(self.state)
        self.view: CpuState = self.state
        self.interception: Interception | None = None
        self.vmx: VmxInstructions | None = None
        self.wanted: frozenset[Kind] = frozenset()
        self.rules = DEFAULT
        self.halted = self.nmi_pending = self.nmi_blocked = self.virtual_nmis = False
        self.iret_unblocks_nmis = self.hears_interrupts = self.hears_nmis = True
        self.attention = True
        self._from = 0  # where the last run began
        self._events: dict[Kind, Callable[[Stop], VmExit | None]] = {
            Kind.EXCEPTION: self._exception,
            Kind.SOFTWARE_INT: self._software_interrupt,
            Kind.WINDOW: self._window,
            Kind.SECOND_LEVEL: self._second_level,
        }
        self.arm()

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, limit: int) -> VmExit | None:
        """Run at most *limit* instructions, up to the next stop, and act on it; or take one event.

        Return the VM exit that the interception made of it, or None. Raises TripleFault on a processor without one.
        """
        try:
            try:
                return self._watched() if self.breakpoints.armed else self._go(limit)
            except Fault as fault:
                return self.deliver(Event.exception(fault, self.state.rip))
        except Intercepted as caught:
            return caught.exit
        except (EptViolation, EptMisconfiguration) as miss:
            assert self.interception is not None
            return self.interception.ept_fault(miss, None)

    def _go(self, limit: int) -> VmExit | None:
        """Take what is pending, or run at full speed."""
        if self.attention:
            exit_ = self._attend()
            if exit_ is not None or self.attention:
                return exit_
        if self.halted:
            return None
        self._from = self.state.rip
        return self.act(self.engine.run(limit))

    def _watched(self) -> VmExit | None:
        """Take what is pending, or run one instruction between breakpoints.

        The order is that of SDM 3A "Priority Among Concurrent Events".
        """
        self.breakpoints.check_trap()
        exit_ = self._attend()
        if exit_ is not None or self.halted or self.attention:
            return exit_
        self.attention = True
        self.engine.open_window(False)  # whether one is open has just been asked
        code = self.state.segment(Sreg.CS).base
        self.breakpoints.check_fetch((code + self.state.rip) & self.state.linear_mask)
        self.breakpoints.begin(self._next_instruction())
        self._from = self.state.rip
        return self.act(self.engine.step())

    def act(self, stop: Stop) -> VmExit | None:
        """Do what *stop* calls for. Raises Fault for the program, Intercepted."""
        kind = stop.kind
        if kind is Kind.LIMIT:
            if self.breakpoints.exhausted:
                self.engine.step()  # which finds the count at zero, and goes on to the next instruction
            self.breakpoints.retired()
            return None
        handle = self._events.get(kind)
        if handle is not None:
            return handle(stop)
        if self.interception is not None:
            exit_ = self.interception.instruction(stop)
            if exit_ is not None:
                return exit_
        self.clock.charge(STOP_CYCLES)
        return emulate.EMULATE[kind](self, stop)

    def instruction(self) -> Instruction:
        """Return the instruction at RIP."""
        return decode(self.engine.fetch(), self.state.code_bits)

    def _next_instruction(self) -> Instruction | None:
        """Return the instruction at RIP, or None when it will fault."""
        try:
            return self.instruction()
        except (Fault, Truncated):
            return None

    def retire(self, length: int) -> None:
        """End an instruction of *length* bytes that was emulated, or with 0 an iteration that is not the last.

        Raises Fault(#DB) for a single-step trap.
        """
        state = self.state
        stepping = state.retire((state.rip + length) & state.linear_mask)
        if stepping or not length or self.breakpoints.armed:
            self.retired(stepping=stepping, repeats=not length)
        else:
            self.engine.instructions += 1

    def retired(self, *, stepping: bool, repeats: bool = False) -> None:
        """Count an instruction that was emulated, and set RIP. Raises Fault(#DB) when it ends with TF *stepping*.

        Between iterations RF is set (SDM 3B "Instruction-Breakpoint Exception Condition").
        """
        self.engine.instructions += 1
        self.breakpoints.retired()
        if repeats:
            self.state.rflags = int(Rflags(self.state.rflags).replace(rf=1))
        if stepping:
            self.single_step()

    def after(self, length: int) -> int:
        """Return the RIP *length* bytes on, as wide as the code segment has it."""
        return (self.state.rip + length) & self.state.linear_mask

    def single_step(self) -> None:
        """Raise the #DB of an instruction that TF saw begin."""
        self.breakpoints.take(step=True)
        raise Fault(Vector.DB)

    def run_natively(self) -> VmExit | None:
        """Let the instruction at RIP run on the engine although its kind is intercepted."""
        self.engine.disarm()
        stop = self.engine.step()
        self.arm()
        return self.act(stop)

    # -- arming -------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Arm the engine for what the processor's state and the interception (*wanted*) call for."""
        state = self.state
        kinds = set(self.wanted)
        umip = Cr4(state.cr4).umip
        if umip:
            kinds.update(_UMIP)
        if self.nmi_blocked and self.iret_unblocks_nmis:
            kinds.add(Kind.IRET)
        self.engine.arm(kinds - _REGISTERS)
        guarded = Dr7(state.dr7).gd or Kind.DR_READ in kinds
        self.engine.arm_registers(
            cr_read=_CR_READS if Kind.CR_READ in kinds else _CR8 | umip,
            cr_write=_CR_WRITES,
            dr_read=_ALL_DR if guarded else 0,
            dr_write=_ALL_DR,
        )

    # -- events -------------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> VmExit | None:
        """Deliver *event* through the IDT, unless it is intercepted. Raises TripleFault, Intercepted."""
        self.halted = False
        self.breakpoints.drop()
        exit_ = None if self.interception is None else self.interception.event(event, None)
        return exit_ if exit_ is not None else self.inject(event)

    def inject(self, event: Event) -> VmExit | None:
        """Deliver *event* through the IDT without asking first; what it turns into may be intercepted."""
        interception = self.interception
        if interception is None:
            self._through_idt(event, None)
            return None
        try:
            self._through_idt(event, self._escalated)
        except TripleFault as dead:
            return interception.triple_fault(str(dead))
        except (EptViolation, EptMisconfiguration) as miss:
            return interception.ept_fault(miss, event)
        return None

    def _through_idt(self, event: Event, before: Callable[[Event, Event], None] | None) -> None:
        """Deliver *event*, or what it turns into. An instruction that asked for it retires when nothing goes wrong."""
        if event.vector == Vector.DB:
            self.state.dr7 = int(Dr7(self.state.dr7).replace(gd=0))
        memory = self.breakpoints.watching(self.memory)
        chain = deliver_or_escalate(self.state, memory, event, before)
        self.engine.instructions += event.source in _INSTRUCTIONS and not chain

    def _escalated(self, event: Event, vectoring: Event) -> None:
        """*event* arose during the delivery of *vectoring*. Raises Intercepted when it is not to be delivered."""
        assert self.interception is not None
        exit_ = self.interception.event(event, vectoring)
        if exit_ is not None:
            raise Intercepted(exit_)

    def request_nmi(self) -> None:
        """Raise the NMI pin: an edge is remembered until it is taken."""
        self.nmi_pending = self.attention = True

    def _attend(self) -> VmExit | None:
        """Between instructions: take what is pending and not blocked, or wait for the moment when it can be.

        When *attention* is set afterwards, something was taken, or it is to be looked at again.
        """
        self.attention = False
        in_shadow = self.state.blocking_by_sti_or_mov_ss
        requested = self.hears_interrupts and self.interrupts.pending()
        if self.nmi_pending and self.hears_nmis and (self.virtual_nmis or not self.nmi_blocked):
            return self._leave_shadow() if in_shadow else self._take_nmi()
        if self.interception is not None:
            if in_shadow and (requested or self.interception.wants_nmi_window):
                return self._leave_shadow()
            exit_ = self._intercepted(self.interception, requested=requested)
            if exit_ is not None:
                return exit_
        if not requested:
            self.engine.open_window(self.interception is not None and self.interception.wants_window)
            return None
        if Rflags(self.state.rflags).if_ and not in_shadow:
            return self._take_interrupt()
        self.engine.open_window(True)
        return None

    def _intercepted(self, interception: Interception, *, requested: bool) -> VmExit | None:
        """Ask about what may leave the guest between instructions, in the order of priority."""
        exit_ = interception.nmi_window() if interception.wants_nmi_window and self.hears_nmis else None
        if exit_ is None and interception.wants_window and self.hears_interrupts:
            exit_ = interception.window()
        if exit_ is None and requested:
            exit_ = interception.interrupt()
        return exit_

    def _leave_shadow(self) -> VmExit | None:
        """Run the one instruction between which and the last no NMI comes."""
        self.attention = True
        return self.act(self.engine.step())

    def _take_nmi(self) -> VmExit | None:
        self.nmi_pending, self.attention = False, True
        exit_ = None if self.interception is None else self.interception.nmi()
        if exit_ is not None:
            return exit_
        self.block_nmi(True)
        return self.deliver(Event(Vector.NMI, Source.NMI, None, self.state.rip))

    def block_nmi(self, blocked: bool) -> None:
        """Hold back NMIs from now on, or no longer: until IRET."""
        self.nmi_blocked, self.attention = blocked, True
        self.arm()

    def _take_interrupt(self) -> VmExit | None:
        self.engine.open_window(False)
        self.attention, self.halted = True, False
        return self.deliver(Event(self.interrupts.acknowledge(), Source.EXTERNAL, None, self.state.rip))

    def _window(self, _stop: Stop) -> VmExit | None:
        exit_ = None if self.interception is None else self.interception.window()
        if exit_ is not None:
            return exit_
        return self._take_interrupt() if self.interrupts.pending() else None

    def _exception(self, stop: Stop) -> VmExit | None:
        vector = Vector(stop.detail)
        if vector is Vector.UD:
            return self._undefined(stop)
        if vector is Vector.DB:
            self._single_stepped()
        code = stop.error_code if FACTS[vector].error_code else None
        fault = Fault(vector, code, cr2=stop.address if vector is Vector.PF else None)
        return self.deliver(Event.exception(fault, self.state.rip))

    def _single_stepped(self) -> None:
        """Put right what the engine leaves undone at the single-step trap of an instruction."""
        state = self.state
        if self.breakpoints.armed:
            self.breakpoints.stepped()
        elif state.rip == self._from and self.instruction().rep is not None:  # between iterations
            state.rflags = int(Rflags(state.rflags).replace(rf=1))

    def _undefined(self, stop: Stop) -> VmExit | None:
        """Look at what the engine does not decode: INT1, and instructions that only an interception knows."""
        if self.interception is not None:
            exit_ = self.interception.instruction(stop)
            if exit_ is not None:
                return exit_
        instruction = self.instruction()
        if instruction.mnemonic == "int1":
            return self._ask_for(Event(Vector.DB, Source.PRIVILEGED, None, self.after(instruction.length)))
        if self.vmx is None or self.interception is not None:
            raise Fault(Vector.UD)
        return self.vmx.instruction(instruction)

    def _software_interrupt(self, stop: Stop) -> VmExit | None:
        """INT n, INT3 and INTO: RIP is after the instruction, but it must be on it while its gate is checked."""
        state, after = self.state, self.state.rip
        state.rip = (after - 1) & state.linear_mask
        short = stop.detail in _ONE_BYTE and self.engine.fetch().startswith(_ONE_BYTE[stop.detail])
        if not short:
            state.rip = (after - 2) & state.linear_mask
        self.engine.instructions -= 1  # counted when it retires
        return self._ask_for(
            Event(stop.detail, Source.SOFTWARE_EXCEPTION if short else Source.SOFTWARE_INT, None, after)
        )

    def _ask_for(self, event: Event) -> VmExit | None:
        """Deliver *event*, which the instruction at RIP asks for; it has cleared RF when it does."""
        self.state.rflags = int(Rflags(self.state.rflags).replace(rf=0))
        return self.deliver(event)

    def _second_level(self, stop: Stop) -> VmExit | None:
        if self.interception is not None:
            return self.interception.second_level(stop)
        self.clock.charge(STOP_CYCLES)
        return self.mmio.access(self, stop)


_CR_READS = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 8
_REGISTERS = {Kind.CR_READ, Kind.DR_READ}  # armed register by register
_INSTRUCTIONS = frozenset({Source.SOFTWARE_INT, Source.SOFTWARE_EXCEPTION, Source.PRIVILEGED})
_ONE_BYTE = {int(Vector.BP): b"\xcc", int(Vector.OF): b"\xce"}  # INT3, INTO
