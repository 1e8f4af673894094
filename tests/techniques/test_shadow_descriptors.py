"""The monitor's copies of descriptors, bit by bit, and the tables that hold them."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.memory.physical import Ram
from hvemu.techniques.shadow_descriptors import PAGES, ShadowTable, shadow

REST = 0x12CF_0034_5678_9ABC  # base, limit and flags, without the access byte


def test_every_type_privilege_and_presence():
    """P stays where code or data is accessed, that is where bit 0 of its type is 1; DPL 0 becomes 1; the rest stays."""
    for kind, s, dpl, p in product(range(16), (0, 1), range(4), (0, 1)):
        raw = REST | (kind | s << 4 | dpl << 5 | p << 7) << 40
        present = p and s and kind & 1
        assert shadow(raw) == REST | (kind | s << 4 | (dpl or 1) << 5 | present << 7) << 40


def test_the_null_descriptor_stays_absent():
    assert shadow(0) >> 47 & 1 == 0


DESCRIPTORS = st.integers(0, 2**64 - 1) | st.just(0)
TABLES = st.lists(st.lists(DESCRIPTORS, max_size=20), min_size=1, max_size=6)


def table():
    memory = Ram(bytearray((PAGES + 3) * 0x1000))
    # pages in no order, as frames are handed out
    pages = [0x1000 * n for n in reversed(range(3, PAGES + 3))]
    return ShadowTable(memory, pages), memory, pages


@settings(derandomize=True, max_examples=150, deadline=None)
@given(tables=TABLES, partial=st.integers(0, 7))
def test_a_table_follows_the_guests_through_every_change_of_size(tables, partial):
    followed, memory, pages = table()
    for descriptors in tables:
        raw = b"".join(d.to_bytes(8, "little") for d in descriptors)
        followed.refresh(raw + b"\xff" * partial)  # what is left of the last one is no descriptor
        for n, descriptor in enumerate(descriptors):
            found = memory.read(pages[0] + 8 * n, 8)
            assert found == shadow(descriptor) or (found == descriptor == 0)


def test_the_largest_table_fills_all_pages():
    followed, memory, pages = table()
    whole = b"".join((n << 48 | 0x93 << 40 | n).to_bytes(8, "little") for n in range(8192))
    followed.refresh(whole)
    for n in (0, 511, 512, 4096, 8191):
        at = 8 * n
        assert memory.read(pages[at // 0x1000] + at % 0x1000, 8) == shadow(n << 48 | 0x93 << 40 | n)


def test_only_what_differs_is_written():
    followed, memory, pages = table()
    one = (0x00CF_9B00_0000_FFFF).to_bytes(8, "little")
    followed.refresh(one * 3)
    memory.write(pages[0] + 8, 8, 0x5EED)
    followed.refresh(one * 2 + bytes(8))
    assert memory.read(pages[0] + 8, 8) == 0x5EED
