"""The local APIC in xAPIC mode, against SDM 3A "Advanced Programmable Interrupt Controller (APIC)"."""

from __future__ import annotations

import json
import random

import pytest

from hvemu.devices.apic_message import DeliveryMode, Message
from hvemu.devices.apic_registers import Reg
from tests.devices.apic_rig import (
    APR,
    BASE,
    CURRENT,
    DFR,
    DIVIDE,
    ENABLED,
    EOI,
    ERROR,
    ESR,
    GP,
    ICR,
    ICR_HIGH,
    ID,
    INITIAL,
    IRR,
    ISR,
    LDR,
    LINT0,
    LINT1,
    LVTS,
    PERFORMANCE,
    PPR,
    SELF_IPI,
    SVR,
    THERMAL,
    TIMER,
    TMR,
    TPR,
    VERSION,
    Bench,
    fault,
)

MASKED = 0x10000
SEND_ILLEGAL, RECEIVE_ILLEGAL, ILLEGAL_REGISTER = 0x20, 0x40, 0x80
FIXED, LOWEST, SMI, RESERVED, NMI, INIT, STARTUP, EXTINT = range(8)
NONE, SELF, ALL, OTHERS = (n << 18 for n in range(4))


# -- registers --------------------------------------------------------------------------------------------------------


def test_registers_after_reset():
    bench = Bench(svr=0xFF)
    assert {offset: bench[offset] for offset in range(0, 0x400, 16) if bench[offset]} == {
        VERSION: 0x00050014,
        DFR: 0xFFFFFFFF,
        SVR: 0xFF,
        **dict.fromkeys(LVTS, MASKED),
    }


def test_what_firmware_leaves():
    bench = Bench()
    bench.apic.start_as_firmware_does()
    shown = {offset: bench[offset] for offset in (SVR, LINT0, LINT1, TIMER, ERROR, ICR, ICR_HIGH, TPR)}
    assert shown == {
        SVR: 0x1FF,
        LINT0: 0x8700,
        LINT1: 0x8400,
        TIMER: MASKED,
        ERROR: MASKED,
        ICR: 0xC4610,
        ICR_HIGH: 0,
        TPR: 0,
    }
    bench.pic.vectors = [8, 0x71]
    assert (bench.apic.pending(), bench.apic.acknowledge(), bench.apic.acknowledge()) == (True, 8, 0x71)
    assert not bench.apic.pending()
    assert bench.vectors(ISR) == set()


STICKS = {
    ID: 0xFF000000,
    TPR: 0xFF,
    LDR: 0xFF000000,
    SVR: 0x3FF,
    ICR: 0xCCFFF & ~0x1000,
    ICR_HIGH: 0xFF000000,
    TIMER: 0x700FF,
    THERMAL: 0x107FF,
    PERFORMANCE: 0x107FF,
    LINT0: 0x1A7FF,
    LINT1: 0x1A7FF,
    ERROR: 0x100FF,
    INITIAL: 0xFFFFFFFF,
    DIVIDE: 0xB,
}


@pytest.mark.parametrize("offset", STICKS)
@pytest.mark.parametrize("seed", range(8))
def test_which_bits_stick(offset, seed):
    value = random.Random(seed).getrandbits(32)
    value = value & ~0x60000 if offset == TIMER else value  # a mode in which the counts can be read
    value = value | 0x100 if offset == SVR else value
    bench = Bench()
    bench[offset] = value
    assert bench[offset] == value & STICKS[offset]


@pytest.mark.parametrize("offset", [VERSION, APR, PPR, *range(ISR, ESR, 16), CURRENT])
def test_read_only_registers_ignore_writes_and_are_no_error(offset):
    bench = Bench()
    before = bench[offset]
    bench[offset] = 0xFFFFFFFF
    assert (bench[offset], bench.errors()) == (before, 0)


def test_the_destination_format_has_ones_in_its_lower_bits():
    bench = Bench()
    bench[DFR] = 0
    assert bench[DFR] == 0x0FFFFFFF


KNOWN = {*STICKS, VERSION, APR, PPR, EOI, DFR, *range(ISR, ESR, 16), ESR, CURRENT}


def test_an_access_to_a_reserved_register_is_an_error():
    for offset in range(0, 0x1000, 16):
        bench = Bench()
        read = bench[offset]
        on_read = bench.errors()
        bench[offset] = OTHERS | 0x20 if offset == ICR else 0
        assert [on_read, bench.errors()] == [0 if offset in KNOWN else ILLEGAL_REGISTER] * 2
        assert read == 0 or offset in KNOWN


@pytest.mark.parametrize(("offset", "size"), [(TPR, 1), (TPR, 2), (TPR, 8), (TPR + 4, 4), (TPR + 1, 1)])
def test_any_but_an_aligned_32_bit_access_reaches_no_register(offset, size):
    bench = Bench()
    bench[TPR] = 0x33
    bench.apic.write(offset, size, 0x55)
    assert (bench.apic.read(offset, size), bench[TPR]) == (0, 0x33)


# -- interrupts -------------------------------------------------------------------------------------------------------


def test_an_interrupt_from_request_to_end():
    bench = Bench()
    bench[ICR] = SELF | 0x31
    assert (bench.vectors(IRR), bench.apic.pending()) == ({0x31}, True)
    assert bench.apic.acknowledge() == 0x31
    assert (bench.vectors(IRR), bench.vectors(ISR), bench[PPR]) == (set(), {0x31}, 0x30)
    bench[EOI] = 0
    assert (bench.vectors(ISR), bench[PPR]) == (set(), 0)


def test_every_legal_vector_arrives():
    bench = Bench()
    for vector in range(16, 256):
        bench[ICR] = SELF | vector
        assert (bench.take_all(), bench.errors()) == ([vector], 0)


def test_two_requests_of_one_vector_are_one_and_a_third_can_wait_while_it_is_served():
    bench = Bench()
    bench[ICR] = bench[ICR] = SELF | 0x41
    assert bench.apic.acknowledge() == 0x41
    bench[ICR] = SELF | 0x41
    assert (bench.vectors(IRR), bench.vectors(ISR), bench.apic.pending()) == ({0x41}, {0x41}, False)
    bench[EOI] = 0
    assert bench.take_all() == [0x41]


def test_higher_classes_nest_and_come_first():
    bench = Bench()
    vectors = [0x31, 0xA0, 0x3F, 0x90, 0x9F]
    for vector in vectors:
        bench[ICR] = SELF | vector
    assert bench.take_all() == sorted(vectors, reverse=True)


def test_an_interrupt_that_the_task_priority_overtakes_is_spurious():
    bench = Bench(svr=0x1E7)
    bench[ICR] = SELF | 0x51
    assert bench.apic.pending()
    bench[TPR] = 0x50
    assert not bench.apic.pending()
    assert bench.apic.acknowledge() == 0xE7
    assert (bench.vectors(IRR), bench.vectors(ISR)) == ({0x51}, set())


@pytest.mark.parametrize("value", range(16))
def test_cr8_is_the_class_of_the_task_priority(value):
    bench = Bench()
    bench[TPR] = 0xA5
    assert bench.apic.cr8 == 0xA
    bench.apic.cr8 = value
    assert (bench[TPR], bench.apic.cr8) == (value << 4, value)


def test_an_end_of_interrupt_with_nothing_in_service_does_nothing():
    bench = Bench()
    bench[EOI] = 0
    assert (bench.ended, bench.vectors(ISR)) == ([], set())


@pytest.mark.parametrize("level", [False, True])
def test_only_the_end_of_a_level_is_broadcast(level):
    bench = Bench()
    assert bench.apic.receive(Message(DeliveryMode.FIXED, 0x61, broadcast=True, level=level))
    assert bench.vectors(TMR) == ({0x61} if level else set())
    assert bench.take_all() == [0x61]
    assert bench.ended == ([0x61] if level else [])


# -- interprocessor interrupts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shorthand", [NONE, SELF, ALL, OTHERS])
@pytest.mark.parametrize("mode", range(8))
@pytest.mark.parametrize("logical", [0, 0x800])
@pytest.mark.parametrize("to", [0x00, 0x01, 0x06, 0x02, 0xFF])
def test_where_a_message_goes(shorthand, mode, logical, to):
    bench = Bench()
    bench[LDR] = 0x02000000
    bench[ICR_HIGH] = to << 24
    bench[ICR] = shorthand | logical | mode << 8 | 0x4000 | 0x55
    named = bool(to & 2) if logical else to in {0, 0xFF}
    arrives = {NONE: named, SELF: True, ALL: True, OTHERS: False}[shorthand]
    assert bench.take_all() == ([0x55] if arrives and mode in {FIXED, LOWEST} else [])
    assert bench.nmis == (arrives and mode == NMI)
    assert bench[ICR] == shorthand | logical | mode << 8 | 0x4000 | 0x55


@pytest.mark.parametrize("cluster", [0x0, 0x3, 0xE])
@pytest.mark.parametrize("members", [0x1, 0x6, 0xF])
def test_logical_destinations_in_the_cluster_model(cluster, members):
    bench = Bench()
    bench[DFR] = 0
    bench[LDR] = cluster << 28 | members << 24
    for to in range(256):
        bench[ICR_HIGH] = to << 24
        bench[ICR] = 0x800 | 0x55
        assert bool(bench.take_all()) == (to == 0xFF or (to >> 4 == cluster and bool(to & members)))


def test_a_changed_id_is_the_physical_destination():
    bench = Bench()
    bench[ID] = 0x05000000
    arrived = []
    for to in (0, 5):
        bench[ICR_HIGH] = to << 24
        bench[ICR] = 0x30 + to
        arrived += bench.take_all()
    assert arrived == [0x35]


@pytest.mark.parametrize("vector", range(16))
@pytest.mark.parametrize("mode", [FIXED, LOWEST])
def test_an_illegal_vector_is_an_error_of_sender_and_receiver(vector, mode):
    bench = Bench()
    bench[ICR] = OTHERS | mode << 8 | vector
    assert bench.errors() == SEND_ILLEGAL
    bench[ICR] = SELF | mode << 8 | vector
    assert bench.errors() == SEND_ILLEGAL | RECEIVE_ILLEGAL
    assert not bench.apic.pending()
    assert bench.vectors(IRR) == set()


# -- errors -----------------------------------------------------------------------------------------------------------


def test_the_error_register_shows_what_was_logged_before_it_was_written():
    bench = Bench()
    bench[ICR] = SELF | 3
    assert bench[ESR] == 0
    bench[ESR] = 0
    bench[0x40] = 0
    assert [bench[ESR], bench[ESR]] == [SEND_ILLEGAL | RECEIVE_ILLEGAL] * 2
    bench[ESR] = 0
    assert bench[ESR] == ILLEGAL_REGISTER
    bench[ESR] = 0
    assert bench[ESR] == 0


def test_the_first_error_interrupts_and_a_write_of_the_register_arms_it_again():
    bench = Bench()
    bench[ERROR] = 0xFE
    for _ in range(2):
        bench[0x40] = 0
        assert bench.take_all() == [0xFE]
        bench[0x50] = 0
        assert bench.take_all() == []
        bench[ESR] = 0


def test_an_error_interrupt_with_an_illegal_vector_is_one_more_error_and_no_interrupt():
    bench = Bench()
    bench[ERROR] = 5
    bench[0x40] = 0
    assert (bench.errors(), bench.apic.pending()) == (ILLEGAL_REGISTER | RECEIVE_ILLEGAL, False)


# -- the local vector table -------------------------------------------------------------------------------------------

SOURCES = {THERMAL: Reg.LVT_THERMAL, PERFORMANCE: Reg.LVT_PERFORMANCE}


@pytest.mark.parametrize("offset", [THERMAL, PERFORMANCE, LINT0, LINT1])
@pytest.mark.parametrize("mode", range(8))
@pytest.mark.parametrize("masked", [0, MASKED])
def test_what_an_event_does_in_each_delivery_mode(offset, mode, masked):
    bench = Bench()
    bench[offset] = masked | mode << 8 | 0x77
    if offset in {LINT0, LINT1}:
        bench.apic.set_lint((offset - LINT0) // 16, True)
    else:
        bench.apic.signal(SOURCES[offset])
    fires = not masked
    assert bench.take_all() == ([0x77] if fires and mode in {FIXED, LOWEST} else [])
    assert bench.nmis == (fires and mode == NMI)


def test_a_counter_masks_its_own_entry():
    bench = Bench()
    for lvt in (0x400, 0x77):
        bench[PERFORMANCE] = lvt
        bench.apic.signal(SOURCES[PERFORMANCE])
        assert bench[PERFORMANCE] == lvt | MASKED


@pytest.mark.parametrize("n", [0, 1])
def test_an_edge_at_a_pin_counts_once_and_is_lost_while_masked(n):
    bench, offset = Bench(), (LINT0, LINT1)[n]
    set_pin = bench.apic.core.set_lint
    bench[offset] = MASKED | 0x45
    set_pin(n, True)
    bench[offset] = 0x45
    set_pin(n, True)
    assert bench.vectors(IRR) == set()
    set_pin(n, False)
    set_pin(n, True)
    assert (bench.vectors(IRR), bench.vectors(TMR)) == ({0x45}, set())


def test_a_level_at_lint0_interrupts_until_it_falls():
    bench = Bench()
    bench[LINT0] = 0x8045
    bench.pic.vectors = [1]
    assert bench.apic.pending()
    assert (bench[LINT0], bench.vectors(TMR)) == (0x8045 | 0x4000, {0x45})
    assert bench.apic.acknowledge() == 0x45
    assert not bench.apic.pending()
    bench[EOI] = 0
    assert bench.apic.pending()
    assert bench.apic.acknowledge() == 0x45
    bench.pic.vectors = []
    assert not bench.apic.pending()
    bench[EOI] = 0
    assert (bench[LINT0], bench.apic.pending(), bench.ended) == (0x8045, False, [0x45, 0x45])


def test_a_level_that_waits_behind_a_mask_is_not_lost():
    bench = Bench()
    bench[LINT0] = MASKED | 0x8045
    bench.apic.set_lint(0, True)
    assert bench.vectors(IRR) == set()
    bench[LINT0] = 0x8045
    assert bench.vectors(IRR) == {0x45}


def test_lint1_is_an_edge_whatever_its_trigger_mode_says():
    bench = Bench()
    bench[LINT1] = 0x8045
    bench.apic.set_lint(1, True)
    assert bench.apic.acknowledge() == 0x45
    bench[EOI] = 0
    assert (bench.apic.pending(), bench.ended) == (False, [])


def test_the_8259as_come_before_own_interrupts_whatever_the_task_priority():
    bench = Bench()
    bench[LINT0] = 0x700
    bench.pic.vectors = [8]
    bench[ICR] = SELF | 0xF0
    assert bench.apic.acknowledge() == 8
    bench.pic.vectors = [9]
    assert bench.apic.acknowledge() == 9
    assert bench.apic.acknowledge() == 0xF0
    bench[TPR] = 0xFF
    bench.pic.vectors = [10]
    assert (bench.apic.pending(), bench.apic.acknowledge()) == (True, 10)


@pytest.mark.parametrize("lvt", [MASKED | 0x700, 0x400, 0x200])
def test_the_8259as_are_not_heard_in_other_modes(lvt):
    bench = Bench()
    bench[LINT0] = lvt
    bench.pic.vectors = [8]
    assert (bench.apic.pending(), bench.pic.vectors) == (False, [8])


def test_a_message_can_ask_for_the_vector_of_the_8259as():
    bench = Bench()
    bench.pic.vectors = [9]
    assert not bench.apic.pending()
    assert bench.apic.receive(Message(DeliveryMode.EXTINT, 0, broadcast=True))
    assert (bench.apic.pending(), bench.apic.acknowledge(), bench.apic.pending()) == (True, 9, False)


# -- the timer --------------------------------------------------------------------------------------------------------


def test_the_timer_interrupts_at_its_deadline():
    bench = Bench()
    bench[TIMER], bench[DIVIDE] = 0x20040, 0xB
    bench[INITIAL] = 1000
    taken = []
    for n in range(1, 5):
        assert bench.apic.next_deadline() == 1000 * n
        bench.pass_to(1000 * n - 1)
        taken += bench.take_all()
        bench.pass_to(1000 * n)
        taken += bench.take_all()
        assert len(taken) == n
    assert (taken, bench[CURRENT]) == ([0x40] * 4, 1000)


def test_a_masked_timer_counts_without_interrupting():
    bench = Bench()
    bench[TIMER] = MASKED | 0x40
    bench[INITIAL] = 100
    bench.now = 100
    assert (bench[CURRENT], bench.apic.next_deadline()) == (50, None)
    bench.pass_to(300)
    bench[TIMER] = 0x40
    assert (bench[CURRENT], bench.take_all(), bench.apic.next_deadline()) == (0, [], None)


def test_a_deadline_of_the_time_stamp_counter_interrupts():
    bench = Bench()
    bench[TIMER] = 0x40040
    bench.apic.write_msr(0x6E0, 77)
    assert (bench.apic.read_msr(0x6E0), bench.apic.next_deadline()) == (77, 770)
    bench.pass_to(770)
    assert (bench.take_all(), bench.apic.read_msr(0x6E0)) == ([0x40], 0)
    bench.apic.write_msr(0x6E0, 1)
    assert bench.take_all() == [0x40]


def test_an_access_sees_the_timer_as_it_is_now():
    bench = Bench()
    bench[TIMER] = 0x40
    bench[INITIAL] = 10
    bench.now = 20
    assert bench.vectors(IRR) == {0x40}


# -- off and on -------------------------------------------------------------------------------------------------------


def test_software_disabling_masks_the_table_and_keeps_what_waits():
    bench = Bench()
    for offset in LVTS:
        bench[offset] = 0x50
    bench[ICR] = SELF | 0x61
    bench[SVR] = 0xFF
    assert [bench[offset] for offset in LVTS] == [MASKED | 0x50] * 6
    bench[TIMER] = 0x51
    assert bench[TIMER] == MASKED | 0x51
    assert bench.take_all() == [0x61]
    bench[ICR] = SELF | 0x62
    assert not bench.apic.receive(Message(DeliveryMode.FIXED, 0x63, broadcast=True))
    assert bench.take_all() == []
    bench[ICR] = SELF | 0x400
    assert bench.nmis == 1
    bench[SVR] = 0x1FF
    assert bench[TIMER] == MASKED | 0x51


def test_a_disabled_apic_is_not_there():
    bench = Bench()
    bench[TPR] = 0x20
    bench[ICR] = SELF | 0x61
    bench.apic.write_msr(BASE, ENABLED & ~0x800)
    assert (bench.apic.mmio_gpa, bench[TPR], bench.apic.read(TPR, 1)) == (None, 0xFFFFFFFF, 0xFF)
    bench[TPR] = 0x30
    assert not bench.apic.receive(Message(DeliveryMode.NMI, 0, broadcast=True))
    assert (bench.apic.pending(), bench.nmis) == (False, 0)
    bench.pic.vectors = [8]
    assert (bench.apic.pending(), bench.apic.acknowledge()) == (True, 8)
    bench.apic.core.set_lint(1, True)
    assert bench.nmis == 1
    bench.apic.cr8 = 5
    assert bench.apic.cr8 == 5
    bench.apic.write_msr(BASE, ENABLED)
    assert [bench[offset] for offset in (SVR, LINT0, *range(IRR, ESR, 16))] == [0xFF, MASKED] + [0] * 8


def test_the_page_of_registers_moves_with_its_base():
    bench = Bench()
    assert bench.apic.mmio_gpa == 0xFEE00000
    bench.apic.write_msr(BASE, 0xABCDE900)
    assert (bench.apic.mmio_gpa, bench.apic.read_msr(BASE)) == (0xABCDE000, 0xABCDE900)


@pytest.mark.parametrize("bit", [*range(8), 9, *range(40, 64)])
def test_reserved_bits_of_the_base_fault(bit):
    bench = Bench()
    assert fault(bench.apic.write_msr, BASE, ENABLED | 1 << bit) == GP
    assert bench.apic.read_msr(BASE) == ENABLED


def test_state_round_trip_goes_on_the_same_way():
    chance, bench = random.Random(7), Bench()
    offsets = [*STICKS, ESR, EOI, CURRENT, PPR, DFR, SELF_IPI, *range(ISR, ESR, 32)]

    def step(apic, choice):
        kind, offset, value, n = choice
        if kind == 0:
            return apic.read(offset, 4)
        if kind == 1:
            return apic.write(offset, 4, value | 0x100 if offset == SVR else value)
        if kind == 2:
            return apic.set_lint(1, bool(value & 1))
        if kind == 3:
            return apic.receive(Message(DeliveryMode.FIXED, value & 0xFF, broadcast=True, level=bool(n & 1)))
        apic.advance(bench.now)
        return (apic.pending(), apic.next_deadline(), apic.acknowledge() if apic.pending() else None)

    def choices(count):
        for _ in range(count):
            yield (
                chance.randrange(5),
                chance.choice(offsets),
                chance.getrandbits(chance.choice((8, 20, 32))),
                (chance.getrandbits(4)),
            )

    for round_ in range(40):
        for choice in choices(30):
            bench.now += choice[3]
            step(bench.apic, choice)
        twin = bench.another()
        twin.restore(json.loads(json.dumps(bench.apic.state())))
        assert twin.state() == bench.apic.state()
        for choice in choices(30):
            bench.now += choice[3]
            assert step(twin, choice) == step(bench.apic, choice), (round_, choice)
        assert twin.state() == bench.apic.state()
