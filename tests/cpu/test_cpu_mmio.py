"""Where there is no RAM: reads give all ones, writes are lost, and nothing can be executed."""

from __future__ import annotations

import pytest

from tests.cpu.silicon import (
    IF,
    PAGES,
    RAM,
    RAX,
    RBX,
    RCX,
    RDI,
    RSI,
    RSP,
    program,
    silicon,
)

WIDE = (32, 64)
HOLE = RAM + 0x10_0000
WORDS = {
    32: {"b": "ebx", "a": "eax", "c": "ecx", "d": "edi", "p": "dword ptr"},
    64: {"b": "rbx", "a": "rax", "c": "rcx", "d": "rdi", "p": "qword ptr"},
}
SNIPPETS = """
    load8: mov al, [{b}]
        hlt
    load16: mov ax, [{b}]
        hlt
    load32: mov eax, [{b}]
        hlt
    signed: movsx eax, byte ptr [{b}]
        hlt
    store: mov [{b}], eax
        hlt
    both: mov [{b}], eax
        mov ecx, [{b}]
        hlt
    add_: add [{b}], eax
        hlt
    xadd_: xadd [{b}], eax
        hlt
    xchg_: xchg [{b}], eax
        hlt
    inc_: inc dword ptr [{b}]
        hlt
    cmpxchg_: cmpxchg [{b}], ecx
        hlt
    bts_: bts dword ptr [{b}], 3
        hlt
    test_: test dword ptr [{b}], 1
        hlt
    movs_: .byte 0xa5
        hlt
    rep_movs: rep movsb
        hlt
    rep_stos: rep stosb
        hlt
    cmps_: cmpsb
        hlt
    push_: push {a}
        pop {c}
        hlt
    push_memory: push {p} [{b}]
        pop {c}
        hlt
    pop_memory: pop {p} [{b}]
        hlt
    call_: call callee
        hlt
    callee: mov ecx, 7
        hlt
    ret_: .byte 0xc3
    jump: jmp {b}
    load_sse: movups xmm0, [{b}]
        movups [{d}], xmm0
        hlt
    lgdt_: lgdt [{b}]
        hlt
    fault: mov [{b}], eax
        ud2
"""
CODE = {mode: program(mode, SNIPPETS.format(**WORDS[mode])) for mode in WIDE}


def machine(mode, ring=0, gpa=HOLE):
    """EBX points to where nothing is."""
    s = silicon(CODE[mode], ring)
    if mode == 64:
        for n in range(4):  # 2 MiB pages from the end of RAM on
            at = PAGES + 0x2000 + 8 * (RAM // 0x20_0000 + n)
            s.poke(at, 8, s.peek(at, 8) | 4)
        s.state.cr4 |= 0x200
    return s.gpr(RBX, gpa)


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("gpa", [HOLE, HOLE + 1, RAM, RAM + 0xFFF])
@pytest.mark.parametrize(
    ("name", "value"),
    [("load8", 0x1111_11FF), ("load16", 0x1111_FFFF), ("load32", 0xFFFF_FFFF), ("signed", 0xFFFF_FFFF)],
)
def test_loads_give_all_ones(mode, gpa, name, value):
    s = machine(mode, gpa=gpa).gpr(RAX, 0x1111_1111).halts(name)
    assert s.reg(RAX) == value
    assert s.cpu.mmio.unclaimed == (2 if gpa == RAM + 0xFFF and name in ("load16", "load32") else 1)


@pytest.mark.parametrize("mode", WIDE)
def test_stores_are_lost(mode):
    s = machine(mode).gpr(RAX, 0x1234_5678)
    before = bytes(s.engine.ram[0x4000:RAM])
    s.halts("both")
    assert s.reg(RCX) == 0xFFFF_FFFF
    assert bytes(s.engine.ram[0x4000:RAM]) == before


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize(
    ("name", "eax", "flags"),
    [
        ("add_", 1, 0x55),  # ffffffff + 1: CF, PF, AF, ZF
        ("xadd_", 0xFFFF_FFFF, 0x55),
        ("xchg_", 0xFFFF_FFFF, 0),
        ("inc_", 1, 0x54),
        ("cmpxchg_", 0xFFFF_FFFF, None),  # not equal: EAX is loaded
        ("bts_", 1, 1),  # the old bit
    ],
)
def test_read_modify_write_computes_with_all_ones(mode, name, eax, flags):
    s = machine(mode).gpr(RAX, 1).halts(name)
    assert s.reg(RAX) == eax
    if flags is not None:
        assert s.state.rflags & 0x8D5 == flags
    assert s.halts("load32").reg(RAX) == 0xFFFF_FFFF


@pytest.mark.parametrize("mode", WIDE)
def test_strings_reach_and_leave_it(mode):
    s = machine(mode).gpr(RSI, HOLE).gpr(RDI, 0x4000).halts("movs_")
    assert s.peek(0x4000, 8) == 0xFFFF_FFFF
    s = machine(mode).gpr(RSI, 0x4000).gpr(RDI, HOLE).halts("movs_")
    assert (s.reg(RSI), s.reg(RDI)) == (0x4004, HOLE + 4)
    s = machine(mode).gpr(RSI, HOLE).gpr(RDI, HOLE + 0x5000).halts("movs_")  # both sides
    assert s.cpu.mmio.unclaimed == 2
    s = machine(mode).gpr(RSI, HOLE).gpr(RDI, HOLE + 0x5000).halts("cmps_")
    assert s.state.rflags & 0x40  # equal: all ones


@pytest.mark.parametrize("mode", WIDE)
def test_a_repeated_string_goes_on_across_the_end_of_ram(mode):
    s = machine(mode).gpr(RSI, RAM - 4).gpr(RDI, 0x4000).gpr(RCX, 8)
    s.poke(RAM - 4, 4, 0x0403_0201)
    s.halts("rep_movs")
    assert (s.peek(0x4000, 8), s.reg(RCX)) == (0xFFFF_FFFF_0403_0201, 0)
    s = machine(mode).gpr(RDI, RAM - 4).gpr(RCX, 8).gpr(RAX, 0x5A)
    s.halts("rep_stos")
    assert (s.peek(RAM - 4, 4), s.reg(RCX)) == (0x5A5A_5A5A, 0)


@pytest.mark.parametrize("mode", WIDE)
def test_an_access_across_the_end_of_ram_is_half_there(mode):
    s = machine(mode, gpa=RAM - 2)
    s.poke(RAM - 2, 2, 0x1234)
    assert s.halts("load32").reg(RAX) == 0xFFFF_1234
    s = machine(mode, gpa=RAM - 2).gpr(RAX, 0xAABB_CCDD).halts("store")
    assert s.peek(RAM - 2, 2) == 0xCCDD


@pytest.mark.parametrize("mode", WIDE)
def test_a_stack_there_forgets_what_is_pushed(mode):
    s = machine(mode).gpr(RSP, HOLE).gpr(RAX, 0x1234).halts("push_")
    assert s.reg(RCX) == (1 << 8 * s.word) - 1
    assert s.reg(RSP) == HOLE
    s = machine(mode).gpr(RSP, HOLE).halts("call_")
    assert (s.reg(RCX), s.reg(RSP)) == (7, HOLE - s.word)


@pytest.mark.parametrize("mode", WIDE)
def test_push_and_pop_of_memory_there(mode):
    ones = (1 << 8 * (4 if mode == 32 else 8)) - 1
    assert machine(mode).halts("push_memory").reg(RCX) == ones
    s = machine(mode)
    assert s.halts("pop_memory").reg(RSP) == 0x7000 + s.word


def test_16_bytes_at_once():
    s = machine(64).gpr(RDI, 0x4000).halts("load_sse")
    assert s.peek(0x4000, 16) == (1 << 128) - 1


@pytest.mark.parametrize("mode", WIDE)
def test_there_is_no_code(mode):
    s = machine(mode)
    assert s.vector("jump") == 6
    assert s.frame(1) == [HOLE]


@pytest.mark.parametrize("mode", WIDE)
def test_execution_does_not_run_over_the_end_of_ram(mode):
    s = machine(mode, gpa=RAM - 1)
    s.poke(RAM - 1, 1, 0x90)
    assert s.vector("jump") == 6
    assert s.frame(1) == [RAM]


@pytest.mark.parametrize("mode", WIDE)
def test_an_instruction_across_the_end_of_ram_ends_in_all_ones(mode):
    s = machine(mode, gpa=RAM - 2)
    s.poke(RAM - 2, 2, 0x12B8)  # MOV EAX, and the first byte of four
    assert s.vector("jump") == 6
    assert s.frame(1) == [RAM + 3]
    assert s.reg(RAX) == 0xFFFF_FF12


def test_a_return_to_nowhere():
    s = machine(32, 3).gpr(RSP, HOLE)
    assert s.vector("ret_") == 6
    assert s.frame(1) == [(1 << 32) - 1]


def test_a_page_table_there_has_every_bit_set():
    """Present, and with the reserved bits that this makes: a page fault."""
    s = machine(64)
    s.poke(PAGES + 0x1000 + 8, 8, HOLE | 7)  # the second GiB
    s.gpr(RBX, 0x4000_0000)
    assert s.vector("load32") == 14
    assert s.frame(1) == [9]
    assert s.state.cr2 == 0x4000_0000


def test_a_descriptor_table_there_is_loaded_as_all_ones():
    s = machine(32).halts("lgdt_")
    assert (s.state.gdtr.base, s.state.gdtr.limit) == (0xFFFF_FFFF, 0xFFFF)


@pytest.mark.parametrize("mode", WIDE)
def test_programs_see_the_same(mode):
    s = machine(mode, 3).gpr(RAX, 0)
    assert s.vector("load32") == 13  # at the HLT
    assert s.reg(RAX) == 0xFFFF_FFFF


@pytest.mark.parametrize("mode", WIDE)
def test_the_next_instruction_is_not_part_of_it(mode):
    s = machine(mode)
    assert s.vector("fault") == 6
    assert s.retired == 2  # the store, and the HLT of the handler


@pytest.mark.parametrize("mode", WIDE)
def test_an_interrupt_waits_for_the_end_of_the_access(mode):
    s = machine(mode).flags(IF)
    s.state.rip = s.at("load32")
    s.step()
    assert s.request(0x50).vector() == 0x50
    assert s.reg(RAX) == 0xFFFF_FFFF
