"""Code that changes is run as it is, whoever changes it and through whatever mapping."""

from __future__ import annotations

import itertools
import struct

import pytest

from hvemu.engine.code import _GRANULE, CodePages
from hvemu.engine.traps import Kind
from tests.engine.rig import (
    BITS,
    CODE,
    DATA,
    ET,
    NX,
    NXE,
    PAE,
    PE,
    PML4,
    RAX,
    RBX,
    RCX,
    RDI,
    RSI,
    RW,
    SMEP,
    US,
    P,
    Rig,
    rig,
)

CLOCKS = pytest.mark.parametrize("counted", [True, False])
PG, WP = 1 << 31, 1 << 16
ALIAS = 0x4_0000  # a second address of the page at CODE + 0x1000
TARGET = CODE + 0x1000
TABLE = 0x8_3000


def mapped(r, bits, *, alias, efer=0, cr4=0):
    """Turn paging on with 4 KiB pages, one to one, but for the page at ALIAS: TARGET again, with the bits *alias*."""
    user = US if r.state.cpl == 3 else 0
    for page in range(512):
        r.word(TABLE + 8 * page, page << 12 | user | RW | P)
    r.word(TABLE + 8 * (ALIAS >> 12), TARGET | alias | user | P)
    if bits == 64:
        r.word(0x8_2000, TABLE | user | RW | P)
        r.long_mode(PML4, efer=efer, cr4=cr4)
    else:
        r.word(0x8_2000, TABLE | RW | user | P)
        r.word(0x8_1000, 0x8_2000 | P)
        r.state.efer, r.state.cr4, r.state.cr3 = efer, PAE | cr4, 0x8_1000
        r.state.cr0 = PG | WP | ET | PE
    r.engine.flush_tlb()
    return r


def patching(bits, at):
    """Return code that calls TARGET five times, each time after it stored another byte at the gva *at* + 1.

    TARGET is `mov al, imm8; ret`; ECX counts; EBX sums what the calls return; EDI is *at*.
    """
    inc_ecx = b"\xff\xc1"
    body = b"\x88\x4f\x01" + b"\xe8####" + b"\x0f\xb6\xc0\x01\xc3" + inc_ecx + b"\x83\xf9\x05"
    # mov [rdi+1], cl; call TARGET; movzx eax, al; add ebx, eax; inc ecx; cmp ecx, 5; jb back; hlt
    call = struct.pack("<i", TARGET - (CODE + 3 + 5))
    body = body.replace(b"####", call)
    return body + b"\x72" + bytes([256 - len(body) - 2]) + b"\xf4"


def run_patching(r, at):
    r.put(b"\xb0\x00\xc3", TARGET)
    r.gpr(RDI, at)
    for gpr in (RAX, RBX, RCX):
        r.gpr(gpr, 0)
    stop = r.run(patching(r.state.code_bits, at), limit=10_000)
    assert stop.kind is Kind.HLT
    return r.state.gpr(RBX)


@CLOCKS
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("efer", [0, NXE], ids=["NXE=0", "NXE=1"])
@pytest.mark.parametrize("at", [TARGET, ALIAS], ids=["in place", "second mapping"])
def test_stores_through_an_executable_mapping_are_seen(at, efer, bits, counted):
    r = mapped(rig(bits, counted=counted), bits, alias=RW, efer=efer)
    assert run_patching(r, at) == 0 + 1 + 2 + 3 + 4


@CLOCKS
@pytest.mark.parametrize("bits", [32, 64])
def test_stores_through_a_mapping_that_cannot_be_executed_are_seen(bits, counted):
    r = mapped(rig(bits, counted=counted), bits, alias=RW | NX, efer=NXE)
    assert run_patching(r, ALIAS) == 0 + 1 + 2 + 3 + 4


@CLOCKS
@pytest.mark.parametrize("bits", [32, 64])
def test_a_page_that_was_data_before_it_was_code_is_seen(bits, counted):
    r = mapped(rig(bits, counted=counted), bits, alias=RW | NX, efer=NXE)
    r.gpr(RDI, ALIAS)
    assert r.run(b"\xc6\x07\x90\xc6\x47\x10\x90\xf4").kind is Kind.HLT  # two stores: the emulator takes it for data
    assert run_patching(r, ALIAS) == 0 + 1 + 2 + 3 + 4


@CLOCKS
def test_stores_of_the_kernel_into_code_of_users_are_seen_under_smep(counted):
    # a kernel that may not execute the page writes it through a second address; a user runs it
    r = mapped(rig(64, 3, counted=counted), 64, alias=RW, cr4=SMEP)
    r.put(b"\xb0\x00\xf4", TARGET)  # mov al, imm8; hlt (#GP at CPL 3)
    user = r.engine.snapshot()
    rights = {n: r.state.segment(n) for n in (1, 2)}
    for value in range(5):
        r.engine.restore(user)
        for n in (1, 2):  # at CPL 0
            segment = rights[n]
            r.state.set_segment(n, type(segment)(segment.selector & ~3, 0, 0xFFFF_FFFF, segment.rights.replace(dpl=0)))
        r.word(TABLE + 8 * (CODE >> 12), CODE | RW | P)  # the kernel's own code is its own
        r.engine.flush_tlb()
        r.gpr(RDI, ALIAS)
        r.gpr(RAX, value)
        assert r.run(b"\x88\x47\x01\x88\x47\x01\xf4").kind is Kind.HLT
        r.engine.restore(user)
        r.state.rip = TARGET
        assert r.engine.run(1000).kind is Kind.EXCEPTION
        assert r.state.gpr(RAX) == value


@CLOCKS
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("store", [b"\xaa", b"\xf3\xaa", b"\xf0\x0f\xb0\x0f", b"\x86\x07"],
                         ids=["stos", "rep stos", "lock cmpxchg", "xchg"])  # fmt: skip
def test_every_kind_of_store_is_seen(store, bits, counted):
    r = mapped(rig(bits, counted=counted), bits, alias=RW | NX, efer=NXE)
    r.put(b"\x90\x90\x90\xf4", TARGET)
    for _ in range(3):
        r.state.rip = TARGET
        assert r.engine.run(1000).kind is Kind.HLT
        # 0x90 becomes 0xf4 and back
        for old, new in ((0x90, 0xF4), (0xF4, 0x90)):
            r.gpr(RDI, ALIAS + 1)
            r.gpr(RAX, new if store != b"\xf0\x0f\xb0\x0f" else old)
            r.gpr(RCX, 1 if store != b"\xf0\x0f\xb0\x0f" else new)
            assert r.run(store + b"\xf4").kind is Kind.HLT
            assert r.ram[TARGET + 1] == new
            r.state.rip = TARGET
            assert r.engine.run(1000).kind is Kind.HLT
            assert r.state.rip == TARGET + (1 if new == 0xF4 else 3)


@CLOCKS
def test_many_functions_in_one_page_are_all_kept_apart(counted):
    r = mapped(rig(64, counted=counted), 64, alias=RW | NX, efer=NXE)
    functions = range(0, 0x200, 8)
    for offset in functions:
        r.put(b"\xb8" + struct.pack("<I", offset) + b"\xf4", TARGET + offset)
    for turn, offset in itertools.product(range(3), functions):
        r.gpr(RDI, ALIAS + offset)
        r.gpr(RBX, turn << 16 | offset)
        assert r.run(b"\x89\x5f\x01\xf4").kind is Kind.HLT  # mov [rdi+1], ebx
        for other in (offset, (offset + 0x100) % 0x200):
            r.state.rip = TARGET + other
            assert r.engine.run(1000).kind is Kind.HLT
            seen = turn if other <= offset else turn - 1
            assert r.state.gpr(RAX) == (other if seen < 0 else seen << 16 | other)


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_an_instruction_that_changes_the_next_one_runs_the_new_one(bits, counted):
    r = rig(bits, counted=counted)
    r.gpr(RBX, 0x3000)
    # mov byte [next], 0xf4 with an address of the code size; then NOPs
    store = {16: b"\x2e\xc6\x06" + struct.pack("<H", 7), 32: b"\xc6\x05" + struct.pack("<I", CODE + 8),
             64: b"\xc6\x05" + struct.pack("<i", 1)}[bits]  # fmt: skip
    code = store + b"\xf4" + b"\x90" * 8
    stop = r.run(code + b"\x0f\xa2")
    assert stop.kind is Kind.HLT
    assert r.ram[CODE + r.offset] == 0xF4
    assert r.offset in (7, 8)


@CLOCKS
def test_a_program_that_is_copied_over_itself_runs_as_the_copy(counted):
    r = rig(32, counted=counted)
    # esi: the new code, edi: the place behind REP MOVSB in this very block
    r.put(b"\x40\x40\x40\xf4", DATA)
    code = b"\xf3\xa4" + b"\x90" * 4 + b"\x0f\xa2"
    r.gpr(RSI, DATA)
    r.gpr(RDI, CODE + 2)
    r.gpr(RCX, 4)
    assert r.run(code).kind is Kind.HLT
    assert (r.state.gpr(RAX), r.offset) == (3, 5)


# -- the host writes --------------------------------------------------------------------------------------------------


@CLOCKS
def test_code_that_the_host_wrote_is_run_if_the_engine_is_told(counted):
    r = rig(32, counted=counted)
    for value in range(1, 6):
        r.ram[CODE : CODE + 6] = b"\xb8" + struct.pack("<I", value) + b"\xf4"
        r.engine.code_changed(CODE, 6)
        r.state.rip = r.start
        assert r.engine.run(1000).kind is Kind.HLT
        assert r.state.gpr(RAX) == value


def test_the_engine_must_be_told():
    r = rig(32)
    r.run(b"\xb8\x01\x00\x00\x00\xf4")
    r.ram[CODE + 1] = 2
    r.state.rip = r.start
    r.engine.run(1000)
    assert r.state.gpr(RAX) == 1


@pytest.mark.parametrize(
    ("hpa", "size", "flushes"),
    [
        (CODE, 1, True), (CODE + 0xFFF, 1, True), (CODE - 1, 1, False), (CODE - 1, 2, True), (CODE + 0x1000, 1, True),
        (CODE + 0x2000, 0x1000, False), (DATA, 0x1000, False), (0, 0x8_0000, True),
    ],
)  # fmt: skip
def test_only_a_write_to_pages_with_translated_code_costs_a_flush(monkeypatch, hpa, size, flushes):
    r = rig(32)
    r.put(b"\x66\x90\xf4", CODE + 0xFFF)  # code on two pages
    r.state.rip = r.start + 0xFFF
    r.engine.run(1000)
    flushed = []
    monkeypatch.setattr(r.engine, "flush_code", lambda: flushed.append(True))
    r.engine.code_changed(hpa, size)
    assert bool(flushed) is flushes


def test_pages_are_noted_by_where_they_are_and_not_by_their_address():
    r = rig(32)
    r.engine.second_level.map(CODE, DATA, 0x1000)
    r.engine.flush_tlb()
    r.ram[DATA : DATA + 6] = b"\xb8\x01\x00\x00\x00\xf4"
    r.state.rip = r.start
    r.engine.run(1000)
    assert (r.engine._pages.hold(DATA, 1), r.engine._pages.hold(CODE, 1)) == (True, False)


# -- why the hooks are there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
def test_without_the_engine_the_emulator_misses_stores_through_a_mapping_that_cannot_be_executed(monkeypatch, bits):
    monkeypatch.setattr(CodePages, "add", lambda *_: None)
    r = mapped(Rig().reset(bits, 0), bits, alias=RW | NX, efer=NXE)
    assert run_patching(r, ALIAS) < 0 + 1 + 2 + 3 + 4


def test_one_hook_for_all_memory_takes_over_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr("hvemu.engine.code._GRANULES", 3)
    r = Rig().reset(64, 0)
    for n in range(6):
        at = 0x10_0000 + n * _GRANULE
        r.put(b"\x90\xf4", at)
        r.state.rip = at
        assert r.engine.run(1000).kind is Kind.HLT
    assert r.engine._pages._granules is None
    r = mapped(r, 64, alias=RW | NX, efer=NXE)
    assert run_patching(r, ALIAS) == 0 + 1 + 2 + 3 + 4
