"""The lists of MSRs that VM exit stores and loads; that of VM entry is part of vmx/entry.py.

SDM 3C "Saving MSRs", SDM 3C "Loading MSRs"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvemu.memory.physical import Physical
from hvemu.vmx.fields import Field
from hvemu.vmx.msr_load import ENTRY_SIZE, MsrEntry, MsrFailure
from hvemu.vmx.msr_load import load_msrs as load
from hvemu.vmx.vmcs import Vmcs

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_DATA = 8  # where the data lie in an entry


def load_msrs(cpu: Cpu, memory: Physical, vmcs: Vmcs) -> MsrFailure | None:
    """Load the VM-exit MSR-load area; return the entry that cannot be loaded, if any."""
    start, count = vmcs[Field.VM_EXIT_MSR_LOAD_ADDRESS], vmcs[Field.VM_EXIT_MSR_LOAD_COUNT]
    area = (
        MsrEntry(int.from_bytes(memory.read_bytes(start + n * ENTRY_SIZE, ENTRY_SIZE), "little")) for n in range(count)
    )
    return load(area, cpu.msrs.write)


def store_msrs(cpu: Cpu, memory: Physical, vmcs: Vmcs) -> None:
    """Fill the VM-exit MSR-store area."""
    start = vmcs[Field.VM_EXIT_MSR_STORE_ADDRESS]
    for n in range(vmcs[Field.VM_EXIT_MSR_STORE_COUNT]):
        hpa = start + n * ENTRY_SIZE
        memory.write(hpa + _DATA, 8, cpu.msrs.read(memory.read(hpa, 4)))
