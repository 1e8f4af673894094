"""The registers of one logical processor, as everything above the engine sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from hvemu.bits import Register, bit, bits
from hvemu.x86.registers import Cr0, Cr4, Efer, Gpr, Rflags, Sreg


class AccessRights(Register):
    """Hidden attributes of a segment register, laid out as in the VMCS (SDM 3C "Guest Register State").

    Bits 15:0 are bits 23:8 of the descriptor's second doubleword, with the limit bits cleared.
    """

    type = bits(3, 0)
    s = bit(4)
    dpl = bits(6, 5)
    p = bit(7)
    reserved_low = bits(11, 8)
    avl = bit(12)
    l = bit(13)  # noqa: E741 - the manual's name
    db = bit(14)
    g = bit(15)
    unusable = bit(16)
    reserved_high = bits(31, 17)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register, LDTR or TR with its hidden part. *limit* is in bytes, inclusive, granularity applied."""

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    rights: AccessRights = AccessRights(0)

    def __repr__(self) -> str:
        return f"Segment({self.selector:#06x} base={self.base:#x} limit={self.limit:#x} {self.rights!r})"


@dataclass(frozen=True, slots=True)
class TableRegister:
    """GDTR or IDTR: *base* is a gva, *limit* is in bytes, inclusive."""

    base: int = 0
    limit: int = 0xFFFF


class CpuMode(IntEnum):
    """Operating mode (SDM 3A "Modes of Operation")."""

    REAL, VM86, PROTECTED, COMPATIBILITY, LONG64 = range(5)


class CpuState(Protocol):
    """What every register file offers: the engine's live one and PlainState. All values are unsigned integers.

    *gprs* is indexable by Gpr; *segments* by Sreg. *cpl* follows SS.DPL (VM86: 3). *interruptibility* has the layout
    of the VMCS field (SDM 3C "Guest Non-Register State").
    """

    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    dr6: int
    dr7: int
    ldtr: Segment
    tr: Segment
    gdtr: TableRegister
    idtr: TableRegister
    blocking_by_sti_or_mov_ss: bool

    def gpr(self, index: int) -> int:
        """Read a general-purpose register (64 bits)."""
        ...

    def set_gpr(self, index: int, value: int) -> None:
        """Write all 64 bits of a general-purpose register."""
        ...

    def dr(self, index: int) -> int:
        """Read DR0 to DR3: the gva of a breakpoint."""
        ...

    def set_dr(self, index: int, value: int) -> None:
        """Write DR0 to DR3."""
        ...

    def segment(self, index: int) -> Segment:
        """Read a segment register."""
        ...

    def set_segment(self, index: int, value: Segment) -> None:
        """Write a segment register, hidden part and all; SS also sets the CPL, CS the default sizes."""
        ...

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        ...

    def retire(self, next_rip: int) -> bool:
        """Move to *next_rip* as an instruction that ends does: RF and the STI/MOV SS shadow go.

        Return whether a single-step trap is due (TF was set).
        """
        ...


@dataclass(slots=True)
class PlainState:
    """A CpuState on plain data, for tests and pure code. Fresh: as after RESET, but with the base of CS at 0."""

    rip: int = 0xFFF0
    rflags: int = 2
    cr0: int = 0x6000_0010
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400
    ldtr: Segment = Segment(rights=AccessRights(type=2, p=1))
    tr: Segment = Segment(rights=AccessRights(type=11, p=1))
    gdtr: TableRegister = TableRegister()
    idtr: TableRegister = TableRegister()
    blocking_by_sti_or_mov_ss: bool = False
    cpl: int = 0
    gprs: list[int] = field(default_factory=lambda: [0] * 16)
    breakpoints: list[int] = field(default_factory=lambda: [0] * 4)
    segments: list[Segment] = field(default_factory=lambda: [Segment(rights=AccessRights(type=3, s=1, p=1))] * 6)

    def gpr(self, index: int) -> int:
        """Read a general-purpose register."""
        return self.gprs[index]

    def set_gpr(self, index: int, value: int) -> None:
        """Write a general-purpose register."""
        self.gprs[index] = value

    def dr(self, index: int) -> int:
        """Read DR0 to DR3."""
        return self.breakpoints[index]

    def set_dr(self, index: int, value: int) -> None:
        """Write DR0 to DR3."""
        self.breakpoints[index] = value

    def segment(self, index: int) -> Segment:
        """Read a segment register."""
        return self.segments[index]

    def set_segment(self, index: int, value: Segment) -> None:
        """Write a segment register; SS also sets the CPL."""
        self.segments[index] = value
        if index == Sreg.SS:
            self.cpl = value.rights.dpl

    def retire(self, next_rip: int) -> bool:
        """End the current instruction."""
        flags = Rflags(self.rflags)
        self.rip, self.blocking_by_sti_or_mov_ss, self.rflags = next_rip, False, int(flags.replace(rf=0))
        return flags.tf


def load_state(state: CpuState, source: CpuState) -> None:
    """Load every register of *source*; paging goes off before it goes on as *source* has it, and segments come last."""
    state.cr0 = int(Cr0(state.cr0).replace(pg=0))
    state.efer, state.cr4, state.cr3 = source.efer, source.cr4, source.cr3
    state.cr0 = source.cr0
    state.efer = source.efer
    for name in ("rip", "rflags", "cr2", "cr8", "dr6", "dr7", "gdtr", "idtr", "ldtr", "tr"):
        setattr(state, name, getattr(source, name))
    for gpr in Gpr:
        state.set_gpr(gpr, source.gpr(gpr))
    for n in range(4):
        state.set_dr(n, source.dr(n))
    for sreg in Sreg:
        state.set_segment(sreg, source.segment(sreg))
    state.blocking_by_sti_or_mov_ss = source.blocking_by_sti_or_mov_ss


def mode(state: CpuState) -> CpuMode:
    """Return the operating mode that the control registers, EFLAGS and CS select."""
    if not Cr0(state.cr0).pe:
        return CpuMode.REAL
    if Efer(state.efer).lma:
        return CpuMode.LONG64 if state.segment(Sreg.CS).rights.l else CpuMode.COMPATIBILITY
    return CpuMode.VM86 if Rflags(state.rflags).vm else CpuMode.PROTECTED


def code_size(state: CpuState) -> int:
    """Return the default operand size of the current code segment: 16, 32 or 64."""
    match mode(state):
        case CpuMode.REAL | CpuMode.VM86:
            return 16 if not state.segment(Sreg.CS).rights.db else 32
        case CpuMode.LONG64:
            return 64
        case _:
            return 32 if state.segment(Sreg.CS).rights.db else 16


def paging_enabled(state: CpuState) -> bool:
    """Whether linear addresses are translated."""
    return Cr0(state.cr0).pg


def paging_is_long(state: CpuState) -> bool:
    """Whether 4-level paging is in use (IA32_EFER.LMA and CR4.PAE)."""
    return Efer(state.efer).lma and Cr4(state.cr4).pae
