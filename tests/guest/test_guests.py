"""The guests that come with hvemu: all are listed, assemble, and are what their loaders expect."""

from __future__ import annotations

import pytest

from hvemu.guest.image import load
from hvemu.guest.manifest import guests_dir, load_manifest
from hvemu.guest.multiboot import find_header

GUESTS = load_manifest()
BARE = ("bare", "none")


def test_every_source_is_listed() -> None:
    assert sorted(guest.source.name for guest in GUESTS.values()) == sorted(p.name for p in guests_dir().glob("*.asm"))


@pytest.mark.parametrize("guest", GUESTS.values(), ids=lambda g: g.name)
def test_a_guest_runs_bare_and_ends_with_success(guest) -> None:
    assert BARE in guest.pairs
    assert guest.exit_code == 0
    assert guest.console.endswith("\n")
    assert sorted(guest.limits) == ["exits", "instructions"]


@pytest.mark.parametrize("guest", GUESTS.values(), ids=lambda g: g.name)
def test_a_divergence_has_a_pair_and_a_reason(guest) -> None:
    for pair, reason in guest.expected_divergence.items():
        assert pair in guest.pairs
        assert pair != BARE
        assert reason


@pytest.mark.parametrize("guest", GUESTS.values(), ids=lambda g: g.name)
def test_a_guest_says_first_what_it_shows(guest) -> None:
    first, second, *_ = guest.source.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert second.startswith("# SDM ")


@pytest.mark.parametrize("name", [g.name for g in GUESTS.values() if g.mode == 32])
def test_a_32_bit_guest_is_a_multiboot_kernel(name) -> None:
    image = load(name)
    ((gpa, code),) = image.segments
    header = find_header(code)
    assert header is not None
    assert header.flags.addresses
    assert header.load_gpa == gpa == header.header_gpa - header.offset
    assert header.entry_gpa == image.entry == image.symbols["start"]


def test_the_16_bit_guest_is_a_boot_sector() -> None:
    ((gpa, code),) = load("hello16").segments
    assert (gpa, len(code), code[-2:]) == (0x7C00, 512, b"\x55\xaa")


def test_the_64_bit_guest_begins_with_its_first_instruction() -> None:
    image = load("hello64")
    assert image.entry == image.segments[0][0] == 0x100000
