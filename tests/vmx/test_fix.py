"""The smallest fix of every counterexample makes its clause hold, breaks nothing, and cannot be smaller."""

from __future__ import annotations

import pytest

from hvemu.vmx.checks import CHECKS
from hvemu.vmx.clauses import failures
from hvemu.vmx.fields import Field
from hvemu.vmx.fix import Fix, fixes
from hvemu.vmx.processor import ANY, HVEMU
from hvemu.vmx.template import minimal_vmcs

TEMPLATE = {f: minimal_vmcs()[f] for f in Field}
ROWS = [c for c in CHECKS if not c.looks_around and c.name != "eptp_accessed_dirty"]


def broken(row):
    """Return the counterexample of *row*, and a processor on which it is one."""
    values = TEMPLATE | {f: int(v) for f, v in row.breaks.items()}
    return values, HVEMU if not row.passes(values, HVEMU) else ANY


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_every_counterexample_has_fixes_that_repair_it(row):
    values, on = broken(row)
    found = fixes(row, values, on)
    before = {c.name for c in failures(values, on=on)}
    assert 1 <= len(found) <= 3
    for fix in found:
        after = {c.name for c in failures(values | {fix.field: fix.new}, on=on)}
        assert row.name not in after
        assert after <= before
        assert fix.new != fix.old == values[fix.field]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_no_bit_of_a_fix_can_be_left_out(row):
    values, on = broken(row)
    before = {c.name for c in failures(values, on=on)}
    for fix in fixes(row, values, on):
        for n in fix.bits:
            less = {c.name for c in failures(values | {fix.field: fix.new ^ 1 << n}, on=on)}
            assert row.name in less or not less <= before


def of(name, **edit):
    """Return the fixes of the clause *name* in the minimal VMCS with *edit*, in words."""
    (row,) = (c for c in CHECKS if c.name == name)
    values = TEMPLATE | {Field[n]: v for n, v in edit.items()}
    assert not row.passes(values)
    return [str(fix) for fix in fixes(row, values)]


def test_fixes_are_what_a_person_would_do():
    assert of("rflags_reserved_bits", GUEST_RFLAGS=0) == ["GUEST_RFLAGS = 0x2: set bit 1 (fixed1)"]
    assert of("pin_based_reserved_bits", PIN_BASED_VM_EXECUTION_CONTROLS=1) == [
        "PIN_BASED_VM_EXECUTION_CONTROLS = 0x17: set bits 1, 2, 4"
    ]
    assert of("virtual_nmis_need_nmi_exiting", PIN_BASED_VM_EXECUTION_CONTROLS=0x36) == [
        "PIN_BASED_VM_EXECUTION_CONTROLS = 0x16: clear bit 5 (virtual_nmis)",
        "PIN_BASED_VM_EXECUTION_CONTROLS = 0x3e: set bit 3 (nmi_exiting)",
    ]
    assert of("efer_lma_matches_mode", GUEST_IA32_EFER=0x800) == ["GUEST_IA32_EFER = 0xd00: set bits 8 (lme), 10 (lma)"]
    assert of("guest_ia32_sysenter_eip_is_canonical", GUEST_IA32_SYSENTER_EIP=0x00FF_FFFF_8100_0000) == [
        "GUEST_IA32_SYSENTER_EIP = 0xffffffff81000000"
    ]
    assert of(
        "msr_bitmap_address_is_aligned",
        PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS=0x9400_6172,
        MSR_BITMAP_ADDRESS=0x1234_5678,
    ) == ["MSR_BITMAP_ADDRESS = 0x12345000"]


def test_what_is_assumed_is_changed_last():
    (row,) = (c for c in CHECKS if c.name == "blocking_by_sti_needs_if")
    values = TEMPLATE | {Field.GUEST_INTERRUPTIBILITY_STATE: 1}
    assert {fix.field.name for fix in fixes(row, values)} == {"GUEST_INTERRUPTIBILITY_STATE", "GUEST_RFLAGS"}
    (only,) = fixes(row, values, assumed={Field.GUEST_INTERRUPTIBILITY_STATE})
    assert only == Fix(Field.GUEST_RFLAGS, 2, 0x202)


def test_many_bits_are_not_told_one_by_one():
    assert str(Fix(Field.GUEST_RIP, 0, 0xFF)) == "GUEST_RIP = 0xff"
    assert str(Fix(Field.GUEST_CR0, 0x8000_0000, 0x21)) == (
        "GUEST_CR0 = 0x21: set bits 0 (pe), 5 (ne) and clear bit 31 (pg)"
    )
