"""What a VM exit says about the operands of the instruction that caused it.

The layouts are those of SDM 3C "Information for VM Exits Due to Instruction Execution"; parts that the manual leaves
undefined are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvemu.vmx.reasons import (
    DescriptorTableInformation,
    SystemSegmentInformation,
    VmxMemoryInformation,
    VmxOperandInformation,
)
from hvemu.x86.instruction import Instruction, Reg
from hvemu.x86.segments import truncate
from hvemu.x86.state import CpuMode, CpuState, mode

_ADDRESS_SIZES = {2: 0, 4: 1, 8: 2}
_SCALES = {1: 0, 2: 1, 4: 2, 8: 3}


def displacement(state: CpuState, instruction: Instruction) -> int:
    """Return the exit qualification of an instruction with a memory operand (SDM 3C "Exit Qualification").

    The displacement, sign-extended to 64 bits; relative to RIP, what it comes to; 0 without a memory operand.
    """
    mem = instruction.memory
    if mem is None:
        return 0
    base = state.rip + instruction.length if mem.rip_relative else 0
    return truncate(mem.displacement + base, 8)


def address_size(instruction: Instruction) -> int:
    """Return the code of the address size: 0, 1 and 2 for 16, 32 and 64 bits."""
    return _ADDRESS_SIZES[instruction.address_size]


def information(state: CpuState, instruction: Instruction) -> int:
    """Return the VM-exit instruction information of an instruction that has any, or else 0."""
    describe = _LAYOUTS.get(instruction.mnemonic)
    return 0 if describe is None else describe(state, instruction)


def _memory(instruction: Instruction) -> dict[str, Any]:
    """Return the fields that all layouts share; none of them counts for a register operand."""
    mem = instruction.memory
    if mem is None:
        return {}
    return {
        "scaling": _SCALES[mem.scale] if mem.index is not None else 0,
        "address_size": address_size(instruction),
        "segment": mem.segment,
        "index": mem.index or 0,
        "index_invalid": mem.index is None,
        "base": mem.base or 0,
        "base_invalid": mem.base is None,
    }


def _table(identity: DescriptorTableInformation.Identity) -> Callable[[CpuState, Instruction], int]:
    def describe(state: CpuState, instruction: Instruction) -> int:
        wide = mode(state) is not CpuMode.LONG64 and instruction.operand_size != 2
        return int(DescriptorTableInformation(operand_32=wide, identity=identity, **_memory(instruction)))

    return describe


def _segment(identity: SystemSegmentInformation.Identity) -> Callable[[CpuState, Instruction], int]:
    def describe(_state: CpuState, instruction: Instruction) -> int:
        return int(SystemSegmentInformation(identity=identity, **_register(instruction, 0), **_memory(instruction)))

    return describe


def _register(instruction: Instruction, number: int) -> dict[str, Any]:
    """Return the fields for operand *number* if it is a register, which stands where there could be memory."""
    operand = instruction.operands[number]
    return {"reg1": operand.index, "register_form": 1} if isinstance(operand, Reg) else {}


def _pointer(_state: CpuState, instruction: Instruction) -> int:
    return int(VmxMemoryInformation(**_memory(instruction)))


def _two_operands(_state: CpuState, instruction: Instruction) -> int:
    """VMREAD, VMWRITE, INVEPT, INVVPID: *reg2* is the operand that is always a register."""
    fixed = 1 if instruction.mnemonic == "vmread" else 0
    operand = instruction.operands[fixed]
    assert isinstance(operand, Reg), instruction
    other = _register(instruction, 1 - fixed)
    return int(VmxOperandInformation(reg2=operand.index, **other, **_memory(instruction)))


_LAYOUTS: dict[str, Callable[[CpuState, Instruction], int]] = {
    **{identity.name.lower(): _table(identity) for identity in DescriptorTableInformation.Identity},
    **{identity.name.lower(): _segment(identity) for identity in SystemSegmentInformation.Identity},
    **dict.fromkeys(("vmclear", "vmptrld", "vmptrst", "vmxon"), _pointer),
    **dict.fromkeys(("vmread", "vmwrite", "invept", "invvpid"), _two_operands),
}
