"""The local APIC of the machine's only processor, as software programs it.

By MMIO in xAPIC mode and by MSRs in x2APIC mode (SDM 3A "Advanced Programmable Interrupt Controller (APIC)").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from hvemu.devices import apic_timer, apic_vectors
from hvemu.devices.apic_core import ApicCore, ExternalController
from hvemu.devices.apic_message import FIRST_VECTOR, VECTORED, DeliveryMode, ExtendedLogicalId, Message
from hvemu.devices.apic_registers import (
    ACCESS,
    BANK,
    LVTS,
    ONES,
    VERSION,
    Access,
    Dfr,
    Esr,
    Icr,
    Lvt,
    Reg,
    Shorthand,
    Svr,
)
from hvemu.devices.apic_timer import ApicTimer, TscTime
from hvemu.devices.device import Clock, State
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.msrs import APIC_BASE, ApicBase
from hvemu.x86.vectors import Fault, Vector

STRIDE = 16
"""Bytes from one register to the next."""
PAGE = 4096
FIRST_MSR = 0x800
TSC_DEADLINE = 0x6E0
_PAGES = 2**PHYSICAL_ADDRESS_WIDTH // PAGE - 1


class LocalApic:
    """APIC number *identity*, an interrupt controller for the processor. All registers are as after RESET.

    *tsc_time* says when the time-stamp counter reaches a value; *x2apic* tells whether that mode is offered; for the
    other wires see ApicCore.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        tsc_time: TscTime,
        pic: ExternalController,
        nmi: Callable[[], None],
        end_of_interrupt: Callable[[int], None],
        identity: int = 0,
        x2apic: bool = True,
    ) -> None:
        self._clock, self._tsc_time = clock, tsc_time
        self.core = ApicCore(pic=pic, nmi=nmi, end_of_interrupt=end_of_interrupt, identity=identity)
        self._timer = ApicTimer(clock=clock, tsc_time=tsc_time)
        self._base_bits = int(ApicBase(bsp=1, extd=x2apic, enable=1, base=_PAGES))
        self.pending, self.acknowledge = self.core.pending, self.core.acknowledge
        self.receive, self.set_lint, self.signal = self.core.receive, self.core.set_lint, self.core.signal

    def __repr__(self) -> str:
        return f"LocalApic({self.core!r}, {self._timer!r})"

    def start_as_firmware_does(self) -> None:
        """Enable the APIC in virtual-wire mode."""
        self.core.start_as_firmware_does()

    def state(self) -> State:
        """Return all registers, the timer and the vectors."""
        return {**self.core.state(), "timer": asdict(self._timer.r)}

    def restore(self, state: State) -> None:
        """Return to a saved state; whoever is wired to this APIC stays wired."""
        self.core.restore(state)
        self._timer.r = apic_timer.Registers(**state["timer"])

    @property
    def mmio_gpa(self) -> int | None:
        """Where the page of registers lies, or None while there is none: disabled, or in x2APIC mode."""
        base = self.core.base
        return base.base * PAGE if base.enable and not base.extd else None

    @property
    def cr8(self) -> int:
        """CR8, which is the class of the task priority."""
        return self.core.cr8

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.core.cr8 = value

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Let virtual time reach *now* nanoseconds."""
        if self._timer.advance(now):
            self.core.signal(Reg.LVT_TIMER)

    def next_deadline(self) -> int | None:
        """Return the virtual time in nanoseconds at which the timer interrupts next, or None if it will not."""
        return None if Lvt(self.core.r.plain[Reg.LVT_TIMER]).masked else self._timer.expires_at()

    # -- MMIO ---------------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read the register at *offset* of the page. Where no page is mapped there are all ones."""
        if self.mmio_gpa is None:
            return int.from_bytes(b"\xff" * size, "little")
        register = self._xapic_register(offset, size)
        return self._get(register) if register is not None and "r" in ACCESS[register].xapic else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register at *offset* of the page."""
        register = None if self.mmio_gpa is None else self._xapic_register(offset, size)
        if register is not None and "w" in ACCESS[register].xapic:
            self._put(register, value & ACCESS[register].write)

    def _xapic_register(self, offset: int, size: int) -> int | None:
        """Return which register an access reaches. Any but an aligned 32-bit access reaches none."""
        register, byte = divmod(offset, STRIDE)
        if size != 4 or byte:
            return None
        if register in ACCESS and ACCESS[register].xapic:
            return register
        self.core.log(Esr(illegal_register_address=1))
        return None

    # -- MSRs ---------------------------------------------------------------------------------------------------------

    def read_msr(self, index: int) -> int:
        """Return IA32_APIC_BASE, IA32_TSC_DEADLINE or one of MSRs 0x800 to 0x8ff. Raises Fault(#GP, 0)."""
        if index == APIC_BASE:
            return int(self.core.base)
        if index == TSC_DEADLINE:
            self.advance(self._clock())
            return self._timer.r.deadline
        register, _ = self._x2apic_register(index, "r")
        return self.core.r.icr if register == Reg.ICR else self._get(register)

    def write_msr(self, index: int, value: int) -> None:
        """Write what `read_msr` reads, EOI and SELF IPI. Raises Fault(#GP, 0), and changes nothing then."""
        if index == APIC_BASE:
            self._put_base(value)
        elif index == TSC_DEADLINE:
            self.advance(self._clock())
            self._timer.write_deadline(value)
            self.advance(self._clock())
        else:
            self._put_msr(index, value)

    def _put_msr(self, index: int, value: int) -> None:
        register, access = self._x2apic_register(index, "w")
        is_icr = register == Reg.ICR
        writable = int(Icr(access.write, destination=ONES)) if is_icr else access.write
        if value & ~(writable | access.ignored):
            raise Fault(Vector.GP, 0)
        if is_icr:
            self.core.r.icr, to = value & writable, Icr(value).destination
            self._send(Icr(value), to=to, everyone=to == ONES)
        else:
            self._put(register, value & writable)

    def _x2apic_register(self, index: int, right: str) -> tuple[int, Access]:
        """Return the register of an MSR (SDM 3A "x2APIC Register Address Space")."""
        register = index - FIRST_MSR
        if not self.core.base.extd or register not in ACCESS or right not in ACCESS[register].x2apic:
            raise Fault(Vector.GP, 0)
        return register, ACCESS[register]

    def _put_base(self, value: int) -> None:
        """Write IA32_APIC_BASE (SDM 3A "x2APIC State Transitions")."""
        old, new = self.core.base, ApicBase(value)
        leaves = old.extd and new.enable and not new.extd
        skips = new.extd and not (old.enable and new.enable)
        if value & ~self._base_bits or leaves or skips:
            raise Fault(Vector.GP, 0)
        self.core.r.base = value
        if old.enable and not new.enable:
            self.core.reset()
            self._timer.r = apic_timer.Registers()
        elif new.extd and not old.extd:
            self.core.r.plain[Reg.ID] = self.core.identity
            self.core.r.plain[Reg.LDR] = int(ExtendedLogicalId.of(self.core.identity))

    # -- registers ----------------------------------------------------------------------------------------------------

    def _get(self, register: int) -> int:
        self.advance(self._clock())
        r, vectors = self.core.r, self.core.vectors
        if register in r.plain:
            return r.plain[register]
        bank, n = divmod(register, BANK)
        for first, held in ((Reg.ISR, vectors.isr), (Reg.TMR, vectors.tmr), (Reg.IRR, vectors.irr)):
            if bank * BANK == first:
                return apic_vectors.register(held, n)
        return {
            Reg.VERSION: int(VERSION),
            Reg.APR: 0,
            Reg.PPR: vectors.priority(self.core.tpr),
            Reg.ESR: r.esr,
            Reg.ICR: Icr(r.icr).low,
            Reg.ICR_HIGH: Icr(r.icr).destination,
            Reg.INITIAL_COUNT: self._timer.r.initial,
            Reg.CURRENT_COUNT: self._timer.current,
        }[Reg(register)]

    def _put(self, register: int, value: int) -> None:
        """Write *value*, which has no bits that cannot be written."""
        self.advance(self._clock())
        r = self.core.r
        match register:
            case Reg.EOI:
                self.core.end()
            case Reg.ESR:
                r.esr, r.errors = r.errors, 0
            case Reg.ICR:
                r.icr = int(Icr(value, destination=Icr(r.icr).destination))
                to = Icr(r.icr).xapic_destination
                self._send(Icr(r.icr), to=to, everyone=to == 0xFF)
            case Reg.ICR_HIGH:
                r.icr = int(Icr(r.icr, destination=value))
            case Reg.SELF_IPI:
                self._send(Icr(value, shorthand=Shorthand.SELF))
            case Reg.SVR:
                self.core.put_svr(Svr(value))
            case Reg.INITIAL_COUNT:
                self._timer.write_initial(value)
            case _:
                self._put_plain(Reg(register), value)

    def _put_plain(self, register: Reg, value: int) -> None:
        if register in LVTS:
            self.core.put_lvt(register, Lvt(value))
        else:
            self.core.r.plain[register] = int(Dfr(value, others=Dfr.others.mask)) if register is Reg.DFR else value
        if register is Reg.LVT_TIMER:
            self._timer.set_mode(Lvt(value).timer_mode)
        elif register is Reg.DIVIDE:
            self._timer.write_divide(value)

    def _send(self, icr: Icr, *, to: int = 0, everyone: bool = False) -> None:
        """Send an interprocessor interrupt. With one processor it comes back or goes nowhere."""
        if icr.mode in VECTORED and icr.vector < FIRST_VECTOR:
            self.core.log(Esr(send_illegal_vector=1))
        everyone = everyone or icr.shorthand is not Shorthand.NONE
        message = Message(icr.mode, icr.vector, to, logical=icr.logical, broadcast=everyone)
        comes_back = icr.shorthand is not Shorthand.OTHERS
        if comes_back and (icr.mode in VECTORED or icr.mode is DeliveryMode.NMI):
            self.core.receive(message)
