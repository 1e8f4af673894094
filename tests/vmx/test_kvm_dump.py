"""The dump of Linux KVM, as dump_vmcs() prints it: every line is read, and a cut or broken one is told."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.errors import InputError
from hvemu.vmx.fields import Field
from hvemu.vmx.kvm_dump import is_dump, parse
from hvemu.vmx.msr_load import MsrEntry

LOG = (Path(__file__).parent / "kvm.log").read_text(encoding="utf-8")
MESSAGES = [re.sub(r"^\[ *[\d.]+\] kvm_intel: ", "", line) for line in LOG.splitlines()]
BARE = "\n".join(MESSAGES)

# Read off the log by eye.
SHOWN = {
    "GUEST_CR0": 0x8005_0033, "CR0_READ_SHADOW": 0x8005_0033, "CR0_GUEST_HOST_MASK": 0xFFFF_FFFF_FFFE_FFF7,
    "GUEST_CR4": 0x77_2EF0, "CR4_READ_SHADOW": 0x77_0EF0, "CR4_GUEST_HOST_MASK": 0xFFFF_FFFF_FFFE_F871,
    "GUEST_CR3": 0xA60_E003, "GUEST_PDPTE0": 0, "GUEST_PDPTE3": 0,
    "GUEST_RSP": 0xFFFF_C900_0001_3E78, "GUEST_RIP": 0xFFFF_FFFF_81E5_A13B, "GUEST_RFLAGS": 0x246, "GUEST_DR7": 0x400,
    "GUEST_IA32_SYSENTER_ESP": 0xFFFF_FE00_0000_3000, "GUEST_IA32_SYSENTER_CS": 0x10,
    "GUEST_IA32_SYSENTER_EIP": 0xFFFF_FFFF_8200_1670,
    "GUEST_CS_SELECTOR": 0x10, "GUEST_CS_ACCESS_RIGHTS": 0xA09B, "GUEST_CS_LIMIT": 0xFFFF_FFFF, "GUEST_CS_BASE": 0,
    "GUEST_SS_SELECTOR": 0x18, "GUEST_GS_BASE": 0xFFFF_8880_7DC0_0000, "GUEST_DS_ACCESS_RIGHTS": 0x1_C001,
    "GUEST_LDTR_ACCESS_RIGHTS": 0x1_C000, "GUEST_TR_SELECTOR": 0x40, "GUEST_TR_LIMIT": 0x4087,
    "GUEST_TR_ACCESS_RIGHTS": 0x8B, "GUEST_GDTR_LIMIT": 0x7F, "GUEST_GDTR_BASE": 0xFFFF_FE00_0000_1000,
    "GUEST_IDTR_LIMIT": 0xFFF, "GUEST_IDTR_BASE": 0xFFFF_FE00_0000_0000,
    "GUEST_IA32_EFER": 0xD01, "GUEST_IA32_PAT": 0x0407_0506_0007_0106, "GUEST_IA32_DEBUGCTL": 0,
    "GUEST_PENDING_DEBUG_EXCEPTIONS": 0, "GUEST_INTERRUPTIBILITY_STATE": 0, "GUEST_ACTIVITY_STATE": 0,
    "HOST_RIP": 0xFFFF_FFFF_C0D5_F2C0, "HOST_RSP": 0xFFFF_B1E6_4157_FB88, "HOST_CS_SELECTOR": 0x10,
    "HOST_SS_SELECTOR": 0x18, "HOST_TR_SELECTOR": 0x40, "HOST_FS_BASE": 0x7F3A_6BFF_F640,
    "HOST_GS_BASE": 0xFFFF_8F8D_7F54_0000, "HOST_TR_BASE": 0xFFFF_FE5F_4A5C_9000,
    "HOST_GDTR_BASE": 0xFFFF_FE5F_4A5C_7000, "HOST_IDTR_BASE": 0xFFFF_FE00_0000_0000,
    "HOST_CR0": 0x8005_0033, "HOST_CR3": 0x1_18F3_E004, "HOST_CR4": 0x77_2EF0, "HOST_IA32_SYSENTER_CS": 0x10,
    "HOST_IA32_SYSENTER_EIP": 0xFFFF_FFFF_A180_1A20, "HOST_IA32_EFER": 0xD01,
    "PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS": 0xB5A0_6DFA,
    "SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS": 0x212_37EB,
    "PIN_BASED_VM_EXECUTION_CONTROLS": 0xFF, "VM_ENTRY_CONTROLS": 0xD3FF, "VM_EXIT_CONTROLS": 0x2B_EFFF,
    "EXCEPTION_BITMAP": 0x6_0042, "VM_ENTRY_INTERRUPTION_INFORMATION": 0, "VM_EXIT_INSTRUCTION_LENGTH": 2,
    "VM_EXIT_REASON": 0x8000_0021, "EXIT_QUALIFICATION": 0, "TSC_OFFSET": 0xFFFF_EE2C_1BD3_5A1E,
    "TSC_MULTIPLIER": 1 << 48, "TPR_THRESHOLD": 0, "APIC_ACCESS_ADDRESS": 0x1_03E5_C000,
    "VIRTUAL_APIC_ADDRESS": 0x1_17B2_E000, "POSTED_INTERRUPT_NOTIFICATION_VECTOR": 0xF2,
    "EPT_POINTER": 0x1_1A4B_905E, "PLE_GAP": 0x80, "PLE_WINDOW": 0x1000, "VPID": 1,
}  # fmt: skip


def test_every_value_is_taken():
    values = parse(LOG).values
    assert {name: values[Field[name]] for name in SHOWN} == SHOWN


@pytest.mark.parametrize(
    "prefix",
    ["", "[    0.000001] ",
     "[Tue Nov 25 19:07:01 2025] kvm_intel: ", "Nov 25 19:07:01 host kernel: [ 81.2] kvm_intel: ",
     "<3>[ 8120.5] ", "kern  :err   : [ 8120.514019] ", "2025-11-25T19:07:01.123456+00:00 host kernel: "],
)  # fmt: skip
def test_what_stands_before_a_message_does_not_count(prefix):
    assert parse("\n".join(prefix + message for message in MESSAGES)).values == parse(LOG).values


@pytest.mark.parametrize("end", ["\r\n", "\n\n", "\n[ 1.0] usb 1-1: new device\n", " \n"])
def test_other_messages_and_line_ends_do_not_count(end):
    assert parse(end.join(MESSAGES)).values == parse(LOG).values


OLD = [
    ("EFER= 0x0000000000000d01\nPAT = 0x0407050600070106", "EFER =     0x0000000000000d01  PAT = 0x0407050600070106"),
    ("CPUBased=0xb5a06dfa SecondaryExec=0x021237eb TertiaryExec=0x0000000000000000",
     "CPUBased=b5a06dfa SecondaryExec=021237eb"),
    ("PinBased=0x000000ff", "PinBased=000000ff"),
]  # fmt: skip


def test_old_kernels_print_some_lines_otherwise():
    text = BARE
    for new, old in OLD:
        assert new in text
        text = text.replace(new, old)
    old = parse(text).values
    assert old.pop(Field.TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, None) is None
    assert old.items() <= parse(LOG).values.items()
    assert old[Field.HOST_IA32_EFER] == 0xD01


AUTOLOAD = """\
MSR guest autoload:
   0: msr=0x00000600 value=0x0000000000000000
   1: msr=0xc0000080 value=0x0000000000000d01
"""


def test_the_msrs_that_entry_loads_are_taken():
    dump = parse(BARE.replace("*** Host State ***", f"{AUTOLOAD}*** Host State ***"))
    assert dump.area == [MsrEntry(index=0x600), MsrEntry(index=0xC000_0080, data=0xD01)]
    assert dump.values[Field.VM_ENTRY_MSR_LOAD_COUNT] == 2
    assert Field.VM_ENTRY_MSR_LOAD_COUNT not in parse(LOG).values


def test_the_msrs_of_the_host_are_counted():
    text = BARE.replace("*** Control State ***", AUTOLOAD.replace("guest", "host") + "*** Control State ***")
    dump = parse(text)
    assert (dump.area, dump.values[Field.VM_EXIT_MSR_LOAD_COUNT]) == ([], 2)


# The lines that dump_vmcs() prints only under some condition.
CONDITIONAL = ("PDPTR", "EFER", "PAT", "InterruptStatus", "TSC Multiplier", "SVI|RVI", "APIC-access", "PostedIntr",
               "EPT pointer", "PLE Gap", "Virtual processor", "VMCS 0", "set kvm_intel")  # fmt: skip


@pytest.mark.parametrize("number", range(len(MESSAGES)), ids=lambda n: f"line {n}")
def test_a_line_may_be_missing_only_if_the_kernel_leaves_it_out_at_times(number):
    rest = "\n".join(MESSAGES[:number] + MESSAGES[number + 1 :])
    if MESSAGES[number].startswith(CONDITIONAL):
        assert parse(rest).values
    else:
        with pytest.raises(InputError, match="the dump is not whole"):
            parse(rest)


@pytest.mark.parametrize("length", range(0, LOG.index("TSC Offset") + 20, 97))
def test_a_cut_dump_is_refused(length):
    with pytest.raises(InputError, match="the dump is not whole"):
        parse(LOG[:length])


def test_a_cut_number_is_not_taken_for_a_small_one():
    cut = LOG.replace("TSC Offset = 0xffffee2c1bd35a1e", "TSC Offset = 0xffffee2c")
    with pytest.raises(InputError, match="TSC Offset"):
        parse(cut)


def test_of_several_dumps_the_last_whole_one_counts():
    other = LOG.replace("RFLAGS=0x00000246", "RFLAGS=0x00000002")
    for text, number, count, flags in [
        (LOG + other, 2, 2, 2), (other + LOG, 2, 2, 0x246), (LOG + other[:900], 1, 2, 0x246),
    ]:  # fmt: skip
        dump = parse(text)
        assert (dump.number, dump.count, dump.values[Field.GUEST_RFLAGS]) == (number, count, flags)


def test_a_value_that_is_too_wide_is_told():
    with pytest.raises(InputError, match="GUEST_CS_SELECTOR: 0x10010 does not fit into its 16 bits"):
        parse(LOG.replace("CS:   sel=0x0010", "CS:   sel=0x10010"))


def test_a_log_without_a_dump_is_no_dump():
    assert is_dump(LOG)
    assert not is_dump("[ 1.0] usb 1-1: new device")


@given(st.text(alphabet="*GuestHoaClrn=0x:fd \n", max_size=200), st.integers(0, len(LOG)))
def test_nothing_but_an_input_error_escapes(noise, at):
    with suppress(InputError):
        parse(LOG[:at] + noise + LOG[at:])
