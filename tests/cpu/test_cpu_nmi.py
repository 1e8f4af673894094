"""Nonmaskable interrupts: one at a time, and the next one after IRET (SDM 3A "Handling Multiple NMIs")."""

from __future__ import annotations

import pytest

from hvemu.engine.traps import Kind
from tests.cpu.silicon import DS0, HANDLERS, IF, RAX, RBX, RCX, STACK, program, silicon

ALL = (16, 32, 64)
SNIPPETS = """
    code: inc ecx
    second: inc ecx
    third: inc ecx
        hlt
    halted: hlt
    after: inc ecx
        hlt
    mov_ss: mov ss, ax
    next: inc ecx
    after_next: inc ecx
        hlt
    sti_: sti
    sti_next: inc ecx
    sti_after: hlt
    nmi: inc ebx
        inc ebx
    back: {iret}
    popping: inc ebx
    popped: {iret}
"""
CODE = {
    mode: program(mode, SNIPPETS.format(iret={16: "iret", 32: "iretd", 64: "iretq"}[mode])) for mode in ALL
}  # fmt: skip


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("flags", [0, IF])
def test_an_nmi_is_taken_whatever_if_says(mode, flags):
    s = silicon(CODE[mode]).flags(flags)
    s.cpu.request_nmi()
    assert s.vector("code") == 2
    assert (s.frame(1), s.reg(RCX)) == ([s.at("code")], 0)
    assert s.frame(3)[2] == flags | 2


@pytest.mark.parametrize("mode", ALL)
def test_a_second_nmi_waits_for_iret(mode):
    s = silicon(CODE[mode])
    s.gate(2, "nmi")
    s.cpu.request_nmi()
    s.state.rip = s.at("code")
    s.step(2)
    s.cpu.request_nmi()
    s.step()
    assert (s.state.rip, s.reg(RBX)) == (s.at("back"), 2)  # still in the first handler
    s.step(2)
    assert (s.state.rip, s.frame(1)) == (s.at("nmi"), [s.at("code")])  # between IRET and the next instruction
    s.halts()
    assert (s.reg(RBX), s.reg(RCX)) == (4, 3)


@pytest.mark.parametrize("mode", ALL)
def test_requests_that_wait_are_one(mode):
    s = silicon(CODE[mode])
    s.gate(2, "nmi")
    s.cpu.request_nmi()
    s.state.rip = s.at("code")
    s.step(2)
    for _ in range(3):
        s.cpu.request_nmi()
    s.halts()
    assert s.reg(RBX) == 4


@pytest.mark.parametrize("mode", ALL)
def test_any_iret_unblocks_even_that_of_another_handler(mode):
    s = silicon(CODE[mode])
    s.gate(0x40, "popping")
    s.gate(2, "popped")
    s.cpu.request_nmi()
    s.state.rip = s.at("code")
    s.step(2)  # delivered, and returned from
    assert not s.cpu.nmi_blocked
    assert s.state.rip == s.at("code")


@pytest.mark.parametrize("mode", [32, 64])
def test_an_iret_that_faults_unblocks_too(mode):
    s = silicon(CODE[mode])
    s.gate(2, "popped")
    s.cpu.request_nmi()
    s.state.rip = s.at("code")
    s.step()
    s.poke(s.reg(4) + s.word, s.word, 0x1230)  # CS of the frame
    s.cpu.request_nmi()
    s.step()
    assert s.state.rip == HANDLERS + 13
    s.gate(2)
    assert s.vector() == 2
    assert s.frame(1) == [HANDLERS + 13]


def test_iret_is_intercepted_while_nmis_are_blocked_and_no_longer():
    s = silicon(CODE[32])
    s.gate(2, "nmi")
    armed = []
    arm = s.engine.arm
    s.engine.arm = lambda kinds: (armed.append(Kind.IRET in kinds), arm(kinds))
    s.cpu.request_nmi()
    s.halts("code")
    assert armed[0]
    assert not armed[-1]
    del s.engine.arm


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("flags", [0, IF])
def test_an_nmi_wakes_a_halted_processor(mode, flags):
    s = silicon(CODE[mode]).flags(flags)
    s.gate(2, "nmi")
    s.state.rip = s.at("halted")
    s.step()
    assert s.cpu.halted
    s.cpu.request_nmi()
    s.state.rflags &= ~IF
    assert s.vector() is None
    assert (s.reg(RBX), s.reg(RCX), s.state.rip) == (2, 1, s.at("mov_ss"))  # behind the second HLT


@pytest.mark.parametrize("mode", ALL)
def test_no_nmi_comes_right_after_a_load_of_ss(mode):
    s = silicon(CODE[mode]).gpr(RAX, 0 if mode == 16 else DS0)
    s.state.rip = s.at("mov_ss")
    s.step()
    s.cpu.request_nmi()
    assert s.vector() == 2
    assert s.frame(1) == [s.at("after_next")]


@pytest.mark.parametrize("mode", ALL)
def test_no_nmi_comes_right_after_sti(mode):
    """The manual leaves it open; this processor holds NMIs back as it does interrupts."""
    s = silicon(CODE[mode])
    s.state.rip = s.at("sti_")
    s.step()
    s.cpu.request_nmi()
    assert s.vector() == 2
    assert s.frame(1) == [s.at("sti_after")]


def test_interrupts_that_wait_in_an_nmi_handler_come_after_its_iret():
    s = silicon(CODE[32], pins=[0x50]).flags(IF)
    s.gate(2, "nmi")
    s.cpu.request_nmi()
    assert s.vector("code") == 0x50
    assert (s.frame(1), s.reg(RBX), s.reg(RCX)) == ([s.at("code")], 2, 0)
    assert s.reg(4) == STACK - 12
