"""The names by which people call VMCS fields: ours, the manual's, those of Linux's header, and encodings."""

from __future__ import annotations

import re
from difflib import get_close_matches

from hvemu.errors import InputError
from hvemu.vmx.fields import MASKS, Field, Width

_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
_WORDS = {
    # Linux, arch/x86/include/asm/vmx.h, where it differs
    "VIRTUAL_PROCESSOR_ID": Field.VPID,
    "POSTED_INTR_NV": Field.POSTED_INTERRUPT_NOTIFICATION_VECTOR,
    "GUEST_INTR_STATUS": Field.GUEST_INTERRUPT_STATUS,
    "GUEST_PML_INDEX": Field.PML_INDEX,
    "IO_BITMAP_A": Field.IO_BITMAP_A_ADDRESS,
    "IO_BITMAP_B": Field.IO_BITMAP_B_ADDRESS,
    "MSR_BITMAP": Field.MSR_BITMAP_ADDRESS,
    "VM_EXIT_MSR_STORE_ADDR": Field.VM_EXIT_MSR_STORE_ADDRESS,
    "VM_EXIT_MSR_LOAD_ADDR": Field.VM_EXIT_MSR_LOAD_ADDRESS,
    "VM_ENTRY_MSR_LOAD_ADDR": Field.VM_ENTRY_MSR_LOAD_ADDRESS,
    "VIRTUAL_APIC_PAGE_ADDR": Field.VIRTUAL_APIC_ADDRESS,
    "APIC_ACCESS_ADDR": Field.APIC_ACCESS_ADDRESS,
    "POSTED_INTR_DESC_ADDR": Field.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS,
    "VM_FUNCTION_CONTROL": Field.VM_FUNCTION_CONTROLS,
    "VMREAD_BITMAP": Field.VMREAD_BITMAP_ADDRESS,
    "VMWRITE_BITMAP": Field.VMWRITE_BITMAP_ADDRESS,
    "VE_INFORMATION_ADDRESS": Field.VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS,
    "XSS_EXIT_BITMAP": Field.XSS_EXITING_BITMAP,
    "TERTIARY_VM_EXEC_CONTROL": Field.TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    "PID_POINTER_TABLE": Field.PID_POINTER_TABLE_ADDRESS,
    "GUEST_BNDCFGS": Field.GUEST_IA32_BNDCFGS,
    "PIN_BASED_VM_EXEC_CONTROL": Field.PIN_BASED_VM_EXECUTION_CONTROLS,
    "CPU_BASED_VM_EXEC_CONTROL": Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    "SECONDARY_VM_EXEC_CONTROL": Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    "VM_ENTRY_INTR_INFO": Field.VM_ENTRY_INTERRUPTION_INFORMATION,
    "VM_ENTRY_INSTRUCTION_LEN": Field.VM_ENTRY_INSTRUCTION_LENGTH,
    "NOTIFY_WINDOW": Field.INSTRUCTION_TIMEOUT_CONTROL,
    "VM_EXIT_INTR_INFO": Field.VM_EXIT_INTERRUPTION_INFORMATION,
    "VM_EXIT_INTR_ERROR_CODE": Field.VM_EXIT_INTERRUPTION_ERROR_CODE,
    "IDT_VECTORING_INFO": Field.IDT_VECTORING_INFORMATION,
    "VM_EXIT_INSTRUCTION_LEN": Field.VM_EXIT_INSTRUCTION_LENGTH,
    "VMX_INSTRUCTION_INFO": Field.VM_EXIT_INSTRUCTION_INFORMATION,
    "GUEST_INTERRUPTIBILITY_INFO": Field.GUEST_INTERRUPTIBILITY_STATE,
    "GUEST_SYSENTER_CS": Field.GUEST_IA32_SYSENTER_CS,
    "GUEST_SYSENTER_ESP": Field.GUEST_IA32_SYSENTER_ESP,
    "GUEST_SYSENTER_EIP": Field.GUEST_IA32_SYSENTER_EIP,
    "GUEST_PENDING_DBG_EXCEPTIONS": Field.GUEST_PENDING_DEBUG_EXCEPTIONS,
    "GUEST_S_CET": Field.GUEST_IA32_S_CET,
    "GUEST_INTR_SSP_TABLE": Field.GUEST_IA32_INTERRUPT_SSP_TABLE_ADDRESS,
    "HOST_S_CET": Field.HOST_IA32_S_CET,
    "HOST_INTR_SSP_TABLE": Field.HOST_IA32_INTERRUPT_SSP_TABLE_ADDRESS,
    # the manual, SDM 3D "Field Encoding in VMCS", where it differs
    "VIRTUAL_PROCESSOR_IDENTIFIER_VPID": Field.VPID,
    "ADDRESS_OF_I_O_BITMAP_A": Field.IO_BITMAP_A_ADDRESS,
    "ADDRESS_OF_I_O_BITMAP_B": Field.IO_BITMAP_B_ADDRESS,
    "ADDRESS_OF_MSR_BITMAPS": Field.MSR_BITMAP_ADDRESS,
    "EPT_POINTER_EPTP": Field.EPT_POINTER,
    "EPTP": Field.EPT_POINTER,
    "EXIT_REASON": Field.VM_EXIT_REASON,
    "PRIMARY_VM_EXIT_CONTROLS": Field.VM_EXIT_CONTROLS,
}
ALIASES: dict[str, Field] = {
    **_WORDS,
    **{f"GUEST_{register}_AR_BYTES": Field[f"GUEST_{register}_ACCESS_RIGHTS"] for register in _SEGMENTS},
    **{f"GUEST_PDPTR{n}": Field[f"GUEST_PDPTE{n}"] for n in range(4)},
    **{f"CR3_TARGET_VALUE{n}": Field[f"CR3_TARGET_VALUE_{n}"] for n in range(4)},
    **{f"EOI_EXIT_BITMAP{n}": Field[f"EOI_EXIT_BITMAP_{n}"] for n in range(4)},
}
"""Names that are not ours, in upper case, to the field."""
_KNOWN = dict(Field.__members__) | ALIASES
_SUFFIX = re.compile(r"_(?:FULL|FIELD)$")
_HIGH = "_HIGH"
_LONGEST = 60
"""Characters of a wrong name that are looked at."""


def find(name: str) -> tuple[Field, bool]:
    """Return the field that *name* means, and whether it means bits 63:32 alone.

    Case, spaces and punctuation do not count; a number is an encoding. Raises InputError.
    """
    try:
        encoding = int(name, 0)
    except ValueError:
        return _find_word(name)
    full = encoding & ~1
    if full not in MASKS or (encoding & 1 and Field(full).width is not Width.QWORD):
        raise InputError(f"no VMCS field has the encoding {name}")
    return Field(full), bool(encoding & 1)


def _find_word(name: str) -> tuple[Field, bool]:
    word = _SUFFIX.sub("", re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_"))
    high = word.endswith(_HIGH)
    field = _KNOWN.get(word.removesuffix(_HIGH))
    if field is not None and not (high and field.width is not Width.QWORD):
        return field, high
    near = get_close_matches(word[:_LONGEST], _KNOWN, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{name[:_LONGEST]!r} is not the name of a VMCS field{hint}")


def value_of(field: Field, given: object) -> int:
    """Return *given* as the bits of *field*. Raises InputError, as number does."""
    return number(field.name, field.width.bits, given)


def number(what: str, width: int, given: object) -> int:
    """Return *given*, a number or one in text (0x for hexadecimal), in *width* bits; -1 means that all are set.

    Raises InputError, which begins with *what*.
    """
    try:
        value = int(given, 0) if isinstance(given, str) else given
    except ValueError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{what}: {_short(given)} is not a number; write 16 or 0x10")
    if not -(1 << width - 1) <= value < 1 << width:
        raise InputError(f"{what}: {_short(given)} does not fit into its {width} bits")
    return value & (1 << width) - 1


def _short(given: object) -> str:
    text = f"{given:#x}" if isinstance(given, int) and not isinstance(given, bool) else repr(given)
    return text if len(text) <= 40 else f"{text[:37]}..."
