"""Priorities in the local APIC, against the sentences of SDM 3A "Task and Processor Priorities"."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.apic_vectors import Vectors, register

SET = st.sets(st.integers(16, 255), max_size=6)


def bits(vectors):
    return sum(1 << v for v in vectors)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(waiting=SET, serving=SET, tpr=st.integers(0, 255))
def test_what_is_delivered_outranks_the_task_and_what_is_in_service(waiting, serving, tpr):
    vectors = Vectors(irr=bits(waiting), isr=bits(serving))
    task, service = tpr >> 4, max(serving, default=0) >> 4
    assert vectors.priority(tpr) == (tpr if task >= service else service << 4)
    eligible = [v for v in waiting if v >> 4 > max(task, service)]
    expected = max(eligible) if eligible else None
    assert vectors.deliverable(tpr) == expected
    assert vectors.take(tpr) == expected
    taken = set() if expected is None else {expected}
    assert (vectors.irr, vectors.isr) == (bits(waiting - taken), bits(serving | taken))


@pytest.mark.parametrize("served", [None, *range(16, 256, 13)])
def test_the_priority_of_every_task_over_a_service(served):
    vectors = Vectors(isr=0 if served is None else bits([served]))
    rank = (served or 0) & 0xF0
    for tpr in range(256):
        assert vectors.priority(tpr) == (tpr if tpr & 0xF0 >= rank else rank)


def test_ends_come_from_the_highest_down():
    served = random.Random(1).sample(range(16, 256), 20)
    vectors = Vectors(isr=bits(served))
    assert [vectors.end() for _ in range(21)] == [*sorted(served, reverse=True), None]


def test_the_trigger_mode_is_that_of_the_last_request():
    vectors = Vectors()
    seen = []
    for level in (True, False, True):
        vectors.request(0x31, level=level)
        seen.append(vectors.is_level(0x31))
    assert seen == [True, False, True]
    assert vectors.irr == 1 << 0x31


def test_a_vector_is_a_bit_of_one_of_eight_registers():
    for vector in range(256):
        shown = [register(1 << vector, n) for n in range(8)]
        assert shown == [1 << vector % 32 if n == vector // 32 else 0 for n in range(8)]
