"""HLT: until the next interrupt, in virtual time, to the cycle."""

from __future__ import annotations

import pytest

from hvemu.cpu.clock import NANOSECONDS_PER_CYCLE
from hvemu.cpu.cpu import STOP_CYCLES
from hvemu.events import How
from tests.cpu.silicon import HANDLERS, IF, RAX, RBX, TF, program, silicon, with_board

ALL = (16, 32, 64)
PIT_HZ = 1_193_182
SNIPPETS = """
    hlt_: hlt
    after: inc ebx
        cli
        hlt
    sti_hlt: sti
        hlt
        inc ebx
        cli
        hlt
    timer: inc eax
        {iret}
"""
CODE = {
    mode: program(mode, SNIPPETS.format(iret={16: "iret", 32: "iretd", 64: "iretq"}[mode])) for mode in ALL
}  # fmt: skip


def with_timer(mode, count):
    """A machine whose counter 0 fires once, *count* of its ticks and one more from now (8254, mode 0)."""
    s = with_board(CODE[mode]).flags(IF)
    s.gate(8, "timer")
    for port, value in ((0x43, 0x30), (0x40, count & 0xFF), (0x40, count >> 8)):
        s.board.write(port, 1, value)
    return s


def cycles(ticks):
    """The first cycle at which that many ticks have passed: 100 MHz, rounded up."""
    return -(-ticks * 1_000_000_000 // PIT_HZ // NANOSECONDS_PER_CYCLE)


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("count", [1, 100, 0xFFFF])
def test_a_halted_processor_wakes_at_the_cycle_of_the_interrupt(mode, count):
    s = with_timer(mode, count)
    s.state.rip = s.at("hlt_")
    s.step()
    assert s.cpu.halted
    assert s.clock.now == 1 + STOP_CYCLES
    deadline = cycles(count + 1)
    s.halts()
    assert (s.reg(RAX), s.reg(RBX)) == (1, 1)
    # the handler's INC and IRET, INC and CLI, and the last HLT with its charge
    assert s.clock.now == max(deadline, 1 + STOP_CYCLES) + 4 + 1 + STOP_CYCLES
    assert s.retired == 6


@pytest.mark.parametrize("mode", ALL)
def test_sti_hlt_misses_nothing(mode):
    s = with_timer(mode, 1).flags(0)
    s.clock.charge(10_000)  # the interrupt waits already
    s.board.advance()
    assert s.board.pic.pending()
    s.halts("sti_hlt")
    assert (s.reg(RAX), s.reg(RBX)) == (1, 1)


def test_the_handler_returns_behind_the_hlt():
    s = silicon(CODE[32]).flags(IF)
    s.state.rip = s.at("hlt_")
    s.step()
    assert s.request(0x50).step() == HANDLERS + 0x50
    assert s.frame(1) == [s.at("after")]


def test_a_halted_processor_runs_nothing():
    s = silicon(CODE[32]).flags(IF)
    s.state.rip = s.at("hlt_")
    assert s.step(5) == s.at("after")
    assert s.retired == 1


@pytest.mark.parametrize("mode", ALL)
def test_hlt_with_interrupts_disabled_is_the_end(mode):
    s = with_timer(mode, 100).flags(0)
    ending = s.run("hlt_")
    assert (ending.how, ending.why) == (How.HALTED, f"HLT before {s.at('after'):#x} with interrupts disabled")


@pytest.mark.parametrize("mode", ALL)
def test_hlt_without_a_device_that_will_interrupt_is_the_end(mode):
    s = silicon(CODE[mode]).flags(IF)
    ending = s.run("hlt_")
    assert ending.how is How.HALTED
    assert ending.why == f"HLT before {s.at('after'):#x}, and no device will ever interrupt it"


def test_a_timer_that_is_masked_interrupts_nobody():
    s = with_timer(32, 100)
    s.board.write(0x21, 1, 0xFF)
    assert s.run("hlt_").how is How.HALTED
    assert s.reg(RBX) == 0


@pytest.mark.parametrize("mode", ALL)
def test_a_single_step_trap_ends_a_halt(mode):
    s = silicon(CODE[mode]).flags(TF)
    assert s.vector("hlt_") == 1
    assert s.frame(1) == [s.at("after")]


@pytest.mark.parametrize("mode", [32, 64])
def test_a_program_may_not_halt(mode):
    s = silicon(CODE[mode], 3)
    assert s.vector("hlt_") == 13
    assert s.frame(2) == [0, s.at("hlt_")]
