"""What a local APIC does with interrupts: which it accepts, which it offers, and how they end.

SDM 3A "Advanced Programmable Interrupt Controller (APIC)". Interrupt pins carry whether something is asserted: the
polarity bits of LVT entries are kept and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol

from hvemu.devices.apic_message import FIRST_VECTOR, VECTORED, DeliveryMode, ExtendedLogicalId, LogicalId, Message
from hvemu.devices.apic_registers import LVTS, RESET, Dfr, Esr, Icr, Id, Ldr, Lvt, Reg, Shorthand, Svr, Tpr
from hvemu.devices.apic_vectors import Vectors
from hvemu.devices.device import State
from hvemu.x86.msrs import ApicBase

DEFAULT_PAGE = 0xFEE00
LINT = (Reg.LVT_LINT0, Reg.LVT_LINT1)


class ExternalController(Protocol):
    """What LINT0 is wired to: the pair of 8259As, which drives a pin and answers an acknowledgement with a vector."""

    def pending(self) -> bool:
        """Whether the pin is asserted."""
        ...

    def acknowledge(self) -> int:
        """Take the interrupt; return its vector."""
        ...


@dataclass(slots=True)
class Registers:
    """All that the APIC remembers besides its timer and its vectors, by register number where it is a plain one.

    *errors* are logged and not yet shown in *esr*; *extint*: a message has asked for an acknowledgement of the 8259As.
    """

    base: int = int(ApicBase(bsp=1, enable=1, base=DEFAULT_PAGE))
    plain: dict[int, int] = field(default_factory=lambda: {int(k): v for k, v in RESET.items()})
    icr: int = 0
    esr: int = 0
    errors: int = 0
    extint: bool = False
    lint: list[bool] = field(default_factory=lambda: [False, False])


class ApicCore:
    """The interrupts of APIC number *identity*, as after RESET.

    *pic* drives LINT0; *nmi* is called for each NMI; *end_of_interrupt* is told the vector of each level-triggered
    interrupt that ends.
    """

    def __init__(
        self,
        *,
        pic: ExternalController,
        nmi: Callable[[], None],
        end_of_interrupt: Callable[[int], None],
        identity: int = 0,
    ) -> None:
        self.pic, self._nmi, self._end_of_interrupt, self.identity = pic, nmi, end_of_interrupt, identity
        self.r = Registers()
        self.reset()

    def __repr__(self) -> str:
        v = self.vectors
        return f"{self.base!r} {self.svr!r} ppr={v.priority(self.tpr):#x} irr={v.irr:#x} isr={v.isr:#x}"

    def reset(self) -> None:
        """Forget all but where the APIC is and what its pins carry."""
        self.r = Registers(base=self.r.base, lint=self.r.lint)
        self.r.plain[Reg.ID] = int(Id(id=self.identity % 256))
        self.vectors = Vectors()

    def start_as_firmware_does(self) -> None:
        """Enable the APIC in virtual-wire mode: LINT0 takes the vectors of the 8259As, and LINT1 is NMI.

        The command register holds the last message that firmware sends to wake other processors.
        """
        plain = self.r.plain
        plain[Reg.SVR] = int(Svr(vector=0xFF, enable=1))
        plain[Reg.LVT_LINT0] = int(Lvt(mode=DeliveryMode.EXTINT, level=1))
        plain[Reg.LVT_LINT1] = int(Lvt(mode=DeliveryMode.NMI, level=1))
        startup = Icr(vector=0x10, mode=DeliveryMode.STARTUP, assert_=1, shorthand=Shorthand.OTHERS)
        self.r.icr = int(startup)

    def state(self) -> State:
        """Return all registers and the vectors."""
        registers = asdict(self.r)
        registers["plain"] = {f"{number:#x}": value for number, value in self.r.plain.items()}
        return {"registers": registers, "vectors": asdict(self.vectors)}

    def restore(self, state: State) -> None:
        """Return to a saved state; whoever is wired to this APIC stays wired."""
        registers = dict(state["registers"])
        plain = {int(number, 0): value for number, value in registers.pop("plain").items()}
        self.r = Registers(**{**registers, "lint": [*registers["lint"]]}, plain=plain)
        self.vectors = Vectors(**state["vectors"])

    @property
    def base(self) -> ApicBase:
        """IA32_APIC_BASE."""
        return ApicBase(self.r.base)

    # -- the processor's side -----------------------------------------------------------------------------------------

    @property
    def tpr(self) -> int:
        """The task priority."""
        return self.r.plain[Reg.TPR]

    @property
    def cr8(self) -> int:
        """CR8: the class of the task priority (SDM 3A "Interaction of Task Priorities between CR8 and APIC")."""
        return Tpr(self.tpr).priority_class

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.r.plain[Reg.TPR] = int(Tpr(priority_class=value))

    def pending(self) -> bool:
        """Return whether the processor is asked to take an interrupt."""
        self._sample_pic()
        if not self.base.enable:
            return self.r.lint[0]
        return self.vectors.deliverable(self.tpr) is not None or self._external

    def acknowledge(self) -> int:
        """Take the interrupt; return its vector. One that has vanished is spurious.

        The 8259As come first: their interrupts have no priority that could be compared.
        """
        self._sample_pic()
        if not self.base.enable or self._external:
            self.r.extint = False
            return self.pic.acknowledge()
        vector = self.vectors.take(self.tpr)
        return self.svr.vector if vector is None else vector

    def _sample_pic(self) -> None:
        """See whether the 8259As assert LINT0."""
        self.set_lint(0, self.pic.pending())

    @property
    def _external(self) -> bool:
        """Whether the 8259As are to be asked for a vector."""
        lint0 = Lvt(self.r.plain[Reg.LVT_LINT0])
        return self.r.extint or (self.r.lint[0] and not lint0.masked and lint0.mode is DeliveryMode.EXTINT)

    @property
    def svr(self) -> Svr:
        """The spurious-interrupt vector register."""
        return Svr(self.r.plain[Reg.SVR])

    # -- interrupts that come in --------------------------------------------------------------------------------------

    def receive(self, message: Message) -> bool:
        """Take *message* from the bus if it is for this APIC, and return whether it was accepted."""
        return self.base.enable and self._is_addressed(message) and self._accept(message)

    def set_lint(self, n: int, level: bool) -> None:
        """Drive pin LINT0 or LINT1. In a disabled APIC they are the processor's pins INTR and NMI."""
        rises, self.r.lint[n] = level and not self.r.lint[n], level
        if not self.base.enable:
            if n and rises:
                self._nmi()
        elif n == 0 and self._is_level(LINT[n]):
            self._sample_lint0()
        elif rises:
            self.signal(LINT[n])

    def signal(self, source: Reg) -> None:
        """Let a local event happen: the timer, an edge at a pin, the thermal sensor, a counter, an error."""
        lvt = Lvt(self.r.plain[source])
        if lvt.masked:
            return
        if source is Reg.LVT_PERFORMANCE:
            self.r.plain[source] = int(lvt.replace(masked=1))  # as when a counter overflows
        if lvt.mode in VECTORED or lvt.mode is DeliveryMode.NMI:
            self._accept(Message(lvt.mode, lvt.vector))

    def _is_level(self, source: Reg) -> bool:
        lvt = Lvt(self.r.plain[source])
        return lvt.level and lvt.mode is DeliveryMode.FIXED

    def _sample_lint0(self) -> None:
        """Accept a level at LINT0, unless its last interrupt has not ended."""
        lvt = Lvt(self.r.plain[Reg.LVT_LINT0])
        waits = self.r.lint[0] and self._is_level(Reg.LVT_LINT0) and not (lvt.masked or lvt.remote_irr)
        if waits and self._accept(Message(lvt.mode, lvt.vector, level=True)):
            self.r.plain[Reg.LVT_LINT0] = int(lvt.replace(remote_irr=1))

    def _is_addressed(self, message: Message) -> bool:
        if message.broadcast:
            return True
        to, ldr = message.destination, self.r.plain[Reg.LDR]
        if not message.logical:
            return to == (self.r.plain[Reg.ID] if self.base.extd else Id(self.r.plain[Reg.ID]).id)
        if self.base.extd:
            mine, asked = ExtendedLogicalId(ldr), ExtendedLogicalId(to)
            return mine.cluster == asked.cluster and bool(mine.members & asked.members)
        flat, short = Dfr(self.r.plain[Reg.DFR]).model, LogicalId(Ldr(ldr).id)
        if flat:
            return bool(short & to)
        return short.cluster == LogicalId(to).cluster and bool(short.members & LogicalId(to).members)

    def _accept(self, message: Message) -> bool:
        """Act on a message. INIT, start-up and SMI do nothing to this processor."""
        if message.mode is DeliveryMode.NMI:
            self._nmi()
        elif message.mode is DeliveryMode.EXTINT:
            self.r.extint = True
        elif message.mode in VECTORED:
            return self._accept_vector(message)
        return True

    def _accept_vector(self, message: Message) -> bool:
        if not self.svr.enable:
            return False
        if message.vector < FIRST_VECTOR:
            self.log(Esr(receive_illegal_vector=1))
            return False
        self.vectors.request(message.vector, level=message.level)
        return True

    def log(self, error: Esr) -> None:
        """Log an error. The first one since ESR was written interrupts (SDM 3A "Error Handling")."""
        first, self.r.errors = not self.r.errors, self.r.errors | error
        if first:
            self.signal(Reg.LVT_ERROR)

    # -- what software does -------------------------------------------------------------------------------------------

    def put_lvt(self, register: Reg, lvt: Lvt) -> None:
        """Write an entry of the local vector table."""
        if not self.svr.enable:
            lvt = lvt.replace(masked=1)
        if register is Reg.LVT_LINT0 and lvt.level:
            lvt = lvt.replace(remote_irr=Lvt(self.r.plain[register]).remote_irr)
        self.r.plain[register] = int(lvt)
        if register is Reg.LVT_LINT0:
            self._sample_lint0()

    def put_svr(self, svr: Svr) -> None:
        """Write SVR (SDM 3A "Local APIC State After It Has Been Software Disabled")."""
        self.r.plain[Reg.SVR] = int(svr)
        if not svr.enable:
            for lvt in LVTS:
                self.r.plain[lvt] = int(Lvt(self.r.plain[lvt], masked=1))

    def end(self) -> None:
        """End the interrupt in service. A level-triggered source asks again if it is still asserted."""
        vector = self.vectors.end()
        if vector is None or not self.vectors.is_level(vector):
            return
        lint0 = Lvt(self.r.plain[Reg.LVT_LINT0])
        if lint0.remote_irr and lint0.vector == vector:
            self.r.plain[Reg.LVT_LINT0] = int(lint0.replace(remote_irr=0))
            self._sample_lint0()
        self._end_of_interrupt(vector)
