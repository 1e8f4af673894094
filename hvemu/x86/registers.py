"""Control, flag and debug registers, bit by bit."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from hvemu.bits import Register, bit, bits, field


class Gpr(IntEnum):
    """General-purpose registers in encoding order (SDM 2A "Instruction Format")."""

    RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)


class Sreg(IntEnum):
    """Segment registers in encoding order."""

    ES, CS, SS, DS, FS, GS = range(6)


class Cr0(Register):
    """CR0 (SDM 3A "Control Registers")."""

    pe = bit(0)
    mp = bit(1)
    em = bit(2)
    ts = bit(3)
    et = bit(4)
    ne = bit(5)
    wp = bit(16)
    am = bit(18)
    nw = bit(29)
    cd = bit(30)
    pg = bit(31)


class Cr3(Register):
    """CR3 with 32-bit or 4-level paging."""

    pwt = bit(3)
    pcd = bit(4)
    frame = bits(51, 12)


class Cr4(Register):
    """CR4 (SDM 3A "Control Registers")."""

    vme = bit(0)
    pvi = bit(1)
    tsd = bit(2)
    de = bit(3)
    pse = bit(4)
    pae = bit(5)
    mce = bit(6)
    pge = bit(7)
    pce = bit(8)
    osfxsr = bit(9)
    osxmmexcpt = bit(10)
    umip = bit(11)
    la57 = bit(12)
    vmxe = bit(13)
    smxe = bit(14)
    fsgsbase = bit(16)
    pcide = bit(17)
    osxsave = bit(18)
    smep = bit(20)
    smap = bit(21)
    pke = bit(22)
    cet = bit(23)
    pks = bit(24)
    uintr = bit(25)
    lass = bit(27)
    lam_sup = bit(28)
    fred = bit(32)


class Efer(Register):
    """IA32_EFER."""

    sce = bit(0)
    lme = bit(8)
    lma = bit(10)
    nxe = bit(11)


class Rflags(Register):
    """RFLAGS (SDM 1 "EFLAGS Register")."""

    cf = bit(0)
    fixed1 = bit(1)
    pf = bit(2)
    af = bit(4)
    zf = bit(6)
    sf = bit(7)
    tf = bit(8)
    if_ = bit(9)
    df = bit(10)
    of = bit(11)
    iopl = bits(13, 12)
    nt = bit(14)
    rf = bit(16)
    vm = bit(17)
    ac = bit(18)
    vif = bit(19)
    vip = bit(20)
    id = bit(21)


class Dr6(Register):
    """Debug status register (SDM 3B "Debug Status Register (DR6)")."""

    INIT: ClassVar[int] = 0xFFFF0FF0
    b = bits(3, 0)
    bd = bit(13)
    bs = bit(14)
    bt = bit(15)
    rtm = bit(16)


class BreakOn(IntEnum):
    """Condition of a breakpoint: R/W field of DR7."""

    EXECUTE, WRITE, IO, ACCESS = range(4)


class Dr7(Register):
    """Debug control register (SDM 3B "Debug Control Register (DR7)")."""

    INIT: ClassVar[int] = 0x400
    l0 = bit(0)
    g0 = bit(1)
    l1 = bit(2)
    g1 = bit(3)
    l2 = bit(4)
    g2 = bit(5)
    l3 = bit(6)
    g3 = bit(7)
    enables = bits(7, 0)
    le = bit(8)
    ge = bit(9)
    gd = bit(13)
    rw0 = field(17, 16, BreakOn)
    len0 = bits(19, 18)
    rw1 = field(21, 20, BreakOn)
    len1 = bits(23, 22)
    rw2 = field(25, 24, BreakOn)
    len2 = bits(27, 26)
    rw3 = field(29, 28, BreakOn)
    len3 = bits(31, 30)
