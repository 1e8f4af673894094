"""Every guest under every pair that the manifest allows: the same console, which QEMU printed, and exit code."""

from __future__ import annotations

import pytest

from hvemu.guest.image import load
from hvemu.guest.manifest import load_manifest
from hvemu.machine import PAIRS, Machine, technique_for
from hvemu.techniques.vm import Budget

GUESTS = load_manifest()
RUNS = [(name, pair) for name, guest in GUESTS.items() for pair in guest.pairs]


def run(name, pair):
    guest = GUESTS[name]
    machine = Machine(load(name), technique_for(*pair))
    budget = Budget(max_instructions=guest.limits.get("instructions"), max_exits=guest.limits.get("exits"))
    return machine.run(budget)


@pytest.mark.parametrize(("name", "pair"), RUNS, ids=lambda x: x if isinstance(x, str) else "+".join(x))
def test_a_guest_sees_what_it_would_on_a_real_machine(name, pair):
    guest, result = GUESTS[name], run(name, pair)
    assert result.ending.code == guest.exit_code
    same = result.console.decode().strip() == guest.console.strip()
    assert same is (pair not in guest.expected_divergence), result.console.decode()


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_the_same_run_gives_the_same_numbers(pair):
    first, second = run("paging", pair), run("paging", pair)
    assert (first.instructions, first.exits, first.cycles, first.by_reason) == (
        second.instructions,
        second.exits,
        second.cycles,
        second.by_reason,
    )


def test_the_manifest_names_legal_pairs_only():
    assert {pair for guest in GUESTS.values() for pair in guest.pairs} <= set(PAIRS)
