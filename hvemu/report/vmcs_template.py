"""A minimal VMCS to begin with, as a file that `hvemu vmcs check` accepts."""

from __future__ import annotations

from collections.abc import Iterator

from hvemu.vmx.checks import CHECKS
from hvemu.vmx.dump import TITLES, describe
from hvemu.vmx.fields import Area, Field, Width
from hvemu.vmx.template import minimal_vmcs

_HEAD = """\
# A minimal VMCS that VM entry accepts: a flat 64-bit guest under a flat 64-bit host, EPT, unrestricted guest.
# Change it, then: hvemu vmcs check FILE. Fields that are left out are assumed to be as they are here."""
_DIGITS = {Width.WORD: 4, Width.DWORD: 8, Width.QWORD: 16, Width.NATURAL: 16}


def fields() -> dict[Field, int]:
    """Return the fields of the template: all that a clause reads, and all that are not 0; the controls come first."""
    vmcs = minimal_vmcs()
    read = {f for row in CHECKS for f in row.reads}
    areas = (Area.CONTROL, Area.HOST, Area.GUEST)
    wanted = (f for area in areas for f in sorted(Field) if f.area is area and (f in read or vmcs[f]))
    return {f: vmcs[f] for f in wanted}


def as_toml() -> Iterator[str]:
    """Yield the lines of the template as TOML, each value with the names of its bits."""
    yield _HEAD
    area: Area | None = None
    for field, value in fields().items():
        if field.area is not area:
            area = field.area
            yield f"\n# {TITLES[area]}"
        names = describe(field, value).partition("  ")[2]
        yield f"{field.name} = {value:#0{_DIGITS[field.width] + 2}x}" + (f"  # {names}" if names else "")


def as_json() -> dict[str, str]:
    """Return the template as an object from names to hexadecimal numbers."""
    return {field.name: f"{value:#x}" for field, value in fields().items()}
