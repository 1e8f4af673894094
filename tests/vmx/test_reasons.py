"""Exit reasons and qualifications, bit by bit as SDM 3C, 3D print them."""

from __future__ import annotations

import pytest

from hvemu.vmx.reasons import (
    CrAccess,
    DebugException,
    DescriptorTableInformation,
    DrAccess,
    EntryInterruption,
    EptViolation,
    EventType,
    ExitReason,
    IdtVectoring,
    Interruptibility,
    Interruption,
    IoInstruction,
    Reason,
    StringInformation,
    SystemSegmentInformation,
    TaskSwitch,
    VmxMemoryInformation,
    VmxOperandInformation,
)  # fmt: skip

MANUAL = {
    "EXCEPTION_OR_NMI": 0, "EXTERNAL_INTERRUPT": 1, "TRIPLE_FAULT": 2, "INTERRUPT_WINDOW": 7, "NMI_WINDOW": 8,
    "TASK_SWITCH": 9, "CPUID": 10, "HLT": 12, "INVD": 13, "INVLPG": 14, "RDPMC": 15, "RDTSC": 16, "RSM": 17,
    "VMCALL": 18, "VMLAUNCH": 20, "VMXON": 27, "CR_ACCESS": 28, "MOV_DR": 29, "IO_INSTRUCTION": 30, "RDMSR": 31,
    "WRMSR": 32, "ENTRY_FAILURE_GUEST_STATE": 33, "ENTRY_FAILURE_MSR_LOADING": 34, "MWAIT": 36, "MONITOR": 39,
    "PAUSE": 40, "APIC_ACCESS": 44, "ACCESS_TO_GDTR_OR_IDTR": 46, "ACCESS_TO_LDTR_OR_TR": 47, "EPT_VIOLATION": 48,
    "EPT_MISCONFIGURATION": 49, "INVEPT": 50, "RDTSCP": 51, "VMX_PREEMPTION_TIMER_EXPIRED": 52, "INVVPID": 53,
    "WBINVD_OR_WBNOINVD": 54, "XSETBV": 55, "RDRAND": 57, "INVPCID": 58, "VMFUNC": 59, "RDSEED": 61,
    "PAGE_MODIFICATION_LOG_FULL": 62, "XRSTORS": 64, "TPAUSE": 68, "BUS_LOCK": 74, "WRMSRLIST": 79,
}  # fmt: skip


@pytest.mark.parametrize(("name", "number"), MANUAL.items())
def test_reason_number_is_the_manuals(name, number):
    assert Reason[name] == number


@pytest.mark.parametrize("unused", [35, 38, 42, 71])
def test_numbers_the_manual_leaves_out_are_no_reasons(unused):
    with pytest.raises(ValueError, match=str(unused)):
        Reason(unused)


@pytest.mark.parametrize(
    ("register", "raw"),
    [
        # MOV CR3, RBX; MOV R9, CR8; CLTS; LMSW AX with source 0x8001; LMSW [mem]
        (CrAccess(cr=3, gpr=3), 0x303),
        (CrAccess(cr=8, kind=CrAccess.Kind.MOV_FROM_CR, gpr=9), 0x918),
        (CrAccess(kind=CrAccess.Kind.CLTS), 0x20),
        (CrAccess(kind=CrAccess.Kind.LMSW, lmsw_source=0x8001), 0x8001_0030),
        (CrAccess(kind=CrAccess.Kind.LMSW, lmsw_memory=1), 0x70),
        # OUT 0x20, AL; REP INSD from 0x1F0
        (IoInstruction(immediate=1, port=0x20), 0x20_0040),
        (IoInstruction(size_code=3, in_=1, string=1, rep=1, port=0x1F0), 0x1F0_003B),
        (DrAccess(dr=7, gpr=2), 0x207),
        (DrAccess(dr=6, from_dr=1, gpr=15), 0xF16),
        # a write to a present read-only page, linear address valid, final access
        (EptViolation(write=1, readable=1, linear_valid=1, linear_is_gpa=1), 0x18A),
        (EptViolation(fetch=1, nmi_unblocking_due_to_iret=1), 0x1004),
        (DebugException(b=5, bs=1), 0x4005),
        (DebugException(bd=1), 0x2000),
        (DebugException(rtm=1), 0x1_0000),
        (TaskSwitch(selector=0x28, source=TaskSwitch.Source.TASK_GATE_IN_IDT), 0xC000_0028),
        # a page fault; an NMI; INT3; INT1
        (Interruption(vector=14, type=EventType.HARDWARE_EXCEPTION, error_code_valid=1, valid=1), 0x8000_0B0E),
        (Interruption(vector=2, type=EventType.NMI, valid=1), 0x8000_0202),
        (Interruption(vector=3, type=EventType.SOFTWARE_EXCEPTION, valid=1), 0x8000_0603),
        (EntryInterruption(vector=1, type=EventType.PRIVILEGED_SOFTWARE_EXCEPTION, valid=1), 0x8000_0501),
        (EntryInterruption(vector=0x80, type=EventType.SOFTWARE_INTERRUPT, valid=1), 0x8000_0480),
        (IdtVectoring(vector=13, type=EventType.HARDWARE_EXCEPTION, error_code_valid=1, valid=1), 0x8000_0B0D),
        (ExitReason(basic=Reason.ENTRY_FAILURE_GUEST_STATE, entry_failure=1), 0x8000_0021),
        (StringInformation(address_size=1, segment=3), 0x1_8080),
        (
            DescriptorTableInformation(
                address_size=2, operand_32=1, segment=3, index_invalid=1, base=3, identity=2,
            ),
            0x21C1_8900,
        ),
        (SystemSegmentInformation(reg1=1, register_form=1, identity=3), 0x3000_0408),
        (VmxMemoryInformation(scaling=3, base_invalid=1), 0x0800_0003),
        (VmxOperandInformation(reg1=2, register_form=1, reg2=8), 0x8000_0410),
        (Interruptibility(blocking_by_mov_ss=1, blocking_by_nmi=1), 0xA),
    ],
)  # fmt: skip
def test_layout(register, raw):
    assert int(register) == raw


def test_the_size_of_an_io_access():
    assert [IoInstruction(code).size for code in (0, 1, 3)] == [1, 2, 4]


def test_a_qualification_reads_well():
    assert repr(CrAccess(0x303)) == "CrAccess(0x303: cr=0x3 gpr=0x3)"
