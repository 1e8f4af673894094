"""The time-stamp counter: with the counted clock, a number that can be told beforehand."""

from __future__ import annotations

import pytest

from hvemu.cpu.cpu import STOP_CYCLES
from tests.cpu.silicon import RAX, RBX, RCX, RDX, RSI, program, silicon

ALL, WIDE = (16, 32, 64), (32, 64)
TSD, TSC_AUX = 1 << 2, 0xC000_0103
SNIPPETS = """
    plain: rdtsc
        hlt
    twice: nop
        nop
        rdtsc
        mov esi, eax
        nop
        nop
        nop
        rdtsc
        sub eax, esi
        hlt
    over_cpuid: rdtsc
        mov esi, eax
        cpuid
        rdtsc
        sub eax, esi
        hlt
    over_io: rdtsc
        mov esi, eax
        in al, 0x90
        out 0x90, al
        rdtsc
        sub eax, esi
        hlt
    rdtscp_: rdtscp
        hlt
    set_: wrmsr
        rdtsc
        hlt
    from_msr: rdmsr
        hlt
"""
CODE = {mode: program(mode, SNIPPETS) for mode in ALL}


@pytest.mark.parametrize("mode", ALL)
def test_rdtsc_counts_instructions_and_charges(mode):
    s = silicon(CODE[mode]).gpr(RAX, ~0 & 0xFFFF_FFFF_FFFF_FFFF).gpr(RDX, 0xFFFF_FFFF_0000_0001)
    s.halts("plain")
    assert (s.reg(RAX), s.reg(RDX)) == (STOP_CYCLES, 0)  # the charge for stopping at it comes first


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(
    ("name", "instructions", "stops"),
    [("twice", 5, 1), ("over_cpuid", 3, 2), ("over_io", 4, 3)],  # from one RDTSC to the other, that one not counted
)
def test_the_difference_of_two_is_exact(mode, name, instructions, stops):
    s = silicon(CODE[mode]).halts(name)
    assert s.reg(RAX) == instructions + stops * STOP_CYCLES


@pytest.mark.parametrize("mode", ALL)
def test_both_halves_are_read(mode):
    s = silicon(CODE[mode])
    s.clock.charge(0x12_3456_7890)
    s.halts("plain")
    assert (s.reg(RDX), s.reg(RAX)) == (0x12, 0x3456_7890 + STOP_CYCLES)


@pytest.mark.parametrize("mode", ALL)
def test_rdtscp_tells_the_processor_too(mode):
    s = silicon(CODE[mode]).gpr(RCX, 0xFFFF_FFFF_FFFF_FFFF)
    s.cpu.msrs.write(TSC_AUX, 0x1234_5678)
    s.halts("rdtscp_")
    assert (s.reg(RAX), s.reg(RDX), s.reg(RCX)) == (STOP_CYCLES, 0, 0x1234_5678)


@pytest.mark.parametrize("mode", ALL)
def test_the_counter_can_be_set(mode):
    s = silicon(CODE[mode]).gpr(RCX, 0x10).gpr(RDX, 0x7).gpr(RAX, 0x8000_0000)
    s.halts("set_")
    # the write happens at 0 instructions and one charge, the read one of each later
    assert (s.reg(RDX), s.reg(RAX)) == (7, 0x8000_0000 + 1 + STOP_CYCLES)


def test_rdmsr_reads_the_same_counter():
    s = silicon(CODE[32]).gpr(RCX, 0x10).halts("from_msr")
    assert (s.reg(RDX), s.reg(RAX)) == (0, STOP_CYCLES)


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("name", ["plain", "rdtscp_"])
@pytest.mark.parametrize(("ring", "tsd", "good"), [(0, 0, True), (0, TSD, True), (3, 0, True), (3, TSD, False)])
def test_cr4_tsd_keeps_programs_from_it(mode, name, ring, tsd, good):
    s = silicon(CODE[mode], ring).gpr(RSI, 7)
    s.state.cr4 |= tsd
    vector = s.vector(name)
    if ring:
        assert vector == 13  # at the HLT, if not here
        assert (s.frame(2)[1] != s.at(name)) is good
    else:
        assert vector is None
    assert bool(s.reg(RAX)) is good


def test_time_passes_for_a_loop_that_waits_for_a_port():
    s = silicon(CODE[32])
    s.halts("over_io")
    assert s.clock.now == s.retired + 5 * STOP_CYCLES
    assert s.reg(RBX) == 0
