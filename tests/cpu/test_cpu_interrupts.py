"""External interrupts: where between two instructions they are taken, and where they are not."""

from __future__ import annotations

import pytest

from hvemu.x86.registers import Sreg
from tests.cpu.silicon import (
    CS3,
    DATA,
    DS0,
    DS3,
    HANDLERS,
    IF,
    IOPL3,
    KERNEL,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    REQUEST,
    RF,
    RSI,
    RSP,
    STACK,
    TF,
    TRAP32,
    VM,
    program,
    silicon,
)

MODES, PROTECTED = (16, 32, 64), (32, 64)
SNIPPETS = """
    sti_cli: sti
        cli
        nop
        hlt
    sti_nop: sti
        inc ebx
    sti_after: inc ebx
        hlt
    sti_sti: sti
        sti
    sti_sti_after: inc ebx
        hlt
    plain: inc ebx
    plain_after: inc ebx
        hlt
    mov_ss: mov ss, ax
        inc ebx
    mov_ss_after: inc ebx
        hlt
    pop_ss: {pop_ss}
        inc ebx
    pop_ss_after: inc ebx
        hlt
    popf_: {popf}
    popf_after: inc ebx
        hlt
    cli_: cli
        inc ebx
        hlt
    sti_: sti
        hlt
    movs_: rep movsb
    movs_after: hlt
    outs_: rep outsb
    outs_after: hlt
    out_: out 0x80, al
    out_after: inc ebx
        hlt
    loop_: inc ebx
        jmp loop_
    iret_: {iret}
    back: inc edx
        {iret}
"""
WORDS = {
    16: {"pop_ss": "pop ss", "popf": "popf", "iret": "iret"},
    32: {"pop_ss": "pop ss", "popf": "popfd", "iret": "iretd"},
    64: {"pop_ss": "nop", "popf": "popfq", "iret": "iretq"},  # 64-bit mode has no POP SS
}
CODE = {mode: program(mode, SNIPPETS.format(**WORDS[mode])) for mode in MODES}


def at_frame(s):
    """RIP and flags of the interrupted program."""
    frame = s.frame(3)
    return frame[0], frame[2]


@pytest.mark.parametrize("mode", MODES)
def test_sti_cli_leaves_no_gap(mode):
    s = silicon(CODE[mode], pins=[0x50])
    assert s.vector("sti_cli") is None
    assert s.state.rip == s.at("sti_cli") + 4
    assert s.pins.waiting == [0x50]


@pytest.mark.parametrize("mode", MODES)
def test_sti_lets_one_more_instruction_pass(mode):
    s = silicon(CODE[mode], pins=[0x50])
    assert s.vector("sti_nop") == 0x50
    assert at_frame(s)[0] == s.at("sti_after")
    assert s.reg(RBX) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_second_sti_makes_no_second_shadow(mode):
    s = silicon(CODE[mode], pins=[0x50])
    assert s.vector("sti_sti") == 0x50
    assert at_frame(s)[0] == s.at("sti_sti_after")


@pytest.mark.parametrize("mode", MODES)
def test_with_if_set_an_interrupt_comes_before_the_next_instruction(mode):
    s = silicon(CODE[mode], pins=[0x50]).flags(IF)
    assert s.vector("plain") == 0x50
    assert at_frame(s) == (s.at("plain"), IF | 2)
    assert s.retired == 1  # the HLT of the handler


@pytest.mark.parametrize("mode", MODES)
def test_with_if_clear_an_interrupt_waits(mode):
    s = silicon(CODE[mode], pins=[0x50])
    assert s.vector("plain") is None
    assert s.reg(RBX) == 2


@pytest.mark.parametrize(
    ("name", "mode"), [("mov_ss", 16), ("mov_ss", 32), ("mov_ss", 64), ("pop_ss", 16), ("pop_ss", 32)]
)
def test_a_load_of_ss_lets_one_more_instruction_pass(name, mode):
    """SDM 3A "Masking Exceptions and Interrupts When Switching Stacks"."""
    s = silicon(CODE[mode]).flags(IF)
    ss = 0 if mode == 16 else DS0
    s.gpr(RAX, ss).poke(STACK, 4, ss)
    s.state.rip = s.at(name)
    s.step()
    assert s.request(0x50).vector() == 0x50
    assert at_frame(s)[0] == s.at(f"{name}_after")
    assert s.reg(RBX) == 1


@pytest.mark.parametrize("mode", MODES)
def test_popf_opens_the_window_at_once(mode):
    s = silicon(CODE[mode], pins=[0x50])
    s.poke(STACK, 8, IF | 2)
    assert s.vector("popf_") == 0x50
    assert at_frame(s) == (s.at("popf_after"), IF | 2)


@pytest.mark.parametrize("mode", MODES)
def test_iret_opens_the_window_at_once(mode):
    s = silicon(CODE[mode], pins=[0x50])
    for n, value in enumerate((s.at("plain"), 0 if mode == 16 else 8, IF | 2, STACK + 0x40, 0x10)):
        s.poke(STACK + n * s.word, s.word, value)
    assert s.vector("iret_") == 0x50
    assert at_frame(s) == (s.at("plain"), IF | 2)
    assert s.reg(RBX) == 0


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_that_an_out_causes_comes_right_after_it(mode):
    s = silicon(CODE[mode]).flags(IF).gpr(RAX, 0x60)
    assert s.vector("out_") == 0x60
    assert at_frame(s)[0] == s.at("out_after")
    assert s.pins.accesses == [(REQUEST, 1, 0x60)]


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_without_stops_is_interrupted_where_it_is(mode):
    s = silicon(CODE[mode]).flags(IF)
    s.state.rip = s.at("loop_")
    s.cpu.run(101)
    assert s.request(0x50).vector() == 0x50
    assert s.reg(RBX) == 51
    assert at_frame(s)[0] != s.at("loop_")  # 101 is odd: the jump is next


# -- several at once --------------------------------------------------------------------------------------------------


def test_the_controller_decides_which_of_two_comes_first():
    s = silicon(CODE[32], pins=[0x50, 0x51]).flags(IF)
    assert s.vector("plain") == 0x50
    assert s.pins.waiting == [0x51]


@pytest.mark.parametrize("mode", PROTECTED)
def test_behind_a_trap_gate_the_next_one_comes_before_the_handler_begins(mode):
    s = silicon(CODE[mode], pins=[0x50, 0x51]).flags(IF)
    s.gate(0x50, kind=TRAP32)
    assert s.vector("plain") == 0x51
    assert at_frame(s) == (HANDLERS + 0x50, IF | 2)


@pytest.mark.parametrize("mode", MODES)
def test_behind_an_interrupt_gate_the_next_one_comes_after_iret(mode):
    s = silicon(CODE[mode], pins=[0x50, 0x51]).flags(IF)
    s.gate(0x50, "back")
    assert s.vector("plain") == 0x51
    assert (at_frame(s)[0], s.reg(RDX), s.reg(RBX)) == (s.at("plain"), 1, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_nonmaskable_interrupt_comes_first(mode):
    s = silicon(CODE[mode], pins=[0x50]).flags(IF)
    s.cpu.request_nmi()
    assert s.vector("plain") == 2
    assert s.pins.waiting == [0x50]


@pytest.mark.parametrize("mode", MODES)
def test_a_single_step_trap_comes_before_interrupts(mode):
    s = silicon(CODE[mode]).flags(TF | IF).gpr(RAX, 0x60)
    assert s.vector("out_") == 1
    assert at_frame(s)[0] == s.at("out_after")
    assert s.pins.waiting == [0x60]


# -- repeated string instructions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_rep_movs_is_interrupted_between_iterations_and_goes_on(mode):
    s = silicon(CODE[mode]).flags(IF).gpr(RCX, 8).gpr(RSI, 0x4000).gpr(RDI, 0x5000)
    s.poke(0x4000, 8, 0x0807060504030201)
    s.gate(0x50, "back")
    s.state.rip = s.at("movs_")
    s.step(3)
    s.request(0x50).step()
    assert (at_frame(s)[0], s.reg(RCX), s.reg(RSI), s.reg(RDI)) == (s.at("movs_"), 5, 0x4003, 0x5003)
    s.state.rflags = 2
    s.halts()
    assert (s.state.rip, s.reg(RCX), s.reg(RDX)) == (s.at("movs_after") + 1, 0, 1)
    assert s.peek(0x5000, 8) == 0x0807060504030201


@pytest.mark.parametrize("mode", MODES)
def test_rep_outs_is_interrupted_between_iterations_and_goes_on(mode):
    s = silicon(CODE[mode]).flags(IF).gpr(RCX, 4).gpr(RSI, 0x4000).gpr(RDX, REQUEST)
    s.poke(0x4000, 4, 0x51525354)
    for vector in range(0x51, 0x55):
        s.gate(vector, "back")
    s.state.rip = s.at("outs_")
    s.step(2)
    rip, flags = at_frame(s)
    assert (rip, s.reg(RCX)) == (s.at("outs_"), 3)
    assert bool(flags & RF) == (mode != 16)  # SDM 3B "Instruction-Breakpoint Exception Condition"
    s.gpr(RDX, REQUEST - 1)  # the handler counts in EDX
    s.gate(0x54, "back")
    s.step(2)
    assert s.state.rip == s.at("outs_")
    s.gpr(RDX, 0x90)
    s.state.rflags = 2
    s.halts()
    assert (s.state.rip, s.reg(RCX)) == (s.at("outs_after") + 1, 0)
    assert s.pins.accesses == [(REQUEST, 1, 0x54), *((0x90, 1, value) for value in (0x53, 0x52, 0x51))]


def test_an_interrupt_after_the_last_iteration_finds_the_next_instruction():
    s = silicon(CODE[32]).flags(IF).gpr(RCX, 1).gpr(RSI, 0x4000).gpr(RDX, REQUEST)
    s.poke(0x4000, 1, 0x51)
    assert s.vector("outs_") == 0x51
    assert at_frame(s) == (s.at("outs_after"), IF | 2)


# -- CLI, STI and IOPL ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PROTECTED)
@pytest.mark.parametrize("name", ["cli_", "sti_"])
@pytest.mark.parametrize("iopl", range(4))
def test_a_program_needs_iopl_3_for_cli_and_sti(mode, name, iopl):
    s = silicon(CODE[mode], 3).flags(iopl << 12)
    assert s.vector(name) == 13  # if not here, then at the HLT behind it
    code, rip = s.frame(2)
    assert (code, rip == s.at(name)) == (0, iopl < 3)


@pytest.mark.parametrize("mode", PROTECTED)
@pytest.mark.parametrize("iopl", [0, 3])
def test_popf_in_a_program_changes_if_only_with_iopl_3(mode, iopl):
    s = silicon(CODE[mode], 3, pins=[0x50]).flags(iopl << 12)
    s.poke(STACK, 8, IF | 2)
    assert s.vector("popf_") == (0x50 if iopl else 13)
    if not iopl:  # the HLT behind it, with interrupts still off
        assert s.frame(4)[3] & (IF | IOPL3) == 0


@pytest.mark.parametrize("name", ["cli_", "sti_", "popf_"])
@pytest.mark.parametrize("iopl", [0, 3])
def test_virtual_8086_mode_needs_iopl_3_for_all_that_concerns_if(name, iopl):
    s = silicon(CODE[16], mode=32).vm86(iopl)
    s.poke(STACK, 2, IF | 2)
    s.state.rip = s.at(name)
    s.step()
    assert (s.state.rip == HANDLERS + 13) is (iopl == 0)
    assert bool(s.state.rflags & VM) is (iopl == 3)
    if iopl == 3:
        assert bool(s.state.rflags & IF) is (name != "cli_")


@pytest.mark.parametrize("mode", PROTECTED)
def test_an_interrupt_takes_a_program_to_the_stack_of_ring_0(mode):
    s = silicon(CODE[mode], 3, pins=[0x50]).flags(IF)
    assert s.vector("plain") == 0x50
    assert s.frame(5) == [s.at("plain"), CS3, IF | 2, STACK, DS3]
    assert s.reg(RSP) == KERNEL - 5 * s.word
    assert s.state.segment(Sreg.SS).selector == (DS0 if mode == 32 else 0)


def test_the_data_is_where_the_snippets_expect_it():
    assert DATA > 0x5000 + 8
