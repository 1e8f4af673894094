from __future__ import annotations

import itertools

import pytest

from hvemu.cpu.io_permission import check_io
from hvemu.x86.state import Segment
from hvemu.x86.vectors import Fault, Vector
from tests.cpu.machines import TSS, Machine, long, protected, vm86

BASE = 0x68


def with_bitmap(m: Machine, *denied: int, limit: int = BASE + 0x2000, base: int = BASE) -> Machine:
    m.state.tr = Segment(0x98, TSS, limit, m.state.tr.rights)
    m.memory.poke(TSS + 0x66, 2, base)
    for port in denied:
        at = TSS + base + port // 8
        m.memory.poke(at, 1, m.memory.peek(at, 1) | 1 << port % 8)
    return m


def allowed(m: Machine, port: int, size: int) -> bool:
    found = None
    try:
        check_io(m.state, m.memory, port, size)
    except Fault as fault:
        found = fault
    assert found in (None, Fault(Vector.GP, 0))
    return found is None


def test_real_mode_asks_nobody() -> None:
    assert allowed(Machine(), 0x3F8, 1)


@pytest.mark.parametrize("build", [protected, long])
def test_iopl_first_then_the_bitmap(build: object) -> None:
    for cpl, iopl, denied in itertools.product(range(4), range(4), (True, False)):
        m = with_bitmap(build(cpl), *((0x3F8,) if denied else ()))
        m.state.rflags = 2 | iopl << 12
        assert allowed(m, 0x3F8, 1) == (cpl <= iopl or not denied)


def test_virtual_8086_mode_always_asks_the_bitmap() -> None:
    for iopl, denied in itertools.product(range(4), (True, False)):
        m = with_bitmap(vm86(iopl), *((0x3F8,) if denied else ()))
        assert allowed(m, 0x3F8, 1) != denied


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("denied", range(0x40, 0x58))
def test_every_bit_of_the_access_counts_across_bytes_too(denied: int, size: int) -> None:
    m = with_bitmap(protected(3), denied)
    m.state.rflags = 2
    for port in range(0x40, 0x58):
        assert allowed(m, port, size) == (denied not in range(port, port + size))


@pytest.mark.parametrize(("port", "good"), [(0x07, True), (0x08, True), (0x0F, True), (0x10, False), (0xFFFF, False)])
def test_the_limit_covers_the_second_byte_too(port: int, good: bool) -> None:
    m = with_bitmap(protected(3), limit=BASE + 2)  # bytes 0, 1, 2 of the bitmap
    m.state.rflags = 2
    assert allowed(m, port, 1) == good


def test_a_base_beyond_the_limit_denies_all() -> None:
    m = with_bitmap(protected(3), limit=0x67, base=0x68)
    m.state.rflags = 2
    assert not allowed(m, 0, 1)


@pytest.mark.parametrize(("kind", "limit", "good"), [(11, 0x2068, True), (3, 0x2068, False), (11, 0x66, False)])
def test_only_a_whole_32_or_64_bit_tss_has_a_bitmap(kind: int, limit: int, good: bool) -> None:
    m = with_bitmap(protected(3))
    m.state.rflags = 2
    m.state.tr = Segment(0x98, TSS, limit, m.state.tr.rights.replace(type=kind))
    assert allowed(m, 0x60, 1) == good


def test_the_bitmap_is_read_as_supervisor_and_may_page_fault() -> None:
    m = with_bitmap(protected(3))
    m.state.rflags = 2
    assert allowed(m, 0x60, 1)
    assert not any(user for _, _, user, _ in m.memory.accesses)
    m.memory.missing = {TSS // 0x1000}
    with pytest.raises(Fault) as raised:
        check_io(m.state, m.memory, 0x60, 1)
    assert raised.value.vector == Vector.PF
