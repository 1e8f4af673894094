from __future__ import annotations

import pytest

from hvemu.bits import Register
from hvemu.x86.registers import BreakOn, Cr0, Cr3, Cr4, Dr6, Dr7, Efer, Gpr, Rflags, Sreg

# The figures of SDM 3A "Control Registers", SDM 1 "EFLAGS Register" and SDM 3B "Debug Registers", read from bit 0 up:
# a name per bit, a dash where the bit is reserved or not modelled, name*n for a field of n bits.
FIGURES: dict[type[Register], str] = {
    Cr0: "pe mp em ts et ne -*10 wp - am -*10 nw cd pg",
    Cr4: "vme pvi tsd de pse pae mce pge pce osfxsr osxmmexcpt umip la57 vmxe smxe - fsgsbase pcide osxsave - smep smap"
    " pke cet pks uintr - lass lam_sup -*3 fred",
    Efer: "sce -*7 lme - lma nxe",
    Rflags: "cf fixed1 pf - af - zf sf tf if_ df of iopl*2 nt - rf vm ac vif vip id",
    Dr6: "b*4 -*9 bd bs bt rtm",
    Dr7: "l0 g0 l1 g1 l2 g2 l3 g3 le ge -*3 gd -*2 rw0*2 len0*2 rw1*2 len1*2 rw2*2 len2*2 rw3*2 len3*2",
    Cr3: "-*3 pwt pcd -*7 frame*40",
}
ALIASES = {"enables"}  # all eight enable bits of DR7 at once


def layout(figure: str) -> dict[str, tuple[int, int]]:
    """Return (lowest bit, width) of each field."""
    found, at = {}, 0
    for word in figure.split():
        name, _, width = word.partition("*")
        if name != "-":
            found[name] = (at, int(width or 1))
        at += int(width or 1)
    return found


@pytest.mark.parametrize("register", FIGURES, ids=lambda r: r.__name__)
def test_fields_lie_where_the_figure_has_them(register: type[Register]) -> None:
    declared = {n: (f.lo, f.mask.bit_length()) for n, f in register.fields.items() if n not in ALIASES}
    assert declared == layout(FIGURES[register])


@pytest.mark.parametrize("register", FIGURES, ids=lambda r: r.__name__)
def test_one_bit_sets_one_field(register: type[Register]) -> None:
    for name, (lo, width) in layout(FIGURES[register]).items():
        for n in range(lo, lo + width):
            read = {other: int(getattr(register(1 << n), other)) for other in register.fields if other not in ALIASES}
            assert read == dict.fromkeys(read, 0) | {name: 1 << (n - lo)}


def test_the_enables_of_dr7_are_its_low_byte() -> None:
    assert Dr7(0x4AA).enables == 0xAA


def test_breakpoint_conditions_are_named() -> None:
    assert Dr7(0xE4_0000 << 8).rw2 == BreakOn.EXECUTE
    assert [Dr7(n << 16).rw0 for n in range(4)] == [BreakOn.EXECUTE, BreakOn.WRITE, BreakOn.IO, BreakOn.ACCESS]


def test_reset_values_of_the_debug_registers() -> None:  # SDM 3A "Processor State After Reset"
    assert (Dr6.INIT, Dr7.INIT) == (0xFFFF0FF0, 0x400)


def test_registers_are_numbered_as_instructions_encode_them() -> None:
    assert [r.name for r in Gpr] == "RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15".split()
    assert [s.name for s in Sreg] == "ES CS SS DS FS GS".split()
    assert [*Gpr] == [*range(16)]
    assert [*Sreg] == [*range(6)]
