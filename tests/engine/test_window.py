"""The interrupt window: open exactly when the processor would take an external interrupt."""

from __future__ import annotations

import itertools

import pytest

from hvemu.engine.traps import Kind
from tests.engine.rig import BITS, CODE, IF, RAX, RSP, STACK, rig, summary

CLOCKS = pytest.mark.parametrize("counted", [True, False])
WINDOW = (Kind.WINDOW, 0)
STI, MOV_SS, POP_SS, NOP, HLT = b"\xfb", b"\x8e\xd0", b"\x17", b"\x90", b"\xf4"


def opened(bits, *, interrupts, counted=True):
    r = rig(bits, counted=counted)
    r.state.rflags = 2 | (IF if interrupts else 0)
    r.gpr(RAX, r.state.segment(2).selector)
    r.engine.open_window(True)
    return r


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_an_open_window_stops_at_once_if_interrupts_are_on(bits, counted):
    r = opened(bits, interrupts=True, counted=counted)
    assert summary(r.run(NOP * 3 + HLT)) == WINDOW
    assert (r.offset, r.engine.instructions) == (0, 0)


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_an_open_window_waits_while_interrupts_are_off(bits, counted):
    r = opened(bits, interrupts=False, counted=counted)
    assert summary(r.run(NOP * 3 + HLT)) == (Kind.HLT, 0)


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_a_closed_window_does_not_stop(bits, counted):
    r = opened(bits, interrupts=True, counted=counted)
    r.engine.open_window(False)
    assert summary(r.run(STI + NOP * 3 + HLT)) == (Kind.HLT, 0)


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_the_window_closes_when_it_has_stopped(bits, counted):
    r = opened(bits, interrupts=True, counted=counted)
    assert summary(r.run(NOP * 3 + HLT)) == WINDOW
    assert summary(r.engine.run(1000)) == (Kind.HLT, 0)


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_sti_opens_the_window_after_one_more_instruction(bits, counted):
    r = opened(bits, interrupts=False, counted=counted)
    assert summary(r.run(NOP + STI + NOP + NOP + HLT)) == WINDOW
    assert (r.offset, r.engine.instructions) == (3, 3 if counted else 0)


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_a_second_sti_has_no_shadow(bits, counted):
    r = opened(bits, interrupts=False, counted=counted)
    assert summary(r.run(STI + STI + NOP + HLT)) == WINDOW
    assert r.offset == 2


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_sti_when_interrupts_are_on_already_has_no_shadow(bits, counted):
    r = opened(bits, interrupts=True, counted=counted)
    r.engine.open_window(False)
    r.put(STI + NOP + HLT)
    r.state.rip = r.start
    r.engine.step()
    r.engine.open_window(True)
    assert summary(r.engine.run(1000)) == WINDOW
    assert r.offset in (1, 2)  # the processor may keep the shadow, and this one does


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_sti_hlt_waits_in_the_hlt(bits, counted):
    r = opened(bits, interrupts=False, counted=counted)
    assert summary(r.run(STI + HLT)) == (Kind.HLT, 0)
    assert r.offset == 1
    r.state.retire(r.state.rip + 1)
    assert summary(r.engine.run(1000)) == WINDOW


@CLOCKS
@pytest.mark.parametrize(("bits", "code"), [*itertools.product((16, 32), (MOV_SS, POP_SS)), (64, MOV_SS)])
def test_a_load_of_ss_puts_the_window_off_by_one_instruction(bits, code, counted):
    r = opened(bits, interrupts=True, counted=counted)
    r.engine.open_window(False)
    r.word(r.state.gpr(RSP), r.state.segment(2).selector)
    r.put(code + NOP + NOP + HLT)
    r.state.rip = r.start
    assert r.engine.step().kind is Kind.LIMIT
    assert r.offset == len(code)
    assert r.state.blocking_by_sti_or_mov_ss
    r.engine.open_window(True)
    assert summary(r.engine.run(1000)) == WINDOW
    assert r.offset == len(code) + 1


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_a_shadow_that_is_written_puts_the_window_off(bits, counted):
    r = opened(bits, interrupts=True, counted=counted)
    r.state.blocking_by_sti_or_mov_ss = True
    assert summary(r.run(NOP + NOP + HLT)) == WINDOW
    assert r.offset == 1


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_popf_opens_the_window_at_once(bits, counted):
    r = opened(bits, interrupts=False, counted=counted)
    r.word(r.state.gpr(RSP), 2 | IF)
    assert summary(r.run(b"\x9d" + NOP + HLT)) == WINDOW
    assert r.offset == 1


@CLOCKS
def test_cli_closes_the_window_before_anything_is_delivered(counted):
    r = opened(32, interrupts=True, counted=counted)
    r.engine.open_window(False)
    r.put(b"\xfa" + NOP + HLT)
    r.state.rip = r.start
    r.engine.step()
    r.engine.open_window(True)
    assert summary(r.engine.run(1000)) == (Kind.HLT, 0)


@CLOCKS
def test_a_window_between_two_iterations_stops_with_rip_on_the_string_instruction(counted):
    r = opened(32, interrupts=True, counted=counted)
    r.engine.open_window(False)
    r.gpr(1, 5)
    r.gpr(6, STACK)
    r.gpr(7, STACK + 64)
    r.put(b"\xf3\xa4" + HLT)
    r.state.rip = r.start
    for _ in range(2):
        r.engine.step()
    r.engine.open_window(True)
    assert summary(r.engine.run(1000)) == WINDOW
    assert (r.offset, r.state.gpr(1)) == (0, 3)


@CLOCKS
@pytest.mark.parametrize("io", [b"\xec", b"\x6c"], ids=["in", "ins"])
def test_a_window_that_would_open_behind_port_io_opens_there_when_that_has_been_emulated(io, counted):
    r = opened(32, interrupts=False, counted=counted)
    assert r.run(STI + io + NOP + HLT).kind is Kind.IO
    assert r.offset == 1
    r.state.retire(r.state.rip + 1)
    assert summary(r.engine.run(1000)) == WINDOW
    assert r.offset == 2


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_an_iret_can_be_awaited_and_let_run_as_the_end_of_an_nmi_needs(bits, counted):
    r = rig(bits, counted=counted)
    size = {16: 2, 32: 4, 64: 8}[bits]
    cs, ss = r.state.segment(1).selector, r.state.segment(2).selector
    for n, value in enumerate((r.start + 0x100, cs, 2, STACK - 64, ss) if bits != 16 else (0x100, cs, 2)):
        r.word(r.state.gpr(RSP) + n * size, value, size)
    r.put(HLT, CODE + 0x100)
    r.engine.arm({Kind.IRET})
    iret = b"\x48\xcf" if bits == 64 else b"\xcf"
    assert summary(r.run(NOP + iret)) == (Kind.IRET, 0)
    assert r.offset == 1
    r.engine.arm(())
    assert r.engine.step().kind is Kind.LIMIT
    assert r.offset == 0x100
