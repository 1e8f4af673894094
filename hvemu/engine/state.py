"""The engine's snapshot of the processor, as a CpuState: every field reads and writes the context in place."""

from __future__ import annotations

from collections.abc import Callable

from hvemu.engine.layout import RawSegment, RawState
from hvemu.x86.registers import Sreg
from hvemu.x86.state import AccessRights, Segment, TableRegister

# hflags of the emulator: cached facts about mode and privilege, which segment writes must keep true.
_CPL, _INHIBIT, _CS32, _SS32, _ADDSEG = 3, 1 << 3, 1 << 4, 1 << 5, 1 << 6
_PE, _LMA, _CS64, _VM = 1 << 7, 1 << 14, 1 << 15, 1 << 17
_DERIVED = _CPL | _CS32 | _SS32 | _ADDSEG | _CS64
_TF, _RF = 0x100, 0x10000
_ARITHMETIC, _DF = 0x8D5, 0x400
EFLAGS_WHOLE = 1
"""The value of cc_op that says: the arithmetic flags are in cc_src, nothing is to be computed."""
_L, _DB = 1 << 21, 1 << 22
_RIGHTS, _CODE_OR_DATA, _ACCESSED = 0xF0FF, 0x10, 1
_AVAILABLE_TSS, _BUSY = (1, 9), 2
_ALL32, _ALL64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


class EngineState(RawState):
    """Registers of the stopped processor. Writes reach the emulator at the next run.

    Control registers go through the engine at once, because they change how it translates.
    """

    write_cr: Callable[[int, int], None]
    read_flags: Callable[[], int]

    def gpr(self, index: int) -> int:
        """Read a general-purpose register."""
        return self.regs[index]

    def set_gpr(self, index: int, value: int) -> None:
        """Write a general-purpose register."""
        self.regs[index] = value

    @property
    def rflags(self) -> int:
        """RFLAGS; whole after a stop because of `settle`."""
        return self.eflags | 2

    @rflags.setter
    def rflags(self, value: int) -> None:
        vm_changed = (self.eflags ^ value) & _VM
        self.eflags = value | 2
        if vm_changed:
            self.refresh()

    def settle(self, *, lazy: bool) -> None:
        """Make eflags whole after a stop: its arithmetic flags and DF are stale, but a run begins with them.

        They are *lazy*, to be computed from cc_op and its operands; but the code hook of an instruction puts them into
        cc_src, and an exit from that instruction restores a cc_op that does not know of it.
        """
        others = self.eflags & ~(_ARITHMETIC | _DF)
        if lazy and self.cc_op != EFLAGS_WHOLE:
            self.eflags = others
            self.eflags = self.read_flags()
        else:
            self.eflags = others | self.cc_src & _ARITHMETIC | (_DF if self.df < 0 else 0)

    cr0 = property(lambda self: self.cr[0], lambda self, value: self.write_cr(0, value))
    cr3 = property(lambda self: self.cr[3], lambda self, value: self.write_cr(3, value))
    cr4 = property(lambda self: self.cr[4], lambda self, value: self.write_cr(4, value))

    @property
    def cr2(self) -> int:
        """CR2: the gva of the last #PF that was delivered."""
        return self.cr[2]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.cr[2] = value

    @property
    def cr8(self) -> int:
        """CR8: the task-priority class, 0..15."""
        return self.v_tpr

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.v_tpr = value

    @property
    def efer(self) -> int:
        """IA32_EFER without the bit that the engine's own mode needs."""
        return self.raw_efer & ~0x1000

    @efer.setter
    def efer(self, value: int) -> None:
        self.raw_efer = value
        self.hflags = self.hflags | _LMA if value & 0x400 else self.hflags & ~_LMA
        self.refresh()

    @property
    def dr6(self) -> int:
        """Debug status."""
        return self.raw_dr[6]

    @dr6.setter
    def dr6(self, value: int) -> None:
        self.raw_dr[6] = value

    @property
    def dr7(self) -> int:
        """Debug control, as software sees it; the breakpoints themselves are armed by the CPU model."""
        return self.raw_dr[7]

    @dr7.setter
    def dr7(self, value: int) -> None:
        self.raw_dr[7] = value

    def dr(self, index: int) -> int:
        """Read DR0 to DR3."""
        return self.raw_dr[index]

    def set_dr(self, index: int, value: int) -> None:
        """Write DR0 to DR3 as software sees them; the breakpoints themselves are armed by the CPU model."""
        self.raw_dr[index] = value

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.hflags & _CPL

    @property
    def blocking_by_sti_or_mov_ss(self) -> bool:
        """Whether the instruction that starts here runs in an STI or MOV SS shadow."""
        return bool(self.hflags & _INHIBIT)

    @blocking_by_sti_or_mov_ss.setter
    def blocking_by_sti_or_mov_ss(self, value: bool) -> None:
        self.hflags = self.hflags | _INHIBIT if value else self.hflags & ~_INHIBIT

    def retire(self, next_rip: int) -> bool:
        """End the current instruction; return whether a single-step trap is due."""
        self.rip, self.hflags, flags = next_rip, self.hflags & ~_INHIBIT, self.eflags
        self.eflags = flags & ~_RF
        return bool(flags & _TF)

    @property
    def code_bits(self) -> int:
        """Default size of the current code segment: 16, 32 or 64."""
        return 64 if self.hflags & _CS64 else 32 if self.hflags & _CS32 else 16

    @property
    def linear_mask(self) -> int:
        """All the bits that a linear address can have in the current mode."""
        return _ALL64 if self.hflags & _CS64 else _ALL32

    @property
    def linear_rip(self) -> int:
        """The gva of the instruction at RIP."""
        return (self.segs[Sreg.CS].base + self.rip) & self.linear_mask

    def segment(self, index: int) -> Segment:
        """Read a segment register."""
        return _segment(self.segs[index])

    def set_segment(self, index: int, value: Segment) -> None:
        """Write a segment register and everything that the emulator derives from it."""
        _store(self.segs[index], value)
        self.refresh()

    ldtr = property(lambda self: _segment(self.raw_ldt), lambda self, value: _store(self.raw_ldt, value))
    tr = property(lambda self: _busy(_segment(self.raw_tr)), lambda self, value: _store(self.raw_tr, value))
    gdtr = property(lambda self: _table(self.raw_gdt), lambda self, value: _store_table(self.raw_gdt, value))
    idtr = property(lambda self: _table(self.raw_idt), lambda self, value: _store_table(self.raw_idt, value))

    def refresh(self) -> None:
        """Recompute the cached facts (hflags) from segments, EFLAGS.VM and the mode."""
        cs, ss = self.segs[Sreg.CS], self.segs[Sreg.SS]
        flags = self.hflags & ~_DERIVED
        vm86 = self.eflags & _VM
        if flags & _PE:
            flags |= 3 if vm86 else ss.flags >> 13 & 3
        long64 = flags & _LMA and cs.flags & _L
        flags |= _CS64 | _CS32 | _SS32 if long64 else 0
        flags |= _CS32 if cs.flags & _DB else 0
        flags |= _SS32 if ss.flags & _DB else 0
        if not long64:
            flat = flags & _PE and not vm86 and flags & _CS32
            bases = self.segs[Sreg.DS].base | self.segs[Sreg.ES].base | ss.base
            flags |= _ADDSEG if not flat or bases else 0
        self.hflags = flags


def _segment(raw: RawSegment) -> Segment:
    """Return the register as the processor has it; the emulator may keep a code or data type without its accessed bit.

    Loading one sets the bit (SDM 3A "Code- and Data-Segment Descriptor Types").
    """
    rights = raw.flags >> 8 & _RIGHTS
    if not rights & 0x80:
        rights |= 0x10000
    elif rights & _CODE_OR_DATA:
        rights |= _ACCESSED
    return Segment(raw.selector, raw.base, raw.limit, AccessRights(rights))


def _busy(tr: Segment) -> Segment:
    """Return TR as the processor has it: the emulator's LTR marks the TSS busy in its table only."""
    if tr.rights.unusable or tr.rights.s or tr.rights.type not in _AVAILABLE_TSS:
        return tr
    return Segment(tr.selector, tr.base, tr.limit, AccessRights(tr.rights | _BUSY))


def _store(raw: RawSegment, value: Segment) -> None:
    raw.selector, raw.base, raw.limit = value.selector, value.base, value.limit
    rights = 0 if value.rights.unusable else int(value.rights) & _RIGHTS
    raw.flags = rights << 8


def _table(raw: RawSegment) -> TableRegister:
    return TableRegister(raw.base, raw.limit)


def _store_table(raw: RawSegment, value: TableRegister) -> None:
    raw.base, raw.limit = value.base, value.limit
