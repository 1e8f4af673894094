"""Control registers as a guest uses them, the ways into each mode and out of it among them."""

from __future__ import annotations

import pytest

from hvemu.x86.registers import Sreg
from hvemu.x86.segments import Descriptor
from tests.cpu.silicon import CS64, GDT, PAGES, RAX, RBX, RSI, program, silicon

ALL, WIDE = (16, 32, 64), (32, 64)
PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG = (1 << n for n in (0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31))
PAE, PGE, UMIP, SMEP, VMXE = 1 << 5, 1 << 7, 1 << 11, 1 << 20, 1 << 13
WORDS = {16: {"a": "eax", "b": "ebx"}, 32: {"a": "eax", "b": "ebx"}, 64: {"a": "rax", "b": "rbx"}}
SNIPPETS = """
    to_cr0: mov cr0, {a}
        hlt
    to_cr2: mov cr2, {a}
        hlt
    to_cr3: mov cr3, {a}
        hlt
    to_cr4: mov cr4, {a}
        hlt
    from_cr0: mov {b}, cr0
        hlt
    from_cr2: mov {b}, cr2
        hlt
    from_cr3: mov {b}, cr3
        hlt
    from_cr4: mov {b}, cr4
        hlt
    lmsw_: lmsw ax
        hlt
    lmsw_memory: lmsw [0x4000]
        hlt
    smsw_: smsw bx
        hlt
    smsw_memory: smsw [0x4000]
        hlt
    clts_: clts
        hlt
    fpu: fld1
        hlt
    sgdt_: sgdt [0x4000]
        hlt
    sidt_: sidt [0x4000]
        hlt
    sldt_: .byte 0x0f, 0x00, 0xc3
        hlt
    str_: .byte 0x0f, 0x00, 0xcb
        hlt
    no_cr1: .byte 0x0f, 0x20, 0xc8
        hlt
    no_cr5: .byte 0x0f, 0x22, 0xe8
        hlt
"""
LONG = """
    to_cr8: mov cr8, rax
        hlt
    from_cr8: mov rbx, cr8
        hlt
"""
# From real mode to long mode and back, step by step: SDM 3A "Initializing IA-32e Mode".
JOURNEY = """
    start: lgdt [gdtr]
        mov eax, 1
        mov cr0, eax
        .byte 0xea
        .word protected, 0x08
    .code32
    protected: mov ax, 0x10
        mov ds, ax
        mov ss, ax
        mov eax, 0x20
        mov cr4, eax
        mov eax, 0x1000
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        rdmsr
        mov esi, eax
        .byte 0xea
        .long long_mode
        .word 0x38
    .code64
    long_mode: mov rbx, 0x123456789abcdef0
        mov r15, rbx
        push 0x18
        push compatible
        .byte 0x48, 0xcb
    .code32
    compatible: mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov ecx, 0xc0000080
        rdmsr
        mov edi, eax
        and eax, 0xfffffeff
        wrmsr
        .byte 0xea
        .long code16
        .word 0x28
    .code16
    code16: mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        .byte 0xea
        .word real, 0
    real: mov ebp, 0x5a5a
        hlt
    gdtr: .word 0x3f
        .long gdt
    gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
        .quad 0x00cf93000000ffff, 0x00009b000000ffff, 0x000093000000ffff, 0x00af9b000000ffff
"""
CODE = {mode: program(mode, (SNIPPETS + (LONG if mode == 64 else "")).format(**WORDS[mode])) for mode in ALL}
TRAVEL = program(16, JOURNEY)


def write(mode, name, value, ring=0):
    """MOV *value* to a register; return the machine and the vector of what it meets."""
    s = silicon(CODE[mode], ring).gpr(RAX, value)
    return s, s.vector(name)


# -- CR0 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize(
    ("change", "good"),
    [
        (WP, True), (AM, True), (CD, True), (CD | NW, True), (NW, False), (MP | TS | EM | NE, True), (1 << 6, True),
        (1 << 17, True),
    ],
)  # fmt: skip
def test_bits_of_cr0_and_their_combinations(mode, change, good):
    old = silicon(CODE[mode]).state.cr0
    s, vector = write(mode, "to_cr0", old | change)
    assert vector == (None if good else 13)
    undefined = 1 << 6 | 1 << 17  # ignored
    assert s.state.cr0 == (old | change & ~undefined if good else old)


def test_cr0_has_no_upper_half():
    _, vector = write(64, "to_cr0", PG | PE | ET | 1 << 32)
    assert vector == 13


@pytest.mark.parametrize("mode", WIDE)
def test_et_cannot_be_cleared(mode):
    old = silicon(CODE[mode]).state.cr0
    s, _ = write(mode, "to_cr0", old & ~ET)
    assert s.state.cr0 == old


def test_paging_needs_protection():
    _, vector = write(32, "to_cr0", PG | ET)
    assert vector == 13
    _, vector = write(16, "to_cr0", PG | ET)
    assert vector == 13


def test_64_bit_code_cannot_turn_paging_off():
    s, vector = write(64, "to_cr0", PE | ET)
    assert vector == 13
    assert s.state.cr0 & PG


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("name", ["lmsw_", "lmsw_memory"])
def test_lmsw_loads_four_bits_and_keeps_pe(mode, name):
    old = silicon(CODE[mode]).state.cr0
    s = silicon(CODE[mode]).gpr(RAX, 0xFFFF_FFFE)
    s.poke(0x4000, 2, 0xFFFE)
    s.halts(name)
    assert s.state.cr0 == old | MP | EM | TS
    s.gpr(RAX, old & PE).poke(0x4000, 2, old & PE)
    s.halts(name)
    assert s.state.cr0 == old


def test_lmsw_can_enter_protected_mode_but_not_leave_it():
    s = silicon(CODE[16]).gpr(RAX, 1).halts("lmsw_")
    assert s.state.cr0 & PE
    s.gpr(RAX, 0).halts("lmsw_")
    assert s.state.cr0 & PE


@pytest.mark.parametrize("mode", ALL)
def test_smsw_reads_the_low_half(mode):
    s = silicon(CODE[mode]).gpr(RBX, 0x1111_2222)
    s.poke(0x4000, 4, 0x3333_4444)
    low = s.state.cr0 & 0xFFFF
    assert s.halts("smsw_").reg(RBX) == 0x1111_0000 | low
    s.halts("smsw_memory")
    assert s.peek(0x4000, 4) == 0x3333_0000 | low


@pytest.mark.parametrize("mode", ALL)
def test_ts_keeps_the_fpu_from_being_used_until_clts(mode):
    s = silicon(CODE[mode])
    s.state.cr0 |= TS
    assert s.vector("fpu") == 7
    s.halts("clts_")
    assert s.state.cr0 & TS == 0
    assert s.vector("fpu") is None


# -- CR2, CR3, CR4, CR8 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
def test_cr2_holds_anything(mode):
    value = 0xFEDC_BA98_7654_3210
    s, vector = write(mode, "to_cr2", value)
    assert vector is None
    expected = value if mode == 64 else value & 0xFFFF_FFFF
    assert s.halts("from_cr2").reg(RBX) == expected


@pytest.mark.parametrize(("value", "good"), [(PAGES, True), (PAGES | 0x18, True), (1 << 40, False), (1 << 63, False)])
def test_cr3_of_long_mode_has_reserved_bits(value, good):
    s, vector = write(64, "to_cr3", value)
    assert vector == (None if good else 13)
    if good:
        assert s.halts("from_cr3").reg(RBX) == value


def test_a_write_to_cr3_takes_effect_for_the_next_instruction():
    s = silicon(CODE[64])
    for n in range(3):  # the same tables again, but the first 2 MiB are somewhere else
        s.engine.ram[0x8_0000 + 0x1000 * n : 0x8_1000 + 0x1000 * n] = s.engine.ram[PAGES + 0x1000 * n :][:0x1000]
    s.poke(0x8_0000, 8, 0x8_1007)
    s.poke(0x8_1000, 8, 0x8_2007)
    s.poke(0x8_2000, 8, 0x20_0087)
    s.engine.ram[0x30_0000:0x30_1000] = s.engine.ram[0x10_0000:0x10_1000]  # the code is there, and does something else
    s.poke(0x30_0000 + s.at("to_cr3") + 3 - 0x10_0000, 3, 0xF4C6FF)  # INC ESI; HLT
    s.gpr(RAX, 0x8_0000).halts("to_cr3")
    assert s.reg(RSI) == 1


@pytest.mark.parametrize(("mode", "value", "good"), [
    (32, PAE | PGE | SMEP, True), (32, 1 << 31, False), (32, 1 << 12, False), (32, 1 << 15, False),
    (32, 1 << 18, False), (64, PAE | PGE, True), (64, PGE, False), (64, PAE | 1 << 32, False),
    (16, PGE, True), (16, 1, False),
])  # fmt: skip
def test_bits_of_cr4_that_cpuid_does_not_offer_are_reserved(mode, value, good):
    s, vector = write(mode, "to_cr4", value)
    assert vector == (None if good else 13)
    if good:
        assert s.halts("from_cr4").reg(RBX) == value


@pytest.mark.parametrize(("value", "good"), [(0, True), (15, True), (16, False), (1 << 32, False)])
def test_cr8_has_four_bits(value, good):
    s, vector = write(64, "to_cr8", value)
    assert vector == (None if good else 13)
    if good:
        assert s.halts("from_cr8").reg(RBX) == value


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("name", ["no_cr1", "no_cr5"])
def test_other_control_registers_are_undefined(mode, name):
    assert write(mode, name, 0)[1] == 6


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("name", ["to_cr0", "to_cr3", "to_cr4", "from_cr0", "from_cr3", "lmsw_", "clts_"])
def test_a_program_may_not_touch_them(mode, name):
    s, vector = write(mode, name, 0, ring=3)
    assert vector == 13
    assert s.frame(2) == [0, s.at(name)]


# -- UMIP -------------------------------------------------------------------------------------------------------------

STORES = ["sgdt_", "sidt_", "sldt_", "str_", "smsw_", "smsw_memory"]


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize(("ring", "umip", "good"), [(0, UMIP, True), (3, 0, True), (3, UMIP, False)])
def test_umip_hides_the_tables_from_programs(mode, name, ring, umip, good):
    s = silicon(CODE[mode], ring)
    old = s.state.cr4
    s.gpr(RAX, old | umip)
    s.state.cr4 = old | umip
    s.cpu.arm()
    vector = s.vector(name)
    if ring == 0:
        assert vector is None
    else:
        assert vector == 13  # at the HLT, if not here
        assert (s.frame(2) != [0, s.at(name)]) is good
    if name in ("sgdt_", "sidt_"):
        base = GDT if name == "sgdt_" else 0x9000
        assert s.peek(0x4002, 4) == (base if good else 0)


def test_a_guest_can_turn_umip_on():
    s = silicon(CODE[32]).gpr(RAX, UMIP).halts("to_cr4")
    s.ring3()
    assert s.vector("str_") == 13
    assert s.frame(2) == [0, s.at("str_")]


# -- between the modes ------------------------------------------------------------------------------------------------


def test_from_real_mode_to_long_mode_and_back():
    s = silicon(TRAVEL)
    for gpa, value in ((0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x83)):
        s.poke(gpa, 8, value)
    s.halts("start")
    assert s.reg(RSI) == 0x500  # LME, and LMA since paging is on
    assert s.reg(7) == 0x100  # LMA is gone with paging
    assert s.reg(15) == 0x1234_5678_9ABC_DEF0
    assert s.reg(5) == 0x5A5A
    assert s.state.cr0 == ET
    assert s.state.efer == 0
    assert s.state.segment(Sreg.CS).selector == 0


def test_compatibility_mode_has_no_64_bit_registers():
    s = silicon(CODE[64])
    s.poke(GDT + CS64, 8, 0x00CF_9B00_0000_FFFF)
    s.state.set_segment(Sreg.CS, Descriptor(s.peek(GDT + CS64, 8)).segment(CS64))
    s.gpr(RBX, 0xFFFF_FFFF_FFFF_FFFF)
    s.poke(0x5000, 4, 0xF4C3_FF48)  # DEC EAX; INC EBX; HLT, where 48 is no prefix
    s.state.rip = 0x5000
    s.halts()
    assert (s.reg(RAX) & 0xFFFF_FFFF, s.reg(RBX)) == (0xFFFF_FFFF, 0)
