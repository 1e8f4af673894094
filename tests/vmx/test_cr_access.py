"""Guest/host masks, read shadows and CR exits, as SDM 3C words the rules."""

from __future__ import annotations

import itertools

import pytest

from hvemu.vmx import cr_access
from hvemu.vmx.cr_access import CR0, CR4, SHADOWED
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Reason
from hvemu.vmx.vmcs import Vmcs

PRIMARY = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS


def vmcs_with(**fields):
    vmcs = Vmcs()
    for name, value in fields.items():
        vmcs[Field[name]] = value
    return vmcs


@pytest.mark.parametrize("cr", [0, 4])
@pytest.mark.parametrize(("guest", "mask", "shadow", "value"), [*itertools.product((0, 1), repeat=4)])
def test_one_shared_bit(cr, guest, mask, shadow, value):
    """For bit 5 alone: reading, exiting and writing under every setting."""
    names = (f"GUEST_CR{cr}", f"CR{cr}_GUEST_HOST_MASK", f"CR{cr}_READ_SHADOW")
    vmcs = vmcs_with(**{n: v << 5 for n, v in zip(names, (guest, mask, shadow), strict=True)})
    assert SHADOWED[cr].read(vmcs) == (shadow if mask else guest) << 5
    exit_ = cr_access.mov_to_cr(vmcs, cr, value << 5, 2, 3)
    assert exit_ == (VmExit(Reason.CR_ACCESS, cr | 0x200, 3) if mask and value != shadow else None)
    assert SHADOWED[cr].written(vmcs, value << 5) == (guest if mask else value) << 5


@pytest.mark.parametrize("cr", [0, 4])
def test_reading_cr0_and_cr4_never_exits(cr):
    vmcs = vmcs_with(PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS=0xFFFF_FFFF)
    assert cr_access.mov_from_cr(vmcs, cr, 0, 3) is None


@pytest.mark.parametrize(("cr", "load", "store"), [(3, 15, 16), (8, 19, 20)])
def test_cr3_and_cr8_follow_their_controls(cr, load, store):
    for controls, to, from_ in [(0, 0, 0), (1 << load, 1, 0), (1 << store, 0, 1)]:
        vmcs = vmcs_with(PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS=controls)
        assert cr_access.mov_to_cr(vmcs, cr, 0x1000, 6, 3) == (VmExit(Reason.CR_ACCESS, 0x600 | cr, 3) if to else None)
        expected = VmExit(Reason.CR_ACCESS, 0x610 | cr, 3) if from_ else None
        assert cr_access.mov_from_cr(vmcs, cr, 6, 3) == expected


@pytest.mark.parametrize("count", range(5))
def test_cr3_target_values_do_not_exit(count):
    targets = [0x1000, 0x2000, 0x3000, 0x4000]
    vmcs = vmcs_with(PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS=1 << 15, CR3_TARGET_COUNT=count)
    for i, target in enumerate(targets):
        vmcs[Field[f"CR3_TARGET_VALUE_{i}"]] = target
    exits = [cr_access.mov_to_cr(vmcs, 3, t, 0, 3) is not None for t in targets]
    assert exits == [i >= count for i in range(4)]


@pytest.mark.parametrize(
    ("mask", "shadow", "exits", "result"),
    [(0, 0, False, 0), (0, 1, False, 0), (1, 0, False, 8), (1, 1, True, None)],
)
def test_clts(mask, shadow, exits, result):
    vmcs = vmcs_with(GUEST_CR0=8, CR0_GUEST_HOST_MASK=mask << 3, CR0_READ_SHADOW=shadow << 3)
    assert cr_access.clts(vmcs, 2) == (VmExit(Reason.CR_ACCESS, 0x20, 2) if exits else None)
    if not exits:
        assert cr_access.clts_result(vmcs) == result


@pytest.mark.parametrize("bit", range(16))
@pytest.mark.parametrize(("mask", "shadow", "source"), [*itertools.product((0, 1), repeat=3)])
def test_lmsw(bit, mask, shadow, source):
    """PE exits only when it would be set, TS, EM and MP when they would change, the others never."""
    vmcs = vmcs_with(CR0_GUEST_HOST_MASK=mask << bit, CR0_READ_SHADOW=shadow << bit)
    exit_ = cr_access.lmsw(vmcs, source << bit, 3)
    exits = {0: mask and source and not shadow}.get(bit, bit < 4 and mask and source != shadow)
    assert exit_ == (VmExit(Reason.CR_ACCESS, source << bit << 16 | 0x30, 3) if exits else None)


def test_lmsw_from_memory_records_the_operand():
    vmcs = vmcs_with(CR0_GUEST_HOST_MASK=2)
    assert cr_access.lmsw(vmcs, 2, 4, gva=0x5000) == VmExit(Reason.CR_ACCESS, 0x2_0070, 4, guest_linear=0x5000)


@pytest.mark.parametrize(
    ("guest", "source", "result"),
    [(0x10, 0xF, 0x1F), (0x1F, 0, 0x11), (0x8000_0011, 0xFFF8, 0x8000_0019), (0, 1, 1)],
)
def test_lmsw_sets_but_never_clears_pe(guest, source, result):
    assert cr_access.lmsw_result(vmcs_with(GUEST_CR0=guest), source) == result


def test_lmsw_leaves_the_hosts_bits():
    assert cr_access.lmsw_result(vmcs_with(GUEST_CR0=0x13, CR0_GUEST_HOST_MASK=2, CR0_READ_SHADOW=0), 5) == 0x17


def test_the_shadowed_registers_name_their_fields():
    assert (CR0.guest, CR0.mask, CR0.shadow) == (0x6800, 0x6000, 0x6004)
    assert (CR4.guest, CR4.mask, CR4.shadow) == (0x6804, 0x6002, 0x6006)
