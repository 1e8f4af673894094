from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.x86.decode import decode
from hvemu.x86.instruction import Mem, effective
from hvemu.x86.registers import Gpr, Sreg

VALUES = [0x1111_2222_3333_4444 * (i + 3) % 2**64 for i in range(16)]
NEXT = 0xFFFF_FFFF_8000_1000


def offset(mem: Mem, size: int) -> int:
    return effective(mem, VALUES.__getitem__, NEXT, size)


@settings(derandomize=True, deadline=None)
@given(
    base=st.none() | st.sampled_from(list(Gpr)),
    index=st.none() | st.sampled_from([r for r in Gpr if r != Gpr.RSP]),
    scale=st.sampled_from([1, 2, 4, 8]),
    displacement=st.integers(-(2**31), 2**31 - 1),
    size=st.sampled_from([2, 4, 8]),
)
def test_base_plus_index_times_scale_plus_displacement(
    base: Gpr | None, index: Gpr | None, scale: int, displacement: int, size: int
) -> None:
    total = displacement
    total += 0 if base is None else VALUES[base] % 256**size
    total += 0 if index is None else VALUES[index] % 256**size * scale
    assert offset(Mem(base, index, scale, displacement, Sreg.DS, False, 4), size) == total % 256**size


@pytest.mark.parametrize(("displacement", "size"), [*itertools.product((-0x2000, 0, 0x7FFF_FFFF), (4, 8))])
def test_relative_to_the_next_instruction(displacement: int, size: int) -> None:
    mem = Mem(None, None, 1, displacement, Sreg.DS, True, 8)
    assert offset(mem, size) == (NEXT + displacement) % 256**size


# SDM 2A "Instruction Format", the table of 16-bit addressing forms: ModRM.rm -> registers, default segment.
FORMS16 = [
    ("BX SI", "DS"), ("BX DI", "DS"), ("BP SI", "SS"), ("BP DI", "SS"), ("SI", "DS"), ("DI", "DS"), ("BP", "SS"),
    ("BX", "DS"),
]  # fmt: skip


@pytest.mark.parametrize("rm", range(8))
@pytest.mark.parametrize("mod", range(3))
def test_sixteen_bit_addressing(mod: int, rm: int) -> None:
    names, segment = FORMS16[rm]
    displacement = {0: 0, 1: -0x80, 2: 0x9234}[mod]
    if (mod, rm) == (0, 6):
        names, segment, displacement = "", "DS", 0x9234
    tail = {0: b"\x34\x92" if rm == 6 else b"", 1: b"\x80", 2: b"\x34\x92"}[mod]
    instruction = decode(b"\x8b" + bytes([mod << 6 | rm]) + tail + bytes(8), 16)
    total = displacement + sum(VALUES[Gpr[f"R{name}"]] for name in names.split())
    assert instruction.length == 2 + len(tail)
    assert offset(instruction.memory, 2) == total % 0x10000
    assert instruction.segment == Sreg[segment]


def sib(code: bytes, bits: int) -> Mem:
    memory = decode(code + bytes(8), bits).memory
    assert memory is not None
    return memory


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("mod", range(3))
def test_thirty_two_and_sixty_four_bit_addressing(mod: int, bits: int) -> None:
    """Every rm, and for rm 4 every SIB byte: SDM 2A "Instruction Format", the tables of 32-bit addressing forms."""
    size = bits // 8
    tail, displacement = {0: (b"", 0), 1: (b"\x90", -0x70), 2: (b"\x78\x56\x34\x92", 0x92345678 - 2**32)}[mod]
    for rm, scale, index, base in itertools.product(range(8), range(4), range(8), range(8)):
        if rm != 4 and (scale, index, base) != (0, 0, 0):
            continue
        code, total, low = bytes([0x8B, mod << 6 | rm]), displacement, base if rm == 4 else rm
        if rm == 4:
            code += bytes([scale << 6 | index << 3 | base])
            total += VALUES[index] << scale if index != 4 else 0
        absolute = mod == 0 and low == 5
        if absolute:
            total += 0x12345678 + (NEXT if bits == 64 and rm != 4 else 0)
        else:
            total += VALUES[low]
        mem = sib(code + (b"\x78\x56\x34\x12" if absolute else tail), bits)
        assert offset(mem, size) == total % 256**size, code.hex()
        assert mem.segment == (Sreg.SS if low in (4, 5) and not absolute else Sreg.DS), code.hex()


@pytest.mark.parametrize("rex", range(8))
def test_rex_extends_base_and_index(rex: int) -> None:
    b, x = rex & 1, rex >> 1 & 1
    for index, base in itertools.product(range(8), repeat=2):
        code = bytes([0x40 | rex, 0x8B, 0x44, 0x40 | index << 3 | base, 0x10])  # [base + index * 2 + 0x10]
        mem = sib(code, 64)
        total = 0x10 + VALUES[base + 8 * b] + (VALUES[index + 8 * x] * 2 if index + 8 * x != 4 else 0)
        assert offset(mem, 8) == total % 2**64, code.hex()
        assert mem.segment == (Sreg.SS if base in (4, 5) and not b else Sreg.DS), code.hex()


def test_an_address_of_four_bytes_in_64_bit_mode_wraps() -> None:
    mem = sib(b"\x67\x8b\x83\xf0\xff\xff\x7f", 64)
    assert offset(mem, 4) == (VALUES[3] + 0x7FFF_FFF0) % 2**32


@pytest.mark.parametrize(
    ("code", "bits", "expected"),
    [("a078563412", 32, 0x12345678), ("a03412", 16, 0x1234), ("a0f0debc9a78563412", 64, 0x123456789ABCDEF0)],
)
def test_an_absolute_offset(code: str, bits: int, expected: int) -> None:
    mem = sib(bytes.fromhex(code), bits)
    assert (offset(mem, bits // 8), mem.size, mem.segment) == (expected, 1, Sreg.DS)


@pytest.mark.parametrize(("code", "value"), [("a0ffffffff", 0xFFFF_FFFF), ("a0f0ffff7f", 0x7FFF_FFF0)])
def test_an_absolute_offset_is_unsigned(code: str, value: int) -> None:
    assert offset(sib(bytes.fromhex(code), 32), 4) == value


def test_the_memory_operand_of_an_instruction() -> None:
    assert decode(b"\x89\xd8" + bytes(13), 32).memory is None
    movs = decode(b"\xa4" + bytes(14), 32).memory
    assert (movs.base, movs.segment) == (Gpr.RDI, Sreg.ES)  # the destination comes first
