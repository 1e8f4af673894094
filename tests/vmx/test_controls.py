"""Control bits and capability MSRs against the tables of SDM 3C and the appendix of SDM 3D."""

from __future__ import annotations

import pytest

from hvemu.vmx.capabilities import CAPABILITIES, ENTRY, EXIT, MSRS, PIN, PRIMARY, SECONDARY
from hvemu.vmx.controls import Entry, EptPointer, Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased

BITS = {
    PinBased: {"external_interrupt_exiting": 0, "nmi_exiting": 3, "virtual_nmis": 5, "process_posted_interrupts": 7},
    PrimaryProcessorBased: {
        "interrupt_window_exiting": 2, "use_tsc_offsetting": 3, "hlt_exiting": 7, "invlpg_exiting": 9,
        "mwait_exiting": 10, "rdpmc_exiting": 11, "rdtsc_exiting": 12, "cr3_load_exiting": 15, "cr3_store_exiting": 16,
        "cr8_load_exiting": 19, "cr8_store_exiting": 20, "use_tpr_shadow": 21, "nmi_window_exiting": 22,
        "mov_dr_exiting": 23, "unconditional_io_exiting": 24, "use_io_bitmaps": 25, "monitor_trap_flag": 27,
        "use_msr_bitmaps": 28, "monitor_exiting": 29, "pause_exiting": 30, "activate_secondary_controls": 31,
    },
    SecondaryProcessorBased: {
        "virtualize_apic_accesses": 0, "enable_ept": 1, "descriptor_table_exiting": 2, "enable_rdtscp": 3,
        "enable_vpid": 5, "wbinvd_exiting": 6, "unrestricted_guest": 7, "pause_loop_exiting": 10, "enable_invpcid": 12,
        "enable_vm_functions": 13, "vmcs_shadowing": 14, "enable_pml": 17, "enable_xsaves_xrstors": 20,
        "use_tsc_scaling": 25,
    },
    Exit: {
        "save_debug_controls": 2, "host_address_space_size": 9, "acknowledge_interrupt_on_exit": 15,
        "save_ia32_pat": 18, "load_ia32_pat": 19, "save_ia32_efer": 20, "load_ia32_efer": 21,
    },
    Entry: {"load_debug_controls": 2, "ia32e_mode_guest": 9, "entry_to_smm": 10, "load_ia32_pat": 14,
            "load_ia32_efer": 15},
}  # fmt: skip
FIXED = [
    (0x481, PIN.default1, 0x16, 0x48D, 0x16),
    (0x482, PRIMARY.default1, 0x0401_E172, 0x48E, 0x0400_6172),
    (0x483, EXIT.default1, 0x0003_6DFF, 0x48F, 0x0003_6DFB),
    (0x484, ENTRY.default1, 0x0000_11FF, 0x490, 0x0000_11FB),
]


@pytest.mark.parametrize(
    ("register", "name", "number"), [(r, n, b) for r, names in BITS.items() for n, b in names.items()]
)
def test_bit_number_is_the_manuals(register, name, number):
    assert register(**{name: 1}) == 2**number


@pytest.mark.parametrize(("plain", "declared", "default1", "true", "must_be_one"), FIXED)
def test_the_default1_class_is_the_manuals(plain, declared, default1, true, must_be_one):
    assert declared == default1
    assert MSRS[plain] % 2**32 == default1
    assert MSRS[true] % 2**32 == must_be_one


@pytest.mark.parametrize("capability", CAPABILITIES.values(), ids=lambda c: f"{c.offered:#x}")
def test_what_must_be_one_may_be_one(capability):
    assert capability.must_be_one & ~capability.may_be_one == 0
    assert capability.relaxed & ~capability.default1 == 0


def test_adjust_sets_what_is_fixed_and_clears_what_is_not_offered():
    assert PIN.adjust(PinBased(nmi_exiting=1, process_posted_interrupts=1)) == 0x1E
    assert SECONDARY.adjust(2**32 - 1) == SECONDARY.offered


def test_ia32_vmx_basic():
    assert MSRS[0x480] & 0x7FFF_FFFF == 1
    assert MSRS[0x480] >> 32 & 0x1FFF == 4096
    assert MSRS[0x480] >> 50 & 0xF == 6
    assert MSRS[0x480] >> 55 & 1 == 1


def test_fixed_bits_of_cr0_and_cr4():
    assert (MSRS[0x486], MSRS[0x487], MSRS[0x488]) == (0x8000_0021, 0xFFFF_FFFF, 0x2000)
    assert MSRS[0x489] & 0x2000


def test_the_enumeration_msr_holds_the_highest_index():
    # IA32_SPEC_CTRL shadow, 204CH, has the highest index of all fields.
    assert MSRS[0x48A] == 0x4C


def test_ept_capabilities():
    assert MSRS[0x48C] & 0x4040 == 0x4040
    assert MSRS[0x48C] >> 20 & 1 == 1


def test_ept_pointer_layout():
    assert EptPointer(memory_type=6, walk_length=3, enable_accessed_dirty=1, frame=0x12345) == 0x1234505E
