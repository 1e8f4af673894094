from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from hvemu.cpu.port_io import IoAccess, describe, port_io
from hvemu.x86.decode import decode
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, Segment
from hvemu.x86.vectors import Fault, Vector
from tests.cpu.machines import CODE16, CODE32, DATA32, TSS, Machine, long, protected, result, vm86

PORT, FROM_PORT, RAX = 0x3F4, 0xA4A3A2A1, 0x1122_3344_5566_7788
RSI, RDI = 0x2468, 0x1357
BASES = {Sreg.ES: 0x10000, Sreg.CS: 0x12000, Sreg.SS: 0x14000, Sreg.DS: 0x16000, Sreg.FS: 0x18000, Sreg.GS: 0x1A000}
WRITABLE, READABLE_CODE = AccessRights(type=3, s=1, p=1), AccessRights(type=11, s=1, p=1)
DF, AC, AM = 0x400, 0x40000, 0x40000


class Log:
    """An I/O space that notes each access and reads as FROM_PORT."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def read(self, port: int, size: int) -> int:
        self.seen.append(("read", port, size))
        return FROM_PORT % 256**size

    def write(self, port: int, size: int, value: int) -> None:
        self.seen.append(("write", port, size, value))


def real() -> Machine:
    return Machine()


def protected16() -> Machine:
    m = protected()
    m.gdt(0x08, CODE16)
    m.load(Sreg.CS, 0x08)
    return m


def compatibility(level: int = 0) -> Machine:
    m = long(level)
    m.gdt(0x08 + 16 * level, CODE32 | level << 45)
    m.load(Sreg.CS, 0x08 + 16 * level + level)
    return m


MODES: dict[str, tuple[int, Callable[[], Machine]]] = {
    "real": (16, real), "protected 16": (16, protected16), "vm86": (16, vm86), "protected 32": (32, protected),
    "compatibility": (32, compatibility), "64-bit": (64, long),
}  # fmt: skip


def prepare(build: Callable[[], Machine]) -> Machine:
    """Return a machine with an open I/O bitmap, a base for every segment and junk in the upper halves of registers."""
    m = build()
    for sreg, base in BASES.items():
        old = m.state.segment(sreg)
        m.state.set_segment(sreg, Segment(old.selector, base, 0xFFFF, old.rights.replace(g=0)))
    m.state.tr = Segment(0x98, TSS, 0x2100, m.state.tr.rights.replace(type=11, unusable=0))
    m.memory.poke(TSS + 0x66, 2, 0x68)
    m.state.rip = 0x5555
    m.state.set_gpr(Gpr.RAX, RAX)
    m.state.set_gpr(Gpr.RDX, 0xDDDD_DDDD_DDDD_0000 | PORT)
    for i in range(64):
        for base in BASES.values():
            m.memory.poke(base + RSI + i - 32, 1, (base >> 12) + i)
        m.memory.poke(RSI + i - 32, 1, 0xE0 ^ i)
    return m


@dataclass(frozen=True)
class Case:
    """One encoding: prefixes by name, and DF."""

    bits: int
    opcode: int
    operand: bool
    wide: bool
    address: bool
    rep: int
    segment: int
    df: bool

    # What the manual says, from the opcode: bit 0 is the width, bit 1 the direction.
    @property
    def string(self) -> bool:
        return self.opcode < 0x70

    @property
    def input(self) -> bool:
        return not self.opcode & 2

    @property
    def immediate(self) -> bool:
        return 0xE4 <= self.opcode <= 0xE7

    @property
    def size(self) -> int:
        if not self.opcode & 1:
            return 1
        if self.bits == 16:
            return 4 if self.operand else 2
        return 2 if self.operand and not self.wide else 4

    @property
    def width(self) -> int:
        return {16: (2, 4), 32: (4, 2), 64: (8, 4)}[self.bits][self.address]


def encode(case: Case) -> bytes:
    tail = b"\x92" if case.immediate else b""
    prefixes = (case.segment, 0x67 * case.address, 0x66 * case.operand, case.rep, 0x48 * case.wide)
    return bytes(filter(None, prefixes)) + bytes([case.opcode]) + tail


def cases(bits: int) -> Iterator[Case]:
    opcodes = (0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF, 0x6C, 0x6D, 0x6E, 0x6F)
    flag = (False, True)
    wide, segments = (flag if bits == 64 else (False,)), (0, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)
    for options in itertools.product(opcodes, flag, wide, flag, (0, 0xF2, 0xF3), segments, flag):
        yield Case(bits, *options)


SEGMENT_PREFIXES = {0x26: Sreg.ES, 0x2E: Sreg.CS, 0x36: Sreg.SS, 0x3E: Sreg.DS, 0x64: Sreg.FS, 0x65: Sreg.GS}


def segment_of(case: Case) -> Sreg:
    """INS: always ES. OUTS: DS unless overridden; 64-bit mode knows the overrides FS and GS only."""
    if case.input or not case.segment or (case.bits == 64 and case.segment < 0x64):
        return Sreg.ES if case.input else Sreg.DS
    return SEGMENT_PREFIXES[case.segment]


def junk(value: int, width: int) -> int:
    """Return *value* below bits that an address of *width* bytes does not see."""
    return 0xABCD_EF01_2345_6789 % 256**8 // 256**width * 256**width + value


def merge(old: int, new: int, width: int) -> int:
    """Return a register after a write of *width* bytes."""
    return {2: old // 65536 * 65536 + new % 65536, 4: new % 2**32, 8: new % 2**64}[width]


def check(case: Case, m: Machine) -> None:
    state, memory, ports = m.state, m.memory, Log()
    rcx, rsi, rdi = junk(2, case.width), junk(RSI, case.width), junk(RDI, case.width)
    for gpr, value in ((Gpr.RCX, rcx), (Gpr.RSI, rsi), (Gpr.RDI, rdi)):
        state.set_gpr(gpr, value)
    state.rflags = state.rflags & ~DF | DF * case.df
    code = encode(case)
    instruction = decode(code + b"\x90" * 4, case.bits)
    sreg = segment_of(case)
    base = state.segment(sreg).base if case.bits != 64 or sreg >= Sreg.FS else 0
    size, port, step = case.size, 0x92 if case.immediate else PORT, -case.size if case.df else case.size
    repeated = case.string and case.rep != 0
    for i in range(2 if repeated else 1):
        gva = base + (RDI if case.input else RSI) + i * step
        assert describe(state, instruction) == IoAccess(
            port, size, case.input, case.string, repeated, case.immediate,
            gva if case.string else None, sreg if case.string else None,
        )  # fmt: skip
        source = memory.peek(gva, size) if case.string else RAX % 256**size
        before = bytes(memory.data)
        advance = port_io(state, memory, instruction, ports)
        value = FROM_PORT % 256**size
        assert ports.seen.pop() == (("read", port, size) if case.input else ("write", port, size, source))
        assert not ports.seen
        if case.string and case.input:
            expected = before[:gva] + value.to_bytes(size, "little") + before[gva + size :]
        else:
            expected = before
        assert bytes(memory.data) == expected
        moved = (i + 1) * step
        assert state.gpr(Gpr.RSI) == (merge(rsi, RSI + moved, case.width) if case.opcode in (0x6E, 0x6F) else rsi)
        assert state.gpr(Gpr.RDI) == (merge(rdi, RDI + moved, case.width) if case.opcode in (0x6C, 0x6D) else rdi)
        assert state.gpr(Gpr.RCX) == (merge(rcx, 1 - i, case.width) if repeated else rcx)
        loaded = RAX // 256**size * 256**size + value if size < 4 else value
        assert state.gpr(Gpr.RAX) == (loaded if case.input and not case.string else RAX)
        assert advance == (0 if repeated and i == 0 else len(code))
        assert state.rip == 0x5555


@pytest.mark.parametrize("name", MODES)
def test_every_form_does_what_the_manual_says(name: str) -> None:
    bits, build = MODES[name]
    prepared = prepare(build)
    pristine = bytes(prepared.memory.data[:0x20000])  # all that is used: comparing is what takes the time
    prepared.memory.data = bytearray(pristine)
    state = prepared.snapshot()
    count = 0
    for case in cases(bits):
        prepared.state = replace(state, gprs=[*state.gprs], segments=[*state.segments])
        prepared.memory.data[:] = pristine
        check(case, prepared)
        count += 1
    assert count == 12 * 2 * 2 * 3 * 7 * 2 * (2 if bits == 64 else 1)


# -- repetition -------------------------------------------------------------------------------------------------------


def run(m: Machine, code: str, bits: int = 32, ports: Log | None = None) -> int:
    return port_io(m.state, m.memory, decode(bytes.fromhex(code) + b"\x90" * 4, bits), ports or Log())


@pytest.mark.parametrize("opcode", ["6c", "6d", "6e", "6f"])
@pytest.mark.parametrize(("bits", "build", "width"), [(16, real, 2), (32, protected, 4), (64, long, 8)])
def test_a_count_of_zero_asks_nobody_and_moves_on(opcode: str, bits: int, build: object, width: int) -> None:
    m = prepare(build)
    m.state.set_gpr(Gpr.RCX, junk(0, width))
    for sreg in (Sreg.ES, Sreg.DS):  # would fault
        m.state.set_segment(sreg, Segment(0, 0, 0, AccessRights(unusable=1)))
    if bits != 16:
        m.state.cpl, m.state.rflags = 3, 2
        m.state.tr = Segment(0, 0, 0, AccessRights(unusable=1))
    before, ports = m.snapshot(), Log()
    assert run(m, "f3" + opcode, bits, ports) == 2
    assert (m.state, ports.seen, m.memory.accesses) == (before, [], [])


@pytest.mark.parametrize("count", [1, 2, 3, 0x100])
@pytest.mark.parametrize("rep", ["f2", "f3"])
def test_the_instruction_is_over_when_the_count_is(rep: str, count: int) -> None:
    m, ports = prepare(protected), Log()
    m.state.set_gpr(Gpr.RCX, count)
    m.state.set_gpr(Gpr.RSI, RSI)
    assert [run(m, rep + "6e", ports=ports) for _ in range(count)] == [0] * (count - 1) + [2]
    values = [m.memory.peek(BASES[Sreg.DS] + RSI + i, 1) for i in range(count)]
    assert ports.seen == [("write", PORT, 1, value) for value in values]


def test_a_pointer_wraps_at_the_address_size() -> None:
    m = prepare(protected)
    m.state.set_gpr(Gpr.RDI, 0x1234_FFFF)
    m.state.set_gpr(Gpr.RSI, 0x1234_0000)
    run(m, "676c")
    m.state.rflags |= DF
    run(m, "676e")
    assert (m.state.gpr(Gpr.RDI), m.state.gpr(Gpr.RSI)) == (0x1234_0000, 0x1234_FFFF)


# -- faults come first ------------------------------------------------------------------------------------------------


def fault(m: Machine, code: str, bits: int = 32) -> Fault | None:
    """Run *code*; when it faults, no register, byte or port may have been touched."""
    before, ports = bytes(m.memory.data), Log()
    found = result(m, lambda: run(m, code, bits, ports))
    assert found is None or (ports.seen == [] and bytes(m.memory.data) == before)
    return found


GP, SS = Fault(Vector.GP, 0), Fault(Vector.SS, 0)
ALL = ["e480", "e580", "e680", "e780", "ec", "ed", "ee", "ef", "6c", "6d", "6e", "6f", "f36d", "f36f"]


@pytest.mark.parametrize("code", ALL)
@pytest.mark.parametrize(("build", "bits"), [(protected, 32), (compatibility, 32), (long, 64), (vm86, 16)])
def test_the_permission_bitmap_is_asked_before_anything_else(code: str, build: object, bits: int) -> None:
    m = prepare((lambda: build(3)) if bits != 16 else build)
    m.state.set_gpr(Gpr.RCX, 2)
    m.state.rflags &= ~0x3000
    for port in (0x80, PORT):
        m.memory.poke(TSS + 0x68 + port // 8, 1, 1 << port % 8)
    m.memory.missing = {(BASES[Sreg.ES] + RDI) // 4096, (BASES[Sreg.DS] + RSI) // 4096}
    assert fault(m, code, bits) == GP
    m.state.rflags |= 0x3000
    if bits != 16:  # IOPL 3 lets it pass, and then the operand counts
        operand = code[-2] == "6"
        m.state.set_gpr(Gpr.RDI, RDI)
        m.state.set_gpr(Gpr.RSI, RSI)
        if bits == 64:
            m.memory.missing = {RDI // 4096, RSI // 4096}
        found = fault(m, code, bits)
        assert (found.vector if found else None) == (Vector.PF if operand else None)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("user", [False, True])
def test_ins_probes_its_destination_before_it_reads_the_port(size: int, user: bool) -> None:
    for offset in range(0xFFC, 0x1001):  # up to and across the end of a page whose neighbour is missing
        m = prepare((lambda: protected(3)) if user else protected)
        m.state.rflags |= 0x3000
        m.state.set_gpr(Gpr.RDI, offset)
        gva = BASES[Sreg.ES] + offset
        m.memory.missing = {(BASES[Sreg.ES] + 0x1000) // 4096}
        found = fault(m, {1: "6c", 2: "666d", 4: "6d"}[size])
        if offset + size <= 0x1000:
            assert found is None
        else:
            assert found == Fault(Vector.PF, 2 | 4 * user, cr2=max(gva, BASES[Sreg.ES] + 0x1000))


def test_outs_reads_memory_before_it_writes_the_port() -> None:
    m = prepare(protected)
    m.state.set_gpr(Gpr.RSI, 0x10)
    m.memory.missing = {BASES[Sreg.DS] // 4096}
    assert fault(m, "6f") == Fault(Vector.PF, 0, cr2=BASES[Sreg.DS] + 0x10)


# Type field of a segment -> may it be read, may it be written (SDM 3A "Code- and Data-Segment Descriptor Types").
TYPES = [(t, True, bool(t & 2)) for t in range(4)] + [(t, bool(t & 2), False) for t in range(8, 16)]


@pytest.mark.parametrize(("kind", "readable", "writable"), TYPES)
@pytest.mark.parametrize("build", [protected, compatibility])
def test_the_type_of_the_segment_decides(kind: int, readable: bool, writable: bool, build: object) -> None:
    for sreg, prefix in ((Sreg.DS, ""), (Sreg.ES, "26"), (Sreg.CS, "2e"), (Sreg.FS, "64"), (Sreg.GS, "65")):
        m = prepare(build)
        m.state.set_segment(sreg, Segment(0x10, 0x10000, 0xFFFF, AccessRights(type=kind, s=1, p=1)))
        m.state.set_gpr(Gpr.RSI, RSI)
        assert fault(m, prefix + "6f") == (None if readable else GP)
    m = prepare(build)
    m.state.set_segment(Sreg.ES, Segment(0x10, 0x10000, 0xFFFF, AccessRights(type=kind, s=1, p=1)))
    assert fault(m, "6d") == (None if writable else GP)


@pytest.mark.parametrize("build", [protected, compatibility])
def test_a_null_segment_holds_nothing(build: object) -> None:
    m = prepare(build)
    for sreg in (Sreg.ES, Sreg.DS, Sreg.FS):
        m.state.set_segment(sreg, Segment(0, 0, 0xFFFF, AccessRights(type=3, s=1, p=1, unusable=1)))
    assert [fault(m, code) for code in ("6c", "6e", "646e", "656e")] == [GP, GP, GP, None]


def test_in_64_bit_mode_segments_are_not_asked() -> None:
    m = prepare(long)
    for sreg in Sreg:
        if sreg != Sreg.CS:
            m.state.set_segment(sreg, Segment(0, 0, 0, AccessRights(unusable=1)))
    assert [fault(m, code, 64) for code in ("6c", "6e", "646e", "656e")] == [None] * 4


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", [n for n in MODES if n != "64-bit"])
def test_the_limit_of_the_segment(name: str, size: int) -> None:
    bits, build = MODES[name]
    operand, limit = {1: "", 2: "66" if bits == 32 else "", 4: "66" if bits == 16 else ""}[size], 0x1FF
    low = 0 if size == 1 else 1
    for offset in (*range(limit - 4, limit + 3), 0xFFFF):
        for sreg, prefix in ((Sreg.DS, ""), (Sreg.SS, "36"), (Sreg.GS, "65")):
            m = prepare(build)
            old = m.state.segment(sreg)
            m.state.set_segment(sreg, Segment(old.selector, old.base, limit, old.rights))
            m.state.set_gpr(Gpr.RSI, offset)
            good = offset + size - 1 <= limit
            code = prefix + operand + f"{0x6E + low:x}"
            assert fault(m, code, bits) == (None if good else SS if sreg == Sreg.SS else GP), (offset, sreg)
        m = prepare(build)
        old = m.state.segment(Sreg.ES)
        m.state.set_segment(Sreg.ES, Segment(old.selector, old.base, limit, old.rights))
        m.state.set_gpr(Gpr.RDI, offset)
        assert fault(m, operand + f"{0x6C + low:x}", bits) == (None if offset + size - 1 <= limit else GP), offset


@pytest.mark.parametrize(
    ("big", "offset", "good"),
    [
        (0, 0x1FF, False), (0, 0x200, True), (0, 0xFFFC, True), (0, 0xFFFD, False), (0, 0x1_0000, False),
        (1, 0x1FF, False), (1, 0x200, True), (1, 0xFFFD, True), (1, 0x1_0000, True), (1, 0xFFFF_FFFD, False),
    ],
)  # fmt: skip
def test_an_expand_down_segment_begins_above_its_limit(big: int, offset: int, good: bool) -> None:
    m = prepare(protected)
    rights = AccessRights(type=7, s=1, p=1, db=big)
    m.state.set_segment(Sreg.ES, Segment(0x10, 0x10000, 0x1FF, rights))
    m.state.set_gpr(Gpr.RDI, offset)
    assert fault(m, "6d") == (None if good else GP)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("code", ["6c", "6e"])
def test_canonical_addresses(code: str, size: int) -> None:
    code = code if size == 1 else f"{int(code, 16) + 1:x}"
    edge = 1 << 47
    for gva in (edge, edge - size + 1, edge + 0x1000, 2**64 - edge - 1, 2**63):
        if gva + size - 1 < edge:
            continue
        m = prepare(long)
        m.state.set_gpr(Gpr.RDI, gva)
        m.state.set_gpr(Gpr.RSI, gva)
        assert fault(m, code, 64) == GP, hex(gva)


def test_five_level_paging_moves_the_edge() -> None:
    m = prepare(long)
    m.state.cr4 |= 1 << 12
    m.state.set_segment(Sreg.FS, Segment(0, 2**64 - 2**47 + RSI, 0, WRITABLE))  # the sum is a small gva
    m.state.set_gpr(Gpr.RSI, 1 << 47)
    assert fault(m, "646e", 64) is None
    m.state.set_gpr(Gpr.RSI, 1 << 56)
    assert fault(m, "6e", 64) == GP


def test_the_base_of_fs_counts_before_the_check() -> None:
    m = prepare(long)
    m.state.set_segment(Sreg.FS, Segment(0, 1 << 47, 0, WRITABLE))
    m.state.set_gpr(Gpr.RSI, RSI)
    assert fault(m, "646e", 64) == GP
    m.state.set_gpr(Gpr.RSI, 2**64 - 2**47 + RSI)
    assert fault(m, "646e", 64) is None


@pytest.mark.parametrize("code", ["6d", "6f"])
@pytest.mark.parametrize(("cpl", "am", "ac"), [*itertools.product((0, 3), (0, 1), (0, 1))])
def test_alignment_is_checked_at_cpl_3_when_asked_for(code: str, cpl: int, am: int, ac: int) -> None:
    for offset, size in itertools.product(range(0x100, 0x109), (2, 4)):
        m = prepare(lambda: protected(cpl))
        m.state.rflags = 0x3002 | AC * ac
        m.state.cr0 |= AM * am
        m.state.set_gpr(Gpr.RDI, offset)
        m.state.set_gpr(Gpr.RSI, offset)
        bad = cpl == 3 and am and ac and offset % size
        assert fault(m, code if size == 4 else "66" + code) == (Fault(Vector.AC, 0) if bad else None)


def test_a_fault_in_a_later_iteration_keeps_what_came_before() -> None:
    m = prepare(protected)
    m.state.set_gpr(Gpr.RCX, 4)
    m.state.set_gpr(Gpr.RDI, 0xFF8)
    m.memory.missing = {(BASES[Sreg.ES] + 0x1000) // 4096}
    assert [fault(m, "f36d"), fault(m, "f36d")] == [None, None]
    assert fault(m, "f36d") == Fault(Vector.PF, 2, cr2=BASES[Sreg.ES] + 0x1000)
    assert (m.state.gpr(Gpr.RCX), m.state.gpr(Gpr.RDI)) == (2, 0x1000)
    m.memory.missing = set()
    assert [run(m, "f36d"), run(m, "f36d")] == [0, 2]
    assert (m.state.gpr(Gpr.RCX), m.state.gpr(Gpr.RDI)) == (0, 0x1008)
    assert m.memory.items(BASES[Sreg.ES] + 0xFF8, 4, 4) == [FROM_PORT] * 4


def test_ports_are_16_bits_and_an_immediate_8() -> None:
    m = prepare(protected)
    m.state.set_gpr(Gpr.RDX, 0xFFFF_FFFF_1234_FFFF)
    ports = Log()
    run(m, "ee", ports=ports)
    run(m, "e4ff", ports=ports)
    assert ports.seen == [("write", 0xFFFF, 1, RAX % 256), ("read", 0xFF, 1)]


def test_the_flat_data_segment_of_a_kernel() -> None:
    m = protected()
    assert m.memory.peek(0x1010, 8) == DATA32
    m.state.set_gpr(Gpr.RDI, 0x9000)
    assert run(m, "6d") == 1
    assert m.memory.peek(0x9000, 4) == FROM_PORT
