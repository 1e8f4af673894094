"""The chapter on VM exits: every row of its tables is caused, and the layouts are those of the registers."""

from __future__ import annotations

import re

import pytest

from hvemu.guest.image import from_source
from hvemu.machine import Machine, technique_for
from hvemu.techniques.hardware import Hardware
from hvemu.vmx import reasons
from hvemu.vmx.reasons import Reason
from tests.docs.asked import Asking
from tests.docs.kernels import exits_of, table
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/vm-exits.md").read_text(encoding="utf-8")
SEEN = [*table(PAGE, "number", "reason", "what causes it", "qualification", "what the hypervisor does")]
ASKED = [*table(PAGE, "number", "reason", "control", "instruction", "qualification")]
LAYOUTS = [*table(PAGE, "type", "fields")]
BY_HAND = {"EXCEPTION_OR_NMI", "EPT_MISCONFIGURATION"}  # in the text below the tables
INSTRUCTION = re.compile(r"^`([^`]+)`")
TIMER = """
.include "lib/kernel32.inc"
.include "lib/pic.inc"
tick:
    OUT_BYTE PIC1, EOI
    iretd
main:
    REMAP_PIC
    SET_GATE IRQ_BASE, tick
    START_TIMER 1000
    MASK_IRQS 0xfe
    mov ecx, 150000
busy:
    dec ecx
    jnz busy
    sti
    nop
    EXIT 0
"""
QUALIFIED = {  # by instruction: SDM 3C "Exit Qualification", worked out by hand
    "mov cr0, eax": 0x0,  # CR0, MOV to CR, from EAX
    "mov cr3, eax": 0x3,
    "mov eax, cr3": 0x13,  # access type 1 is MOV from CR
    "mov dr7, eax": 0x7,
    "in al, 0x60": 0x0060_0048,  # one byte, IN, immediate
}


def kind(qualification: str) -> type:
    return getattr(reasons, qualification, int)


@pytest.mark.parametrize("row", SEEN + ASKED, ids=lambda row: row[1])
def test_a_reason_has_its_number(row):
    assert Reason[row[1]] == int(row[0])


def test_every_handler_is_in_the_tables_or_the_text():
    told = {row[1] for row in SEEN + ASKED} | {name for name in BY_HAND if f"{name} ({Reason[name].value})" in PAGE}
    assert {reason.name for reason in Hardware().handlers} <= told


# -- what this hypervisor sees ----------------------------------------------------------------------------------------

INSTRUCTIONS = {match[1]: row for row in SEEN if (match := INSTRUCTION.match(row[2]))}
OTHERS = {row[1] for row in SEEN} - {row[1] for row in INSTRUCTIONS.values()}


@pytest.fixture(scope="module")
def seen():
    order = [*sorted(INSTRUCTIONS.keys() - {"hlt"}), "hlt"]
    return exits_of(order, Hardware())


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_an_instruction_causes_its_exit(instruction, seen):
    assert [event.what for event in seen[instruction]] == [INSTRUCTIONS[instruction][1]]


def test_events_cause_the_others():
    found = {"TRIPLE_FAULT"} if triple_fault() else set()
    found |= Machine(from_source(TIMER), technique_for("hardware", "ept")).run().by_reason.keys() & OTHERS
    assert found == OTHERS


def triple_fault() -> bool:
    machine = Machine(from_source("start: int 0x40"), technique_for("hardware", "ept"))
    for _ in range(2):
        exit_ = machine.next_exit()
        if exit_.reason is Reason.TRIPLE_FAULT:
            return machine.handle(exit_).how.value == "died"
        assert machine.handle(exit_) is None
    return False


# -- what a hypervisor can ask for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ASKED, ids=lambda row: row[2])
def test_a_control_makes_an_instruction_exit(row):
    instruction = row[3].strip("`")
    without, asking = technique_for("hardware", "ept"), Asking(Reason[row[1]], row[2])
    exits = [exits_of([instruction], technique)[instruction] for technique in (without, asking)]
    assert [[event.what for event in events] for events in exits] == [[], [row[1]]]


@pytest.mark.parametrize("instruction", QUALIFIED)
def test_a_qualification_is_what_the_layout_says(instruction):
    (row,) = [r for r in SEEN + ASKED if f"`{instruction}`" in r[2] + r[3]]
    control = row[2] if row in ASKED else None
    found = []

    def note(vm, qualification):
        found.append(qualification)
        return vm.advance()

    technique = Hardware() if control is None else Asking(Reason[row[1]], control)
    technique.handlers[Reason[row[1]]] = note
    image = from_source(f'.include "lib/kernel32.inc"\nmain:\ncpuid\nmov eax, 0x400\n{instruction}\nhlt\n')
    Machine(image, technique).run()
    assert found[-1] == QUALIFIED[instruction]
    assert kind(row[3] if row in SEEN else row[4]) is not int


# -- the layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", LAYOUTS, ids=lambda row: row[0])
def test_a_layout_is_that_of_the_register(row):
    fields = getattr(reasons, row[0]).fields.values()
    width = {f.name: f.mask.bit_length() for f in fields}
    shown = [
        f"{f.name} {f.lo}" if width[f.name] == 1 else f"{f.name} {f.lo + width[f.name] - 1}:{f.lo}" for f in fields
    ]
    assert row[1] == ", ".join(shown)


def test_every_type_that_is_named_is_laid_out():
    named = {row[3] for row in SEEN} | {row[4] for row in ASKED}
    assert named - {"none", "displacement", "gva"} == {row[0] for row in LAYOUTS}
