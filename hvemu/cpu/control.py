"""Writes to control registers, to IA32_EFER and to debug registers: what is refused, and what changes with them.

Privilege has been checked (SDM 2B "MOV-Move to/from Control Registers", "MOV-Move to/from Debug Registers"). All checks
come before any change of a register.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_

from hvemu.bits import Register
from hvemu.cpu.tables import require
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH, PLAIN, Offer
from hvemu.x86.paging import GEOMETRY, Paging, PagingMode, PdptePae, mask
from hvemu.x86.registers import Cr0, Cr4, Dr6, Dr7, Efer, Sreg
from hvemu.x86.segments import SystemType, truncate
from hvemu.x86.state import CpuMode, CpuState, mode
from hvemu.x86.vectors import Fault, Vector

ReadPhysical = Callable[[int, int], int]
"""Returns the integer at a gpa; the second argument is its size in bytes."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What control registers may hold: the bits of the features on *offer*.

    *cr0_ones* and *cr4_ones* are the bits that VMX operation fixes to 1 (SDM 3C "Restrictions on VMX Operation");
    *cr0_kept* and *cr4_kept* those that belong to a host, and that writes leave alone.
    """

    offer: Offer = PLAIN
    cr0_ones: int = 0
    cr4_ones: int = 0
    cr0_kept: int = 0
    cr4_kept: int = 0


DEFAULT = Rules()


def _bits(register: type[Register]) -> int:
    return reduce(or_, map(mask, register.fields.values()))


_CR0_DEFINED = _bits(Cr0)
_CR0_ET = int(Cr0(et=1))
_MSW_SET, _MSW_CLEARED = int(Cr0(pe=1, mp=1, em=1, ts=1)), int(Cr0(mp=1, em=1, ts=1))  # LMSW cannot clear PE
_LMA, _TS = int(Efer(lma=1)), int(Cr0(ts=1))
_TSS16 = frozenset({SystemType.TSS16, SystemType.TSS16_BUSY})
_CR8, _CR8_HIGHEST = 8, 15


def read_cr(state: CpuState, number: int) -> int:
    """Return what MOV from CR *number* reads. Raises Fault(#UD) for a register that does not exist."""
    _check_exists(state, number)
    return _operand(state, getattr(state, f"cr{number}"))


def write_cr(state: CpuState, number: int, value: int, read: ReadPhysical, rules: Rules = DEFAULT) -> None:
    """MOV of *value* to CR *number*; outside 64-bit mode its upper half does not count.

    Raises Fault(#UD) for a register that does not exist, Fault(#GP, 0) for a value that it may not hold.
    """
    _check_exists(state, number)
    _WRITE[number](state, _operand(state, value), read, rules)


def _check_exists(state: CpuState, number: int) -> None:
    if number not in _WRITE or (number == _CR8 and mode(state) is not CpuMode.LONG64):
        raise Fault(Vector.UD)


def _operand(state: CpuState, value: int) -> int:
    """Return *value* as wide as MOV to and from these registers is: 64 bits in 64-bit mode, 32 elsewhere."""
    return value if mode(state) is CpuMode.LONG64 else truncate(value, 4)


def write_cr0(state: CpuState, value: int, read: ReadPhysical, rules: Rules = DEFAULT) -> None:
    """Write CR0: undefined bits of the lower half are ignored, ET stays 1. Raises Fault(#GP, 0)."""
    old = Cr0(state.cr0)
    value = value & ~rules.cr0_kept | old & rules.cr0_kept
    new = Cr0(value & _CR0_DEFINED | _CR0_ET)
    require(value == truncate(value, 4) and not rules.cr0_ones & ~new, Vector.GP)
    require((new.pe or not new.pg) and (new.cd or not new.nw), Vector.GP)
    efer = Efer(state.efer)
    if new.pg and not old.pg and efer.lme:
        _check_activation(state)
    require(new.pg or not efer.lma or mode(state) is not CpuMode.LONG64, Vector.GP)
    lma = new.pg and efer.lme
    if new.pg and not lma and Cr4(state.cr4).pae and _differ(old, new, "cd nw pg"):
        load_pdptes(state.cr3, read)
    state.cr0 = int(new)
    if lma != efer.lma:
        state.efer = int(efer.replace(lma=lma))


def _check_activation(state: CpuState) -> None:
    """SDM 3A "Initializing IA-32e Mode": what must hold when paging goes on with IA32_EFER.LME set."""
    require(Cr4(state.cr4).pae, Vector.GP)
    require(not state.segment(Sreg.CS).rights.l, Vector.GP)
    require(state.tr.rights.type not in _TSS16, Vector.GP)


def write_cr2(state: CpuState, value: int, _read: ReadPhysical, _rules: Rules = DEFAULT) -> None:
    """Write CR2, which holds anything."""
    state.cr2 = value


def write_cr3(state: CpuState, value: int, read: ReadPhysical, _rules: Rules = DEFAULT) -> None:
    """Write CR3. Raises Fault(#GP, 0) for address bits beyond MAXPHYADDR, and for PDPTEs with reserved bits."""
    require(not value >> PHYSICAL_ADDRESS_WIDTH, Vector.GP)
    if _pae(Cr0(state.cr0), Cr4(state.cr4), Efer(state.efer)):
        load_pdptes(value, read)
    state.cr3 = value


def write_cr4(state: CpuState, value: int, read: ReadPhysical, rules: Rules = DEFAULT) -> None:
    """Write CR4. Raises Fault(#GP, 0) for bits that CPUID does not offer, and for clearing PAE in IA-32e mode."""
    value = value & ~rules.cr4_kept | state.cr4 & rules.cr4_kept
    require(not value & ~rules.offer.cr4 and not rules.cr4_ones & ~value, Vector.GP)
    old, new, efer = Cr4(state.cr4), Cr4(value), Efer(state.efer)
    require(new.pae or not efer.lma, Vector.GP)
    if _pae(Cr0(state.cr0), new, efer) and _differ(old, new, "pae pge pse smep"):
        load_pdptes(state.cr3, read)
    state.cr4 = value


def write_cr8(state: CpuState, value: int, _read: ReadPhysical, _rules: Rules = DEFAULT) -> None:
    """Write CR8, the task-priority class. Raises Fault(#GP, 0) above 15."""
    require(value <= _CR8_HIGHEST, Vector.GP)
    state.cr8 = value


_WRITE: dict[int, Callable[[CpuState, int, ReadPhysical, Rules], None]] = {
    0: write_cr0, 2: write_cr2, 3: write_cr3, 4: write_cr4, _CR8: write_cr8,
}  # fmt: skip


def lmsw(state: CpuState, source: int, read: ReadPhysical, rules: Rules = DEFAULT) -> None:
    """Load PE, MP, EM and TS from *source*; PE stays set (SDM 2A "LMSW-Load Machine Status Word")."""
    write_cr0(state, state.cr0 & ~_MSW_CLEARED | source & _MSW_SET, read, rules)


def clts(state: CpuState, rules: Rules = DEFAULT) -> None:
    """Clear CR0.TS."""
    state.cr0 &= ~_TS | rules.cr0_kept


def write_efer(state: CpuState, value: int, offer: Offer = PLAIN) -> None:
    """Write IA32_EFER; LMA is the processor's and ignores what is written.

    Raises Fault(#GP, 0) for reserved bits and for a change of LME while paging is on.
    """
    old, new = Efer(state.efer), Efer(value)
    require(not value & ~(offer.efer | _LMA), Vector.GP)
    require(new.lme == old.lme or not Cr0(state.cr0).pg, Vector.GP)
    state.efer = int(new.replace(lma=old.lma))


def check_umip(state: CpuState) -> None:
    """Raise Fault(#GP, 0) where CR4.UMIP forbids SGDT, SIDT, SLDT, SMSW and STR."""
    require(not Cr4(state.cr4).umip or state.cpl == 0, Vector.GP)


# -- the registers behind PAE paging ----------------------------------------------------------------------------------


_PDPTE_RESERVED = Paging(mode=PagingMode.PAE, maxphyaddr=PHYSICAL_ADDRESS_WIDTH).reserved[PdptePae]


def load_pdptes(cr3: int, read: ReadPhysical) -> tuple[int, int, int, int]:
    """Return the four PDPTEs at *cr3* (SDM 3A "PDPTE Registers").

    Raises Fault(#GP, 0) when one of them is present and has a reserved bit set.
    """
    gpa = cr3 & GEOMETRY[PagingMode.PAE].root
    a, b, c, d = (PdptePae(read(gpa + 8 * n, 8)) for n in range(4))
    require(not any(pdpte.p and pdpte & _PDPTE_RESERVED for pdpte in (a, b, c, d)), Vector.GP)
    return int(a), int(b), int(c), int(d)


def _pae(cr0: Cr0, cr4: Cr4, efer: Efer) -> bool:
    return cr0.pg and cr4.pae and not efer.lma


def _differ(old: Register, new: Register, names: str) -> bool:
    return any(getattr(old, name) != getattr(new, name) for name in names.split())


# -- debug registers --------------------------------------------------------------------------------------------------

_ALIASES = {4: 6, 5: 7}
_LAST_DR = 7
_FIXED_PARTS: dict[int, tuple[int, int]] = {
    6: (_bits(Dr6), Dr6.INIT),
    7: (_bits(Dr7), Dr7.INIT),
}
"""The bits that software writes, and those that are 1 whatever it writes."""


def check_dr_read(state: CpuState, number: int) -> int:
    """Return the register that DR *number* is (SDM 3B "Debug Registers DR4 and DR5").

    Raises Fault(#UD) for DR4 and DR5 while CR4.DE is 1, and for DR8 to DR15; then Fault(#DB), with DR6.BD set, while
    DR7.GD is 1 (SDM 3B "General-Detect Exception Condition"). Delivery of the #DB clears GD.
    """
    if number > _LAST_DR or (number in _ALIASES and Cr4(state.cr4).de):
        raise Fault(Vector.UD)
    if Dr7(state.dr7).gd:
        state.dr6 = int(Dr6(state.dr6).replace(bd=1))
        raise Fault(Vector.DB)
    return _ALIASES.get(number, number)


def check_dr_write(state: CpuState, number: int, value: int) -> tuple[int, int]:
    """Return the register that DR *number* is, and what it holds after a MOV of *value*.

    Raises as `check_dr_read` does, then Fault(#GP, 0) for an upper half of DR6 or DR7 that is not 0.
    """
    number, value = check_dr_read(state, number), _operand(state, value)
    if number in _FIXED_PARTS:
        require(value == truncate(value, 4), Vector.GP)
        writable, ones = _FIXED_PARTS[number]
        value = value & writable | ones
    return number, value


def read_dr(state: CpuState, number: int) -> int:
    """Return what MOV from DR *number* reads. Raises as `check_dr_read` does."""
    number = check_dr_read(state, number)
    return _operand(state, getattr(state, f"dr{number}") if number in _FIXED_PARTS else state.dr(number))


def write_dr(state: CpuState, number: int, value: int) -> None:
    """MOV of *value* to DR *number*. Raises as `check_dr_write` does."""
    number, value = check_dr_write(state, number, value)
    if number in _FIXED_PARTS:
        setattr(state, f"dr{number}", value)
    else:
        state.set_dr(number, value)
