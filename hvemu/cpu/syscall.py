"""SYSCALL and SYSENTER, which the engine leaves to the CPU model (SDM 2B "SYSCALL-Fast System Call")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hvemu.cpu.tables import long_mode, require
from hvemu.x86.registers import Cr0, Efer, Gpr, Rflags, Sreg
from hvemu.x86.segments import Selector, truncate
from hvemu.x86.state import AccessRights, CpuMode, CpuState, Segment, mode
from hvemu.x86.vectors import Fault, Vector

ReadMsr = Callable[[int], int]
SYSENTER_CS: Final = 0x174
SYSENTER_ESP: Final = 0x175
SYSENTER_EIP: Final = 0x176
STAR: Final = 0xC000_0081
LSTAR: Final = 0xC000_0082
FMASK: Final = 0xC000_0084
_STAR_CS: Final = 32
_FLAT = 0xFFFF_FFFF
_CODE = AccessRights(type=11, s=1, p=1, g=1)
_STACK = AccessRights(type=3, s=1, p=1, g=1, db=1)
_NEXT_DESCRIPTOR = 8


def syscall(state: CpuState, msr: ReadMsr, next_rip: int) -> None:
    """Enter the kernel at LSTAR. Raises #UD outside 64-bit mode, where Intel's processors do not have it."""
    if mode(state) is not CpuMode.LONG64 or not Efer(state.efer).sce:
        raise Fault(Vector.UD)
    flags = state.rflags
    state.set_gpr(Gpr.RCX, next_rip)
    state.set_gpr(Gpr.R11, flags)
    state.rflags = int(Rflags(flags & ~msr(FMASK)).replace(rf=0, fixed1=1))
    _enter(state, msr(STAR) >> _STAR_CS, msr(LSTAR), long=True)


def sysenter(state: CpuState, msr: ReadMsr) -> None:
    """Enter the kernel at SYSENTER_EIP (SDM 2B "SYSENTER-Fast System Call"). Raises #GP(0)."""
    selector = Selector(truncate(msr(SYSENTER_CS), 2))
    require(Cr0(state.cr0).pe and not selector.null, Vector.GP)
    long = long_mode(state)
    size = 8 if long else 4
    state.rflags = int(Rflags(state.rflags).replace(vm=0, if_=0, rf=0))
    state.set_gpr(Gpr.RSP, truncate(msr(SYSENTER_ESP), size))
    _enter(state, selector, truncate(msr(SYSENTER_EIP), size), long=long)


def _enter(state: CpuState, selector: int, rip: int, *, long: bool) -> None:
    """Load flat segments of CPL 0 that are not read from any table."""
    code = int(Selector(truncate(selector, 2)).replace(rpl=0))
    stack = truncate(code + _NEXT_DESCRIPTOR, 2)
    state.set_segment(Sreg.CS, Segment(code, 0, _FLAT, _CODE.replace(l=long, db=not long)))
    state.set_segment(Sreg.SS, Segment(stack, 0, _FLAT, _STACK))
    state.rip = rip
    state.blocking_by_sti_or_mov_ss = False


def sysexit(state: CpuState, msr: ReadMsr) -> None:
    """Return to a program in 32-bit code (SDM 2B "SYSEXIT-Fast Return from Fast System Call"). Raises #GP(0)."""
    selector = Selector(truncate(msr(SYSENTER_CS), 2))
    require(Cr0(state.cr0).pe and not selector.null and state.cpl == 0, Vector.GP)
    code, stack = (int(Selector(selector + n * _NEXT_DESCRIPTOR).replace(rpl=_USER)) for n in (2, 3))
    rip, rsp = truncate(state.gpr(Gpr.RDX), 4), truncate(state.gpr(Gpr.RCX), 4)
    state.set_segment(Sreg.CS, Segment(code, 0, _FLAT, _CODE.replace(db=1, dpl=_USER)))
    state.set_segment(Sreg.SS, Segment(stack, 0, _FLAT, _STACK.replace(dpl=_USER)))
    state.set_gpr(Gpr.RSP, rsp)
    state.rip = rip
    state.blocking_by_sti_or_mov_ss = False


_USER: Final = 3
