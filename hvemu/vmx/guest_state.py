"""Where each guest-state field lives in a processor: the one table for saving and for loading.

The setters do what VM entry does with the value (SDM 3C "Loading Guest State"). Guest-state fields that are not here
(activity state, PDPTEs, the link pointer, MSRs other than IA32_EFER) live in the VMCS alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from hvemu.bits import Register
from hvemu.vmx.controls import Entry, Exit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Interruptibility
from hvemu.x86.registers import Cr0, Dr7, Efer, Gpr, Sreg
from hvemu.x86.state import AccessRights, CpuState, Segment, TableRegister

Get = Callable[[CpuState, int], int]
Set = Callable[[CpuState, int], None]


@dataclass(frozen=True, slots=True)
class Home:
    """How to read and write one field in a processor.

    *get* also takes the value that the VMCS holds, for the bits that the processor does not keep. *saved* and
    *loaded* are the VM-exit and VM-entry controls, if any, without which the field is left alone.
    """

    get: Get
    set: Set
    saved: Exit = Exit()
    loaded: Entry = Entry()


@dataclass(frozen=True, slots=True)
class SegmentHome:
    """How to read and write one segment register, LDTR or TR."""

    get: Callable[[CpuState], Segment]
    set: Callable[[CpuState, Segment], None]


def _attribute(name: str) -> Home:
    def put(state: CpuState, value: int) -> None:
        setattr(state, name, int(value))

    return Home(lambda state, _stored: int(getattr(state, name)), put)


# SDM 3C "Loading Guest State": VM entry does not modify ET, NW and CD.
_CR0_KEPT = int(Cr0(et=1, nw=1, cd=1))
_DR7_CLEARED = 0xD000


def _set_cr0(state: CpuState, value: int) -> None:
    state.cr0 = state.cr0 & _CR0_KEPT | value & ~_CR0_KEPT


def _set_dr7(state: CpuState, value: int) -> None:
    state.dr7 = value & ~_DR7_CLEARED | Dr7.INIT


_SHADOWS = int(Interruptibility(blocking_by_sti=1, blocking_by_mov_ss=1))


def _interruptibility(state: CpuState, stored: int) -> int:
    """Merge the processor's one shadow flag with the bits that live in the VMCS; STI unless MOV SS was written."""
    shadow = (stored & _SHADOWS or 1) if state.blocking_by_sti_or_mov_ss else 0
    return stored & ~_SHADOWS | shadow


def _set_interruptibility(state: CpuState, value: int) -> None:
    state.blocking_by_sti_or_mov_ss = bool(value & _SHADOWS)


_IA32E, _LMA = int(Entry(ia32e_mode_guest=1)), int(Efer(lma=1))


def _entry_controls(state: CpuState, stored: int) -> int:
    """Return *stored* with IA32_EFER.LMA in "IA-32e mode guest", where VM exit puts it.

    SDM 3C "Recording VM-Exit Information and Updating VM-Entry Control Fields".
    """
    return stored & ~_IA32E if not state.efer & _LMA else stored | _IA32E


def _set_entry_controls(state: CpuState, value: int) -> None:
    """LMA follows "IA-32e mode guest" when IA32_EFER itself is not loaded, and so does LME while paging is on."""
    controls = Entry(value)
    if controls.load_ia32_efer:
        return
    long, efer = controls.ia32e_mode_guest, Efer(state.efer)
    state.efer = int(efer.replace(lma=long, lme=long or (efer.lme and not Cr0(state.cr0).pg)))


def _segment(index: Sreg) -> SegmentHome:
    return SegmentHome(lambda state: state.segment(index), lambda state, value: state.set_segment(index, value))


def _set_ldtr(state: CpuState, value: Segment) -> None:
    state.ldtr = value


def _set_tr(state: CpuState, value: Segment) -> None:
    state.tr = value


SEGMENTS: dict[str, SegmentHome] = {sreg.name: _segment(sreg) for sreg in Sreg} | {
    "LDTR": SegmentHome(lambda state: state.ldtr, _set_ldtr),
    "TR": SegmentHome(lambda state: state.tr, _set_tr),
}
PARTS: dict[str, Callable[[int], int | Register]] = {
    "selector": int,
    "base": int,
    "limit": int,
    "rights": AccessRights,
}
_SUFFIX = {"selector": "SELECTOR", "base": "BASE", "limit": "LIMIT", "rights": "ACCESS_RIGHTS"}


def segment_field(register: str, part: str) -> Field:
    """Return the field that holds *part* (a name of Segment) of a segment register."""
    return Field[f"GUEST_{register}_{_SUFFIX[part]}"]


def _segment_part(home: SegmentHome, part: str) -> Home:
    def put(state: CpuState, value: int) -> None:
        home.set(state, replace(home.get(state), **{part: PARTS[part](value)}))  # type: ignore[arg-type]

    return Home(lambda state, _stored: int(getattr(home.get(state), part)), put)


def _table_part(register: str, part: str) -> Home:
    def put(state: CpuState, value: int) -> None:
        old: TableRegister = getattr(state, register)
        setattr(state, register, replace(old, **{part: int(value)}))

    return Home(lambda state, _stored: int(getattr(getattr(state, register), part)), put)


def _set_rsp(state: CpuState, value: int) -> None:
    state.set_gpr(Gpr.RSP, value)


def _set_efer(state: CpuState, value: int) -> None:
    state.efer = value


# The order is that of loading: long mode needs CR4.PAE and IA32_EFER before CR0.PG, and CR0 before the segments.
GUEST_FIELDS: dict[Field, Home] = {
    Field.GUEST_CR4: _attribute("cr4"),
    Field.GUEST_CR3: _attribute("cr3"),
    Field.VM_ENTRY_CONTROLS: Home(_entry_controls, _set_entry_controls),
    Field.GUEST_IA32_EFER: Home(
        lambda state, _stored: state.efer, _set_efer, Exit(save_ia32_efer=1), Entry(load_ia32_efer=1)
    ),
    Field.GUEST_CR0: Home(lambda state, _stored: state.cr0, _set_cr0),
    Field.GUEST_DR7: Home(
        lambda state, _stored: state.dr7, _set_dr7, Exit(save_debug_controls=1), Entry(load_debug_controls=1)
    ),
    Field.GUEST_RFLAGS: _attribute("rflags"),
    **{
        segment_field(register, part): _segment_part(home, part)
        for register, home in SEGMENTS.items()
        for part in PARTS
    },
    Field.GUEST_GDTR_BASE: _table_part("gdtr", "base"),
    Field.GUEST_GDTR_LIMIT: _table_part("gdtr", "limit"),
    Field.GUEST_IDTR_BASE: _table_part("idtr", "base"),
    Field.GUEST_IDTR_LIMIT: _table_part("idtr", "limit"),
    Field.GUEST_RSP: Home(lambda state, _stored: state.gpr(Gpr.RSP), _set_rsp),
    Field.GUEST_RIP: _attribute("rip"),
    Field.GUEST_INTERRUPTIBILITY_STATE: Home(_interruptibility, _set_interruptibility),
}
"""Field to its home in the processor, guest-state area and the one VM-entry control that VM exit updates."""


SAVES = Exit(save_ia32_efer=1, save_debug_controls=1)
LOADS = Entry(load_ia32_efer=1, load_debug_controls=1)
"""The controls on which GUEST_FIELDS depends."""


@cache
def getters(exit_controls: int) -> dict[Field, Get]:
    """Return how to read the fields that VM exits save under *exit_controls*, as far as SAVES."""
    return {f: h.get for f, h in GUEST_FIELDS.items() if not h.saved & ~exit_controls}


@cache
def setters(entry_controls: int) -> dict[Field, Set]:
    """Return how to write the fields that VM entry loads under *entry_controls*, as far as LOADS."""
    return {f: h.set for f, h in GUEST_FIELDS.items() if not h.loaded & ~entry_controls}
