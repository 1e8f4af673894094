"""From a guest-physical address back to the linear one: what the instruction at RIP was after."""

from __future__ import annotations

import pytest

from hvemu.cpu.reach import Reached, reach, sets_flags
from hvemu.vmx.fields import Field
from tests.cpu import machines
from tests.cpu.nonroot_rig import CODE, DATA, STACK, TABLES, Rig

PAGE, PT = 0x1000, TABLES + 0x3000
ALIAS = 0x70_0000  # a gva whose page table maps DATA too
P, W, A, D = 1, 2, 0x20, 0x40


def at(bits, code, **registers):
    """A guest that stands before *code*, which has been fetched: the engine knows its page."""
    rig = Rig(bits).gpr(**registers)
    if bits == 64:
        rig.word(TABLES + 2 * PAGE + 8 * (ALIAS >> 21), 0x9_8000 | P | W | 4)
        rig.word(0x9_8000 + 8 * (ALIAS >> 12 & 511), DATA | P | W | 4)
    assert rig.run("90") is None
    rig.put(bytes.fromhex(code))
    rig.state.rip = CODE
    return rig


# (bits, code, registers, gpa, expected)
FINAL = [
    (32, "8b07", {"rdi": DATA + 4}, DATA + 4, DATA + 4),
    (32, "8b4708", {"rdi": DATA}, DATA + 8, DATA + 8),
    (64, "488b07", {"rdi": ALIAS + 0x18}, DATA + 0x18, ALIAS + 0x18),
    (32, "a4", {"rsi": DATA, "rdi": DATA + 2 * PAGE}, DATA, DATA),
    (32, "a4", {"rsi": DATA, "rdi": DATA + 2 * PAGE}, DATA + 2 * PAGE, DATA + 2 * PAGE),
    (32, "8b07", {"rdi": DATA - 2}, DATA, DATA),  # the second page of an access
    (32, "50", {"rsp": DATA}, DATA - 4, DATA - 4),
    (64, "58", {"rsp": ALIAS}, DATA, ALIAS),
    (32, "60", {"rsp": DATA + 8}, DATA - 0x18, DATA - 0x18),
    (32, "ff37", {"rdi": DATA, "rsp": STACK}, DATA, DATA),
    (32, "90", {}, CODE, CODE),
    (32, "8ed8", {"rax": 0x20}, machines.GDT + 0x20, machines.GDT + 0x20),
    (32, "0fae07", {"rdi": DATA + 0xF00}, DATA + PAGE, DATA + PAGE),
]


@pytest.mark.parametrize(("bits", "code", "registers", "gpa", "gva"), FINAL)
def test_the_page_itself(bits, code, registers, gpa, gva):
    assert reach(at(bits, code, **registers).cpu, gpa, fetch=False) == Reached(gva, final=True)


@pytest.mark.parametrize("level", range(4))
def test_a_paging_structure_on_the_way(level):
    rig = at(64, "488b07", rdi=DATA)
    gpa = TABLES + level * PAGE
    assert reach(rig.cpu, gpa, fetch=False) == Reached(CODE, final=False)


def test_a_paging_structure_that_only_the_operand_needs():
    rig = at(64, "488b07", rdi=ALIAS + 0x18)
    assert reach(rig.cpu, 0x9_8000, fetch=False) == Reached(ALIAS + 0x18, final=False)


def test_a_fetch_is_after_code_alone():
    rig = at(32, "8b07", rdi=DATA)
    assert reach(rig.cpu, DATA, fetch=True) is None
    assert reach(rig.cpu, CODE + 1, fetch=True) == Reached(CODE + 1, final=True)


def test_nothing_leads_to_an_address_that_the_instruction_does_not_touch():
    assert reach(at(32, "8b07", rdi=DATA).cpu, DATA + 8 * PAGE, fetch=False) is None
    assert reach(at(64, "488b07", rdi=0x40_0000_0000).cpu, DATA, fetch=False) is None


def test_where_there_is_no_instruction_its_place_still_counts():
    rig = at(64, "488b07", rdi=DATA)
    rig.word(PT + 8 * (CODE >> 12), 0)
    rig.cpu.engine.flush_tlb()
    assert reach(rig.cpu, PT, fetch=False) == Reached(CODE, final=False)
    assert reach(rig.cpu, DATA, fetch=False) is None


def test_a_segment_has_its_base():
    rig = at(32, "658b4704", rdi=0x100)
    rig.vmcs[Field.GUEST_GS_BASE] = DATA
    assert reach(rig.cpu, DATA + 0x104, fetch=False) == Reached(DATA + 0x104, final=True)


@pytest.mark.parametrize(("clear", "expected"), [(None, False), (0, True), (1, True), (2, True), (3, True)])
def test_flags_have_to_be_set_where_any_entry_lacks_its_accessed_bit(clear, expected):
    rig = at(64, "90")
    for level in range(4):
        slot = TABLES + level * PAGE + (8 * (DATA >> 12) if level == 3 else 0)
        entry = rig.ram.read(slot, 8)
        rig.word(slot, entry & ~A if level == clear else entry | A)
    assert sets_flags(rig.cpu, DATA) is expected


def test_flags_of_entries_that_are_not_present_do_not_matter():
    rig = at(64, "90")
    for level in range(3):
        rig.word(TABLES + level * PAGE, rig.ram.read(TABLES + level * PAGE, 8) | A)
    rig.word(PT + 8 * (DATA >> 12), 0)
    assert not sets_flags(rig.cpu, DATA)
