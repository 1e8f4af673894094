"""Code as the processor fetches it: what the engine remembers of translations ends where the processor's TLB ends."""

from __future__ import annotations

import struct

import pytest

from hvemu.engine.engine import Engine
from hvemu.engine.traps import Kind
from hvemu.x86.state import AccessRights, Segment

DIRECTORY, OTHER_DIRECTORY, TABLE, OTHER_TABLE = 0x2000, 0x3000, 0x4000, 0x5000
A, B, MAIN, WINDOW = 0x6000, 0x7000, 0x8000, 0x9000
CPUID, LONG_CPUID = b"\x0f\xa2", b"\x66\x0f\xa2"
INVLPG = b"\x0f\x01\x3d" + struct.pack("<I", WINDOW)
STORE = b"\xc7\x05" + struct.pack("<II", TABLE + WINDOW // 1024, B | 7)
JUMP = b"\xb8" + struct.pack("<I", WINDOW) + b"\xff\xe0"
LOAD_CR3 = b"\x0f\x22\xd8"


@pytest.fixture
def engine():
    engine = Engine(1 << 20)
    engine.second_level.map(0, 0, 1 << 20)
    ram, state = engine.ram, engine.state
    for directory, table in ((DIRECTORY, TABLE), (OTHER_DIRECTORY, OTHER_TABLE)):
        struct.pack_into("<I", ram, directory, table | 7)
        for page in range(256):
            struct.pack_into("<I", ram, table + 4 * page, page << 12 | 7)
    struct.pack_into("<I", ram, TABLE + WINDOW // 1024, A | 7)
    struct.pack_into("<I", ram, OTHER_TABLE + WINDOW // 1024, B | 7)
    ram[A : A + 2], ram[B : B + 3] = CPUID, LONG_CPUID
    state.cr0, state.efer, state.cr4 = 0x11, 0, 0
    for n in range(6):
        rights = AccessRights(type=11 if n == 1 else 3, s=1, p=1, db=1, g=1)
        state.set_segment(n, Segment(8, 0, 0xFFFF_FFFF, rights))
    state.cr3, state.cr0 = DIRECTORY, 0x8000_0011
    engine.flush_tlb()
    state.rip = WINDOW
    assert engine.run(10).kind is Kind.CPUID
    assert engine.fetch().startswith(CPUID)
    return engine


def go(engine, code, kind):
    engine.ram[MAIN : MAIN + len(code)] = code
    engine.code_changed(MAIN, len(code))
    engine.state.rip = MAIN
    assert engine.run(10).kind is kind


def finish(engine):
    engine.state.rip = MAIN + len(STORE)
    engine.disarm()
    engine.step()
    engine.arm(())
    assert engine.run(10).kind is Kind.CPUID


def test_invlpg_shows_the_new_page(engine):
    go(engine, STORE + INVLPG + JUMP, Kind.INVLPG)
    finish(engine)
    assert engine.fetch().startswith(LONG_CPUID)


def test_another_cr3_shows_its_own_page_and_the_first_one_its_own_again(engine):
    engine.state.cr3 = OTHER_DIRECTORY
    go(engine, JUMP, Kind.CPUID)
    assert engine.fetch().startswith(LONG_CPUID)
    engine.state.cr3 = DIRECTORY
    go(engine, JUMP, Kind.CPUID)
    assert engine.fetch().startswith(CPUID)


def test_the_same_cr3_loaded_again_shows_the_new_page(engine):
    struct.pack_into("<I", engine.ram, TABLE + WINDOW // 1024, B | 7)
    engine.arm_registers(cr_read=0, cr_write=1 << 3, dr_read=0, dr_write=0)
    engine.state.set_gpr(0, DIRECTORY)
    go(engine, LOAD_CR3 + JUMP, Kind.CR_WRITE)
    engine.state.cr3 = DIRECTORY
    engine.state.rip += len(LOAD_CR3)
    assert engine.run(10).kind is Kind.CPUID
    assert engine.fetch().startswith(LONG_CPUID)


def test_the_bytes_are_those_of_now(engine):
    engine.ram[A : A + 3] = LONG_CPUID
    assert engine.fetch().startswith(LONG_CPUID)


def test_an_instruction_at_the_end_of_a_page_is_fetched_from_both(engine):
    engine.ram[MAIN + 0xFFE : MAIN + 0x1000] = LONG_CPUID[:2]
    struct.pack_into("<I", engine.ram, TABLE + WINDOW // 1024, WINDOW | 7)
    engine.ram[WINDOW : WINDOW + 1] = LONG_CPUID[2:]
    engine.flush_tlb()
    engine.state.rip = MAIN + 0xFFE
    assert engine.run(10).kind is Kind.CPUID
    assert engine.fetch().startswith(LONG_CPUID)
    assert engine.fetch().startswith(LONG_CPUID)
