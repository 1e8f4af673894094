from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from hvemu.cpu.msr_file import MsrFile, read_counter
from hvemu.engine.layout import MSR_SLOTS
from hvemu.engine.traps import Kind
from hvemu.vmx import capabilities
from hvemu.x86.cpuid import Offer
from hvemu.x86.msrs import ROWS
from hvemu.x86.registers import Sreg
from hvemu.x86.state import AccessRights, PlainState, Segment
from hvemu.x86.vectors import Fault, Vector
from tests.x86 import engines

TSC, APIC_BASE, FEATURE_CONTROL, DEBUGCTL, MISC_ENABLE, PAT = 0x10, 0x1B, 0x3A, 0x1D9, 0x1A0, 0x277
EFER, STAR, LSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX = (
    0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103,
)  # fmt: skip
SCE, LME, LMA = 1, 0x100, 0x400
GP = Fault(Vector.GP, 0)


class Slots:
    """Stands for the emulator's own registers; before RESET they hold anything."""

    def __init__(self) -> None:
        self.values = dict.fromkeys(MSR_SLOTS, 0xDEAD)

    def read_msr(self, index: int) -> int:
        return self.values[index]

    def write_msr(self, index: int, value: int) -> None:
        assert index in self.values
        self.values[index] = value


class Machine:
    def __init__(self, offer: Offer | None = None, constants: dict[int, int] | None = None) -> None:
        self.state, self.slots, self.now = PlainState(), Slots(), 1000
        self.file = MsrFile(self.state, self.slots, lambda: self.now, offer=offer or Offer(), constants=constants)


def fault(action: Callable[[], object]) -> Fault | None:
    try:
        action()
    except Fault as raised:
        return raised
    return None


def test_every_row_reads_as_after_reset() -> None:
    m = Machine(Offer(vmx=True, apic=True))
    m.now = 0
    assert {row.index: m.file.read(row.index) for row in ROWS} == {row.index: row.reset for row in ROWS}
    assert m.slots.values == {row.index: row.reset for row in ROWS if row.index in MSR_SLOTS}


@pytest.mark.parametrize("index", [0, 1, 0x11, 0x48, 0x79, 0x17B, 0x210, 0x480, 0x6E0, 0x802, 0xC000_0085, 0xFFFF_FFFF])
def test_an_msr_that_is_not_there_faults(index: int) -> None:
    m = Machine()
    assert fault(lambda: m.file.read(index)) == GP
    assert fault(lambda: m.file.write(index, 0)) == GP


@pytest.mark.parametrize(("index", "offer"), [(FEATURE_CONTROL, Offer(vmx=True)), (APIC_BASE, Offer(apic=True))])
def test_an_msr_of_a_feature_is_there_with_the_feature_only(index: int, offer: Offer) -> None:
    assert fault(lambda: Machine().file.read(index)) == GP
    assert fault(lambda: Machine().file.write(index, 0)) == GP
    assert fault(lambda: Machine(offer).file.read(index)) is None
    assert fault(lambda: Machine(offer).file.write(index, 0)) is None


def test_constants_are_read_and_cannot_be_written() -> None:
    m = Machine(Offer(vmx=True), constants=capabilities.MSRS)
    for index, value in capabilities.MSRS.items():
        assert m.file.read(index) == value
        assert fault(lambda i=index, v=value: m.file.write(i, v)) == GP


@pytest.mark.parametrize(
    ("index", "good", "bad"),
    [
        (MISC_ENABLE, 0x1800, 0),
        (PAT, 0x0107_0406_0007_0406, 0x0207_0406_0007_0406),
        (STAR, 0x0013_0008_1234_5678, None),
        (LSTAR, 0xFFFF_8000_0000_1000, 0x8000_0000_0000),
        (TSC_AUX, 0xFFFF_FFFF, 1 << 32),
        (KERNEL_GS_BASE, 0x7FFF_FFFF_FFFF, 1 << 47),
        (FS_BASE, 0x7FFF_FFFF_FFFF, 1 << 47),
        (GS_BASE, 0xFFFF_FFFF_FFFF_F000, 1 << 63),
        (0x2FF, 0xC06, 0xC07),
        (EFER, SCE | LME, 2),
        (TSC, 0xFFFF_FFFF_FFFF_FFFF, None),
    ],
)
def test_a_value_is_written_whole_or_not_at_all(index: int, good: int, bad: int | None) -> None:
    m = Machine()
    m.file.write(index, good)
    assert m.file.read(index) == good
    before, slots = replace(m.state, segments=[*m.state.segments]), dict(m.slots.values)
    if bad is not None:
        assert fault(lambda: m.file.write(index, bad)) == GP
    assert (m.file.read(index), m.state, m.slots.values) == (good, before, slots)


@pytest.mark.parametrize("index", sorted(MSR_SLOTS))
def test_what_the_emulator_consults_goes_to_its_slot(index: int) -> None:
    m = Machine()
    m.file.write(index, 0x0405_0406 if index == PAT else 0x1234)
    changed = {i for i, value in m.slots.values.items() if value != Machine().slots.values[i]}
    assert changed == {index}
    m.slots.values[index] = 0x77
    assert m.file.read(index) == 0x77


@pytest.mark.parametrize(("index", "sreg"), [(FS_BASE, Sreg.FS), (GS_BASE, Sreg.GS)])
def test_fs_and_gs_bases_are_the_segments(index: int, sreg: Sreg) -> None:
    m = Machine()
    segment = Segment(0x2B, 0x5000, 0xFFFF_FFFF, AccessRights(type=3, s=1, dpl=3, p=1))
    m.state.set_segment(sreg, segment)
    assert m.file.read(index) == 0x5000
    m.file.write(index, 0xFFFF_8000_0000_0000)
    assert m.state.segment(sreg) == replace(segment, base=0xFFFF_8000_0000_0000)


def test_efer_obeys_the_rules_of_paging_and_keeps_lma() -> None:
    m = Machine()
    m.state.cr0, m.state.cr4, m.state.efer = 0x8000_0011, 0x20, LME | LMA
    assert fault(lambda: m.file.write(EFER, SCE)) == GP
    m.file.write(EFER, SCE | LME)
    assert m.state.efer == m.file.read(EFER) == SCE | LME | LMA


def test_the_time_stamp_counter_follows_the_clock_from_what_was_written() -> None:
    m = Machine()
    assert m.file.tsc == m.file.read(TSC) == 1000
    m.file.write(TSC, 50)
    m.now += 7
    assert m.file.tsc == m.file.read(TSC) == 57
    m.file.write(TSC, 2**64 - 1)
    m.now += 1
    assert m.file.tsc == 0


def test_the_apic_is_on_until_it_is_switched_off() -> None:
    assert not Machine().file.apic_enabled
    m = Machine(Offer(apic=True))
    assert m.file.apic_enabled
    m.file.write(APIC_BASE, 0xFEE0_0100)
    assert not m.file.apic_enabled


def test_feature_control_can_be_locked() -> None:
    m = Machine(Offer(vmx=True))
    m.file.write(FEATURE_CONTROL, 5)
    assert fault(lambda: m.file.write(FEATURE_CONTROL, 5)) == GP
    assert m.file.read(FEATURE_CONTROL) == 5


def test_a_snapshot_survives_json_and_does_not_change_afterwards() -> None:
    m = Machine(Offer(vmx=True, apic=True))
    writes = {LSTAR: 0x1000, PAT: 0x0606_0606_0606_0606, 0x2FF: 0xC06, 0x200: 0x8000_0006, FEATURE_CONTROL: 5, TSC: 9}
    for index, value in writes.items():
        m.file.write(index, value)
    saved = json.loads(json.dumps(m.file.state()))
    for index, value in ((LSTAR, 0x2000), (0x2FF, 0), (TSC, 0)):
        m.file.write(index, value)
    for other in (m, Machine(Offer(vmx=True, apic=True))):
        other.file.restore(saved)
        assert {index: other.file.read(index) for index in writes} == writes
        assert other.file.state() == saved
    assert fault(lambda: m.file.write(FEATURE_CONTROL, 0)) == GP


@pytest.mark.parametrize("counter", [0, 1, 0x4000_0000, 0xFFFF_FFFF])
def test_there_is_no_performance_counter(counter: int) -> None:
    assert fault(lambda: read_counter(counter)) == GP


def test_the_engine_uses_what_was_written() -> None:
    engine = engines.long()
    file = MsrFile(engine.state, engine, lambda: engine.instructions)
    file.write(FS_BASE, 0x10_0000)
    file.write(GS_BASE, 0x20_0000)
    file.write(KERNEL_GS_BASE, 0x30_0000)
    for base in (0x10_0000, 0x20_0000, 0x30_0000):
        engines.poke(engine, base, base + 5)
    # mov rcx, fs:[0]; mov rdx, gs:[0]; swapgs; mov rbx, gs:[0]; hlt
    place = "64488b0c2500000000 65488b142500000000 0f01f8 65488b1c2500000000 f4"
    engines.place(engine, bytes.fromhex(place))
    assert engine.run(100).kind is Kind.HLT
    assert [engine.state.gpr(n) for n in (1, 2, 3)] == [0x10_0005, 0x20_0005, 0x30_0005]
    assert (file.read(GS_BASE), file.read(KERNEL_GS_BASE)) == (0x30_0000, 0x20_0000)
