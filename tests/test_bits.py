from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.bits import Register, bit, bits, field


class Color(int):
    """A kind that is no plain integer."""


class Sample(Register):
    low = bit(0)
    nibble = bits(7, 4)
    top = bit(63)
    color = field(11, 8, Color)
    overlap = bits(7, 0)


class Wider(Sample):
    extra = bit(100)


@settings(derandomize=True, deadline=None)
@given(hi=st.integers(0, 130), lo=st.integers(0, 130), old=st.integers(0, 2**131 - 1), new=st.integers(0, 2**131 - 1))
def test_a_field_is_these_bits_and_no_others(hi: int, lo: int, old: int, new: int) -> None:
    hi, lo = max(hi, lo), min(hi, lo)
    register = type("R", (Register,), {"f": bits(hi, lo)})
    digits = f"{old:0131b}"[::-1]
    assert f"{register(old).f:b}".zfill(hi - lo + 1)[::-1] == digits[lo : hi + 1]
    value = new % 2 ** (hi - lo + 1)
    changed = digits[:lo] + f"{value:b}".zfill(hi - lo + 1)[::-1] + digits[hi + 1 :]
    assert f"{int(register(old).replace(f=value)):0131b}"[::-1] == changed


def test_reading_gives_the_kind_of_the_field() -> None:
    sample = Sample(0x8000_0000_0000_0A51)
    assert (sample.low, sample.top, sample.nibble, sample.color, sample.overlap) == (True, True, 5, 0xA, 0x51)
    assert [type(getattr(sample, n)) for n in ("low", "nibble", "color")] == [bool, int, Color]


def test_fields_by_name_on_top_of_a_value() -> None:
    assert Sample(0xFF00, nibble=3, low=1) == 0xFF31
    assert Sample(nibble=3) == 0x30
    assert Sample() == 0


def test_replace_leaves_the_old_register_alone_and_keeps_its_type() -> None:
    old = Sample(0x51)
    new = old.replace(nibble=0, low=False)
    assert (old, new, type(new)) == (0x51, 0, Sample)
    assert type(Wider(0).replace(extra=1)) is Wider


@pytest.mark.parametrize(("name", "value"), [("low", 2), ("nibble", 16), ("nibble", -1), ("color", 0x10)])
def test_a_value_that_does_not_fit_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"Sample.{name}: {value:#x} does not fit"):
        Sample(0, **{name: value})


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(KeyError):
        Sample(0, nothing=1)


def test_a_register_cannot_be_changed() -> None:
    sample = Sample(1)
    with pytest.raises(AttributeError, match=r"replace\(nibble="):
        sample.nibble = 3
    assert sample == 1


def test_a_register_is_an_integer() -> None:
    assert {Sample(3): "x"}[3] == "x"
    assert Sample(0xF0) | 1 == 0xF1
    assert Sample(0x10) >> 4 == 1


def test_fields_are_inherited_and_not_given_back() -> None:
    assert [*Wider.fields] == ["low", "nibble", "top", "color", "overlap", "extra"]
    assert "extra" not in Sample.fields
    assert Register.fields == {}


def test_the_class_knows_where_a_field_lies() -> None:
    assert (Sample.nibble.lo, Sample.nibble.mask, Sample.fields["nibble"]) == (4, 0xF, Sample.nibble)


def test_a_register_shows_what_is_set_in_hex() -> None:
    class Flags(Register):
        one = bit(0)
        level = bits(13, 12)

    assert repr(Flags(0x3001)) == "Flags(0x3001: one level=0x3)"
    assert repr(Flags(0x1000)) == "Flags(0x1000: level=0x1)"
