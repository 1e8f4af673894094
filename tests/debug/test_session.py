from __future__ import annotations

import pytest

from hvemu.debug.session import Session, Why
from hvemu.errors import InputError
from hvemu.events import How
from hvemu.techniques.vm import Budget
from hvemu.vmx.reasons import Reason
from hvemu.x86.registers import Gpr
from tests.debug.guests import DIE, FAIL, HALT, ORIGIN, SPIN, machine, session

TECHNIQUES = ("bare", "hardware")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_before_it_runs_the_guest_stands_at_its_entry_in_the_state_of_its_loader(technique):
    s = session("hello32", technique)
    assert s.here == s.machine.image.entry
    assert s.view.cr0 == 0x11  # Multiboot: PE is set, PG is clear; ET is always 1
    assert s.view.gpr(Gpr.RAX) == 0x2BADB002
    assert s.pause.why is Why.START


def test_a_step_stops_at_an_exit_that_is_not_handled_yet():
    s = session("hello32")
    pause = s.step()
    assert (pause.why, pause.exit.reason, s.here) == (Why.EXIT, Reason.EPT_VIOLATION, s.machine.image.entry)
    assert s.vm.books.exits == 0
    s.step()
    assert s.vm.books.exits == 1


def test_stepping_from_exit_to_exit_is_the_run_that_nobody_watches():
    alone = machine("rings").run()
    s, exits, console = session("rings"), 0, b""
    while s.ending is None:
        pause = s.step()
        exits, console = exits + (pause.exit is not None), console + pause.console
    assert (exits, console, s.ending) == (alone.exits, alone.console, alone.ending)
    assert (s.vm.instructions, s.vm.clock.now) == (alone.instructions, alone.cycles)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_stepping_by_instruction_executes_the_same_instructions(technique):
    alone, s = machine("hello32", technique).run(), session("hello32", technique)
    while s.ending is None:
        s.step_instruction()
    assert bytes(s.vm.board.console) == alone.console
    assert (s.vm.instructions, s.vm.books.exits) == (alone.instructions, alone.exits)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_one_instruction_is_one_instruction(technique):
    s = session(SPIN, technique)
    visited = []
    while len(visited) < 4:
        pause = s.step_instruction()
        if pause.why is Why.INSTRUCTION:
            visited.append(s.here - ORIGIN)
    assert visited == [1, 6, 6, 6]
    assert s.view.gpr(Gpr.RAX) == 0x1234
    assert s.vm.instructions == 4


def test_an_instruction_that_faults_leads_to_its_handler_and_retires_nothing():
    s = session("paging", "bare")
    handler = s.symbols.address("resolve_page_fault")
    while s.here != handler:
        before = s.vm.instructions
        s.step_instruction()
    assert s.vm.instructions == before


def test_the_address_that_is_waited_for_is_reached_under_both_in_the_same_state():
    states = []
    for technique in TECHNIQUES:
        s = session("paging", technique)
        for label in ("main", "map_and_unmap", "protect", "demand"):
            assert s.until(s.symbols.address(label)).why is Why.REACHED
            states.append((label, s.here, [s.view.gpr(g) for g in Gpr], s.view.cr0, s.view.cr3))
    assert states[:4] == states[4:]


def test_waiting_for_an_instruction_that_exits_stops_before_its_exit():
    s = session("hello32")
    out = s.symbols.address("main")
    while str(s.code(out, 1)[0].text) != "out 0xf4, al":
        out += len(s.code(out, 1)[0].code)
    pause = s.until(out)
    assert (pause.why, pause.exit, s.here) == (Why.REACHED, None, out)
    assert s.step().exit.reason is Reason.IO_INSTRUCTION
    assert s.here == out


def test_an_address_that_is_never_reached_ends_with_the_guest():
    assert session("hello32").until(0xDEAD).why is Why.ENDED


@pytest.mark.parametrize(("count", "handled"), [(1, 0), (2, 1), (40, 39)])
def test_running_through_exits_leaves_the_last_one_in_hand(count, handled):
    s = session("hello32")
    assert s.run(count).why is Why.EXIT
    assert s.vm.books.exits == handled


def test_without_exits_a_run_counts_instructions():
    s = session(SPIN, "bare")
    s.run(5)
    assert s.vm.instructions == 5


@pytest.mark.parametrize(
    ("guest", "how", "code"),
    [("hello32", How.EXITED, 0), (FAIL, How.EXITED, 7), (HALT, How.HALTED, None), (DIE, How.DIED, None)],
)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_end_of_the_guest_is_the_end_of_running_and_not_of_looking(guest, how, code, technique):
    s = session(guest, technique)
    pause = s.run()
    assert (pause.why, pause.ending.how, pause.ending.code) == (Why.ENDED, how, code)
    assert s.ending == pause.ending
    for go in (s.step, s.run, s.step_instruction, lambda: s.until(ORIGIN)):
        with pytest.raises(InputError, match="has ended"):
            go()
    assert (
        s.memory.linear(s.machine.image.entry, 1)
        == s.machine.image.segments[0][1][s.machine.image.entry - ORIGIN :][:1]
    )


def test_a_triple_fault_is_an_exit_before_it_is_the_end():
    s = session(DIE)
    while s.exit is None or s.exit.reason is not Reason.TRIPLE_FAULT:
        assert s.step().why is Why.EXIT
    assert s.here == ORIGIN + 1
    assert s.step().why is Why.ENDED


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_budget_bounds_each_command_anew(technique):
    s = session(SPIN, technique, budget=Budget(max_instructions=1000))
    for done in (1000, 2000, 3000):
        pause = s.run()
        assert (pause.why, pause.ending.how, s.vm.instructions) == (Why.BUDGET, How.INSTRUCTIONS, done)
    assert s.ending is None
    assert s.until(ORIGIN).why is Why.BUDGET
    assert s.vm.instructions == 4000


def test_a_budget_of_exits_bounds_each_command_anew():
    s = session("hello32", budget=Budget(max_exits=10))
    for done in (10, 20):
        assert s.run().why is Why.BUDGET
        assert s.vm.books.exits == done


@pytest.mark.parametrize("run", [Session.run, Session.step, lambda s: s.until(0xDEAD)], ids=["run", "step", "until"])
def test_a_guest_that_loops_for_ever_can_be_interrupted_and_goes_on(run, monkeypatch):
    s = session(SPIN)
    s.step()
    turns, really = [], s.technique.run

    def interrupted_in_the_third_turn(limit):
        turns.append(limit)
        if len(turns) % 3 == 0:
            s.interrupt()
        return really(limit)

    monkeypatch.setattr(s.technique, "run", interrupted_in_the_third_turn)
    for times in (1, 2):
        assert run(s).why is Why.INTERRUPTED
        assert s.interrupted
        assert len(turns) == 3 * times
    assert s.here == ORIGIN + 6


def test_new_output_is_told_once():
    s = session("hello32")
    told = b""
    while s.ending is None:
        told += s.run(7).console
    assert told == b"hello from 32-bit protected mode\n"


def test_what_the_hypervisor_did_is_told_of_a_single_exit():
    s = session("hello32")
    s.step()
    assert "mapped" in s.step().handled
    assert s.run(5).handled == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("eax", 0x2BADB002), ("rax", 0x2BADB002), ("eip", 0x1000C4), ("rip", 0x1000C4), ("esp", 0x7C00), ("cr0", 0x11),
     ("ax", None), ("er8", None), ("cr1", None), ("xmm0", None)],
)  # fmt: skip
def test_registers_have_names(name, value):
    assert session("hello32").register(name) == value


def test_a_real_mode_address_is_base_and_offset():
    s = session("hello16")
    s.until(0x7C05)
    s.truth.set_segment(2, s.truth.segment(2).__class__(0x1234, 0x12340))
    s.truth.set_gpr(Gpr.RSP, 0x10)
    assert s.register("esp") == 0x12350


def test_text_among_code_is_shown_as_its_source():
    s = session("hello32")
    call, text, _ = s.code(s.symbols.address("main"), 3)
    assert call.text.startswith("call 0x")
    assert text.text == '.asciz "hello from 32-bit protected mode\\n"'
    assert text.code == b"hello from 32-bit protected mode\n\0"


def test_a_debugger_counts_instructions():
    with pytest.raises(InputError, match="--clock"):
        Session(machine(SPIN, counted=False))


def test_a_session_says_where_it_stands():
    s = session("hello32")
    s.until(s.symbols.address("main"))
    assert "hello32" in repr(s)
    assert "<main>" in repr(s)
