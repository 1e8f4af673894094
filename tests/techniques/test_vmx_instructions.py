"""A guest finds no VMX: its VMX instructions leave the guest, and come back as #UD."""

from __future__ import annotations

import pytest

from hvemu.guest.image import from_source
from hvemu.machine import Machine, technique_for
from hvemu.vmx.reasons import Reason

# SDM 3C "Instructions That Cause VM Exits Unconditionally", those that only a processor with VMX has
INSTRUCTIONS = {
    Reason.VMCALL: "vmcall",
    Reason.VMCLEAR: "vmclear [0x1000]",
    Reason.VMLAUNCH: "vmlaunch",
    Reason.VMPTRLD: "vmptrld [0x1000]",
    Reason.VMPTRST: "vmptrst [0x1000]",
    Reason.VMREAD: "vmread eax, ebx",
    Reason.VMRESUME: "vmresume",
    Reason.VMWRITE: "vmwrite eax, ebx",
    Reason.VMXOFF: "vmxoff",
    Reason.VMXON: "vmxon [0x1000]",
    Reason.INVEPT: "invept eax, [0x1000]",
    Reason.INVVPID: "invvpid eax, [0x1000]",
}
KERNEL = """
.include "lib/kernel32.inc"
undefined:
    mov eax, [esp]
    EXPECT eax, here, "EIP"
    EXIT 0
main:
    SET_GATE 6, undefined
here:
    {}
    EXIT 1
"""


@pytest.mark.parametrize("reason", INSTRUCTIONS, ids=lambda reason: reason.name)
def test_a_vmx_instruction_is_undefined_wherever_the_guest_runs(reason):
    image = from_source(KERNEL.format(INSTRUCTIONS[reason]))
    results = {name: Machine(image, technique_for(name, None)).run() for name in ("bare", "deprivilege", "hardware")}
    assert {name: result.ending.code for name, result in results.items()} == dict.fromkeys(results, 0)
    assert results["hardware"].by_reason[reason.name] == 1
