"""Reading guests.toml."""

from __future__ import annotations

import pytest

from hvemu.errors import InputError
from hvemu.guest.manifest import Guest, load_manifest, pair

ENTRY = """
[popf]
source = "popf.asm"
mode = 32
about = "POPF keeps IF"
pairs = ["bare+none", "deprivilege+shadow"]
console = "ok\\n"
limits = { instructions = 1000, exits = 10 }
expected_divergence = { "deprivilege+shadow" = "POPF does not trap" }
"""


@pytest.fixture
def manifest(tmp_path):
    def write(text):
        path = tmp_path / "guests.toml"
        path.write_text(text)
        return path

    return write


def test_an_entry_becomes_a_guest(manifest):
    path = manifest(ENTRY)
    assert load_manifest(path) == {
        "popf": Guest(
            name="popf",
            source=path.parent / "popf.asm",
            mode=32,
            about="POPF keeps IF",
            pairs=(("bare", "none"), ("deprivilege", "shadow")),
            console="ok\n",
            exit_code=0,
            limits={"instructions": 1000, "exits": 10},
            expected_divergence={("deprivilege", "shadow"): "POPF does not trap"},
        )
    }


def test_guests_keep_the_order_of_the_file(manifest):
    assert [*load_manifest(manifest(ENTRY.replace("popf]", "z]") + ENTRY.replace("popf]", "a]")))] == ["z", "a"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("about", "abuot", "[popf]: unknown key 'abuot', no 'about'"),
        ("mode = 32", "mode = 33", "[popf]: mode 33 is not 16, 32 or 64"),
        ("bare+none", "bare", "'bare' is not a pair"),
        ("mode = 32", "mode =", "Invalid value"),
    ],
)
def test_a_mistake_is_named(manifest, old, new, complaint):
    with pytest.raises(InputError) as error:
        load_manifest(manifest(ENTRY.replace(old, new, 1)))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_manifest(tmp_path / "none.toml")


def test_a_pair_is_technique_and_memory():
    assert pair("hardware+ept") == ("hardware", "ept")
