"""The counted clock counts what retired, exactly, whatever ended the run."""

from __future__ import annotations

import pytest

from hvemu.engine.traps import Kind
from tests.engine.rig import BITS, CODE, DATA, IF, PD, PML4, RAX, RBX, RCX, RDI, RSI, RW, TF, US, P, rig, summary

NOP, HLT, CPUID, UD2 = b"\x90", b"\xf4", b"\x0f\xa2", b"\x0f\x0b"
LOOP = b"\x40\x40\xe2\xfc\xf4"  # inc eax; inc eax; loop -4; hlt: three instructions a turn


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100, 511, 512, 513, 1000])
def test_a_run_of_n_instructions_runs_n_instructions(bits, limit):
    r = rig(bits)
    assert r.run(NOP * 2000, limit=limit).kind is Kind.LIMIT
    assert (r.offset, r.engine.instructions) == (limit, limit)


@pytest.mark.parametrize("limit", range(1, 14))
def test_a_limit_in_the_middle_of_a_loop_is_exact(limit):
    r = rig(32)
    r.gpr(RCX, 100)
    r.run(LOOP, limit=limit)
    assert (r.state.gpr(RAX), 100 - r.state.gpr(RCX)) == (2 * (limit // 3) + limit % 3, limit // 3)
    assert r.engine.instructions == limit


def test_many_short_runs_are_one_long_run():
    for size in (1, 2, 5, 17):
        r = rig(32)
        r.gpr(RCX, 50)
        r.put(LOOP)
        r.state.rip = r.start
        while r.engine.run(size).kind is Kind.LIMIT:
            pass
        assert (r.state.gpr(RAX), r.engine.instructions) == (100, 150)


def test_a_run_of_nothing_runs_nothing():
    r = rig(32)
    assert r.run(NOP, limit=0).kind is Kind.LIMIT
    assert (r.offset, r.engine.instructions) == (0, 0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("stop", [CPUID, UD2, b"\xec", b"\x6e", HLT, b"\x0f\x22\xd8"])
def test_an_instruction_that_stops_is_not_counted(bits, stop):
    r = rig(bits)
    r.engine.arm_registers(cr_read=0, cr_write=0xFFFF, dr_read=0, dr_write=0)
    r.run(NOP * 5 + stop + NOP)
    assert (r.offset, r.engine.instructions) == (5, 5)
    r.engine.run(1000)
    assert r.engine.instructions == 5


@pytest.mark.parametrize("behind", [b"", NOP, NOP * 3, b"\x40\xec"])
def test_port_io_that_was_known_before_and_that_was_not_counts_the_same(behind):
    for io in (b"\xec", b"\x6c"):
        r = rig(32)
        counts = []
        for _ in range(3):
            r.engine.instructions = 0
            r.run(NOP * 4 + io + behind + HLT)
            counts.append(r.engine.instructions)
        assert counts == [4, 4, 4]


def test_port_io_at_the_end_of_a_page_counts_the_same():
    r = rig(32)
    r.put(NOP + b"\xec" + HLT, CODE + 0xFFE)
    r.state.rip = CODE + 0xFFE
    assert r.engine.run(1000).kind is Kind.IO
    assert r.engine.instructions == 1


def test_an_int_n_is_counted_because_rip_is_after_it():
    r = rig(32)
    r.run(NOP + b"\xcd\x30")
    assert r.engine.instructions == 2


def test_an_instruction_that_traps_is_counted():
    r = rig(32)
    r.state.rflags = 2 | TF
    for n in range(1, 4):
        assert summary(r.run(NOP) if n == 1 else r.engine.run(1000)) == (Kind.EXCEPTION, 1)
        assert r.engine.instructions == n


def test_an_instruction_with_a_breakpoint_is_not_counted_until_it_runs():
    r = rig(32)
    r.gpr(RAX, CODE + 8)
    r.gpr(RCX, 0x402)
    assert summary(r.run(b"\x0f\x23\xc0\x0f\x23\xf9" + NOP * 3 + HLT)) == (Kind.EXCEPTION, 1)  # mov dr0; mov dr7
    assert (r.offset, r.engine.instructions) == (8, 4)


def test_the_emulator_has_no_data_breakpoints():
    r = rig(32)
    r.gpr(RAX, DATA)
    r.gpr(RCX, 0x000D_0402)  # DR0: writes of 4 bytes
    code = b"\x0f\x23\xc0\x0f\x23\xf9" + NOP + b"\xa3" + DATA.to_bytes(4, "little") + NOP + HLT
    assert summary(r.run(code)) == (Kind.HLT, 0)
    assert r.peek(DATA, 4) == DATA


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_each_iteration_is_one_instruction_and_so_is_finding_the_end(count):
    r = rig(32)
    for gpr, value in ((RCX, count), (RSI, DATA), (RDI, DATA + 64)):
        r.gpr(gpr, value)
    r.run(b"\xf3\xa4" + HLT)
    assert r.engine.instructions == count + 1


def test_a_limit_in_the_middle_of_a_repeated_instruction_leaves_rip_on_it():
    r = rig(32)
    for gpr, value in ((RCX, 5), (RSI, DATA), (RDI, DATA + 64)):
        r.gpr(gpr, value)
    r.run(b"\xf3\xa4" + HLT, limit=3)
    assert (r.offset, r.state.gpr(RCX), r.state.gpr(RDI)) == (0, 2, DATA + 67)


# -- faults of the fetch: the instruction had not begun ---------------------------------------------------------------

AWAY = 0x4_0000


def paged(cpl=0, *, mapped=()):
    r = rig(64, cpl)
    r.word(PD, 0x8_3000 | US | RW | P)
    for page in range(512):
        present = page << 12 | US | RW | P
        r.word(0x8_3000 + 8 * page, present if page << 12 != AWAY or AWAY in mapped else 0)
    r.long_mode(PML4)
    return r


def jump(target):
    return b"\xff\x24\x25" + DATA.to_bytes(4, "little"), target  # jmp [DATA]


@pytest.mark.parametrize("target", [AWAY, AWAY + 0x123, AWAY - 1])
def test_a_page_fault_on_the_fetch_counts_exactly_what_ran_before(target):
    r = paged()
    r.word(DATA, target)
    r.ram[AWAY - 1] = 0x48  # a prefix: the instruction crosses into the page that is missing
    stop = r.run(NOP * 3 + jump(target)[0])
    assert summary(stop) == (Kind.EXCEPTION, 14)
    assert (r.state.rip, r.engine.instructions) == (target, 4)


def test_a_page_fault_on_data_close_to_rip_is_not_mistaken_for_one_of_the_fetch():
    r = paged(3, mapped=(AWAY,))
    r.word(0x8_3000 + 8 * (AWAY >> 12), AWAY | US | P)  # read-only
    r.engine.flush_tlb()
    r.ram[AWAY : AWAY + 9] = b"\x90\x88\x05\x00\x00\x00\x00\x90\x90"  # nop; mov [rip + 0], al
    r.state.rip = AWAY
    stop = r.engine.run(1000)
    assert (summary(stop), stop.address, r.engine.instructions) == ((Kind.EXCEPTION, 14), AWAY + 7, 1)


@pytest.mark.parametrize("target", [AWAY, AWAY - 1])
def test_a_second_level_fault_on_the_fetch_counts_exactly_what_ran_before(target):
    r = paged(mapped=(AWAY,))
    r.engine.second_level.unmap(AWAY, 0x1000)
    r.engine.flush_tlb()
    r.word(DATA, target)
    r.ram[AWAY - 1] = 0x48
    stop = r.run(NOP * 3 + jump(target)[0])
    assert (stop.kind, stop.error_code & 0x10, stop.address) == (Kind.SECOND_LEVEL, 0x10, AWAY)
    assert (r.state.rip, r.engine.instructions) == (target, 4)


def test_a_second_level_fault_on_the_tables_for_a_fetch_counts_exactly_what_ran_before():
    r = paged(mapped=(AWAY,))
    r.word(PD + 8, 0x4_5000 | US | RW | P)  # the tables of the second 2 MiB
    r.engine.second_level.unmap(0x4_5000, 0x1000)
    r.engine.flush_tlb()
    r.word(DATA, 0x20_0000)
    stop = r.run(NOP * 3 + jump(0)[0])
    assert (stop.kind, stop.address) == (Kind.SECOND_LEVEL, 0x4_5000)
    assert (r.state.rip, r.engine.instructions) == (0x20_0000, 4)


def test_a_second_level_fault_on_data_counts_exactly_what_ran_before():
    r = paged(mapped=(AWAY,))
    r.engine.second_level.unmap(AWAY, 0x1000)
    r.engine.flush_tlb()
    stop = r.run(NOP * 3 + b"\xa2" + AWAY.to_bytes(8, "little"))
    assert (stop.kind, stop.address, r.engine.instructions) == (Kind.SECOND_LEVEL, AWAY, 3)


def test_a_jump_to_an_address_that_is_not_canonical_counts_exactly_what_ran_before():
    r = rig(64)
    r.word(DATA, 1 << 63)
    stop = r.run(NOP * 3 + jump(0)[0])
    assert summary(stop) == (Kind.EXCEPTION, 13)
    assert (r.state.rip, r.engine.instructions) == (1 << 63, 4)


def test_flags_of_the_last_instruction_are_right_when_the_next_cannot_be_fetched():
    r = paged()
    r.word(DATA, AWAY)
    r.gpr(RAX, 1)
    r.gpr(RBX, 0xFFFF_FFFF)
    r.run(b"\x01\xd8" + jump(AWAY)[0])  # add eax, ebx: carry, zero, parity, adjust
    assert r.state.rflags & 0x8D5 == 0x55
    r = rig(32)
    r.gpr(RAX, 1)
    r.gpr(RBX, 0xFFFF_FFFF)
    r.state.rflags = 2
    r.engine.open_window(True)
    assert r.run(b"\xfb\x01\xd8" + NOP).kind is Kind.WINDOW
    assert r.state.rflags == 0x57 | IF


# -- the free clock ---------------------------------------------------------------------------------------------------


def test_the_free_clock_counts_nothing_and_knows_no_limit():
    r = rig(32, counted=False)
    r.gpr(RCX, 10_000)
    assert r.run(LOOP, limit=5).kind is Kind.HLT
    assert (r.state.gpr(RAX), r.engine.instructions) == (20_000, 0)


def test_both_clocks_do_the_same():
    results = []
    for counted in (True, False):
        r = rig(32, counted=counted)
        r.gpr(RCX, 1234)
        r.run(LOOP, limit=1 << 40)
        results.append(([*r.state.regs], r.state.rip, r.state.rflags))
    assert results[0] == results[1]
