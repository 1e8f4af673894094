"""A virtual-machine control structure.

Real processors keep the current VMCS's guest state on chip and write it to memory when they must. So does this one:
while *attached* to a processor, a guest-state field is read from its live registers and written to them, and a VM
exit copies nothing. A field that was written reads back as written until the next VM entry.
"""

from __future__ import annotations

import struct

from hvemu.vmx.capabilities import MISC, REGION_SIZE, REVISION_ID
from hvemu.vmx.dump import dump, html
from hvemu.vmx.fail import VmFail
from hvemu.vmx.fields import MASKS, Area, Field, Width
from hvemu.vmx.guest_state import GUEST_FIELDS, LOADS, SAVES, Get, Set, getters, setters
from hvemu.x86.state import CpuState

_ORDER = sorted(Field)
# SDM 3C "Format of the VMCS Region": revision identifier, VMX-abort indicator, then data as the processor likes:
# here the launch state and every field, 8 bytes each.
_LAYOUT = struct.Struct(f"<IIQ{len(_ORDER)}Q")


class Vmcs:
    """A VMCS, indexed by Field.

    *values* holds what is not live. *dirty* holds what was written since the last VM entry. *launched* is the launch
    state. *valid* says that the fields not in *dirty* passed the checks of a VM entry. *reloaded* are the fields that
    every VM entry loads anew, because VM exits do not save them.
    """

    __slots__ = (
        "_get", "_routes", "_set", "dirty", "launched", "reloaded", "revision_id", "state", "valid", "values",
    )  # fmt: skip

    def __init__(self, revision_id: int = REVISION_ID) -> None:
        self.revision_id, self.launched, self.valid = revision_id, False, False
        self.values: dict[int, int] = dict.fromkeys(Field, 0)
        self.dirty: set[Field] = set()
        self.state: CpuState | None = None
        self._get: dict[Field, Get] = {}
        self._set: dict[Field, Set] = {}
        self._routes = (0, 0)
        self.reloaded: tuple[Field, ...] = ()

    def __getitem__(self, field: Field) -> int:
        get = self._get.get(field)
        if get is None or field in self.dirty:
            return self.values[field]
        assert self.state is not None
        return get(self.state, self.values[field])

    def __setitem__(self, field: Field, value: int) -> None:
        assert not value & ~MASKS[field], f"{field!r}: {value:#x} does not fit"
        self.values[field] = value
        self.dirty.add(field)
        put = self._set.get(field)
        if put is not None:
            assert self.state is not None
            put(self.state, value)

    def attach(self, state: CpuState) -> None:
        """Let the registers of *state* be the guest-state area from now on.

        What the VMCS held of it is forgotten, and the next VM entry checks everything.
        """
        self.state, self.valid = state, False
        self.dirty -= GUEST_FIELDS.keys()
        self.route()

    def detach(self) -> None:
        """Bring the guest-state area back into the VMCS, as VMCLEAR and a switch of the current VMCS need."""
        self.save_all()
        self.state, self._get, self._set, self.reloaded = None, {}, {}, ()

    def route(self) -> None:
        """Choose the live fields anew, after the "save" and "load" controls may have changed."""
        assert self.state is not None
        self._routes = self._wanted_routes()
        self._get, self._set = getters(self._routes[0]), setters(self._routes[1])
        self.reloaded = tuple(f for f in self._set if f not in self._get)

    def _wanted_routes(self) -> tuple[int, int]:
        return self.values[Field.VM_EXIT_CONTROLS] & SAVES, self.values[Field.VM_ENTRY_CONTROLS] & LOADS

    @property
    def routes_changed(self) -> bool:
        """Whether the "save" and "load" controls were written since route."""
        return self._routes != self._wanted_routes()

    def save_all(self) -> None:
        """Copy every live field into *values*; the VMCS stays attached."""
        for field in self._get:
            self.values[field] = self[field]

    def vmread(self, encoding: int) -> int:
        """Return what VMREAD returns for *encoding*. Raises VmFail 12 for an unsupported component.

        SDM 3C "VMREAD, VMWRITE, and Encodings of VMCS Fields": an odd encoding reads bits 63:32 of a 64-bit field.
        """
        value = self[self._component(encoding)]
        return value >> 32 if encoding & 1 else value

    def vmwrite(self, encoding: int, value: int) -> None:
        """Do what VMWRITE does; bits of *value* above the field's width are ignored.

        Raises VmFail 12 for an unsupported component, 13 for a read-only one.
        """
        field = self._component(encoding)
        if field.area is Area.EXIT_INFORMATION and not MISC.vmwrite_exit_information:
            raise VmFail(13, f"{field.name} is read-only")
        if encoding & 1:
            value = (value & 0xFFFF_FFFF) << 32 | self[field] & 0xFFFF_FFFF
        self[field] = value & MASKS[field]

    @staticmethod
    def _component(encoding: int) -> Field:
        full = encoding & ~1
        if full not in MASKS or (encoding & 1 and Field(full).width is not Width.QWORD):
            raise VmFail(12, f"no VMCS component has the encoding {encoding:#x}")
        return Field(full)

    def to_region(self) -> bytes:
        """Return the VMCS region, 4 KiB."""
        self.save_all()
        fields = (self.values[f] for f in _ORDER)
        return _LAYOUT.pack(self.revision_id, 0, self.launched, *fields).ljust(REGION_SIZE, b"\0")

    @classmethod
    def from_region(cls, region: bytes) -> Vmcs:
        """Return the VMCS in *region* (4 KiB), whatever its revision identifier; VMPTRLD checks that."""
        assert len(region) == REGION_SIZE, len(region)
        revision_id, _abort, launched, *fields = _LAYOUT.unpack_from(region)
        vmcs = cls(revision_id)
        vmcs.launched = bool(launched)
        vmcs.values.update((f, v & MASKS[f]) for f, v in zip(_ORDER, fields, strict=True))
        return vmcs

    def dump(self, *, zeros: bool = False) -> str:
        """Return the VMCS area by area for a person, without the fields that are 0 unless *zeros*."""
        return dump({f: self[f] for f in _ORDER}, zeros=zeros)

    def __repr__(self) -> str:
        where = "attached" if self.state is not None else "detached"
        launch = "launched" if self.launched else "clear"
        return f"Vmcs({launch}, {where}, rip={self[Field.GUEST_RIP]:#x}, reason={self[Field.VM_EXIT_REASON]:#x})"

    def _repr_html_(self) -> str:
        return html({f: self[f] for f in _ORDER})
