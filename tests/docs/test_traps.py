"""The table of what traps, row by row: each instruction is executed under both techniques."""

from __future__ import annotations

import pytest

from hvemu.machine import technique_for
from tests.docs.kernels import exits_of, table
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/techniques.md").read_text(encoding="utf-8")
ROWS = {row[0].strip("`"): row[1:] for row in table(PAGE, "instruction", "deprivilege", "hardware")}
LAST = "hlt"  # nothing wakes it


@pytest.fixture(scope="module")
def exits():
    order = [*sorted(ROWS.keys() - {LAST}), LAST]
    return [exits_of(order, technique_for(technique, None)) for technique in ("deprivilege", "hardware")]


@pytest.mark.parametrize("instruction", ROWS)
def test_an_instruction_traps_as_the_table_says(instruction, exits):
    found = [[event.what for event in there[instruction]] or ["-"] for there in exits]
    assert found == [[name] for name in ROWS[instruction]]
