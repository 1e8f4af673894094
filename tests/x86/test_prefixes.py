from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.x86.prefixes import SEGMENTS, Prefixes
from hvemu.x86.registers import Sreg

LEGACY = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3]
REX = [*range(0x40, 0x50)]
BITS = [16, 32, 64]


def taken(code: bytes, bits: int) -> Prefixes:
    prefixes = Prefixes(bits)
    for byte in code:
        if not prefixes.take(byte):
            break
    return prefixes


@pytest.mark.parametrize("bits", BITS)
def test_what_is_a_prefix(bits: int) -> None:
    found = [byte for byte in range(256) if Prefixes(bits).take(byte)]
    assert found == sorted(LEGACY + (REX if bits == 64 else []))


@settings(derandomize=True, deadline=None)
@given(code=st.lists(st.sampled_from(LEGACY + REX[::5]), max_size=6).map(bytes), bits=st.sampled_from(BITS))
def test_any_order_and_any_number(code: bytes, bits: int) -> None:
    """SDM 2A "Instruction Prefixes": one of each group counts, the last of the segments and of F2 and F3."""
    end = next((i for i, byte in enumerate(code) if byte in REX and bits != 64), len(code))
    prefixes, seen = taken(code + b"\x90", bits), code[:end]
    overrides = [b for b in seen if b in SEGMENTS and (bits != 64 or b >= 0x64)]
    repeats = [b for b in seen if b in (0xF2, 0xF3)]
    assert prefixes.length == len(seen)
    assert (prefixes.lock, prefixes.operand, prefixes.address) == (0xF0 in seen, 0x66 in seen, 0x67 in seen)
    assert prefixes.segment == (overrides[-1] if overrides else 0)
    assert prefixes.rep == (repeats[-1] if repeats else 0)
    assert prefixes.rex == (seen[-1] if seen and seen[-1] in REX else 0)


def test_rex_counts_only_right_before_the_opcode() -> None:
    assert taken(b"\x48\x66\x90", 64).wide is False
    assert taken(b"\x66\x48\x90", 64).wide is True
    assert taken(b"\x48\x41\x90", 64).rex == 0x41
    assert taken(b"\x48\x41\x90", 64).length == 2


@pytest.mark.parametrize("byte", [0x26, 0x2E, 0x36, 0x3E])
def test_64_bit_mode_ignores_the_four_old_overrides(byte: int) -> None:
    assert taken(bytes([0x65, byte]), 64).segment == 0x65
    assert taken(bytes([0x65, byte]), 32).segment == byte


def test_segment_prefixes() -> None:
    assert [*SEGMENTS] == [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65]
    assert [*SEGMENTS.values()] == [*Sreg]


# SDM 1 "Operand-Size and Address-Size Attributes": the three tables.
OPERAND = {
    (16, False, False): 2, (16, True, False): 4, (32, False, False): 4, (32, True, False): 2,
    (64, False, False): 4, (64, True, False): 2, (64, False, True): 8, (64, True, True): 8,
}  # fmt: skip
ADDRESS = {(16, False): 2, (16, True): 4, (32, False): 4, (32, True): 2, (64, False): 8, (64, True): 4}


@pytest.mark.parametrize(("bits", "operand", "wide"), OPERAND)
def test_operand_sizes(bits: int, operand: bool, wide: bool) -> None:
    assert taken(b"\x66" * operand + b"\x48" * wide, bits).operand_size == OPERAND[bits, operand, wide]


@pytest.mark.parametrize(("bits", "address"), ADDRESS)
def test_address_sizes(bits: int, address: bool) -> None:
    assert taken(b"\x67" * address, bits).address_size == ADDRESS[bits, address]


@pytest.mark.parametrize("bits", BITS)
def test_the_canonical_form_means_the_same(bits: int) -> None:
    for code in itertools.permutations((0xF0, 0x65, 0x67, 0x66, 0xF3), 3):
        prefixes = taken(bytes(code) * 2, bits)
        again = taken(prefixes.canonical(), bits)
        assert again.length == 3
        again.length = prefixes.length
        assert again == prefixes


def test_the_canonical_form_ends_with_rex() -> None:
    assert taken(b"\x66\x26\xf2\x67\xf0\x49", 64).canonical() == b"\xf0\x67\x66\xf2\x49"
