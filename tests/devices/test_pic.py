"""The interrupt controllers against the 8259A data sheet."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.pic import Pic, PicPair, Registers

BYTE = st.integers(0, 255)
EOI, SPECIFIC_EOI = 0x20, 0x60
ROTATE_EOI, ROTATE_SPECIFIC, SET_PRIORITY = 0xA0, 0xE0, 0xC0
AUTO_ROTATE, AUTO_ROTATE_OFF = 0x80, 0x00
READ_IRR, READ_ISR, POLL, SPECIAL_MASK, SPECIAL_MASK_OFF = 0x0A, 0x0B, 0x0C, 0x68, 0x48


def chip(icw1=0x11, icw4=0x01, imr=0):
    pic = Pic()
    pic.write(0, icw1)
    for word in (0x20, 0x04, icw4, imr):
        pic.write(1, word)
    return pic


def pulse(pic, *lines):
    for n in lines:
        pic.set_line(n, True)
        pic.set_line(n, False)


def isr(pic):
    pic.write(0, READ_ISR)
    return pic.read(0)


def irr(pic):
    pic.write(0, READ_IRR)
    return pic.read(0)


def rotated(byte, by):
    return (byte >> by | byte << (8 - by)) & 0xFF


def lowest_bit(byte):
    return byte & -byte or 0x100


def test_fully_nested_priority_for_every_request_and_every_line_in_service():
    for requests in range(256):
        for in_service in range(256):
            first = lowest_bit(requests)
            expected = first.bit_length() - 1 if first < lowest_bit(in_service) else None
            assert Pic(Registers(irr=requests, isr=in_service)).request() == expected


@settings(derandomize=True, deadline=None, max_examples=500)
@given(BYTE, BYTE, BYTE, st.integers(0, 7), st.booleans())
def test_priority_under_masks_and_rotation(requests, in_service, masked, lowest, special):
    pic = Pic(Registers(irr=requests, isr=in_service, imr=masked, lowest=lowest, special_mask=special))
    by = lowest + 1
    first = lowest_bit(rotated(requests & ~masked & 0xFF, by))
    blocking = lowest_bit(rotated(in_service & ~masked & 0xFF if special else in_service, by))
    expected = (first.bit_length() - 1 + by) % 8 if first < blocking else None
    assert pic.request() == expected


@pytest.mark.parametrize("base", range(0, 256, 8))
@pytest.mark.parametrize("noise", [0, 5])
def test_the_vector_is_the_base_with_the_line_in_its_low_bits(base, noise):
    pair = PicPair.as_firmware_leaves_it()
    for word in (0x11,):
        pair.write(0, 1, word)
    for word in (base | noise, 4, 1, 0):
        pair.write(1, 1, word)
    for n in (0, 1, 3, 4, 5, 6, 7):
        pair.set_line(n, True)
        assert pair.acknowledge() == base | n
        pair.write(0, 1, EOI)


def test_initialization_clears_mask_service_edges_and_modes():
    pic = chip(imr=0x55)
    pulse(pic, 3)
    pic.acknowledge()
    pulse(pic, 1)
    for word in (SPECIAL_MASK, READ_ISR, SET_PRIORITY | 2):
        pic.write(0, word)
    pic.write(0, 0x11)
    assert pic.r == Registers(icw1=0x11, icw2=0x20, icw3=0x04, step=2)
    assert pic.read(0) == 0  # IRR again


def test_after_initialization_a_line_that_is_high_needs_a_new_edge():
    pic = chip()
    pic.set_line(4, True)
    pic.write(0, 0x11)
    for word in (0x20, 4, 1):
        pic.write(1, word)
    assert pic.request() is None
    pic.set_line(4, False)
    pic.set_line(4, True)
    assert pic.request() == 4


@pytest.mark.parametrize(
    ("icw1", "words"), [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)], ids=["full", "no icw4", "single", "neither"]
)
def test_how_many_words_initialize(icw1, words):
    pic = Pic()
    pic.write(0, icw1)
    for _ in range(words):
        pic.write(1, 0x00)
        assert pic.read(1) == 0
    pic.write(1, 0xA5)
    assert pic.read(1) == 0xA5


def test_an_edge_stays_requested_until_it_is_acknowledged():
    pic = chip()
    pulse(pic, 5)
    assert irr(pic) == 0x20
    assert pic.acknowledge() == 5
    assert (irr(pic), isr(pic)) == (0, 0x20)


def test_a_line_held_high_gives_one_edge():
    pic = chip()
    pic.set_line(5, True)
    pic.acknowledge()
    pic.write(0, EOI)
    pic.set_line(5, True)
    assert pic.request() is None


@pytest.mark.parametrize("how", ["ltim", "elcr"])
def test_a_level_requests_as_long_as_it_is_high(how):
    pic = chip(icw1=0x19 if how == "ltim" else 0x11)
    pic.r.elcr = 0x20 if how == "elcr" else 0
    pic.set_line(5, True)
    assert pic.acknowledge() == 5
    assert irr(pic) == 0x20
    pic.write(0, EOI)
    assert pic.acknowledge() == 5
    pic.set_line(5, False)
    pic.write(0, EOI)
    assert pic.request() is None


def test_a_masked_edge_is_remembered():
    pic = chip(imr=0x08)
    pulse(pic, 3)
    assert pic.request() is None
    pic.write(1, 0)
    assert pic.request() == 3


def test_non_specific_eoi_ends_the_highest_and_specific_eoi_the_named_line():
    pic = chip()
    for n in (6, 4, 2):
        pulse(pic, n)
        assert pic.acknowledge() == n
    pic.write(0, EOI)
    assert isr(pic) == 0x50
    pic.write(0, SPECIFIC_EOI | 6)
    assert isr(pic) == 0x10


@pytest.mark.parametrize("line", range(8))
@pytest.mark.parametrize("command", [ROTATE_EOI, ROTATE_SPECIFIC, SET_PRIORITY])
def test_rotation_makes_a_line_the_lowest(line, command):
    pic = chip()
    pulse(pic, line)
    pic.acknowledge()
    pic.write(0, command if command == ROTATE_EOI else command | line)
    assert isr(pic) == (1 << line if command == SET_PRIORITY else 0)
    pic.write(0, SPECIFIC_EOI | line)
    pulse(pic, *range(8))
    served = []
    for _ in range(8):
        served.append(pic.acknowledge())
        pic.write(0, EOI)
    assert served == [(line + 1 + i) % 8 for i in range(8)]


def test_automatic_eoi_leaves_nothing_in_service():
    pic = chip(icw4=0x03)
    pulse(pic, 0, 1)
    assert (pic.acknowledge(), isr(pic), pic.acknowledge()) == (0, 0, 1)


def test_rotation_in_automatic_eoi_mode():
    pic = chip(icw4=0x03)
    pic.write(0, AUTO_ROTATE)
    pulse(pic, 0)
    pic.acknowledge()
    pulse(pic, 0, 7)
    assert pic.acknowledge() == 7
    pic.write(0, AUTO_ROTATE_OFF)
    pic.acknowledge()
    pulse(pic, 0, 6)
    assert pic.acknowledge() == 0  # line 7 is still the lowest


def test_special_mask_mode_lets_lower_lines_in_while_a_masked_one_is_in_service():
    pic = chip()
    pulse(pic, 2)
    pic.acknowledge()
    pic.write(1, 0x04)
    pulse(pic, 5)
    assert pic.request() is None
    pic.write(0, SPECIAL_MASK)
    assert pic.acknowledge() == 5
    pic.write(0, EOI)
    pic.write(0, EOI)  # a masked line in service is not ended by a non-specific EOI in this mode
    assert isr(pic) == 0x04
    pic.write(0, SPECIAL_MASK_OFF)
    pic.write(0, EOI)
    assert isr(pic) == 0


@pytest.mark.parametrize("a0", [0, 1])
def test_a_poll_acknowledges_once(a0):
    pic = chip()
    pic.write(0, POLL)
    assert pic.read(a0) == 0
    pulse(pic, 3)
    pic.write(0, POLL)
    assert pic.read(a0) == 0x83
    assert isr(pic) == 0x08
    assert pic.read(1) == 0


def test_the_choice_of_isr_or_irr_stays_through_other_commands():
    pic = chip()
    pulse(pic, 1)
    pic.acknowledge()
    pulse(pic, 6)
    pic.write(0, READ_ISR)
    for word in (SPECIAL_MASK, SPECIAL_MASK_OFF, 0x08):
        pic.write(0, word)
    assert pic.read(0) == 0x02
    pic.write(0, READ_IRR)
    assert pic.read(0) == 0x40


def test_what_firmware_leaves():
    pair = PicPair.as_firmware_leaves_it()
    assert [pair.read(offset, 1) for offset in (1, 3)] == [0xB8, 0x8E]
    assert [pair.chips[n].vector(0) for n in (0, 1)] == [0x08, 0x70]


@pytest.fixture
def pair():
    pair = PicPair.as_firmware_leaves_it()
    pair.write(PicPair.MASTER + 1, 1, 0)
    pair.write(PicPair.SLAVE + 1, 1, 0)
    return pair


@pytest.mark.parametrize("irq", [0, 1, *range(3, 16)])
def test_each_irq_of_the_pair_has_its_vector(pair, irq):
    assert not pair.pending()
    pair.line(irq)(True)
    assert pair.pending()
    assert pair.acknowledge() == (8 + irq if irq < 8 else 0x70 + irq - 8)
    assert not pair.pending()


def test_irqs_of_the_second_controller_rank_between_1_and_3(pair):
    for irq in (3, 8, 15, 1):
        pair.set_line(irq, True)
    vectors = []
    while pair.pending():
        vectors.append(pair.acknowledge())
        if vectors[-1] >= 0x70:
            pair.write(PicPair.SLAVE, 1, EOI)
        pair.write(PicPair.MASTER, 1, EOI)
    assert vectors == [9, 0x70, 0x77, 11]


def test_a_second_slave_request_waits_for_both_ends_of_interrupt(pair):
    pair.set_line(9, True)
    pair.acknowledge()
    pair.set_line(14, True)
    assert not pair.pending()
    pair.write(PicPair.SLAVE, 1, EOI)
    assert not pair.pending()
    pair.write(PicPair.MASTER, 1, EOI)
    assert pair.acknowledge() == 0x76


def test_special_fully_nested_mode_lets_a_higher_slave_request_in(pair):
    for word in (0x11,):
        pair.write(PicPair.MASTER, 1, word)
    for word in (8, 4, 0x11, 0):
        pair.write(PicPair.MASTER + 1, 1, word)
    pair.set_line(14, True)
    assert pair.acknowledge() == 0x76
    pair.set_line(3, True)
    assert not pair.pending()
    pair.set_line(9, True)
    assert pair.acknowledge() == 0x71
    pair.set_line(15, True)
    assert not pair.pending()


def test_the_slave_asks_again_after_each_acknowledgement(pair):
    pair.write(PicPair.SLAVE, 1, 0x11)
    for word in (0x70, 2, 0x03, 0):  # automatic EOI: nothing in service holds the second request back
        pair.write(PicPair.SLAVE + 1, 1, word)
    pair.set_line(9, True)
    pair.set_line(10, True)
    assert pair.acknowledge() == 0x71
    pair.write(PicPair.MASTER, 1, EOI)
    assert pair.acknowledge() == 0x72


def test_a_vanished_request_is_spurious_irq_7_and_nothing_is_in_service(pair):
    pair.write(PicPair.ELCR, 1, 0x20)
    pair.set_line(5, True)
    pair.set_line(5, False)
    assert pair.acknowledge() == 15
    pair.write(PicPair.MASTER, 1, READ_ISR)
    assert pair.read(PicPair.MASTER, 1) == 0


def test_a_vanished_slave_request_is_spurious_irq_15_with_the_cascade_in_service(pair):
    pair.write(PicPair.ELCR + 1, 1, 0x08)
    pair.set_line(11, True)
    pair.set_line(11, False)
    assert pair.pending()
    assert pair.acknowledge() == 0x77
    for offset, expected in ((PicPair.MASTER, 0x04), (PicPair.SLAVE, 0)):
        pair.write(offset, 1, READ_ISR)
        assert pair.read(offset, 1) == expected


def test_elcr_keeps_the_lines_that_are_wired_as_edges(pair):
    for offset, expected in ((PicPair.ELCR, 0xF8), (PicPair.ELCR + 1, 0xDE)):
        pair.write(offset, 1, 0xFF)
        assert pair.read(offset, 1) == expected


def test_a_first_controller_without_a_slave_serves_line_2_itself():
    pair = PicPair.as_firmware_leaves_it()
    pair.write(0, 1, 0x11)
    for word in (0x20, 0, 1, 0):
        pair.write(1, 1, word)
    pair.write(PicPair.SLAVE + 1, 1, 0)
    pair.set_line(8, True)
    assert pair.acknowledge() == 0x22


def test_state_round_trip(pair):
    pair.write(PicPair.ELCR, 1, 0x20)
    for irq in (5, 4, 12):
        pair.set_line(irq, True)
    pair.acknowledge()
    pair.write(PicPair.MASTER, 1, SET_PRIORITY | 3)
    pair.write(PicPair.MASTER, 1, POLL)
    twin = PicPair.from_state(json.loads(json.dumps(pair.state())))
    assert twin.state() == pair.state()
    assert twin.read(0, 1) == pair.read(0, 1)
    for one in (pair, twin):
        one.write(PicPair.MASTER, 1, EOI)
        one.write(PicPair.SLAVE, 1, EOI)
    assert [twin.acknowledge() for _ in range(3)] == [pair.acknowledge() for _ in range(3)]
