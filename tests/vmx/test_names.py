"""Names of fields as people and headers write them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.errors import InputError
from hvemu.vmx.fields import MASKS, Field, Width
from hvemu.vmx.names import ALIASES, find, number, value_of

# Linux, arch/x86/include/asm/vmx.h: name and encoding.
LINUX = {
    "VIRTUAL_PROCESSOR_ID": 0x0000, "POSTED_INTR_NV": 0x0002, "LAST_PID_POINTER_INDEX": 0x0008,
    "GUEST_ES_SELECTOR": 0x0800, "GUEST_TR_SELECTOR": 0x080E, "GUEST_INTR_STATUS": 0x0810, "GUEST_PML_INDEX": 0x0812,
    "HOST_TR_SELECTOR": 0x0C0C, "IO_BITMAP_A": 0x2000, "IO_BITMAP_A_HIGH": 0x2001, "IO_BITMAP_B": 0x2002,
    "MSR_BITMAP": 0x2004, "VM_EXIT_MSR_STORE_ADDR": 0x2006, "VM_EXIT_MSR_LOAD_ADDR": 0x2008,
    "VM_ENTRY_MSR_LOAD_ADDR": 0x200A, "PML_ADDRESS": 0x200E, "TSC_OFFSET": 0x2010, "VIRTUAL_APIC_PAGE_ADDR": 0x2012,
    "APIC_ACCESS_ADDR": 0x2014, "POSTED_INTR_DESC_ADDR": 0x2016, "VM_FUNCTION_CONTROL": 0x2018, "EPT_POINTER": 0x201A,
    "EPT_POINTER_HIGH": 0x201B, "EOI_EXIT_BITMAP0": 0x201C, "EOI_EXIT_BITMAP3": 0x2022, "EPTP_LIST_ADDRESS": 0x2024,
    "VMREAD_BITMAP": 0x2026, "VMWRITE_BITMAP": 0x2028, "VE_INFORMATION_ADDRESS": 0x202A, "XSS_EXIT_BITMAP": 0x202C,
    "ENCLS_EXITING_BITMAP": 0x202E, "TSC_MULTIPLIER": 0x2032, "TERTIARY_VM_EXEC_CONTROL": 0x2034,
    "PID_POINTER_TABLE": 0x2042, "GUEST_PHYSICAL_ADDRESS": 0x2400, "VMCS_LINK_POINTER": 0x2800,
    "VMCS_LINK_POINTER_HIGH": 0x2801, "GUEST_IA32_DEBUGCTL": 0x2802, "GUEST_IA32_PAT": 0x2804,
    "GUEST_IA32_EFER": 0x2806, "GUEST_PDPTR0": 0x280A, "GUEST_PDPTR3": 0x2810, "GUEST_BNDCFGS": 0x2812,
    "GUEST_IA32_RTIT_CTL": 0x2814, "HOST_IA32_PAT": 0x2C00, "HOST_IA32_PERF_GLOBAL_CTRL": 0x2C04,
    "PIN_BASED_VM_EXEC_CONTROL": 0x4000, "CPU_BASED_VM_EXEC_CONTROL": 0x4002, "EXCEPTION_BITMAP": 0x4004,
    "PAGE_FAULT_ERROR_CODE_MASK": 0x4006, "CR3_TARGET_COUNT": 0x400A, "VM_EXIT_CONTROLS": 0x400C,
    "VM_EXIT_MSR_STORE_COUNT": 0x400E, "VM_ENTRY_CONTROLS": 0x4012, "VM_ENTRY_INTR_INFO_FIELD": 0x4016,
    "VM_ENTRY_EXCEPTION_ERROR_CODE": 0x4018, "VM_ENTRY_INSTRUCTION_LEN": 0x401A, "TPR_THRESHOLD": 0x401C,
    "SECONDARY_VM_EXEC_CONTROL": 0x401E, "PLE_GAP": 0x4020, "NOTIFY_WINDOW": 0x4024, "VM_INSTRUCTION_ERROR": 0x4400,
    "VM_EXIT_REASON": 0x4402, "VM_EXIT_INTR_INFO": 0x4404, "VM_EXIT_INTR_ERROR_CODE": 0x4406,
    "IDT_VECTORING_INFO_FIELD": 0x4408, "VM_EXIT_INSTRUCTION_LEN": 0x440C, "VMX_INSTRUCTION_INFO": 0x440E,
    "GUEST_ES_LIMIT": 0x4800, "GUEST_ES_AR_BYTES": 0x4814, "GUEST_TR_AR_BYTES": 0x4822,
    "GUEST_INTERRUPTIBILITY_INFO": 0x4824, "GUEST_ACTIVITY_STATE": 0x4826, "GUEST_SYSENTER_CS": 0x482A,
    "VMX_PREEMPTION_TIMER_VALUE": 0x482E, "HOST_IA32_SYSENTER_CS": 0x4C00, "CR0_GUEST_HOST_MASK": 0x6000,
    "CR3_TARGET_VALUE0": 0x6008, "CR3_TARGET_VALUE3": 0x600E, "EXIT_QUALIFICATION": 0x6400,
    "GUEST_LINEAR_ADDRESS": 0x640A, "GUEST_CR0": 0x6800, "GUEST_PENDING_DBG_EXCEPTIONS": 0x6822,
    "GUEST_SYSENTER_ESP": 0x6824, "GUEST_SYSENTER_EIP": 0x6826, "GUEST_S_CET": 0x6828, "GUEST_SSP": 0x682A,
    "GUEST_INTR_SSP_TABLE": 0x682C, "HOST_IA32_SYSENTER_ESP": 0x6C10, "HOST_RIP": 0x6C16, "HOST_S_CET": 0x6C18,
}  # fmt: skip
# SDM 3D "Field Encoding in VMCS": name and encoding.
MANUAL = {
    "Virtual-processor identifier (VPID)": 0x0000, "Guest ES selector": 0x0800, "Host TR selector": 0x0C0C,
    "Address of I/O bitmap A (full)": 0x2000, "Address of I/O bitmap A (high)": 0x2001,
    "Address of MSR bitmaps (full)": 0x2004, "VM-exit MSR-store address (full)": 0x2006, "TSC offset (full)": 0x2010,
    "Virtual-APIC address (full)": 0x2012, "EPT pointer (EPTP; full)": 0x201A, "Guest IA32_EFER (high)": 0x2807,
    "Guest PDPTE0 (full)": 0x280A, "Pin-based VM-execution controls": 0x4000,
    "Primary processor-based VM-execution controls": 0x4002, "Exception bitmap": 0x4004,
    "VM-entry interruption-information field": 0x4016, "Exit reason": 0x4402, "IDT-vectoring information field": 0x4408,
    "Guest CS access rights": 0x4816, "Guest interruptibility state": 0x4824, "CR0 guest/host mask": 0x6000,
    "CR3-target value 0": 0x6008, "Exit qualification": 0x6400, "Guest pending debug exceptions": 0x6822,
}  # fmt: skip


@pytest.mark.parametrize(("name", "encoding"), [*LINUX.items(), *MANUAL.items()])
def test_the_names_of_linux_and_of_the_manual_are_known(name, encoding):
    field, high = find(name)
    assert field + high == encoding


@pytest.mark.parametrize("write", [str.lower, str.title, lambda n: n.replace("_", "-"), lambda n: f" {n} "])
def test_our_names_are_known_however_they_are_written(write):
    assert [find(write(f.name)) for f in Field] == [(f, False) for f in Field]


def test_encodings_are_known():
    assert [find(f"{f:#06x}") for f in Field] == [find(str(int(f))) for f in Field] == [(f, False) for f in Field]


def test_high_halves_are_those_of_64_bit_fields():
    wide = [f for f in Field if f.width is Width.QWORD]
    assert [find(f"{f + 1:#x}") for f in wide] == [find(f"{f.name}_HIGH") for f in wide] == [(f, True) for f in wide]


@pytest.mark.parametrize("name", ["0x4001", "0x681f", "0x0801", "GUEST_RIP_HIGH", "VPID_HIGH", "EXCEPTION_BITMAP_HIGH"])
def test_other_fields_have_no_high_half(name):
    with pytest.raises(InputError):
        find(name)


def test_no_alias_hides_a_field():
    assert ALIASES.keys() & Field.__members__.keys() == set()


@pytest.mark.parametrize(
    ("name", "near"),
    [("GUEST_RFLAG", "GUEST_RFLAGS"), ("geust_cr0", "GUEST_CR0"), ("HOST_EFER", "HOST_IA32_EFER"),
     ("VM_ENTRY_INT_INFO", "VM_ENTRY_INTR_INFO_FIELD"), ("GUEST_CS_ACCES_RIGHTS", "GUEST_CS_ACCESS_RIGHTS")],
)  # fmt: skip
def test_a_wrong_name_is_answered_with_a_near_one(name, near):
    with pytest.raises(InputError, match="is not the name of a VMCS field") as caught:
        find(name)
    meant = str(caught.value).partition("did you mean ")[2].rstrip("?")
    assert find(meant) == find(near)


@pytest.mark.parametrize("name", ["", "____", "0x9999", "-1", "99999999999999999999", "x" * 1000, "\0", "é"])
def test_nonsense_is_refused_in_one_short_line(name):
    with pytest.raises(InputError) as caught:
        find(name)
    assert len(str(caught.value)) < 160
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given_", "value"),
    [(16, 16), ("16", 16), ("0x10", 16), ("0b11", 3), ("0xFFFF_FFFF", 2**32 - 1), (-1, 2**32 - 1), (-(2**31), 2**31)],
)
def test_numbers(given_, value):
    assert value_of(Field.EXCEPTION_BITMAP, given_) == value


@pytest.mark.parametrize("given_", ["", "abc", "10h", 1.5, True, None, [], {}, "0x", float("nan")])
def test_what_is_no_number_is_refused(given_):
    with pytest.raises(InputError, match=r"EXCEPTION_BITMAP: .* is not a number"):
        value_of(Field.EXCEPTION_BITMAP, given_)


@given(st.sampled_from(sorted(Field)), st.integers(-(2**70), 2**70))
def test_a_value_fits_or_is_refused(field, value):
    width = field.width.bits
    if -(2 ** (width - 1)) <= value < 2**width:
        assert value_of(Field(field), value) == value % 2**width
    else:
        with pytest.raises(InputError, match=f"does not fit into its {width} bits"):
            value_of(Field(field), value)


@settings(max_examples=30)  # looking for a near name takes its time
@given(st.text(max_size=40))
def test_nothing_but_an_input_error_escapes(text):
    for attempt in (lambda: find(text), lambda: number("it", 16, text)):
        with suppress(InputError):
            attempt()


def test_masks_are_those_of_the_widths():
    assert all(MASKS[f] == value_of(f, -1) for f in Field)
