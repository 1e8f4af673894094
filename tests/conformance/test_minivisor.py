"""A hypervisor in the guest that makes a mistake is told by the processor what the manual says, and its author why."""

from __future__ import annotations

import pytest

from hvemu.guest.image import from_source
from hvemu.guest.manifest import guests_dir
from hvemu.machine import Machine, technique_for
from hvemu.techniques.vm import Budget

SOURCE = (guests_dir() / "minivisor.asm").read_text(encoding="utf-8")
LAUNCH = "    vmlaunch\n"
SUCCEED = "    call must_succeed\n"
CLEAR, LOAD = "    vmclear [vmcs_pointer]\n" + SUCCEED, "    vmptrld [vmcs_pointer]\n"
INCREMENT = "    mov rdi, VMCS\n    inc dword ptr [rdi]\n"
LAST_RESUME = SUCCEED + "\n# HLT"


def writing(field, value):
    """The source with one more VMWRITE before VMLAUNCH."""
    return LAUNCH, f"    mov eax, {value}\n    WRITE {field}\n" + LAUNCH


# What is changed into what, how the console ends, and what the note names
MISTAKES = {
    "a reserved control bit": (*writing("F_PIN", "0x100"), "error 7", "pin_based_reserved_bits"),
    "a host CR0 without NE": (*writing("F_HOST_CR0", "0x80000011"), "error 8", "HOST_CR0"),
    "RFLAGS without its fixed bit": (*writing("0x6820", "0"), "nobody expected: 0000000080000021", "GUEST_RFLAGS"),
    "a field that does not exist": (*writing("0x7ffe", "0"), "error 12", "0x7ffe"),
    "a field that is read-only": (*writing("F_REASON", "0"), "error 13", "VM_EXIT_REASON"),
    "VMRESUME before VMLAUNCH": (LAUNCH, "    vmresume\n", "error 5", "error 5"),
    "VMLAUNCH after VMLAUNCH": ("    vmresume\n" + LAST_RESUME, LAUNCH + LAST_RESUME, "error 4", "error 4"),
    "VMCALL in root operation": (LAUNCH, "    vmcall\n" + SUCCEED, "error 1", "error 1"),
    "VMXON twice": (CLEAR + LOAD, LOAD + "    vmxon [vmxon_pointer]\n" + SUCCEED, "error 15", "error 15"),
    "no VMPTRLD": (LOAD, "    nop\n", "there is no current VMCS", "VMPTRLD makes one current"),
    "a wrong revision, without a VMCS to hold the number": (
        CLEAR, CLEAR + INCREMENT, "there is no current VMCS", "revision identifier",
    ),
}  # fmt: skip


def run(source):
    notes = []
    machine = Machine(from_source(source, mode=64), technique_for("bare", None), on_note=notes.append)
    result = machine.run(Budget(max_instructions=1_000_000, max_exits=1_000))
    return result, "\n".join(notes)


def test_the_hypervisor_itself_makes_none():
    result, notes = run(SOURCE)
    assert (result.ending.code, notes) == (0, "")
    assert result.by_reason == {"CPUID": 1, "VMCALL": 1, "EPT_VIOLATION": 1, "HLT": 1}


@pytest.mark.parametrize(("old", "new", "console", "note"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_and_explained(old, new, console, note):
    assert old in SOURCE
    result, notes = run(SOURCE.replace(old, new, 1))
    assert result.ending.code == 1
    assert result.console.decode().rstrip().endswith(console)
    assert note in notes
