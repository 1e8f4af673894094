"""Clauses on the VM-execution control fields, from VPID and EPT on (SDM 3C "Checks on VMX Controls")."""

from __future__ import annotations

from functools import partial

from hvemu.vmx.capabilities import WRITE_BACK
from hvemu.vmx.checks import Section, check, check_addresses
from hvemu.vmx.checks_execution import SECONDARY_FIELD, secondary_with
from hvemu.vmx.controls import Entry, EptPointer, Exit, SecondaryProcessorBased, VmFunctions
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import Processor

_clause = partial(check, Section.EXECUTION_CONTROLS)
_address = partial(check_addresses, Section.EXECUTION_CONTROLS)
_UNCACHEABLE = 0
_EPTP = EptPointer(memory_type=WRITE_BACK, walk_length=3, frame=2)
_NO_EPT = {"enable_ept": 0, "unrestricted_guest": 0}


@_clause({SECONDARY_FIELD: secondary_with(enable_vpid=1)})
def vpid_is_not_zero(active: SecondaryProcessorBased, vpid: int) -> bool:
    """If "enable VPID" is 1, the virtual-processor identifier must not be 0."""
    return not active.enable_vpid or vpid != 0


@_clause({Field.EPT_POINTER: _EPTP.replace(memory_type=7)})
def eptp_memory_type(on: Processor, active: SecondaryProcessorBased, ept_pointer: EptPointer) -> bool:
    """If "enable EPT" is 1, bits 2:0 of the EPTP, the EPT memory type, must be supported: 0 (UC) or 6 (WB)."""
    legal = {_UNCACHEABLE: on.ept_vpid.uncacheable, WRITE_BACK: on.ept_vpid.write_back}
    return not active.enable_ept or legal.get(ept_pointer.memory_type, False)


@_clause({Field.EPT_POINTER: _EPTP.replace(walk_length=2)})
def eptp_walk_length(on: Processor, active: SecondaryProcessorBased, ept_pointer: EptPointer) -> bool:
    """If "enable EPT" is 1, bits 5:3 of the EPTP must be a supported walk length less 1: 3, or 4 (5 levels)."""
    legal = {3: on.ept_vpid.walk_length_4, 4: on.ept_vpid.walk_length_5}
    return not active.enable_ept or legal.get(ept_pointer.walk_length, False)


@_clause({Field.EPT_POINTER: _EPTP.replace(enable_accessed_dirty=1)})
def eptp_accessed_dirty(on: Processor, active: SecondaryProcessorBased, ept_pointer: EptPointer) -> bool:
    """If "enable EPT" is 1, bit 6 of the EPTP must be 0 unless IA32_VMX_EPT_VPID_CAP[21] is 1."""
    return not active.enable_ept or on.ept_vpid.accessed_dirty or not ept_pointer.enable_accessed_dirty


@_clause({Field.EPT_POINTER: _EPTP.replace(supervisor_shadow_stack=1)})
def eptp_supervisor_shadow_stack(on: Processor, active: SecondaryProcessorBased, ept_pointer: EptPointer) -> bool:
    """If "enable EPT" is 1, bit 7 of the EPTP must be 0 unless IA32_VMX_EPT_VPID_CAP[23] is 1."""
    return not active.enable_ept or on.ept_vpid.supervisor_shadow_stack or not ept_pointer.supervisor_shadow_stack


@_clause({Field.EPT_POINTER: _EPTP.replace(reserved=1)})
def eptp_reserved_bits(on: Processor, active: SecondaryProcessorBased, ept_pointer: EptPointer) -> bool:
    """If "enable EPT" is 1, bits 11:8 of the EPTP and those from {on.physical_address_width} on must be 0."""
    return not active.enable_ept or not (ept_pointer.reserved or not on.is_physical(ept_pointer))


@_clause({SECONDARY_FIELD: secondary_with(**_NO_EPT, enable_pml=1)})
def pml_needs_ept(active: SecondaryProcessorBased) -> bool:
    """If "enable PML" is 1, "enable EPT" must be 1."""
    return active.enable_ept or not active.enable_pml


@_address(("pml_address",), {SECONDARY_FIELD: secondary_with(enable_pml=1)})
def _enable_pml(active: SecondaryProcessorBased) -> bool:
    """If "enable PML" is 1."""
    return active.enable_pml


@_clause({SECONDARY_FIELD: secondary_with(enable_ept=0)})
def unrestricted_guest_needs_ept(active: SecondaryProcessorBased) -> bool:
    """If "unrestricted guest" is 1, "enable EPT" must be 1."""
    return active.enable_ept or not active.unrestricted_guest


@_clause({SECONDARY_FIELD: secondary_with(**_NO_EPT, mode_based_execute_control_for_ept=1)})
def mode_based_execute_control_needs_ept(active: SecondaryProcessorBased) -> bool:
    """If "mode-based execute control for EPT" is 1, "enable EPT" must be 1."""
    return active.enable_ept or not active.mode_based_execute_control_for_ept


@_clause({SECONDARY_FIELD: secondary_with(**_NO_EPT, sub_page_write_permissions_for_ept=1)})
def sub_page_write_permissions_need_ept(active: SecondaryProcessorBased) -> bool:
    """If "sub-page write permissions for EPT" is 1, "enable EPT" must be 1."""
    return active.enable_ept or not active.sub_page_write_permissions_for_ept


@_address(
    ("sub_page_permission_table_pointer",), {SECONDARY_FIELD: secondary_with(sub_page_write_permissions_for_ept=1)}
)
def _sub_page_write_permissions(active: SecondaryProcessorBased) -> bool:
    """If "sub-page write permissions for EPT" is 1."""
    return active.sub_page_write_permissions_for_ept


@_clause({SECONDARY_FIELD: secondary_with(enable_vm_functions=1), Field.VM_FUNCTION_CONTROLS: 2})
def vm_function_controls_reserved_bits(
    on: Processor, active: SecondaryProcessorBased, vm_function_controls: int
) -> bool:
    """If "enable VM functions" is 1, reserved bits in the VM-function controls must be 0.

    May be 1: {on.vm_functions:#x}, as IA32_VMX_VMFUNC says.
    """
    return not active.enable_vm_functions or not vm_function_controls & ~on.vm_functions


_SWITCHING = Field.VM_FUNCTION_CONTROLS, VmFunctions(eptp_switching=1)


@_clause(dict([(SECONDARY_FIELD, secondary_with(**_NO_EPT, enable_vm_functions=1)), _SWITCHING]))
def eptp_switching_needs_ept(active: SecondaryProcessorBased, vm_function_controls: VmFunctions) -> bool:
    """If "EPTP switching" acts, "enable EPT" must be 1."""
    return active.enable_ept or not _switches_eptp(active, vm_function_controls)


@_address(("eptp_list_address",), dict([(SECONDARY_FIELD, secondary_with(enable_vm_functions=1)), _SWITCHING]))
def _switches_eptp(active: SecondaryProcessorBased, vm_function_controls: VmFunctions) -> bool:
    """If "EPTP switching" acts."""
    return active.enable_vm_functions and vm_function_controls.eptp_switching


@_address(("vmread_bitmap_address", "vmwrite_bitmap_address"), {SECONDARY_FIELD: secondary_with(vmcs_shadowing=1)})
def _vmcs_shadowing(active: SecondaryProcessorBased) -> bool:
    """If "VMCS shadowing" is 1."""
    return active.vmcs_shadowing


@_address(("virtualization_exception_information_address",), {SECONDARY_FIELD: secondary_with(ept_violation_ve=1)})
def _ept_violation_ve(active: SecondaryProcessorBased) -> bool:
    """If "EPT-violation #VE" is 1."""
    return active.ept_violation_ve


@_clause({SECONDARY_FIELD: secondary_with(intel_pt_uses_guest_physical_addresses=1)})
def guest_physical_trace_needs(active: SecondaryProcessorBased, exits: Exit, entry: Entry) -> bool:
    """If "Intel PT uses guest physical addresses" is 1, three other controls must be 1.

    They are "enable EPT", "load IA32_RTIT_CTL" (VM entry) and "clear IA32_RTIT_CTL" (VM exit).
    """
    complete = active.enable_ept and entry.load_ia32_rtit_ctl and exits.clear_ia32_rtit_ctl
    return complete or not active.intel_pt_uses_guest_physical_addresses


@_clause({SECONDARY_FIELD: secondary_with(use_tsc_scaling=1)})
def tsc_multiplier_is_not_zero(active: SecondaryProcessorBased, tsc_multiplier: int) -> bool:
    """If "use TSC scaling" is 1, the TSC multiplier must not be 0."""
    return not active.use_tsc_scaling or tsc_multiplier != 0
