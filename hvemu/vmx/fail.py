"""How a VMX instruction fails (SDM 3C "VM-Instruction Error Numbers")."""

from __future__ import annotations

from hvemu.errors import GuestVisible

ERRORS: dict[int, str] = {
    1: "VMCALL executed in VMX root operation",
    2: "VMCLEAR with invalid physical address",
    3: "VMCLEAR with VMXON pointer",
    4: "VMLAUNCH with non-clear VMCS",
    5: "VMRESUME with non-launched VMCS",
    6: "VMRESUME after VMXOFF",
    7: "VM entry with invalid control field(s)",
    8: "VM entry with invalid host-state field(s)",
    9: "VMPTRLD with invalid physical address",
    10: "VMPTRLD with VMXON pointer",
    11: "VMPTRLD with incorrect VMCS revision identifier",
    12: "VMREAD/VMWRITE from/to unsupported VMCS component",
    13: "VMWRITE to read-only VMCS component",
    15: "VMXON executed in VMX root operation",
    16: "VM entry with invalid executive-VMCS pointer",
    17: "VM entry with non-launched executive VMCS",
    18: "VM entry with executive-VMCS pointer not VMXON pointer",
    19: "VMCALL with non-clear VMCS",
    20: "VMCALL with invalid VM-exit control fields",
    22: "VMCALL with incorrect MSEG revision identifier",
    23: "VMXOFF under dual-monitor treatment of SMIs and SMM",
    24: "VMCALL with invalid SMM-monitor features",
    25: "VM entry with invalid VM-execution control fields in executive VMCS",
    26: "VM entry with events blocked by MOV SS",
    28: "Invalid operand to INVEPT/INVVPID",
}


class VmFail(GuestVisible):
    """A VMX instruction failed: VMfailValid with *number*, or VMfailInvalid (no current VMCS) when it is None.

    *why* names the clause for a person who debugs the hypervisor; guest software sees the number alone.
    """

    def __init__(self, number: int | None, why: str = "") -> None:
        assert number is None or number in ERRORS, number
        super().__init__(number, why)
        self.number, self.why = number, why

    def __str__(self) -> str:
        what = "VMfailInvalid" if self.number is None else f"VM-instruction error {self.number}: {ERRORS[self.number]}"
        return f"{what}\n{self.why}" if self.why else what


class VmxAbort(GuestVisible):
    """A VM exit that cannot be completed: the processor shuts down (SDM 3C "VMX Aborts").

    *indicator* is what goes into the VMCS region, *why* is for a person.
    """

    def __init__(self, indicator: int, why: str) -> None:
        super().__init__(indicator, why)
        self.indicator, self.why = indicator, why

    def __str__(self) -> str:
        return f"VMX abort {self.indicator}: {self.why}"
