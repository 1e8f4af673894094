"""System calls there and back: SYSCALL with SYSRET, SYSENTER with SYSEXIT, by guest code."""

from __future__ import annotations

import pytest

from hvemu.x86.registers import Gpr, Sreg
from tests.cpu.silicon import CF, CS0, CS3, DS0, DS3, IF, RAX, RBX, RCX, RDX, RSI, RSP, STACK, program, silicon

EFER, STAR, LSTAR, FMASK, CS, ESP, EIP = 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0084, 0x174, 0x175, 0x176
KERNEL_STACK = 0x2_4000
CODE = {
    64: program(
        64,
        """
        start: mov r12, rsp
            syscall
        back: inc rsi
            int 0x40
        kernel: mov rbx, rcx
            mov rdx, r11
            mov rdi, rsp
            inc rax
            .byte 0x48, 0x0f, 0x07
        enter_: sysenter
        entered: mov rbx, rsp
            mov rcx, r12
            mov rdx, 0
            lea rdx, [exited]
            .byte 0x48, 0x0f, 0x35
        exited: inc rsi
            int 0x40
        undefined: .byte 0x0f, 0x07
        """.replace("lea rdx, [exited]", "mov edx, exited"),
    ),
    32: program(
        32,
        """
        start: syscall
        enter_: mov esi, esp
            sysenter
        entered: mov ebx, esp
            mov ecx, esi
            mov edx, exited
            sysexit
        exited: inc edi
            int 0x40
        alone: sysexit
        """,
    ),
}


def machine(mode, ring=3):
    s = silicon(CODE[mode], ring)
    s.gate(0x40, dpl=3)
    if mode == 64:
        # SYSRET takes SS from STAR[63:48] + 8 and 64-bit CS from + 16: here 0x10 gives SS 0x1b, CS 0x23
        s.poke(0x8018, 8, 0x00CF_F300_0000_FFFF)
        s.poke(0x8020, 8, 0x00AF_FB00_0000_FFFF)
        s.state.efer |= 1
        for index, value in ((STAR, 0x10 << 48 | CS0 << 32), (LSTAR, s.at("kernel")), (FMASK, IF)):
            s.cpu.msrs.write(index, value)
    for index, value in ((CS, CS0), (ESP, KERNEL_STACK), (EIP, s.at("entered"))):
        s.cpu.msrs.write(index, value)
    return s


def test_syscall_and_sysret():
    s = machine(64).flags(IF | CF)
    assert s.vector("start") == 0x40
    assert (s.reg(RAX), s.reg(RSI)) == (1, 1)
    assert s.reg(RBX) == s.at("back")
    assert s.reg(RDX) == IF | CF | 2
    assert s.reg(7) == STACK  # the stack pointer is the kernel's business
    rip, cs, flags, rsp, ss = s.frame(5)
    assert (cs, ss, rsp) == (0x23, 0x1B, STACK)
    assert flags & IF
    assert rip == s.at("back") + 5


def test_syscall_masks_flags_in_the_kernel():
    s = machine(64).flags(IF | CF)
    s.state.rip = s.at("start")
    s.step(2)
    assert s.state.rip == s.at("kernel")
    assert s.state.rflags == CF | 2
    assert (s.state.cpl, s.state.segment(Sreg.CS).selector, s.state.segment(Sreg.SS).selector) == (0, CS0, DS0)
    assert s.retired == 2


@pytest.mark.parametrize("mode", [32, 64])
def test_sysenter_and_sysexit(mode):
    s = machine(mode).flags(IF).gpr(Gpr.R12, STACK)
    if mode == 64:  # SYSEXIT takes 64-bit CS from SYSENTER_CS + 32 and SS from + 40: 0x2b and 0x33
        s.poke(0x8028, 8, 0x00AF_FB00_0000_FFFF)
        s.poke(0x8030, 8, 0x00CF_F300_0000_FFFF)
    assert s.vector("enter_") == 0x40
    assert s.reg(RBX) == KERNEL_STACK
    _, cs, flags, rsp, ss = s.frame(5)
    assert (cs, ss, rsp) == ((0x2B, 0x33, STACK) if mode == 64 else (CS3, DS3, STACK))
    assert flags & IF == 0  # SYSENTER cleared it, and SYSEXIT restores nothing
    assert s.reg(RSI if mode == 64 else 7) == 1
    assert s.reg(RSP) == 0x2_0000 - 5 * s.word


@pytest.mark.parametrize(
    ("mode", "name", "msr", "vector"),
    [
        (64, "start", (EFER, 0x500), 6),
        (64, "undefined", (EFER, 0x500), 6),
        (32, "start", None, 6),
        (32, "enter_", (CS, 0), 13),
        (64, "enter_", (CS, 3), 13),
        (32, "alone", None, 13),  # in ring 3
    ],
)
def test_where_they_are_refused(mode, name, msr, vector):
    s = machine(mode)
    if msr is not None and msr[0] == EFER:
        s.state.efer = msr[1]
    elif msr is not None:
        s.cpu.msrs.write(*msr)
    assert s.vector(name) == vector
    assert s.reg(RCX) == 0
