"""The run loop: budgets, endings, deadlines, the books and what a sink sees, the same under every technique."""

from __future__ import annotations

import itertools

import pytest

from hvemu.cpu.clock import NANOSECONDS_PER_CYCLE
from hvemu.events import Ending, ExitEvent, How
from hvemu.guest.image import from_source
from hvemu.techniques import loop
from hvemu.techniques.base import RESUME
from hvemu.techniques.hardware import Hardware
from hvemu.techniques.vm import Budget
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Reason
from tests.techniques.kernels import CODE, EXIT_0, kernel, machine

TECHNIQUES = ("bare", "deprivilege", "hardware")
# 8 instructions, with the LIDT in front; then 3 rounds of 6, in which CPUID, CR3 and a page of its own make different
# stops; then 2
WORK = "b903000000" + "bb00003000" + "90" * 5 + "51" + "0fa2" + "0f20da" + "8903" + "59" + "e2f5" + EXIT_0
LENGTH = 8 + 3 * 6 + 2


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_budget_of_instructions_is_kept_exactly(technique):
    image = kernel(WORK)
    for limit in range(LENGTH):
        result = machine(image, technique).run(Budget(max_instructions=limit))
        assert result.ending == Ending(How.INSTRUCTIONS, why=f"{limit} instructions")
        assert result.instructions == limit
    result = machine(image, technique).run(Budget(max_instructions=LENGTH))
    assert (result.ending.how, result.instructions) == (How.EXITED, LENGTH)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_run_may_be_continued_and_comes_to_the_same(technique):
    whole = machine(kernel(WORK), technique)
    expected = whole.run()
    parts = machine(kernel(WORK), technique)
    for limit in itertools.count(1):
        result = parts.run(Budget(max_instructions=limit))
        if result.ending.how is not How.INSTRUCTIONS:
            break
    assert (result.ending, result.instructions, result.exits, result.by_reason, result.cycles) == (
        expected.ending, expected.instructions, expected.exits, expected.by_reason, expected.cycles
    )  # fmt: skip


@pytest.mark.parametrize("technique", ["deprivilege", "hardware"])
def test_a_budget_of_exits_is_kept_exactly(technique):
    whole = machine(kernel(WORK), technique).run()
    assert whole.exits > 3
    for limit in range(whole.exits):
        result = machine(kernel(WORK), technique).run(Budget(max_exits=limit))
        assert result.ending == Ending(How.EXITS, why=f"{limit} exits")
        assert result.exits == limit == sum(result.by_reason.values())
    assert machine(kernel(WORK), technique).run(Budget(max_exits=whole.exits)).ending.code == 0


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_budget_of_time_ends_a_guest_that_never_does(technique, monkeypatch):
    clock = itertools.count(100)
    m = machine(kernel("ebfe"), technique)
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(loop, "SLICE", 10)
    assert m.run(Budget(timeout=7)).ending == Ending(How.TIMEOUT, why="7 seconds")
    assert 0 < m.vm.instructions <= 70


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_no_time_at_all_runs_nothing(technique):
    result = machine(kernel(WORK), technique).run(Budget(timeout=0))
    assert (result.ending.how, result.instructions) == (How.TIMEOUT, 0)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_exit_port_comes_before_budgets(technique):
    result = machine(kernel(EXIT_0), technique).run(Budget(max_instructions=3))
    assert result.ending == Ending(How.EXITED, 0)


# -- endings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", ["bare", "hardware"])
@pytest.mark.parametrize(("code", "why"), [
    ("faf4", f"HLT before {CODE + 9:#x} with interrupts disabled"),
    ("b0ffe621e6a1fbf4", f"HLT before {CODE + 15:#x}, and no device will ever interrupt it"),
])  # fmt: skip
def test_a_guest_that_halts_for_ever_is_told_why(technique, code, why):
    result = machine(kernel(code), technique).run(Budget(max_instructions=1000))
    assert result.ending == Ending(How.HALTED, why=why)
    assert result.ending.status == 1


def test_a_monitor_in_ring_0_cannot_know_that_interrupts_were_off():
    result = machine(kernel("b0ffe621e6a1faf4"), "deprivilege").run(Budget(max_instructions=1000))
    assert result.ending.how is How.HALTED
    assert result.ending.why.endswith("no device will ever interrupt it")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_guest_that_dies_is_told_of_which_exceptions(technique):
    result = machine(kernel("0f0b"), technique).run(Budget(max_instructions=1000))
    assert result.ending == Ending(
        How.DIED, why="triple fault: #UD, then #GP(0x33), then #GP(0x6b), then #DF(0x0), then #GP(0x43)"
    )
    assert result.ending.status == 4


@pytest.mark.parametrize(("field", "value", "words"), [
    (Field.GUEST_RFLAGS, 0, "VM entry failed"), (Field.VM_ENTRY_CONTROLS, 0, "VM"),
    (Field.PIN_BASED_VM_EXECUTION_CONTROLS, 0, "pin-based"),
])  # fmt: skip
def test_a_vmcs_that_vm_entry_refuses_ends_the_guest_with_the_clause(field, value, words):
    def spoil(vm, _qualification):
        vm.vmcs[field] = value
        return RESUME

    result = machine(kernel("0f01c1"), Hardware({Reason.VMCALL: spoil})).run(Budget(max_exits=10))
    assert result.ending.how is How.DIED
    assert words in result.ending.why


def test_an_error_in_a_handler_is_the_handlers_and_not_the_guests():
    def fail(vm, _qualification):
        raise ZeroDivisionError

    m = machine(kernel("0f01c1"), Hardware({Reason.VMCALL: fail}))
    with pytest.raises(ZeroDivisionError):
        m.run()


# -- exit by exit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", ["deprivilege", "hardware"])
def test_exits_one_at_a_time_come_to_the_same_as_a_run(technique):
    expected, m = machine(kernel(WORK), technique).run(), machine(kernel(WORK), technique)
    ending, seen = None, 0
    while ending is None:
        happened = m.next_exit()
        if isinstance(happened, Ending):
            ending = happened
        else:
            assert isinstance(happened, VmExit)
            seen += 1
            ending = m.handle(happened)
    result = m.result(ending)
    assert (result.ending, result.by_reason, result.instructions) == (
        expected.ending, expected.by_reason, expected.instructions
    )  # fmt: skip
    assert seen == expected.exits


def test_an_exit_that_is_not_handled_yet_is_in_no_book():
    m = machine(kernel("0fa2" + EXIT_0))
    first = m.next_exit()
    assert (first.reason, m.vm.books.exits) == (Reason.EPT_VIOLATION, 0)
    m.handle(first)
    assert (m.vm.books.exits, m.next_exit().reason) == (1, Reason.CPUID)


# -- the sink ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", ["deprivilege", "hardware"])
def test_a_sink_sees_every_exit_in_order(technique):
    events = []
    result = machine(kernel(WORK), technique, sink=events.append).run()
    assert all(isinstance(event, ExitEvent) for event in events)
    assert [event.number for event in events] == list(range(1, result.exits + 1))
    counted = {}
    for event in events:
        counted[event.what] = counted.get(event.what, 0) + 1
    assert counted == result.by_reason
    for before, after in itertools.pairwise(events):
        assert before.cycle < after.cycle
        assert before.instructions <= after.instructions
    assert events[-1].what in ("IO_INSTRUCTION", "OUT")
    assert events[-1].instructions == LENGTH - 1
    assert all(event.cpl in (0, 1) for event in events)


def test_an_event_has_the_place_and_the_detail_of_its_exit():
    events = []
    machine(kernel("0fa2" + EXIT_0), sink=events.append).run()
    cpuid, port = events[-2:]
    assert (cpuid.what, cpuid.rip, cpuid.instructions) == ("CPUID", CODE + 7, 1)
    assert (port.what, port.rip, port.detail) == ("IO_INSTRUCTION", CODE + 11, "OUT 0xf4, 1 bytes")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_sink_changes_nothing(technique):
    with_sink = machine(kernel(WORK), technique, sink=lambda event: None).run()
    without = machine(kernel(WORK), technique).run()
    assert (with_sink.instructions, with_sink.cycles, with_sink.by_reason) == (
        without.instructions, without.cycles, without.by_reason
    )  # fmt: skip


# -- deadlines --------------------------------------------------------------------------------------------------------

# The timer fires every 1193 counts, a millisecond, and the guest counts to 20 busily; the handler prints a dot a tick.
BUSY = """
.include "lib/kernel32.inc"
tick:
    push eax
    inc dword ptr [ticks]
    mov al, '.'
    out 0xe9, al
    mov al, 0x20
    out 0x20, al
    pop eax
    iretd
.p2align 2
ticks:
    .long 0
main:
    SET_GATE 0x20, tick
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 0x04
    out 0x40, al
    sti
busy:
    cmp dword ptr [ticks], 20
    jb busy
    cli
    EXIT 0
"""


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_devices_keep_their_deadlines_in_virtual_time(technique):
    """Every tick comes: 20 milliseconds of the 1 GHz clock, and less than one more."""
    m = machine(from_source(BUSY), technique)
    result = m.run(Budget(max_instructions=30_000_000))
    assert (result.ending.code, result.console) == (0, b"." * 20)
    assert 20 <= result.cycles * NANOSECONDS_PER_CYCLE / 1_000_000 < 22


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_interrupts_come_at_the_same_instruction_in_every_run(technique):
    first, second = (machine(from_source(BUSY), technique).run() for _ in range(2))
    assert (first.instructions, first.cycles, first.by_reason) == (second.instructions, second.cycles, second.by_reason)
