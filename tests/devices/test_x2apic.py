"""The local APIC in x2APIC mode: which MSRs there are, what they refuse, and how the modes follow each other."""

from __future__ import annotations

import itertools
import random

import pytest

from hvemu.devices.apic_message import DeliveryMode, Message
from tests.devices.apic_rig import (
    BASE,
    ENABLED,
    EOI,
    ESR,
    GP,
    ICR,
    ID,
    IRR,
    LDR,
    LINT0,
    PPR,
    SELF_IPI,
    SVR,
    TIMER,
    TPR,
    X2APIC,
    Bench,
    fault,
)

# SDM 3A "x2APIC Register Address Space": readable, writable, and the bits that are not reserved. LVT entries have
# read-only status bits, which a write does not concern.
READ_ONLY = {0x802, 0x803, 0x80A, 0x80D, *range(0x810, 0x828), 0x839}
WRITE_ONLY = {0x80B: 0, 0x83F: 0xFF}
BOTH = {
    0x808: 0xFF,
    0x80F: 0x3FF,
    0x828: 0,
    0x830: 0xFFFFFFFF_000CDFFF,
    0x832: 0x710FF,
    0x833: 0x117FF,
    0x834: 0x117FF,
    0x835: 0x1F7FF,
    0x836: 0x1F7FF,
    0x837: 0x110FF,
    0x838: 0xFFFFFFFF,
    0x83E: 0xB,
}
WRITABLE = WRITE_ONLY | BOTH


def test_which_msrs_can_be_read_and_written():
    for msr in range(0x800, 0x900):
        bench = Bench(x2=True)
        assert fault(bench.apic.read_msr, msr) == (None if msr in READ_ONLY or msr in BOTH else GP)
        assert fault(bench.apic.write_msr, msr, 0) == (None if msr in WRITABLE else GP)


@pytest.mark.parametrize("msr", WRITABLE)
def test_reserved_bits_fault_and_change_nothing(msr):
    for bit in range(64):
        bench = Bench(x2=True)
        before = bench.apic.state()
        legal = WRITABLE[msr] >> bit & 1
        assert fault(bench.apic.write_msr, msr, 1 << bit) == (None if legal else GP)
        assert legal or bench.apic.state() == before


@pytest.mark.parametrize("msr", [m for m in BOTH if m not in {0x80F, 0x828, 0x830}])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_written_is_read_but_for_status_bits(msr, seed):
    status = {0x832: 0x61000, 0x833: 0x1000, 0x834: 0x1000, 0x835: 0x5000, 0x836: 0x5000, 0x837: 0x1000}.get(msr, 0)
    value = random.Random(seed).getrandbits(32) & BOTH[msr] & ~status
    bench = Bench(x2=True)
    bench.apic.write_msr(msr, value)
    assert bench.apic.read_msr(msr) == value


@pytest.mark.parametrize("base", [ENABLED, ENABLED & ~0x800])
@pytest.mark.parametrize("msr", [0x800, 0x802, 0x808, 0x830, 0x83F, 0x8FF])
def test_the_msrs_are_there_in_x2apic_mode_alone(base, msr):
    bench = Bench()
    bench.apic.write_msr(BASE, base)
    assert fault(bench.apic.read_msr, msr) == GP
    assert fault(bench.apic.write_msr, msr, 0) == GP


MODES = {"disabled": 0xFEE00100, "xapic": 0xFEE00900, "invalid": 0xFEE00500, "x2apic": 0xFEE00D00}
PATHS = {"disabled": ["disabled"], "xapic": ["xapic"], "x2apic": ["xapic", "x2apic"]}
# SDM 3A "x2APIC State Transitions"
LEGAL = {
    ("disabled", "disabled"), ("disabled", "xapic"),
    ("xapic", "xapic"), ("xapic", "disabled"), ("xapic", "x2apic"),
    ("x2apic", "x2apic"), ("x2apic", "disabled"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), [*itertools.product(PATHS, MODES)])
def test_transitions_between_the_modes(old, new):
    bench = Bench()
    for step in PATHS[old]:
        bench.apic.write_msr(BASE, MODES[step])
    legal = (old, new) in LEGAL
    assert fault(bench.apic.write_msr, BASE, MODES[new]) == (None if legal else GP)
    assert bench.apic.read_msr(BASE) == MODES[new if legal else old]
    mode = new if legal else old
    assert (bench.apic.mmio_gpa is not None) == (mode == "xapic")
    assert (fault(bench.apic.read_msr, 0x808) is None) == (mode == "x2apic")


def test_a_processor_without_the_mode_refuses_it():
    bench = Bench(x2apic=False)
    assert fault(bench.apic.write_msr, BASE, X2APIC) == GP


def test_the_mode_keeps_what_was_programmed_and_waits():
    bench = Bench()
    bench[TPR], bench[TIMER], bench[LINT0] = 0x20, 0x40, 0x700
    bench[ICR] = 0x40031
    bench.apic.write_msr(BASE, X2APIC)
    bench.x2 = True
    assert [bench[offset] for offset in (TPR, TIMER, LINT0, SVR)] == [0x20, 0x40, 0x700, 0x1FF]
    assert bench.take_all() == [0x31]


def test_the_page_of_registers_is_gone():
    bench = Bench(x2=True)
    assert bench.apic.read(ID, 4) == 0xFFFFFFFF
    bench.apic.write(TPR, 4, 0x50)
    assert bench[TPR] == 0


@pytest.mark.parametrize("identity", [0, 1, 15, 16, 0x2A, 0x123])
def test_ids_are_32_bits_wide_and_the_logical_one_follows(identity):
    bench = Bench(x2=True, identity=identity)
    assert (bench[ID], bench[LDR]) == (identity, (identity >> 4) << 16 | 1 << (identity & 0xF))


def test_the_self_ipi():
    for vector in range(256):
        bench = Bench(x2=True)
        bench[SELF_IPI] = vector
        assert bench.vectors(IRR) == ({vector} if vector >= 16 else set())
        assert bench.errors() == (0 if vector >= 16 else 0x60)


@pytest.mark.parametrize("logical", [0, 0x800])
@pytest.mark.parametrize("to", [0, 1, 5, 0xFF, 0x0002_0020, 0x0002_0001, 0x0002_FFFF, 0x0001_FFFF, 0xFFFFFFFF])
def test_one_write_sends_to_32_bit_destinations(logical, to):
    bench = Bench(x2=True, identity=0x25)
    bench[ICR] = to << 32 | logical | 0x66
    named = to >> 16 == 2 and bool(to & 0x20) if logical else to == 0x25
    assert bench.take_all() == ([0x66] if named or to == 0xFFFFFFFF else [])
    assert bench[ICR] == to << 32 | logical | 0x66


def test_messages_of_an_io_apic_still_arrive():
    bench = Bench(x2=True, identity=5)
    arrived = [
        bench.apic.receive(Message(DeliveryMode.FIXED, 0x31 + n, to, broadcast=to == 0xFF))
        for n, to in enumerate((0, 5, 0xFF))
    ]
    assert (arrived, bench.take_all()) == ([False, True, True], [0x33, 0x32])


def test_an_interrupt_from_request_to_end():
    bench = Bench(x2=True)
    bench[ICR] = 0x40071
    assert bench.apic.acknowledge() == 0x71
    assert bench[PPR] == 0x70
    assert fault(bench.apic.write_msr, 0x800 + EOI // 16, 1) == GP
    bench[EOI] = 0
    assert bench[PPR] == 0


def test_the_error_register_takes_zero_alone():
    bench = Bench(x2=True)
    bench[SELF_IPI] = 3
    assert fault(bench.apic.write_msr, 0x800 + ESR // 16, 1) == GP
    assert bench.errors() == 0x60
