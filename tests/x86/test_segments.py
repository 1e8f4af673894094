from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.x86.segments import (
    GATES16,
    Descriptor,
    ErrorCode,
    Gate,
    SegmentType,
    Selector,
    SystemType,
    is_canonical,
    real_mode_segment,
    replace_low,
    truncate,
    vm86_segment,
)
from hvemu.x86.state import AccessRights, Segment

U16, U32, U64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


# -- selectors and error codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "index", "ti", "rpl", "null", "offset"),
    [
        (0x0000, 0, 0, 0, True, 0),
        (0x0003, 0, 0, 3, True, 0),
        (0x0004, 0, 1, 0, False, 0),  # entry 0 of the LDT is a segment like any other
        (0x0008, 1, 0, 0, False, 8),
        (0x0033, 6, 0, 3, False, 48),
        (0xFFFF, 8191, 1, 3, False, 65528),
    ],
)
def test_selectors(value: int, index: int, ti: int, rpl: int, null: bool, offset: int) -> None:
    s = Selector(value)
    assert (s.index, s.ti, s.rpl, s.null, s.offset) == (index, ti, rpl, null, offset)


@settings(derandomize=True, deadline=None)
@given(selector=U16, ext=st.booleans())
def test_an_error_code_names_the_selector_without_its_rpl(selector: int, ext: bool) -> None:
    assert ErrorCode.of(selector, ext=ext) == selector // 4 * 4 + ext


@pytest.mark.parametrize("ext", [False, True])
def test_an_error_code_names_an_idt_entry(ext: bool) -> None:
    assert [ErrorCode.of_vector(v, ext=ext) for v in range(256)] == [8 * v + 2 + ext for v in range(256)]


# -- descriptors, packed by hand --------------------------------------------------------------------------------------


def packed(base: int, limit: int, kind: int, s: int, dpl: int, p: int, avl: int, l: int, db: int, g: int) -> int:  # noqa: E741
    """Return a descriptor from the figure of SDM 3A "Segment Descriptors", byte by byte."""
    access = f"{p:b}{dpl:02b}{s:b}{kind:04b}"
    flags = f"{g:b}{db:b}{l:b}{avl:b}{limit >> 16:04b}"
    low = struct.pack(
        "<HHBBBB", limit & 0xFFFF, base & 0xFFFF, base >> 16 & 0xFF, int(access, 2), int(flags, 2), base >> 24
    )
    return int.from_bytes(low, "little")


BASES, LIMITS = (0, 0x1234_5678, 0xFEDC_BA98, 0xFFFF_FFFF), (0, 0xABCDE, 0xFFFFF)


@pytest.mark.parametrize(("s", "kind"), [*itertools.product((0, 1), range(16))])
def test_every_type_of_descriptor(s: int, kind: int) -> None:
    for base, limit, dpl, p, (avl, l, db, g) in itertools.product(  # noqa: E741
        BASES, LIMITS, range(4), (0, 1), itertools.product((0, 1), repeat=4)
    ):
        raw = packed(base, limit, kind, s, dpl, p, avl, l, db, g)
        d = Descriptor(raw)
        assert Descriptor.make(base, limit, type=kind, s=s, dpl=dpl, p=p, avl=avl, l=l, db=db, g=g) == raw
        assert (d.base, d.limit) == (base, limit * 4096 + 4095 if g else limit)
        assert (d.type, d.s, d.dpl, d.p, d.avl, d.l, d.db, d.g) == (kind, s, dpl, p, avl, l, db, g)
        assert d.code_or_data == (kind if s else None)
        assert d.system_type == (None if s else kind)
        rights = AccessRights(type=kind, s=s, dpl=dpl, p=p, avl=avl, l=l, db=db, g=g)
        assert d.segment(0x2B) == Segment(0x2B, d.base, d.limit, rights)


# Descriptors that kernels are known to use, and what they mean.
@pytest.mark.parametrize(
    ("raw", "base", "limit", "kind", "dpl", "l", "db"),
    [
        (0x00CF9B000000FFFF, 0, 0xFFFF_FFFF, 11, 0, 0, 1),  # flat 32-bit kernel code
        (0x00CF93000000FFFF, 0, 0xFFFF_FFFF, 3, 0, 0, 1),  # flat kernel data
        (0x00CFFB000000FFFF, 0, 0xFFFF_FFFF, 11, 3, 0, 1),  # flat 32-bit user code
        (0x00AF9B000000FFFF, 0, 0xFFFF_FFFF, 11, 0, 1, 0),  # 64-bit kernel code
        (0x00AFFB000000FFFF, 0, 0xFFFF_FFFF, 11, 3, 1, 0),  # 64-bit user code
        (0x00009B0F0000FFFF, 0xF0000, 0xFFFF, 11, 0, 0, 0),  # 16-bit code of a BIOS
        (0x00409A0000000000, 0, 0, 10, 0, 0, 1),
        (0xD1009200ABCD0FFF, 0xD100ABCD, 0xFFF, 2, 0, 0, 0),
    ],
)
def test_descriptors_of_known_kernels(raw: int, base: int, limit: int, kind: int, dpl: int, l: int, db: int) -> None:  # noqa: E741
    d = Descriptor(raw)
    assert (d.base, d.limit, d.type, d.dpl, d.l, d.db, d.p, d.s) == (base, limit, kind, dpl, l, db, 1, 1)


@settings(derandomize=True, deadline=None)
@given(base=U64, limit=st.integers(0, 0xFFFFF), kind=st.integers(0, 15), upper_type=st.integers(0, 31))
def test_a_system_descriptor_of_ia_32e_mode_takes_16_bytes(base: int, limit: int, kind: int, upper_type: int) -> None:
    low = packed(base & 0xFFFF_FFFF, limit, kind, 0, 0, 1, 0, 0, 0, 0)
    raw = low | base >> 32 << 64
    assert Descriptor.make(base, limit, type=kind, p=1) == raw
    d = Descriptor(raw | upper_type << 64 + 32 + 8)
    assert (d.base, d.limit, d.type) == (base, limit, kind)
    assert d.upper_type_clear == (upper_type == 0)


def test_reserved_bits_of_the_upper_half_are_no_type() -> None:
    for n in range(32):
        assert Descriptor(1 << 96 + n).upper_type_clear == (n not in range(8, 13))


def test_a_limit_has_20_bits() -> None:
    with pytest.raises(ValueError, match="limit_high"):
        Descriptor.make(0, 0x100000)


# SDM 3A "Code- and Data-Segment Descriptor Types", row by row.
TYPES = """
 0 Read-Only
 1 Read-Only, accessed
 2 Read/Write
 3 Read/Write, accessed
 4 Read-Only, expand-down
 5 Read-Only, expand-down, accessed
 6 Read/Write, expand-down
 7 Read/Write, expand-down, accessed
 8 Execute-Only
 9 Execute-Only, accessed
10 Execute/Read
11 Execute/Read, accessed
12 Execute-Only, conforming
13 Execute-Only, conforming, accessed
14 Execute/Read, conforming
15 Execute/Read, conforming, accessed
"""


@pytest.mark.parametrize("line", TYPES.strip().splitlines())
def test_code_and_data_types(line: str) -> None:
    number, what = line.split(maxsplit=1)
    kind = SegmentType(int(number))
    assert kind.readable == ("Read" in what)
    assert kind.writable == ("Write" in what)
    assert bool(kind.code) == ("Execute" in what)
    assert kind.expand_down == ("expand-down" in what)
    assert kind.conforming == ("conforming" in what)
    assert bool(kind.accessed) == ("accessed" in what)


def test_system_types() -> None:  # SDM 3A "System Descriptor Types"; 0, 8, 10 and 13 are reserved
    names = (
        "TSS16 LDT TSS16_BUSY CALL_GATE16 TASK_GATE INTERRUPT_GATE16 TRAP_GATE16"
        " - TSS - TSS_BUSY CALL_GATE - INTERRUPT_GATE TRAP_GATE"
    )
    assert {t.name: int(t) for t in SystemType} == {n: i for i, n in enumerate(names.split(), 1) if n != "-"}
    assert {t.name for t in GATES16} == {"CALL_GATE16", "INTERRUPT_GATE16", "TRAP_GATE16"}


# -- gates ------------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(selector=U16, offset=U64, kind=st.sampled_from(list(SystemType)), dpl=st.integers(0, 3), p=st.integers(0, 1))
def test_gates(selector: int, offset: int, kind: SystemType, dpl: int, p: int) -> None:
    """The figures of SDM 3A "IDT Descriptors" and "Call Gates": two doublewords, and two more in IA-32e mode."""
    access = p << 7 | dpl << 5 | kind
    raw = struct.pack("<HHBBHL", offset & 0xFFFF, selector, 0, access, offset >> 16 & 0xFFFF, offset >> 32)
    gate = Gate.make(selector, offset, type=kind, dpl=dpl, p=p)
    assert gate == int.from_bytes(raw, "little")
    assert (gate.selector, gate.dpl, gate.p, gate.s, gate.type) == (selector, dpl, p, 0, kind)
    assert gate.offset == (offset & 0xFFFF if kind in (4, 6, 7) else offset)


def test_parameter_count_and_ist_share_a_byte() -> None:
    assert [Gate(1 << 32 + n).count for n in range(8)] == [1, 2, 4, 8, 16, 0, 0, 0]
    assert [Gate(1 << 32 + n).ist for n in range(8)] == [1, 2, 4, 0, 0, 0, 0, 0]
    assert Gate.make(8, 0, type=12, count=31) == 0x0000_0C1F_0008_0000
    assert Gate.make(8, 0, type=14, ist=7) == 0x0000_0E07_0008_0000


# -- numbers of a given size ------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(value=st.integers(-(2**65), 2**65), old=U64, size=st.sampled_from([1, 2, 4, 8]))
def test_truncate_and_replace_low(value: int, old: int, size: int) -> None:
    low = (value % 2**128).to_bytes(16, "little")[:size]
    kept = bytes(4) if size == 4 else old.to_bytes(8, "little")[size:]
    assert truncate(value, size) == int.from_bytes(low, "little")
    assert replace_low(old, value, size) == int.from_bytes(low + kept, "little")


@settings(derandomize=True, deadline=None)
@given(
    gva=U64
    | st.builds(
        lambda edge, d: (edge + d) % 2**64, st.sampled_from([2**47, 2**56, -(2**47), -(2**56)]), st.integers(-2, 2)
    )
)
def test_canonical_means_sign_extended(gva: int) -> None:
    def extended(bits: int) -> int:
        low = gva % 2**bits
        return low if low < 2 ** (bits - 1) else low - 2**bits + 2**64

    assert is_canonical(gva) == (extended(48) == gva)
    assert is_canonical(gva, la57=True) == (extended(57) == gva)


# -- loading without a table ------------------------------------------------------------------------------------------


def test_real_mode_keeps_limit_and_attributes() -> None:
    old = Segment(0x10, 0, 0xFFFF_FFFF, AccessRights(0xC093))  # what "unreal mode" lives on
    assert real_mode_segment(0xB800, old) == Segment(0xB800, 0xB8000, 0xFFFF_FFFF, AccessRights(0xC093))
    assert real_mode_segment(0xFFFF, old).base == 0xFFFF0


def test_virtual_8086_mode_sets_all_of_it() -> None:
    segment = vm86_segment(0xB800)
    assert segment == Segment(
        0xB800, 0xB8000, 0xFFFF, AccessRights(0xF3)
    )  # SDM 3C: present, DPL 3, read/write, accessed
