"""The MSR-load area: every clause refuses its counterexample, and the exit names the entry."""

from __future__ import annotations

import pytest

from hvemu.vmx.entry import EntryFailed, vm_entry
from hvemu.vmx.exit import VmExit, deliver_exit
from hvemu.vmx.fields import Field
from hvemu.vmx.msr_load import MSR_CHECKS, MsrEntry, load_msrs
from hvemu.vmx.processor import Surroundings
from hvemu.vmx.reasons import Reason
from hvemu.vmx.template import minimal_vmcs
from hvemu.x86.state import PlainState
from hvemu.x86.vectors import Fault, Vector

STAR, LSTAR, KERNEL_GS_BASE = 0xC000_0081, 0xC000_0082, 0xC000_0102
GOOD = MsrEntry(index=STAR, data=0x23_0008_0000_0000)


class Msrs:
    """MSRs that hold what was written; LSTAR takes canonical addresses only."""

    def __init__(self):
        self.values = {}

    def write(self, index, value):
        if index == LSTAR and value >> 47 not in {0, 0x1FFFF}:
            raise Fault(Vector.GP, 0)
        self.values[index] = value


def area(*entries):
    """Return surroundings whose memory holds *entries* at 5000H."""
    memory = b"".join(int(entry).to_bytes(16, "little") for entry in entries)
    return Surroundings(read=lambda hpa, size: memory[hpa - 0x5000 : hpa - 0x5000 + size])


def enter(*entries):
    vmcs, state, msrs = minimal_vmcs(), PlainState(rip=0x1234), Msrs()
    vmcs[Field.VM_ENTRY_MSR_LOAD_ADDRESS] = 0x5000
    vmcs[Field.VM_ENTRY_MSR_LOAD_COUNT] = len(entries)
    try:
        vm_entry(vmcs, state, launch=True, around=area(*entries), write_msr=msrs.write)
    except EntryFailed as failed:
        return vmcs, state, msrs, failed
    return vmcs, state, msrs, None


def test_entries_are_loaded_in_order():
    again = GOOD.replace(data=1)
    vmcs, _, msrs, failed = enter(GOOD, MsrEntry(index=KERNEL_GS_BASE, data=0x7000), again)
    assert failed is None
    assert vmcs.launched
    assert msrs.values == {STAR: 1, KERNEL_GS_BASE: 0x7000}


@pytest.mark.parametrize("row", MSR_CHECKS, ids=lambda r: r.name)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_each_clause_refuses_its_counterexample_with_the_number_of_the_entry(row, before):
    """SDM 3C "VM-Entry Failures During or After Loading Guest State": the first entry has the number 1."""
    vmcs, state, _, failed = enter(*[GOOD] * before, row.breaks, GOOD)
    assert failed.exit == VmExit(Reason.ENTRY_FAILURE_MSR_LOADING, before + 1, entry_failure=True)
    assert failed.why.startswith(f"{row.name}: ")
    assert f"qualification {before + 1}" in failed.why
    assert not vmcs.launched
    deliver_exit(vmcs, state, failed.exit)
    assert (vmcs[Field.VM_EXIT_REASON], vmcs[Field.EXIT_QUALIFICATION]) == (0x8000_0022, before + 1)
    assert vmcs[Field.GUEST_RIP] == 0x8000


@pytest.mark.parametrize("index", [0xC000_0100, 0xC000_0101, 0x800, 0x8FF, 0x9B, 0x79, 0x8B])
def test_these_msrs_are_never_loaded(index):
    assert load_msrs([MsrEntry(index=index)], Msrs().write) is not None


@pytest.mark.parametrize("index", [0xC000_00FF, 0xC000_0102, 0x7FF, 0x900, 0x9A, 0x78, 0x8A])
def test_their_neighbours_are(index):
    msrs = Msrs()
    assert load_msrs([MsrEntry(index=index, data=5)], msrs.write) is None
    assert msrs.values == {index: 5}


def test_an_entry_that_fails_is_not_written_and_ends_the_list():
    _, _, msrs, failed = enter(GOOD, MsrEntry(index=KERNEL_GS_BASE, reserved=1, data=2), MsrEntry(index=0x10))
    assert failed.exit.qualification == 2
    assert msrs.values == {STAR: GOOD.data}


def test_guest_state_is_checked_before_msrs_are_loaded():
    vmcs, state = minimal_vmcs(), PlainState()
    vmcs[Field.VM_ENTRY_MSR_LOAD_COUNT] = 1
    vmcs[Field.GUEST_RFLAGS] = 0
    with pytest.raises(EntryFailed) as caught:
        vm_entry(vmcs, state, launch=True, around=area(MsrEntry(index=0x800)), write_msr=Msrs().write)
    assert caught.value.exit.reason is Reason.ENTRY_FAILURE_GUEST_STATE
