from __future__ import annotations

import re

import pytest

from hvemu import errors
from hvemu.errors import BudgetError, EngineError, GuestDiedError, GuestVisible, HvemuError, InputError
from hvemu.vmx.fail import VmFail
from hvemu.x86.vectors import Fault, TripleFault


@pytest.mark.parametrize(
    ("kind", "status"), [(InputError, 2), (EngineError, 2), (BudgetError, 3), (GuestDiedError, 4), (HvemuError, 2)]
)
def test_each_error_for_a_person_has_its_exit_status(kind: type[HvemuError], status: int) -> None:
    assert issubclass(kind, HvemuError)
    assert (kind("boot.asm: line 3").exit_code, str(kind("boot.asm: line 3"))) == (status, "boot.asm: line 3")


@pytest.mark.parametrize("kind", [Fault, TripleFault, VmFail])
def test_what_a_guest_sees_is_no_error_of_ours(kind: type[Exception]) -> None:
    assert issubclass(kind, GuestVisible)
    assert not issubclass(kind, HvemuError)


@pytest.mark.parametrize("kind", HvemuError.__subclasses__())
def test_no_error_for_a_person_is_visible_to_a_guest_or_a_bug(kind: type[Exception]) -> None:
    assert not issubclass(kind, GuestVisible | AssertionError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"^ *\|   [|+]-- +(\w+) +\((\d)\)|\|   \+-- (\w+) +\((\d)\)", errors.__doc__, re.MULTILINE)
    rows = {(a or c): int(b or d) for a, b, c, d in drawn}
    assert rows == {kind.__name__: kind.exit_code for kind in HvemuError.__subclasses__()}
