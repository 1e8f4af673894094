"""Plain text in columns."""

from hvemu.report.table import table


def test_text_goes_left_and_numbers_right():
    assert [*table(("name", "n", "of"), [("a", 1, None), ("longer", 1234, 5)])] == [
        "name        n  of",
        "a           1   -",
        "longer  1,234   5",
    ]
