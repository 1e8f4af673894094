"""The pair of 8259A interrupt controllers of a PC (Intel 8259A data sheet), with its chipset's edge/level register."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum

from hvemu.bits import Register, bit, bits, field
from hvemu.devices.device import Line, State

LINES = range(8)
MASK = tuple(2**n for n in LINES)
"""The bit of each line in IRR, ISR, IMR and ELCR."""
CASCADE = 2
"""The input of the first controller where the second one is connected."""
SPURIOUS = 7
"""The line that a controller names when a request has vanished before its acknowledgement."""


class Icw1(Register):
    """Initialization command word 1."""

    ic4 = bit(0)
    single = bit(1)
    level = bit(3)
    is_icw1 = bit(4)


class Icw2(Register):
    """Initialization command word 2: the vector of line 0."""

    base = bits(7, 3)


class Icw4(Register):
    """Initialization command word 4."""

    x86 = bit(0)
    auto_eoi = bit(1)
    master = bit(2)
    buffered = bit(3)
    special_fully_nested = bit(4)


class Eoi(IntEnum):
    """What OCW2 commands: its bits R, SL and EOI."""

    ROTATE_AUTO_OFF, NON_SPECIFIC, NOTHING, SPECIFIC = range(4)
    ROTATE_AUTO_ON, ROTATE_NON_SPECIFIC, SET_PRIORITY, ROTATE_SPECIFIC = range(4, 8)


class Ocw2(Register):
    """Operation command word 2: end of interrupt and priorities."""

    line = bits(2, 0)
    command = field(7, 5, Eoi)


class Select(IntEnum):
    """A two-bit command whose high bit enables the low one."""

    KEEP, KEEP_TOO, CLEAR, SET = range(4)


class Ocw3(Register):
    """Operation command word 3: special mask, poll, and which register a read gives."""

    read_isr = field(1, 0, Select)
    poll = bit(2)
    is_ocw3 = bit(3)
    special_mask = field(6, 5, Select)


class PollWord(Register):
    """What a poll reads."""

    line = bits(2, 0)
    requested = bit(7)


@dataclass(slots=True)
class Registers:
    """All that one controller remembers. *step* is the next initialization word expected: 2, 3, 4, or 0 for none."""

    levels: int = 0
    irr: int = 0
    isr: int = 0
    imr: int = 0
    elcr: int = 0
    icw1: int = 0
    icw2: int = 0
    icw3: int = 0
    icw4: int = 0
    step: int = 0
    lowest: int = 7
    special_mask: bool = False
    rotate_auto: bool = False
    read_isr: bool = False
    poll: bool = False


class Pic:
    """One 8259A: eight request lines, and two registers at A0=0 and A0=1.

    A level-triggered line is in IRR as long as it is high; an edge stays in IRR until it is acknowledged.
    """

    def __init__(self, registers: Registers | None = None) -> None:
        self.r = registers or Registers()

    def __repr__(self) -> str:
        r = self.r
        return f"Pic(base={r.icw2:#x} irr={r.irr:#04x} isr={r.isr:#04x} imr={r.imr:#04x} lowest={r.lowest})"

    def set_line(self, n: int, level: bool) -> None:
        """Drive request line *n*."""
        r, mask = self.r, MASK[n]
        rises = level and not r.levels & mask
        r.levels = r.levels | mask if level else r.levels & ~mask
        if rises:
            r.irr |= mask
        elif not level and self._is_level(n):
            r.irr &= ~mask

    def request(self) -> int | None:
        """Return the line that the INT output asks service for, or None while it is low.

        Fully nested: a line waits while one of the same or a higher priority is in service.
        """
        r = self.r
        waiting = r.irr & ~r.imr
        if not waiting:
            return None
        blocking = r.isr & ~r.imr if r.special_mask else r.isr
        # In special fully nested mode a second request of a slave may nest in its first.
        nesting = r.icw3 if Icw4(r.icw4).special_fully_nested else 0
        for n in self._by_priority():
            if blocking & MASK[n]:
                return n if nesting & waiting & MASK[n] else None
            if waiting & MASK[n]:
                return n
        return None

    def acknowledge(self) -> int | None:
        """Take the line that `request` names into service, and return it; None is a spurious interrupt."""
        n, r = self.request(), self.r
        if n is None:
            return None
        if not self._is_level(n):
            r.irr &= ~MASK[n]
        if not Icw4(r.icw4).auto_eoi:
            r.isr |= MASK[n]
        elif r.rotate_auto:
            r.lowest = n
        return n

    def vector(self, line: int) -> int:
        """Return the vector of *line*."""
        return self.r.icw2 + line

    def read(self, a0: int) -> int:
        """Read IRR, ISR or the answer to a poll at A0=0, IMR at A0=1."""
        r = self.r
        if r.poll:
            r.poll = False
            n = self.acknowledge()
            return PollWord(0) if n is None else PollWord(requested=1, line=n)
        if a0:
            return r.imr
        return r.isr if r.read_isr else r.irr

    def write(self, a0: int, value: int) -> None:
        """Write a command word."""
        if a0:
            self._write_data(value)
        elif Icw1(value).is_icw1:
            self._initialize(Icw1(value))
        elif Ocw3(value).is_ocw3:
            self._write_ocw3(Ocw3(value))
        else:
            self._write_ocw2(Ocw2(value))

    def _by_priority(self) -> list[int]:
        return [(self.r.lowest + 1 + i) % len(LINES) for i in LINES]

    def _is_level(self, n: int) -> bool:
        return Icw1(self.r.icw1).level or bool(self.r.elcr & MASK[n])

    def _initialize(self, icw1: Icw1) -> None:
        """Begin initialization: edges seen so far are forgotten, and all else returns to its default."""
        old = self.r
        self.r = Registers(levels=old.levels, elcr=old.elcr, icw1=int(icw1), icw2=old.icw2, icw3=old.icw3, step=2)
        self.r.irr = sum(MASK[n] for n in LINES if self._is_level(n) and old.levels & MASK[n])

    def _write_data(self, value: int) -> None:
        r, icw1 = self.r, Icw1(self.r.icw1)
        match r.step:
            case 2:
                r.icw2, r.step = int(Icw2(base=Icw2(value).base)), 3
                if icw1.single:
                    r.step = 4 if icw1.ic4 else 0
            case 3:
                r.icw3, r.step = value, 4 if icw1.ic4 else 0
            case 4:
                r.icw4, r.step = value, 0
            case _:
                r.imr = value

    def _write_ocw2(self, ocw2: Ocw2) -> None:
        r = self.r
        match ocw2.command:
            case Eoi.ROTATE_AUTO_ON | Eoi.ROTATE_AUTO_OFF:
                r.rotate_auto = ocw2.command is Eoi.ROTATE_AUTO_ON
            case Eoi.SET_PRIORITY:
                r.lowest = ocw2.line
            case Eoi.SPECIFIC | Eoi.ROTATE_SPECIFIC:
                self._end(ocw2.line, rotate=ocw2.command is Eoi.ROTATE_SPECIFIC)
            case Eoi.NON_SPECIFIC | Eoi.ROTATE_NON_SPECIFIC:
                ends = r.isr & ~r.imr if r.special_mask else r.isr
                line = next((n for n in self._by_priority() if ends & MASK[n]), None)
                if line is not None:
                    self._end(line, rotate=ocw2.command is Eoi.ROTATE_NON_SPECIFIC)

    def _end(self, line: int, *, rotate: bool) -> None:
        self.r.isr &= ~MASK[line]
        if rotate:
            self.r.lowest = line

    def _write_ocw3(self, ocw3: Ocw3) -> None:
        r = self.r
        if ocw3.special_mask in {Select.SET, Select.CLEAR}:
            r.special_mask = ocw3.special_mask is Select.SET
        if ocw3.poll:
            r.poll = True
        elif ocw3.read_isr in {Select.SET, Select.CLEAR}:
            r.read_isr = ocw3.read_isr is Select.SET


class PicPair:
    """Both controllers. Offsets 0-1 are the first one, 2-3 the second one, 4-5 the two bytes of ELCR.

    Lines 0, 1, 2, 8 and 13 are edge-triggered by their wiring.
    """

    MASTER, SLAVE, ELCR = 0, 2, 4
    EDGE_ONLY = (frozenset({0, 1, 2}), frozenset({0, 5}))

    def __init__(self, master: Registers | None = None, slave: Registers | None = None) -> None:
        self.chips = (Pic(master), Pic(slave))

    def __repr__(self) -> str:
        return f"PicPair({self.chips[0]!r}, {self.chips[1]!r})"

    def state(self) -> State:
        """Return the registers of both controllers."""
        return {"master": asdict(self.chips[0].r), "slave": asdict(self.chips[1].r)}

    @classmethod
    def from_state(cls, state: State) -> PicPair:
        """Return a pair as it was."""
        return cls(Registers(**state["master"]), Registers(**state["slave"]))

    @classmethod
    def as_firmware_leaves_it(cls) -> PicPair:
        """Return a pair programmed as SeaBIOS does: vectors 8 and 0x70; timer, keyboard, cascade and disks unmasked."""
        pair = cls()
        for chip, words in ((0, (8, MASK[CASCADE], 1, 0xB8)), (1, (0x70, CASCADE, 1, 0x8E))):
            pair.write(2 * chip, 1, Icw1(is_icw1=1, ic4=1))
            for word in words:
                pair.write(2 * chip + 1, 1, word)
        return pair

    def line(self, irq: int) -> Line:
        """Return the wire to request line *irq*, 0 to 15."""
        return lambda level: self.set_line(irq, level)

    def set_line(self, irq: int, level: bool) -> None:
        """Drive request line *irq*, 0 to 15. Line 2 of a PC is line 9: the first controller's own is the cascade."""
        assert irq != CASCADE, "IRQ 2 is the cascade; a device at it is wired to IRQ 9"
        chip, n = divmod(irq, len(LINES))
        self.chips[chip].set_line(n, level)
        self._cascade()

    def pending(self) -> bool:
        """Return whether the pair asks the processor for an interrupt."""
        return self.chips[0].request() is not None

    def acknowledge(self) -> int:
        """Answer the processor's interrupt acknowledgement with a vector (a spurious one if no request is left)."""
        master, slave = self.chips
        n = master.acknowledge()
        if n is None:
            return master.vector(SPURIOUS)
        if not self._is_cascade(n):
            return master.vector(n)
        line = slave.acknowledge()
        master.set_line(CASCADE, False)  # the slave's INT pin falls; if more is waiting, it rises again
        self._cascade()
        return slave.vector(SPURIOUS if line is None else line)

    def read(self, offset: int, size: int) -> int:
        """Read one register."""
        assert size == 1
        chip, a0 = divmod(offset, 2)
        if offset >= self.ELCR:
            return self.chips[a0].r.elcr
        value = self.chips[chip].read(a0)
        self._cascade()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one register."""
        assert size == 1
        chip, a0 = divmod(offset, 2)
        if offset >= self.ELCR:
            self.chips[a0].r.elcr = value & ~sum(MASK[n] for n in self.EDGE_ONLY[a0])
        else:
            self.chips[chip].write(a0, value)
        self._cascade()

    def _is_cascade(self, n: int) -> bool:
        return n == CASCADE and bool(self.chips[0].r.icw3 & MASK[CASCADE])

    def _cascade(self) -> None:
        self.chips[0].set_line(CASCADE, self.chips[1].request() is not None)
