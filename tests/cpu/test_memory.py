from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest

from hvemu.cpu.memory import PagedMemory
from hvemu.engine.engine import Engine
from hvemu.engine.traps import Kind
from hvemu.memory.physical import Ram
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, PlainState, Segment
from hvemu.x86.vectors import Fault, Vector

P, RW, US, A, D = 1, 2, 4, 0x20, 0x40
PAGING, WP, PAE, SMEP, SMAP, AC, LONG = 0x8000_0001, 1 << 16, 1 << 5, 1 << 20, 1 << 21, 1 << 18, 0x500
DIRECTORY, TABLE, EMPTY, CODE_PAGE = 0x1000, 0x2000, 0x3000, 0xA000
PAGES = (0x8000, 0x6000)  # where the linear pages 4 and 5 lie: not side by side
BOUNDARY = 0x5000


@dataclass
class Guest:
    """32-bit paging with two pages under test; every upper entry is permissive and has been used."""

    first: int = P | RW | US | A | D
    second: int = P | RW | US | A | D
    state: PlainState = field(default_factory=lambda: PlainState(cr0=PAGING, cr3=DIRECTORY))
    ram: bytearray = field(default_factory=lambda: bytearray(0x10000))

    def __post_init__(self) -> None:
        self.physical = Ram(self.ram)
        self.physical.write(DIRECTORY, 4, TABLE | P | RW | US | A)
        for n, (page, flags) in enumerate(zip(PAGES, (self.first, self.second), strict=True)):
            self.physical.write(TABLE + 4 * (4 + n), 4, page | flags)
            self.ram[page : page + 0x1000] = bytes((16 * n + i) % 256 for i in range(0x1000))
        self.memory = PagedMemory(self.state, self.physical)

    @property
    def flags(self) -> list[int]:
        return [self.physical.read(TABLE + 4 * n, 4) & 0xFFF for n in (4, 5)]


def outcome(call, *args, **kwargs):
    """Return what *call* returns, or the fault that it raises."""
    try:
        return call(*args, **kwargs)
    except Fault as fault:
        return fault


# -- one page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_integers_are_little_endian_and_go_where_the_page_lies(size):
    guest, value = Guest(), int.from_bytes(b"\x11\x22\x33\x44\x55\x66\x77\x88"[:size], "little")
    guest.memory.write(0x4010, size, value, user=True)
    assert guest.ram[0x8010 : 0x8010 + size] == b"\x11\x22\x33\x44\x55\x66\x77\x88"[:size]
    assert guest.memory.read(0x4010, size, user=True) == value


@pytest.mark.parametrize(("write", "flags"), [(False, A), (True, A | D)])
def test_accessed_and_dirty_bits_are_set(write, flags):
    guest = Guest(first=P | RW)
    guest.memory.translate(0x4000, write=write)
    assert guest.flags[0] == P | RW | flags


def test_without_paging_linear_is_physical_and_wraps_at_4_gib():
    guest = Guest(state=PlainState())
    guest.memory.write(0x1_0000_0123, 2, 0xBEEF, user=False)
    assert guest.physical.read(0x123, 2) == 0xBEEF
    guest.memory.write(0xFFFF_FFFF, 2, 0xCAFE, user=False)  # its second byte lands at 0
    assert guest.physical.read(0, 1) == 0xCA


def test_the_registers_count_at_each_access():
    guest = Guest()
    assert guest.memory.translate(0x4000) == PAGES[0]
    guest.state.cr3 = EMPTY
    assert outcome(guest.memory.translate, 0x4000) == Fault(Vector.PF, 0, cr2=0x4000)
    guest.state.cr0 = 1
    assert guest.memory.translate(0x4000) == 0x4000


# SDM 3A "Determination of Access Rights", for a read of a user-mode page. U/S of the error code is that of the access.
@pytest.mark.parametrize(
    ("cpl", "user", "ac", "good"),
    [(0, False, False, False), (0, False, True, True), (2, False, True, True), (2, False, False, False),
     (3, False, False, False), (3, False, True, False), (3, True, False, True), (3, True, True, True)],
)  # fmt: skip
def test_supervisor_mode_access_prevention(cpl, user, ac, good):
    guest = Guest()
    guest.state.cr4, guest.state.cpl, guest.state.rflags = SMAP, cpl, AC if ac else 2
    expected = PAGES[0] if good else Fault(Vector.PF, P, cr2=0x4000)
    assert outcome(guest.memory.translate, 0x4000, user=user) == expected


@pytest.mark.parametrize(("user", "code"), [(False, 0x11), (True, None)])
def test_supervisor_mode_execution_prevention(user, code):
    guest = Guest()
    guest.state.cr4 = SMEP
    expected = PAGES[0] if code is None else Fault(Vector.PF, code, cr2=0x4000)
    assert outcome(guest.memory.translate, 0x4000, fetch=True, user=user) == expected


@pytest.mark.parametrize(("wp", "cpl_is_3", "code"), [(0, False, None), (WP, False, 3), (0, True, 7), (WP, True, 7)])
def test_write_protection(wp, cpl_is_3, code):
    guest = Guest(first=P | US)
    guest.state.cr0 |= wp
    expected = PAGES[0] if code is None else Fault(Vector.PF, code, cr2=0x4000)
    assert outcome(guest.memory.translate, 0x4000, write=True, user=cpl_is_3) == expected


@pytest.mark.parametrize(("maxphyaddr", "code"), [(36, 9), (37, None)])
def test_the_width_of_a_physical_address_decides_on_reserved_bits(maxphyaddr, code):
    guest = Guest()
    guest.state.cr4, guest.state.efer = PAE, LONG
    for gpa, below in itertools.pairwise((DIRECTORY, TABLE, EMPTY, CODE_PAGE, 1 << 36)):
        guest.physical.write(gpa, 8, below | P)
    memory = PagedMemory(guest.state, guest.physical, maxphyaddr)
    assert outcome(memory.translate, 0) == (1 << 36 if code is None else Fault(Vector.PF, code, cr2=0))


def test_a_gva_that_is_not_canonical_is_gp():
    guest = Guest()
    guest.state.cr4, guest.state.efer = PAE, LONG
    assert outcome(guest.memory.read, 1 << 47, 1, user=False) == Fault(Vector.GP, 0)


# -- across a boundary ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [1, 2, 3])
def test_an_integer_across_a_boundary_is_cut_there(before):
    guest = Guest()
    guest.memory.write(BOUNDARY - before, 4, 0x4433_2211, user=False)
    first, second = PAGES
    stored = guest.ram[first + 0x1000 - before : first + 0x1000] + guest.ram[second : second + 4 - before]
    assert stored == b"\x11\x22\x33\x44"
    assert guest.memory.read(BOUNDARY - before, 4, user=False) == 0x4433_2211


def test_bytes_of_many_pages_are_read_page_by_page():
    guest = Guest()
    first, second = PAGES
    assert guest.memory.read_bytes(0x4FFE, 0x1002, user=False) == bytes(
        guest.ram[first + 0xFFE : first + 0x1000] + guest.ram[second : second + 0x1000]
    )
    assert outcome(guest.memory.read_bytes, 0x4FFE, 0x1003, user=False) == Fault(Vector.PF, 0, cr2=0x6000)
    assert guest.memory.read_bytes(0x4FFE, 0, user=False) == b""


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("user", [False, True])
def test_probing_does_all_of_a_write_but_the_transfer(user, size):
    for first, second in itertools.product([0, P, P | RW, P | US, P | RW | US], repeat=2):
        probed, written = Guest(first, second), Guest(first, second)
        probed.state.cr0 = written.state.cr0 = PAGING | WP
        found = outcome(probed.memory.probe_write, BOUNDARY - 2, size, user=user)
        assert found == outcome(written.memory.write, BOUNDARY - 2, size, 0, user=user)
        assert probed.flags == written.flags
        assert probed.ram[PAGES[1] :] == Guest().ram[PAGES[1] :]


# -- the engine as an oracle: the same access by a real instruction ---------------------------------------------------

CODE = {"read": b"\x8b\x07", "write": b"\x89\x07"}  # MOV EAX,[EDI]; MOV [EDI],EAX


class Processor:
    """An engine over the memory of a Guest, at CPL 0."""

    def __init__(self) -> None:
        self.engine = engine = Engine(0x10000)
        engine.second_level.map(0, 0, 0x10000)
        engine.write_cr(4, 0)
        engine.state.efer = 0
        engine.write_cr(3, DIRECTORY)
        engine.write_cr(0, PAGING | WP | 0x10)
        for sreg, kind in ((Sreg.CS, 11), (Sreg.SS, 3), (Sreg.DS, 3)):
            rights = AccessRights(type=kind, s=1, p=1, db=1, g=1)
            engine.state.set_segment(sreg, Segment(8, 0, 0xFFFF_FFFF, rights))

    def run(self, ram: bytes, gva: int, value: int) -> tuple[int | Fault, bytes]:
        """Run the instruction at linear 0 on a copy of *ram*; return (EAX or the fault, memory afterwards)."""
        engine, state = self.engine, self.engine.state
        engine.ram[:] = ram
        engine.flush_tlb()
        state.rip, state.regs[Gpr.RAX], state.regs[Gpr.RDI] = 0, value, gva
        stop = engine.run(1)
        result = state.regs[Gpr.RAX]
        if stop.kind is not Kind.LIMIT:
            assert (stop.kind, stop.detail) == (Kind.EXCEPTION, Vector.PF)
            result = Fault(Vector.PF, stop.error_code, cr2=stop.address)
        return result, bytes(engine.ram)


@pytest.mark.parametrize("kind", CODE)
def test_accesses_at_a_boundary_are_the_engines(kind):
    processor, value = Processor(), 0xA4A3_A2A1
    flags = [0, P, P | RW, P | A, P | RW | A, P | RW | A | D]
    for first, second, before in itertools.product(flags, flags, (0, 1, 2, 3, 4)):
        guest, gva = Guest(first, second), BOUNDARY - before
        guest.state.cr0 |= WP
        guest.physical.write(TABLE, 4, CODE_PAGE | P | A)
        guest.physical.write_bytes(CODE_PAGE, CODE[kind])
        found, memory = processor.run(bytes(guest.ram), gva, value)
        if kind == "read":
            expected = outcome(guest.memory.read, gva, 4, user=False)
        else:
            expected = outcome(guest.memory.write, gva, 4, value, user=False) or value
        assert (expected, bytes(guest.ram)) == (found, memory), (first, second, before)
