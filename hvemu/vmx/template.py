"""A minimal VMCS that passes every check: a flat 64-bit guest under a flat 64-bit host."""

from __future__ import annotations

from hvemu.vmx.capabilities import CR0_FIXED0, CR4_FIXED0, ENTRY, EXIT, PIN, PRIMARY, SECONDARY, WRITE_BACK
from hvemu.vmx.controls import Entry, EptPointer, Exit, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import MASKS, Field
from hvemu.vmx.guest_state import SEGMENTS, segment_field
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.registers import Cr0, Cr4, Dr7, Efer
from hvemu.x86.state import AccessRights

_PAGE_TABLE, _EPT, _STACK, _ENTRY_POINT = 0x1000, 0x2000, 0x7000, 0x8000
_CODE, _DATA, _TASK = 0x08, 0x10, 0x18
_LONG_MODE = int(Efer(lme=1, lma=1, nxe=1))
_CR0 = int(Cr0(CR0_FIXED0, pe=1, pg=1, et=1, wp=1))
_CR4 = int(Cr4(CR4_FIXED0, pae=1))

_CONTROLS: dict[Field, int] = {
    Field.PIN_BASED_VM_EXECUTION_CONTROLS: PIN.adjust(0),
    Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: PRIMARY.adjust(
        PrimaryProcessorBased(activate_secondary_controls=1)
    ),
    Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: SECONDARY.adjust(
        SecondaryProcessorBased(enable_ept=1, unrestricted_guest=1)
    ),
    Field.VM_EXIT_CONTROLS: EXIT.adjust(
        Exit(host_address_space_size=1, save_debug_controls=1, save_ia32_efer=1, load_ia32_efer=1)
    ),
    Field.VM_ENTRY_CONTROLS: ENTRY.adjust(Entry(ia32e_mode_guest=1, load_debug_controls=1, load_ia32_efer=1)),
    Field.EPT_POINTER: int(EptPointer(memory_type=WRITE_BACK, walk_length=3, frame=_EPT >> 12)),
    Field.VMCS_LINK_POINTER: MASKS[Field.VMCS_LINK_POINTER],  # none
}
_HOST: dict[Field, int] = {
    Field.HOST_CR0: _CR0,
    Field.HOST_CR3: _PAGE_TABLE,
    Field.HOST_CR4: _CR4,
    Field.HOST_IA32_EFER: _LONG_MODE,
    Field.HOST_CS_SELECTOR: _CODE,
    **{Field[f"HOST_{register}_SELECTOR"]: _DATA for register in ("SS", "DS", "ES", "FS", "GS")},
    Field.HOST_TR_SELECTOR: _TASK,
    Field.HOST_RSP: _STACK,
    Field.HOST_RIP: _ENTRY_POINT,
}
_FLAT = 0xFFFF_FFFF
# selector, limit in bytes, access rights
_SEGMENTS = {
    "CS": (_CODE, _FLAT, AccessRights(type=11, s=1, p=1, l=1, g=1)),
    **dict.fromkeys(("SS", "DS", "ES", "FS", "GS"), (_DATA, _FLAT, AccessRights(type=3, s=1, p=1, db=1, g=1))),
    "LDTR": (0, 0, AccessRights(unusable=1)),
    "TR": (_TASK, 0x67, AccessRights(type=11, p=1)),
}
_GUEST: dict[Field, int] = {
    Field.GUEST_CR0: _CR0,
    Field.GUEST_CR3: _PAGE_TABLE,
    Field.GUEST_CR4: _CR4,
    Field.GUEST_DR7: Dr7.INIT,
    Field.GUEST_IA32_EFER: _LONG_MODE,
    Field.GUEST_RFLAGS: 2,
    Field.GUEST_RSP: _STACK,
    Field.GUEST_RIP: _ENTRY_POINT,
    Field.GUEST_GDTR_LIMIT: 0x27,
    Field.GUEST_IDTR_LIMIT: 0xFFF,
}


def minimal_host() -> Vmcs:
    """Return a VMCS with legal controls and host state; the guest-state area is still 0 but for the link pointer."""
    vmcs = Vmcs()
    for field, value in (_CONTROLS | _HOST).items():
        vmcs[field] = value
    return vmcs


def minimal_vmcs() -> Vmcs:
    """Return a VMCS that VM entry accepts: 64-bit guest, flat segments, EPT, unrestricted guest, no exits wanted."""
    vmcs = minimal_host()
    for field, value in _GUEST.items():
        vmcs[field] = value
    for register in SEGMENTS:
        selector, limit, rights = _SEGMENTS[register]
        vmcs[segment_field(register, "selector")] = selector
        vmcs[segment_field(register, "limit")] = limit
        vmcs[segment_field(register, "rights")] = int(rights)
    return vmcs


_CR0_FIXED_UNRESTRICTED = CR0_FIXED0 & ~int(Cr0(pe=1, pg=1))


def own_fixed_bits(vmcs: Vmcs) -> None:
    """Give the guest the bits of CR0 and CR4 that VMX operation fixes to 1, and hide them behind mask and shadow.

    The guest goes on reading the values that it has now. For an unrestricted guest: PE and PG stay its own.
    """
    for guest, mask, shadow, fixed in (
        (Field.GUEST_CR0, Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW, _CR0_FIXED_UNRESTRICTED),
        (Field.GUEST_CR4, Field.CR4_GUEST_HOST_MASK, Field.CR4_READ_SHADOW, CR4_FIXED0),
    ):
        value = vmcs[guest]
        vmcs[shadow] = value
        vmcs[mask] |= fixed
        vmcs[guest] = value | fixed
