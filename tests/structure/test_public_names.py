"""What `from hvemu import ...` offers."""

import hvemu


def test_public_names_are_sorted() -> None:
    assert hvemu.__all__ == sorted(set(hvemu.__all__))


def test_public_names_are_there() -> None:
    assert [name for name in hvemu.__all__ if not hasattr(hvemu, name)] == []


def test_public_names_stay_few() -> None:
    assert len(hvemu.__all__) <= 20
