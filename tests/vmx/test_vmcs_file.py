"""Files that hold a VMCS: what they say, and what is wrong with them in one line."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.errors import InputError
from hvemu.vmx.fields import MASKS, Field
from hvemu.vmx.msr_load import MsrEntry
from hvemu.vmx.vmcs_file import Kind, read

LOG = (Path(__file__).parent / "kvm.log").read_bytes()


def test_toml():
    given_ = read(b'guest_rip = 0x1000\n"0x6800" = "0x21"\n[controls]\nCR3_TARGET_COUNT = 4\n')
    assert given_.kind is Kind.TOML
    assert given_.values == {Field.GUEST_RIP: 0x1000, Field.GUEST_CR0: 0x21, Field.CR3_TARGET_COUNT: 4}


def test_json():
    given_ = read(b'{"GUEST_RIP": "0x1000", "host": {"HOST_CR3": 4096}, "VMCS_LINK_POINTER": -1}')
    assert given_.kind is Kind.JSON
    assert given_.values == {
        Field.GUEST_RIP: 0x1000, Field.HOST_CR3: 4096, Field.VMCS_LINK_POINTER: 2**64 - 1,
    }  # fmt: skip


def test_a_dump():
    given_ = read(LOG)
    assert (given_.kind, given_.values[Field.GUEST_RFLAGS], given_.note) == (Kind.DUMP, 0x246, "")
    assert read(LOG + LOG).note == "dump 2 of 2 in the log"


def test_the_suffix_decides_and_else_the_first_character():
    assert read(b'\xef\xbb\xbf {"GUEST_RIP": 1}').kind is Kind.JSON
    assert read(b"GUEST_RIP = 1", suffix=".txt").kind is Kind.TOML
    with pytest.raises(InputError, match="not JSON"):
        read(b"GUEST_RIP = 1", suffix=".json")
    with pytest.raises(InputError, match="neither TOML"):
        read(b'{"GUEST_RIP": 1}', suffix=".toml")


@pytest.mark.parametrize(
    "text",
    ['{"EPT_POINTER": "0x201e", "EPT_POINTER_HIGH": 5}', '{"0x201b": 5, "0x201a": 8222}',
     '{"EPT_POINTER_HIGH": 5, "EPTP": "0x201e"}'],
)  # fmt: skip
def test_halves_of_a_field_are_put_together(text):
    assert read(text.encode()).values == {Field.EPT_POINTER: 0x5_0000_201E}


def test_the_msr_load_area():
    given_ = read(b'VM_ENTRY_MSR_LOAD_AREA = [{index = 0xC0000081, value = "0x10"}, {index = 0x10, value = 1}]')
    assert given_.area == [MsrEntry(index=0xC000_0081, data=0x10), MsrEntry(index=0x10, data=1)]
    assert given_.values == {Field.VM_ENTRY_MSR_LOAD_COUNT: 2}


WRONG = {
    b"": "it is empty",
    b" \n": "it is empty",
    b"\x7fELF\x02\x01\x01\0\0": "it is a binary file",
    b"\xff\xfe\x00G": "it is a binary file",
    b"{}": "it gives no VMCS field",
    b"# nothing": "it gives no VMCS field",
    b"[1, 2]": "it is not a JSON object",
    b'{"GUEST_RIP": ': "it is not JSON: ",
    b"GUEST_RIP: 5": "it is neither TOML, nor JSON, nor a KVM dump: ",
    b"GUEST_RIPP = 5": "'GUEST_RIPP' is not the name of a VMCS field; did you mean GUEST_RIP?",
    b'{"GUEST_RIP": 1, "GUEST_RIP": 2}': "'GUEST_RIP' is given twice",
    b'{"GUEST_RIP": 1, "guest rip": 2}': "GUEST_RIP is given twice",
    b'{"GUEST_RIP": 1, "0x681e": 2}': "GUEST_RIP is given twice",
    b"GUEST_CS_SELECTOR = 0x10000": "GUEST_CS_SELECTOR: 0x10000 does not fit into its 16 bits",
    b'{"EPT_POINTER_HIGH": "0x100000000"}': "bits 63:32 of EPT_POINTER: '0x100000000' does not fit into its 32 bits",
    b"GUEST_CR0 = 1.5": "GUEST_CR0: 1.5 is not a number",
    b"GUEST_CR0 = [1]": "GUEST_CR0: [1] is not a number",
    b"GUEST_CR0 = 1979-05-27": "GUEST_CR0: datetime.date(1979, 5, 27) is not a number",
    b"VM_ENTRY_MSR_LOAD_AREA = 5": "VM_ENTRY_MSR_LOAD_AREA is not a list of entries",
    b"VM_ENTRY_MSR_LOAD_AREA = [{index = 1}]": "VM_ENTRY_MSR_LOAD_AREA is not a list of entries",
    b'VM_ENTRY_MSR_LOAD_AREA = [{index = "0x100000000", value = 0}]': "VM_ENTRY_MSR_LOAD_AREA: index: ",
    b"*** Guest State ***\nRSP = 0x0": "the dump is not whole: ",
    b"*** Control State ***": "the dump is not whole: ",
    b"[" * 100_000: "it is not JSON",
    b"a=" + b"[" * 100_000: "it is neither TOML",
    b'{"GUEST_RIP": ' + b"9" * 5000 + b"}": "it is not JSON",
}


@pytest.mark.parametrize(("data", "message"), WRONG.items(), ids=[str(data[:30]) for data in WRONG])
def test_what_is_wrong_is_said_in_one_line(data, message):
    with pytest.raises(InputError) as caught:
        read(data)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 300


@given(st.dictionaries(st.sampled_from(sorted(Field)), st.integers(0, 2**64 - 1), min_size=1))
def test_json_and_toml_round_trip(values):
    values = {Field(f): v & MASKS[f] for f, v in values.items()}
    names = {f.name: f"{v:#x}" for f, v in values.items()}
    toml = "\n".join(f'{name} = "{value}"' for name, value in names.items())
    assert read(json.dumps(names).encode()).values == read(toml.encode()).values == values


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with suppress(InputError):
        read(data)


_NAMES = ["GUEST_CR0", "0x6800", "EPT_POINTER_HIGH", "VM_ENTRY_MSR_LOAD_AREA", "index", "value"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=5), inner),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_read_or_refused(document):
    with suppress(InputError):
        read(json.dumps(document).encode(), suffix=".json")


@given(st.integers(0, len(LOG)), st.binary(max_size=20), st.integers(0, 300))
def test_any_damage_to_a_dump_is_read_or_refused(at, noise, lost):
    with suppress(InputError):
        read(LOG[:at] + noise + LOG[at + lost :])
