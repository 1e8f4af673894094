"""The 16550 UART, both directions (National Semiconductor PC16550D data sheet).

The line is modelled as infinitely fast: a byte written has left when the write ends, so the transmitter is always
empty, and the four character times of the receiver timeout are no time at all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import IntEnum

from hvemu.bits import Register, bit, bits
from hvemu.bits import field as bit_field
from hvemu.devices.device import Line, Output, State

FIFO_SIZE = 16


class Ier(Register):
    """Interrupt enable register."""

    received = bit(0)
    transmitter_empty = bit(1)
    line_status = bit(2)
    modem_status = bit(3)
    all = bits(3, 0)


class Source(IntEnum):
    """Interrupt identification: bits 3:0 of IIR, in falling order of priority."""

    LINE_STATUS = 0x6
    RECEIVED = 0x4
    TIMEOUT = 0xC
    TRANSMITTER_EMPTY = 0x2
    MODEM_STATUS = 0x0
    NONE = 0x1


class Iir(Register):
    """Interrupt identification register."""

    source = bit_field(3, 0, Source)
    fifos_enabled = bits(7, 6)


class Fcr(Register):
    """FIFO control register."""

    enable = bit(0)
    clear_receiver = bit(1)
    clear_transmitter = bit(2)
    dma_mode = bit(3)
    trigger = bits(7, 6)


class Lcr(Register):
    """Line control register."""

    word_length = bits(1, 0)
    stop_bits = bit(2)
    parity = bits(5, 3)
    set_break = bit(6)
    dlab = bit(7)


class Mcr(Register):
    """Modem control register. OUT2 opens the gate between the UART and the interrupt line of a PC."""

    dtr = bit(0)
    rts = bit(1)
    out1 = bit(2)
    out2 = bit(3)
    loop = bit(4)
    all = bits(4, 0)


class Lsr(Register):
    """Line status register."""

    data_ready = bit(0)
    overrun = bit(1)
    parity_error = bit(2)
    framing_error = bit(3)
    break_ = bit(4)
    errors = bits(4, 1)
    thr_empty = bit(5)
    transmitter_empty = bit(6)
    error_in_fifo = bit(7)


class Msr(Register):
    """Modem status register: four levels, and whether each has changed since the last read."""

    delta_cts = bit(0)
    delta_dsr = bit(1)
    trailing_ri = bit(2)
    delta_dcd = bit(3)
    deltas = bits(3, 0)
    cts = bit(4)
    dsr = bit(5)
    ri = bit(6)
    dcd = bit(7)
    levels = bits(7, 4)


class Divisor(Register):
    """Divisor latch: 115200 baud divided by this."""

    dll = bits(7, 0)
    dlm = bits(15, 8)


EIGHT_BITS = 3
TRIGGER_LEVELS = (1, 4, 8, 14)
NO_ERRORS = Lsr(0)
PEER_READY = Msr(cts=1, dsr=1, dcd=1)
"""The modem inputs while a terminal is connected."""


@dataclass(slots=True)
class Registers:
    """All that a UART remembers.

    *received* holds (byte, its line errors), oldest first. *holding* is the last byte that came without FIFOs: the
    register keeps it when it has been read.
    """

    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    scratch: int = 0
    divisor: int = 12
    deltas: int = 0
    inputs: int = int(PEER_READY)
    overrun: bool = False
    received: list[list[int]] = field(default_factory=list)
    holding: int = 0
    empty_pending: bool = False
    asserted: bool = False


class Uart:
    """Eight byte registers. *irq* is its interrupt line, *output* takes the bytes that the guest sends."""

    def __init__(self, *, irq: Line, output: Output, registers: Registers | None = None) -> None:
        self._r = registers or Registers()
        self._irq, self._output = irq, output

    def __repr__(self) -> str:
        return f"Uart({Ier(self._r.ier)!r} {Lcr(self._r.lcr)!r} {Mcr(self._r.mcr)!r} {self.lsr!r})"

    def state(self) -> State:
        """Return all registers and the bytes received."""
        return asdict(self._r)

    @classmethod
    def as_firmware_leaves_it(cls, *, irq: Line, output: Output) -> Uart:
        """Return a UART set to 9600 baud and eight bits without parity, with no interrupts enabled."""
        return cls(irq=irq, output=output, registers=Registers(lcr=int(Lcr(word_length=EIGHT_BITS))))

    @classmethod
    def from_state(cls, state: State, *, irq: Line, output: Output) -> Uart:
        """Return a UART as it was; its interrupt line keeps the level it had."""
        received = [[*entry] for entry in state["received"]]
        return cls(irq=irq, output=output, registers=Registers(**{**state, "received": received}))

    @property
    def room(self) -> int:
        """How many bytes `receive` takes before one is lost."""
        return 0 if Mcr(self._r.mcr).loop else self._capacity - len(self._r.received)

    def receive(self, byte: int, errors: Lsr = NO_ERRORS) -> None:
        """Let a byte arrive on the line, with the line *errors* it suffered. One too many is an overrun."""
        if not Mcr(self._r.mcr).loop:
            self._arrive(byte, errors)

    def set_inputs(self, levels: Msr) -> None:
        """Set the modem inputs CTS, DSR, RI and DCD."""
        before = self._modem_levels()
        self._r.inputs = int(levels)
        self._modem_changed(before)

    def read(self, offset: int, size: int) -> int:
        """Read one register."""
        assert size == 1
        r = self._r
        match offset:
            case 0:
                return Divisor(r.divisor).dll if Lcr(r.lcr).dlab else self._take_received()
            case 1:
                return Divisor(r.divisor).dlm if Lcr(r.lcr).dlab else r.ier
            case 2:
                return self._read_iir()
            case 5:
                return self._read_lsr()
            case 6:
                return self._read_msr()
            case _:
                return {3: r.lcr, 4: r.mcr, 7: r.scratch}[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one register; LSR and MSR are read-only."""
        assert size == 1
        r = self._r
        match offset:
            case 0 if Lcr(r.lcr).dlab:
                r.divisor = int(Divisor(r.divisor, dll=value))
            case 0:
                self._transmit(value)
            case 1 if Lcr(r.lcr).dlab:
                r.divisor = int(Divisor(r.divisor, dlm=value))
            case 1:
                self._write_ier(Ier(value))
            case 2:
                self._write_fcr(Fcr(value))
            case 3:
                self._write_lcr(Lcr(value))
            case 4:
                before = self._modem_levels()
                r.mcr = Mcr(value).all
                self._modem_changed(before)
            case 7:
                r.scratch = value

    @property
    def lsr(self) -> Lsr:
        """The line status, without the side effects of reading it."""
        received = self._r.received
        return Lsr(
            received[0][1] if received else 0,
            data_ready=bool(received),
            overrun=self._r.overrun,
            thr_empty=1,
            transmitter_empty=1,
            error_in_fifo=Fcr(self._r.fcr).enable and any(errors for _, errors in received),
        )

    @property
    def source(self) -> Source:
        """The interrupt of the highest priority that is pending and enabled."""
        r, ier = self._r, Ier(self._r.ier)
        if ier.line_status and self.lsr.errors:
            return Source.LINE_STATUS
        if ier.received and r.received:
            return Source.RECEIVED if len(r.received) >= self._trigger else Source.TIMEOUT
        if ier.transmitter_empty and r.empty_pending:
            return Source.TRANSMITTER_EMPTY
        if ier.modem_status and r.deltas:
            return Source.MODEM_STATUS
        return Source.NONE

    @property
    def _capacity(self) -> int:
        return FIFO_SIZE if Fcr(self._r.fcr).enable else 1

    @property
    def _trigger(self) -> int:
        fcr = Fcr(self._r.fcr)
        return TRIGGER_LEVELS[fcr.trigger] if fcr.enable else 1

    def _update(self) -> None:
        mcr = Mcr(self._r.mcr)
        level = self.source is not Source.NONE and mcr.out2 and not mcr.loop  # looping forces the pin OUT2 off
        if level != self._r.asserted:
            self._r.asserted = level
            self._irq(level)

    def _arrive(self, byte: int, errors: Lsr) -> None:
        r = self._r
        if len(r.received) < self._capacity:
            r.received.append([byte, int(errors)])
        else:
            r.overrun = True
            if not Fcr(r.fcr).enable:
                r.received = [[byte, int(errors)]]  # without FIFOs the newer byte wins; with them the older ones do
        if not Fcr(r.fcr).enable:
            r.holding = byte
        self._update()

    def _take_received(self) -> int:
        empty = 0 if Fcr(self._r.fcr).enable else self._r.holding
        byte = self._r.received.pop(0)[0] if self._r.received else empty
        self._update()
        return byte

    def _transmit(self, value: int) -> None:
        r, lcr = self._r, Lcr(self._r.lcr)
        r.empty_pending = False
        self._update()
        sent = value % 2 ** (5 + lcr.word_length)
        if Mcr(r.mcr).loop:
            self._arrive(sent, NO_ERRORS)
        elif not lcr.set_break:
            self._output(sent)
        r.empty_pending = True
        self._update()

    def _read_iir(self) -> int:
        source = self.source
        if source is Source.TRANSMITTER_EMPTY:
            self._r.empty_pending = False
            self._update()
        return Iir(source=source, fifos_enabled=3 if Fcr(self._r.fcr).enable else 0)

    def _read_lsr(self) -> int:
        lsr = self.lsr
        self._r.overrun = False
        if self._r.received:
            self._r.received[0][1] = 0
        self._update()
        return lsr

    def _read_msr(self) -> int:
        msr = self._modem_levels().replace(deltas=self._r.deltas)
        self._r.deltas = 0
        self._update()
        return msr

    def _write_ier(self, ier: Ier) -> None:
        if ier.transmitter_empty and not Ier(self._r.ier).transmitter_empty:
            self._r.empty_pending = True  # enabling it while the transmitter is empty raises it at once
        self._r.ier = ier.all
        self._update()

    def _write_fcr(self, fcr: Fcr) -> None:
        was_enabled = Fcr(self._r.fcr).enable
        if fcr.enable != was_enabled or (fcr.enable and fcr.clear_receiver):
            self._r.received.clear()
        # The other bits are programmed only together with the enable bit, and the clear bits clear themselves.
        self._r.fcr = int(fcr.replace(clear_receiver=0, clear_transmitter=0)) if fcr.enable else 0
        self._update()

    def _write_lcr(self, lcr: Lcr) -> None:
        starts_break = lcr.set_break and not Lcr(self._r.lcr).set_break
        self._r.lcr = int(lcr)
        if starts_break and Mcr(self._r.mcr).loop:
            self._arrive(0, Lsr(break_=1))

    def _modem_levels(self) -> Msr:
        mcr = Mcr(self._r.mcr)
        if mcr.loop:
            return Msr(cts=mcr.rts, dsr=mcr.dtr, ri=mcr.out1, dcd=mcr.out2)
        return Msr(levels=Msr(self._r.inputs).levels)

    def _modem_changed(self, before: Msr) -> None:
        now = self._modem_levels()
        changed = Msr(
            self._r.deltas,
            **{f"delta_{name}": 1 for name in ("cts", "dsr", "dcd") if getattr(before, name) != getattr(now, name)},
        )
        self._r.deltas = int(changed.replace(trailing_ri=changed.trailing_ri or (before.ri and not now.ri)))
        self._update()
