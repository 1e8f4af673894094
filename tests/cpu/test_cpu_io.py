"""IN, OUT, INS and OUTS of programs: what IOPL and the bitmap of the TSS let pass, end to end."""

from __future__ import annotations

import pytest

from tests.cpu.silicon import DF, RAX, RCX, RDI, RDX, RSI, TSS, program, silicon

ALL, WIDE = (16, 32, 64), (32, 64)
SNIPPETS = """
    in8: in al, dx
        hlt
    in16: in ax, dx
        hlt
    in32: in eax, dx
        hlt
    in_imm: in al, 0x90
        hlt
    out8: out dx, al
        hlt
    out16: out dx, ax
        hlt
    out32: out dx, eax
        hlt
    out_imm: out 0x90, ax
        hlt
    ins_: insb
        hlt
    outs_: outsb
        hlt
    rep_in16: .byte 0xf3, {word} 0x6d
        hlt
    rep_out16: .byte 0xf3, {word} 0x6f
        hlt
    rep_out8: rep outsb
        hlt
"""
CODE = {mode: program(mode, SNIPPETS.format(word="" if mode == 16 else "0x66,")) for mode in ALL}
ACCESSES = [("in8", 1, None), ("in16", 2, None), ("in32", 4, None), ("out8", 1, 0x78), ("out16", 2, 0x5678),
            ("out32", 4, 0x1234_5678), ("in_imm", 1, None), ("out_imm", 2, 0x5678)]  # fmt: skip
NAMES = [name for name, _, _ in ACCESSES] + ["ins_", "outs_"]


def machine(mode, ring=0, iopl=0, port=0x90):
    return silicon(CODE[mode], ring).flags(iopl << 12).gpr(RDX, port).gpr(RAX, 0x1234_5678)


def allow(s, *ports):
    """Clear the bits of *ports* in the bitmap."""
    for port in ports:
        at = TSS + 0x80 + port // 8
        s.poke(at, 1, s.peek(at, 1) & ~(1 << port % 8))


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(("name", "size", "value"), ACCESSES)
def test_the_port_sees_as_much_as_the_accumulator_holds(mode, name, size, value):
    s = machine(mode)
    s.gpr(RAX, 0x1122_3344_5566_7788 if name.startswith("in") else 0xFFFF_FFFF_1234_5678)
    s.halts(name)
    assert s.pins.accesses == [(0x90, size, value)]
    expected = {"in8": 0x1122_3344_5566_7790, "in_imm": 0x1122_3344_5566_7790, "in16": 0x1122_3344_5566_0090,
                "in32": 0x0090_0090}  # fmt: skip
    assert s.reg(RAX) == expected.get(name, 0xFFFF_FFFF_1234_5678)


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("iopl", range(4))
def test_a_program_needs_iopl_3_when_the_bitmap_says_no(mode, name, iopl):
    s = machine(mode, 3, iopl).gpr(RSI, 0x4000).gpr(RDI, 0x4000)
    assert s.vector(name) == 13  # if not here, then at the HLT
    assert (s.frame(2) == [0, s.at(name)]) is (iopl < 3)
    assert len(s.pins.accesses) == (iopl == 3)


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("ring", [0])
def test_the_kernel_needs_nothing(mode, ring):
    s = machine(mode, ring)
    s.halts("out8")
    assert len(s.pins.accesses) == 1


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize(
    ("name", "port", "allowed", "good"),
    [
        ("in8", 0x90, [0x90], True),
        ("in8", 0x91, [0x90], False),
        ("out16", 0x90, [0x90], False),
        ("out16", 0x90, [0x90, 0x91], True),
        ("out32", 0x92, [0x92, 0x93, 0x94], False),
        ("out32", 0x92, [0x92, 0x93, 0x94, 0x95], True),
        ("in32", 0x97, [0x97, 0x98, 0x99, 0x9A], True),  # over two bytes of the bitmap
        ("in8", 0xFFFF, [0xFFFF], True),
        ("in16", 0xFFFF, [0xFFFF], False),  # the byte behind the last port is all ones
        ("outs_", 0x90, [0x90], True),
        ("ins_", 0x91, [0x90], False),
    ],
)
def test_every_byte_of_the_access_must_be_allowed(mode, name, port, allowed, good):
    s = machine(mode, 3, port=port).gpr(RSI, 0x4000).gpr(RDI, 0x4000)
    allow(s, *allowed)
    assert s.vector(name) == 13
    assert (s.frame(2) != [0, s.at(name)]) is good
    assert bool(s.pins.accesses) is good


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize(("limit", "good"), [(0x80 + 0x12, False), (0x80 + 0x13, True)])
def test_the_bitmap_ends_with_the_segment(mode, limit, good):
    """Two bytes are always read (SDM 1 "I/O Permission Bit Map")."""
    s = machine(mode, 3)
    allow(s, 0x90)
    tr = s.state.tr
    s.state.tr = type(tr)(tr.selector, tr.base, limit, tr.rights)
    s.vector("in8")
    assert bool(s.pins.accesses) is good


@pytest.mark.parametrize("iopl", [0, 3])
def test_virtual_8086_mode_asks_the_bitmap_whatever_iopl_says(iopl):
    for allowed in (False, True):
        s = silicon(CODE[16], mode=32).vm86(iopl).gpr(RDX, 0x90)
        if allowed:
            allow(s, 0x90)
        s.state.rip = s.at("out8")
        s.step()
        assert bool(s.pins.accesses) is allowed


@pytest.mark.parametrize("mode", ALL)
def test_rep_outs_gives_one_item_after_the_other(mode):
    s = machine(mode).gpr(RCX, 3).gpr(RSI, 0x4000)
    s.poke(0x4000, 8, 0x0706_0504_0302_0100)
    s.halts("rep_out16")
    assert s.pins.accesses == [(0x90, 2, 0x0100), (0x90, 2, 0x0302), (0x90, 2, 0x0504)]
    assert (s.reg(RCX), s.reg(RSI)) == (0, 0x4006)


@pytest.mark.parametrize("mode", ALL)
def test_rep_ins_goes_down_with_df(mode):
    s = machine(mode).flags(DF).gpr(RCX, 3).gpr(RDI, 0x4004)
    s.halts("rep_in16")
    assert s.pins.accesses == [(0x90, 2, None)] * 3
    assert (s.reg(RCX), s.reg(RDI), s.peek(0x4000, 8)) == (0, 0x3FFE, 0x0090_0090_0090)


@pytest.mark.parametrize("mode", WIDE)
def test_permission_is_checked_in_every_iteration(mode):
    s = machine(mode, 3).gpr(RCX, 2).gpr(RSI, 0x4000)
    allow(s, 0x90)
    s.state.rip = s.at("rep_out8")
    s.step()
    assert s.reg(RCX) == 1
    s.poke(TSS + 0x80 + 0x12, 1, 0xFF)
    assert s.vector() == 13
    assert (s.frame(2), s.reg(RCX)) == ([0, s.at("rep_out8")], 1)


@pytest.mark.parametrize("name", ["ins_", "outs_"])
def test_a_page_that_is_missing_faults_before_the_port_sees_anything(name):
    s = machine(64).gpr(RSI, 0x4000_0000).gpr(RDI, 0x4000_0000)
    assert s.vector(name) == 14
    assert (s.pins.accesses, s.state.cr2) == ([], 0x4000_0000)
    assert s.frame(1) == [2 if name == "ins_" else 0]
