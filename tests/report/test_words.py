"""The names of exits in words."""

from __future__ import annotations

import pytest

from hvemu.report import demo, words
from hvemu.report.words import in_words, reasons
from hvemu.techniques.exits.table import HANDLERS
from hvemu.techniques.privileged import ANYWHERE, PRIVILEGED


@pytest.mark.parametrize("reason", HANDLERS, ids=lambda r: r.name)
def test_every_exit_of_the_hypervisor_has_words(reason):
    assert in_words(reason.name) != reason.name.replace("_", " ")


@pytest.mark.parametrize("mnemonic", sorted({*PRIVILEGED, *ANYWHERE} - {"mov"}))
def test_every_instruction_of_the_monitor_has_words(mnemonic):
    assert in_words(mnemonic.upper()) != mnemonic.upper()


def test_what_means_the_same_is_counted_together():
    assert reasons({"IN": 2, "OUT": 3, "IO_INSTRUCTION": 4, "HLT": 1}) == {
        "a port of a device, read or written": 9,
        "HLT: nothing to do until an interrupt": 1,
    }


def test_an_unknown_name_is_shown_as_it_is():
    assert in_words("PASS_THE_SALT") == "PASS THE SALT"


def test_words_leave_room_for_two_columns():
    assert max(len(text) for _, text in words._WORDS) <= 41


def test_the_tour_explains_only_what_there_is():
    assert {*demo.PURPOSES} <= {text for _, text in words._WORDS}
