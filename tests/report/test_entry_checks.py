"""The page on the checks of VM entry is what the rows print."""

from __future__ import annotations

from pathlib import Path

from hvemu.report.entry_checks import edit, page, reached
from hvemu.vmx.checks import CHECKS
from hvemu.vmx.fields import Field
from hvemu.vmx.msr_load import MSR_CHECKS

PAGE = Path(__file__).parents[2] / "docs/vm-entry-checks.md"


def test_the_page_is_what_the_rows_print():
    """If not: python -m hvemu.report.entry_checks > docs/vm-entry-checks.md."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_row_is_on_the_page_once():
    text = page()
    assert [c.name for c in CHECKS if text.count(f"| {c.name} | {c.words()} |") != 1] == []
    assert [r.name for r in MSR_CHECKS if text.count(f"| {r.name} | {r.clause} |") != 1] == []


def test_what_the_processor_cannot_reach_is_marked():
    by_name = {c.name: reached(c) for c in CHECKS}
    assert by_name["rflags_reserved_bits"]
    assert by_name["link_pointer_names_a_vmcs"]
    assert not by_name["host_pkrs_is_32_bit"]


def test_edits_in_words():
    assert edit({}) == "none"
    assert edit({Field.GUEST_RFLAGS: 0, Field.VPID: 1}) == "GUEST_RFLAGS = 0x0, VPID = 0x1"
