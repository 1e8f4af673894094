"""A VMCS that a person wrote down: as TOML, as JSON, or as the dump of Linux KVM in a kernel log."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hvemu.errors import InputError
from hvemu.vmx import kvm_dump
from hvemu.vmx.fields import Field
from hvemu.vmx.msr_load import MsrEntry
from hvemu.vmx.names import find, number, value_of

LOAD_AREA = "VM_ENTRY_MSR_LOAD_AREA"
"""The name under which a file gives the entries of that area: a list of {index, value}."""


class Kind(Enum):
    """The form of a file."""

    TOML, JSON, DUMP = "TOML", "JSON", "KVM dump"


@dataclass(slots=True)
class Given:
    """What a file says: fields, and the MSRs that VM entry loads. *note* is a remark for a person."""

    kind: Kind
    values: dict[Field, int] = field(default_factory=dict)
    area: list[MsrEntry] = field(default_factory=list)
    note: str = ""


def read(data: bytes, *, suffix: str = "") -> Given:
    """Return what *data* says; *suffix*, that of the file's name, decides between TOML and JSON. Raises InputError."""
    text = _text(data)
    if kvm_dump.is_dump(text):
        return _dump(text)
    if suffix == ".json" or (suffix != ".toml" and text.lstrip().startswith(("{", "["))):
        return _fields(Kind.JSON, _json(text))
    return _fields(Kind.TOML, _toml(text))


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError("it is a binary file; a VMCS is read from TOML, JSON or a KVM dump in a kernel log")
    if not text.strip():
        raise InputError("it is empty")
    return text


def _dump(text: str) -> Given:
    dump = kvm_dump.parse(text)
    note = f"dump {dump.number} of {dump.count} in the log" if dump.count > 1 else ""
    return Given(Kind.DUMP, dump.values, dump.area, note)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"{name[:60]!r} is given twice")
        found[name] = value
    return found


def _json(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError("it is not a JSON object from names of fields to values")
    return document


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is neither TOML, nor JSON, nor a KVM dump: {error}") from error


def _fields(kind: Kind, document: dict[str, Any]) -> Given:
    given, halves = Given(kind), dict[tuple[Field, bool], int]()
    for name, value in _flat(document):
        if name.upper() == LOAD_AREA:
            given.area = [*_entries(value)]
            continue
        target, high = find(name)
        if (target, high) in halves:
            raise InputError(f"{target.name} is given twice")
        halves[target, high] = number(f"bits 63:32 of {target.name}", 32, value) if high else value_of(target, value)
    for (target, high), value in halves.items():
        _put(given.values, target, value, high=high)
    if given.area:
        given.values.setdefault(Field.VM_ENTRY_MSR_LOAD_COUNT, len(given.area))
    if not given.values:
        raise InputError("it gives no VMCS field; `hvemu vmcs template` prints one to begin with")
    return given


def _flat(document: dict[str, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield names and values; a table within is only a heading."""
    for name, value in document.items():
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from _flat(value, depth + 1)
        else:
            yield name, value


_DEEPEST = 4


def _put(values: dict[Field, int], target: Field, value: int, *, high: bool) -> None:
    shift = target.width.bits // 2
    low = (1 << shift) - 1
    values[target] = values.get(target, 0) & low | value << shift if high else values.get(target, 0) | value


def _entries(area: object) -> Iterator[MsrEntry]:
    for entry in area if isinstance(area, list) else [None]:
        if not isinstance(entry, dict) or set(entry) != {"index", "value"}:
            raise InputError(f"{LOAD_AREA} is not a list of entries {{index, value}}")
        index = number(f"{LOAD_AREA}: index", 32, entry["index"])
        yield MsrEntry(index=index, data=number(f"{LOAD_AREA}: value", 64, entry["value"]))
