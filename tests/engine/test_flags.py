"""The arithmetic flags and DF, which the emulator keeps elsewhere, are whole at every stop, and survive it."""

from __future__ import annotations

import random

import pytest

from hvemu.engine.engine import Engine
from hvemu.engine.traps import Kind
from tests.x86 import engines

ARITHMETIC, DF = 0x8D5, 0x400
# clc stc cmc cmp add sub xor and or inc dec shl sar rcl imul test neg adc sbb sahf bt
# shl 3 shl-cl bsf popcnt mul cld std
CHANGES = [
    bytes.fromhex(code)
    for code in (
        "f8 f9 f5 39c8 01c8 29c8 31c8 21c8 09c8 40 48 d1e0 d1f8 d1d0 0fafc1 84c0 f7d8 11c8 19c8 9e 0fa3c8 c1e003 d3e0"
        " 0fbcc1 f30fb8c1 f7e1 fc fd"
    ).split()
]
# An instruction that stops, and how far RIP is from the next one then; the data of the last two are not mapped.
STOPS = {
    "CPUID": ("0fa2", 2),
    "UD2": ("0f0b", 2),
    "INT n": ("cd40", 0),
    "RDTSC": ("0f31", 2),
    "IN": ("e410", 2),
    "INS": ("6c", 1),
    "HLT": ("f4", 1),
    "WRMSR": ("0f30", 2),
    "SYSENTER": ("0f34", 2),
    "MOV to CR3": ("0f22d9", 3),
    "load": ("8b1d00000005", 6),
    "store": ("a300000005", 5),
}
SHOW = bytes.fromhex("9f 88e3 0f90c1 ac 0fa2")  # lahf; mov bl, ah; seto cl; lodsb; cpuid


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = engines.protected()
    engine.arm_registers(cr_read=0, cr_write=0x19, dr_read=0, dr_write=0)
    return engine


def start(engine: Engine, code: bytes) -> None:
    state = engine.state
    for register, value in ((0, 0x12345678), (1, 7), (2, 0), (3, 0), (4, engines.STACK), (6, 0x5000), (7, 0x6000)):
        state.set_gpr(register, value)
    state.rflags = 2
    engines.place(engine, code)


def shown(engine: Engine) -> int:
    """Return the flags that the code itself saw at its end."""
    assert engine.run(100).kind is Kind.CPUID
    state = engine.state
    overflow, down = state.gpr(1) & 1, state.gpr(6) == 0x4FFF
    return state.gpr(3) & ARITHMETIC | overflow << 11 | DF * down


def sequences(seed: str, count: int = 40) -> list[list[bytes]]:
    rng = random.Random(seed)
    return [rng.choices(CHANGES, k=rng.randint(1, 4)) for _ in range(count)]


@pytest.mark.parametrize("touched", [False, True], ids=["left alone", "written in between"])
@pytest.mark.parametrize("name", STOPS)
def test_flags_are_whole_at_a_stop_and_survive_it(engine: Engine, name: str, touched: bool) -> None:
    code, length = STOPS[name]
    for sequence in sequences(name):
        start(engine, b"".join(sequence) + SHOW)
        expected = shown(engine)
        stops = len(sequence)
        start(engine, b"".join(change + bytes.fromhex(code) for change in sequence) + SHOW)
        for _ in range(stops):
            engine.run(100)
            flags = engine.state.rflags
            if touched:
                engine.state.rflags = 2
                engine.state.rflags = flags
            engine.state.rip += length
        assert flags & (ARITHMETIC | DF) == expected == shown(engine), [change.hex() for change in sequence]


def test_flags_are_whole_at_the_limit(engine: Engine) -> None:
    for sequence in sequences("limit", 200):
        start(engine, b"".join(sequence) + SHOW)
        expected = shown(engine)
        start(engine, b"".join(sequence) + SHOW)
        for _ in sequence:
            assert engine.step().kind is Kind.LIMIT
        assert engine.state.rflags & (ARITHMETIC | DF) == expected == shown(engine), [c.hex() for c in sequence]


def test_flags_that_are_written_are_those_of_the_next_instruction(engine: Engine) -> None:
    for flags in (
        sum(bit for n, bit in enumerate((1, 4, 0x10, 0x40, 0x80, 0x800, DF)) if i >> n & 1) for i in range(128)
    ):
        start(engine, SHOW)
        engine.state.rflags = flags
        assert engine.state.rflags == flags | 2
        assert shown(engine) == flags
