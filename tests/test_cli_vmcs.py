"""`hvemu vmcs` as a person and a script meet it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from hvemu import cli

LOG = Path(__file__).parent / "vmx/kvm.log"


@pytest.fixture
def hvemu(capfdbinary):
    """Run a command; return its status, its output and its errors."""

    def run(*arguments):
        status = cli.main([str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        return status, out.decode(), err.decode()

    return run


def test_a_vmcs_that_enters_is_status_0(hvemu):
    status, out, err = hvemu("vmcs", "check", LOG)
    assert (status, err) == (0, "")
    assert out.startswith(f"{LOG}: VM entry succeeds: every clause holds\n")


def test_a_vmcs_that_does_not_is_status_1(hvemu, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text("GUEST_RFLAGS = 0\n", encoding="utf-8")
    status, out, err = hvemu("vmcs", "check", file)
    assert (status, err) == (1, "")
    assert "1. rflags_reserved_bits" in out


def test_capabilities_can_be_chosen(hvemu):
    assert hvemu("vmcs", "check", LOG, "--capabilities", "any")[0] == 0
    assert hvemu("vmcs", "check", LOG, "--capabilities", "hvemu")[0] == 1


def test_one_object_for_a_script(hvemu, tmp_path):
    status, out, _ = hvemu("vmcs", "check", LOG, "--json", "-")
    assert status == 0
    assert json.loads(out)["enters"] is True
    status, out, _ = hvemu("vmcs", "check", LOG, "--json", tmp_path / "verdict.json")
    assert out.startswith(f"{LOG}: ")
    assert json.loads((tmp_path / "verdict.json").read_bytes())["kind"] == "KVM dump"


@pytest.mark.parametrize("form", ["--toml", "--json", None])
def test_the_template_is_accepted(hvemu, tmp_path, form):
    status, out, _ = hvemu("vmcs", "template", *filter(None, [form]))
    assert status == 0
    file = tmp_path / f"vmcs.{'json' if form == '--json' else 'toml'}"
    file.write_text(out, encoding="utf-8")
    assert hvemu("vmcs", "check", file)[:2] == (0, f"{file}: VM entry succeeds: every clause holds\n")


def test_standard_input(hvemu, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LOG.read_bytes())))
    assert hvemu("vmcs", "check", "-")[0] == 0


GARBAGE = {
    b"": "it is empty",
    b"\x7fELF\x02\x01\x01\0": "it is a binary file",
    b"GUEST_RFLAG = 2": "'GUEST_RFLAG' is not the name of a VMCS field; did you mean GUEST_RFLAGS?",
    b"GUEST_CS_SELECTOR = 0x12345": "GUEST_CS_SELECTOR: 0x12345 does not fit into its 16 bits",
    LOG.read_bytes()[:2000]: "the dump is not whole: its line ",
}


@pytest.mark.parametrize(("data", "message"), GARBAGE.items(), ids=list(GARBAGE.values()))
def test_garbage_is_status_2_and_one_line(hvemu, tmp_path, data, message):
    file = tmp_path / "garbage"
    file.write_bytes(data)
    status, out, err = hvemu("vmcs", "check", file)
    assert (status, out) == (2, "")
    assert err.startswith(f"hvemu: {file}: {message}")
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_is_status_2(hvemu, tmp_path):
    for file in (tmp_path / "absent.toml", tmp_path):
        status, out, err = hvemu("vmcs", "check", file)
        assert (status, out) == (2, "")
        assert err.startswith(f"hvemu: {file}: ")
        assert err.count("\n") == 1


def test_the_group_alone_shows_its_commands(hvemu):
    out = "".join(hvemu("vmcs", "--help")[1:])
    assert "check" in out
    assert "template" in out
