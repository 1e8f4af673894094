"""Every VMCS field, its encoding composed from width, area and index (SDM 3D "Field Encoding in VMCS").

The fields of FRED transitions are not here: the processor that is modelled does not offer them.
"""

from __future__ import annotations

from enum import IntEnum

from hvemu.bits import Register, bit, bits, field


class Width(IntEnum):
    """Width of a field."""

    WORD, QWORD, DWORD, NATURAL = range(4)

    @property
    def bits(self) -> int:
        """Number of bits that a field of this width holds; NATURAL is 64 on a processor with Intel 64."""
        return (16, 64, 32, 64)[self]


class Area(IntEnum):
    """Part of the VMCS that a field belongs to; the manual calls it the field's type."""

    CONTROL, EXIT_INFORMATION, GUEST, HOST = range(4)


class Encoding(Register):
    """The operand of VMREAD and VMWRITE (SDM 3C "VMREAD, VMWRITE, and Encodings of VMCS Fields")."""

    high = bit(0)
    index = bits(9, 1)
    area = field(11, 10, Area)
    width = field(14, 13, Width)


_W, _Q, _D, _N = Width


def _control(index: int, width: Width) -> int:
    return int(Encoding(index=index, area=Area.CONTROL, width=width))


def _info(index: int, width: Width) -> int:
    return int(Encoding(index=index, area=Area.EXIT_INFORMATION, width=width))


def _guest(index: int, width: Width) -> int:
    return int(Encoding(index=index, area=Area.GUEST, width=width))


def _host(index: int, width: Width) -> int:
    return int(Encoding(index=index, area=Area.HOST, width=width))


class Field(IntEnum):
    """A VMCS field; its value is its full-access encoding."""

    VPID = _control(0, _W)
    POSTED_INTERRUPT_NOTIFICATION_VECTOR = _control(1, _W)
    EPTP_INDEX = _control(2, _W)
    HLAT_PREFIX_SIZE = _control(3, _W)
    LAST_PID_POINTER_INDEX = _control(4, _W)

    GUEST_ES_SELECTOR = _guest(0, _W)
    GUEST_CS_SELECTOR = _guest(1, _W)
    GUEST_SS_SELECTOR = _guest(2, _W)
    GUEST_DS_SELECTOR = _guest(3, _W)
    GUEST_FS_SELECTOR = _guest(4, _W)
    GUEST_GS_SELECTOR = _guest(5, _W)
    GUEST_LDTR_SELECTOR = _guest(6, _W)
    GUEST_TR_SELECTOR = _guest(7, _W)
    GUEST_INTERRUPT_STATUS = _guest(8, _W)
    PML_INDEX = _guest(9, _W)
    GUEST_UINV = _guest(10, _W)

    HOST_ES_SELECTOR = _host(0, _W)
    HOST_CS_SELECTOR = _host(1, _W)
    HOST_SS_SELECTOR = _host(2, _W)
    HOST_DS_SELECTOR = _host(3, _W)
    HOST_FS_SELECTOR = _host(4, _W)
    HOST_GS_SELECTOR = _host(5, _W)
    HOST_TR_SELECTOR = _host(6, _W)

    IO_BITMAP_A_ADDRESS = _control(0, _Q)
    IO_BITMAP_B_ADDRESS = _control(1, _Q)
    MSR_BITMAP_ADDRESS = _control(2, _Q)
    VM_EXIT_MSR_STORE_ADDRESS = _control(3, _Q)
    VM_EXIT_MSR_LOAD_ADDRESS = _control(4, _Q)
    VM_ENTRY_MSR_LOAD_ADDRESS = _control(5, _Q)
    EXECUTIVE_VMCS_POINTER = _control(6, _Q)
    PML_ADDRESS = _control(7, _Q)
    TSC_OFFSET = _control(8, _Q)
    VIRTUAL_APIC_ADDRESS = _control(9, _Q)
    APIC_ACCESS_ADDRESS = _control(10, _Q)
    POSTED_INTERRUPT_DESCRIPTOR_ADDRESS = _control(11, _Q)
    VM_FUNCTION_CONTROLS = _control(12, _Q)
    EPT_POINTER = _control(13, _Q)
    EOI_EXIT_BITMAP_0 = _control(14, _Q)
    EOI_EXIT_BITMAP_1 = _control(15, _Q)
    EOI_EXIT_BITMAP_2 = _control(16, _Q)
    EOI_EXIT_BITMAP_3 = _control(17, _Q)
    EPTP_LIST_ADDRESS = _control(18, _Q)
    VMREAD_BITMAP_ADDRESS = _control(19, _Q)
    VMWRITE_BITMAP_ADDRESS = _control(20, _Q)
    VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS = _control(21, _Q)
    XSS_EXITING_BITMAP = _control(22, _Q)
    ENCLS_EXITING_BITMAP = _control(23, _Q)
    SUB_PAGE_PERMISSION_TABLE_POINTER = _control(24, _Q)
    TSC_MULTIPLIER = _control(25, _Q)
    TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS = _control(26, _Q)
    ENCLV_EXITING_BITMAP = _control(27, _Q)
    LOW_PASID_DIRECTORY_ADDRESS = _control(28, _Q)
    HIGH_PASID_DIRECTORY_ADDRESS = _control(29, _Q)
    SHARED_EPT_POINTER = _control(30, _Q)
    PCONFIG_EXITING_BITMAP = _control(31, _Q)
    HLAT_POINTER = _control(32, _Q)
    PID_POINTER_TABLE_ADDRESS = _control(33, _Q)
    SECONDARY_VM_EXIT_CONTROLS = _control(34, _Q)
    IA32_SPEC_CTRL_MASK = _control(37, _Q)
    IA32_SPEC_CTRL_SHADOW = _control(38, _Q)

    GUEST_PHYSICAL_ADDRESS = _info(0, _Q)

    VMCS_LINK_POINTER = _guest(0, _Q)
    GUEST_IA32_DEBUGCTL = _guest(1, _Q)
    GUEST_IA32_PAT = _guest(2, _Q)
    GUEST_IA32_EFER = _guest(3, _Q)
    GUEST_IA32_PERF_GLOBAL_CTRL = _guest(4, _Q)
    GUEST_PDPTE0 = _guest(5, _Q)
    GUEST_PDPTE1 = _guest(6, _Q)
    GUEST_PDPTE2 = _guest(7, _Q)
    GUEST_PDPTE3 = _guest(8, _Q)
    GUEST_IA32_BNDCFGS = _guest(9, _Q)
    GUEST_IA32_RTIT_CTL = _guest(10, _Q)
    GUEST_IA32_LBR_CTL = _guest(11, _Q)
    GUEST_IA32_PKRS = _guest(12, _Q)

    HOST_IA32_PAT = _host(0, _Q)
    HOST_IA32_EFER = _host(1, _Q)
    HOST_IA32_PERF_GLOBAL_CTRL = _host(2, _Q)
    HOST_IA32_PKRS = _host(3, _Q)

    PIN_BASED_VM_EXECUTION_CONTROLS = _control(0, _D)
    PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS = _control(1, _D)
    EXCEPTION_BITMAP = _control(2, _D)
    PAGE_FAULT_ERROR_CODE_MASK = _control(3, _D)
    PAGE_FAULT_ERROR_CODE_MATCH = _control(4, _D)
    CR3_TARGET_COUNT = _control(5, _D)
    VM_EXIT_CONTROLS = _control(6, _D)
    VM_EXIT_MSR_STORE_COUNT = _control(7, _D)
    VM_EXIT_MSR_LOAD_COUNT = _control(8, _D)
    VM_ENTRY_CONTROLS = _control(9, _D)
    VM_ENTRY_MSR_LOAD_COUNT = _control(10, _D)
    VM_ENTRY_INTERRUPTION_INFORMATION = _control(11, _D)
    VM_ENTRY_EXCEPTION_ERROR_CODE = _control(12, _D)
    VM_ENTRY_INSTRUCTION_LENGTH = _control(13, _D)
    TPR_THRESHOLD = _control(14, _D)
    SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS = _control(15, _D)
    PLE_GAP = _control(16, _D)
    PLE_WINDOW = _control(17, _D)
    INSTRUCTION_TIMEOUT_CONTROL = _control(18, _D)

    VM_INSTRUCTION_ERROR = _info(0, _D)
    VM_EXIT_REASON = _info(1, _D)
    VM_EXIT_INTERRUPTION_INFORMATION = _info(2, _D)
    VM_EXIT_INTERRUPTION_ERROR_CODE = _info(3, _D)
    IDT_VECTORING_INFORMATION = _info(4, _D)
    IDT_VECTORING_ERROR_CODE = _info(5, _D)
    VM_EXIT_INSTRUCTION_LENGTH = _info(6, _D)
    VM_EXIT_INSTRUCTION_INFORMATION = _info(7, _D)

    GUEST_ES_LIMIT = _guest(0, _D)
    GUEST_CS_LIMIT = _guest(1, _D)
    GUEST_SS_LIMIT = _guest(2, _D)
    GUEST_DS_LIMIT = _guest(3, _D)
    GUEST_FS_LIMIT = _guest(4, _D)
    GUEST_GS_LIMIT = _guest(5, _D)
    GUEST_LDTR_LIMIT = _guest(6, _D)
    GUEST_TR_LIMIT = _guest(7, _D)
    GUEST_GDTR_LIMIT = _guest(8, _D)
    GUEST_IDTR_LIMIT = _guest(9, _D)
    GUEST_ES_ACCESS_RIGHTS = _guest(10, _D)
    GUEST_CS_ACCESS_RIGHTS = _guest(11, _D)
    GUEST_SS_ACCESS_RIGHTS = _guest(12, _D)
    GUEST_DS_ACCESS_RIGHTS = _guest(13, _D)
    GUEST_FS_ACCESS_RIGHTS = _guest(14, _D)
    GUEST_GS_ACCESS_RIGHTS = _guest(15, _D)
    GUEST_LDTR_ACCESS_RIGHTS = _guest(16, _D)
    GUEST_TR_ACCESS_RIGHTS = _guest(17, _D)
    GUEST_INTERRUPTIBILITY_STATE = _guest(18, _D)
    GUEST_ACTIVITY_STATE = _guest(19, _D)
    GUEST_SMBASE = _guest(20, _D)
    GUEST_IA32_SYSENTER_CS = _guest(21, _D)
    VMX_PREEMPTION_TIMER_VALUE = _guest(23, _D)

    HOST_IA32_SYSENTER_CS = _host(0, _D)

    CR0_GUEST_HOST_MASK = _control(0, _N)
    CR4_GUEST_HOST_MASK = _control(1, _N)
    CR0_READ_SHADOW = _control(2, _N)
    CR4_READ_SHADOW = _control(3, _N)
    CR3_TARGET_VALUE_0 = _control(4, _N)
    CR3_TARGET_VALUE_1 = _control(5, _N)
    CR3_TARGET_VALUE_2 = _control(6, _N)
    CR3_TARGET_VALUE_3 = _control(7, _N)

    EXIT_QUALIFICATION = _info(0, _N)
    IO_RCX = _info(1, _N)
    IO_RSI = _info(2, _N)
    IO_RDI = _info(3, _N)
    IO_RIP = _info(4, _N)
    GUEST_LINEAR_ADDRESS = _info(5, _N)

    GUEST_CR0 = _guest(0, _N)
    GUEST_CR3 = _guest(1, _N)
    GUEST_CR4 = _guest(2, _N)
    GUEST_ES_BASE = _guest(3, _N)
    GUEST_CS_BASE = _guest(4, _N)
    GUEST_SS_BASE = _guest(5, _N)
    GUEST_DS_BASE = _guest(6, _N)
    GUEST_FS_BASE = _guest(7, _N)
    GUEST_GS_BASE = _guest(8, _N)
    GUEST_LDTR_BASE = _guest(9, _N)
    GUEST_TR_BASE = _guest(10, _N)
    GUEST_GDTR_BASE = _guest(11, _N)
    GUEST_IDTR_BASE = _guest(12, _N)
    GUEST_DR7 = _guest(13, _N)
    GUEST_RSP = _guest(14, _N)
    GUEST_RIP = _guest(15, _N)
    GUEST_RFLAGS = _guest(16, _N)
    GUEST_PENDING_DEBUG_EXCEPTIONS = _guest(17, _N)
    GUEST_IA32_SYSENTER_ESP = _guest(18, _N)
    GUEST_IA32_SYSENTER_EIP = _guest(19, _N)
    GUEST_IA32_S_CET = _guest(20, _N)
    GUEST_SSP = _guest(21, _N)
    GUEST_IA32_INTERRUPT_SSP_TABLE_ADDRESS = _guest(22, _N)

    HOST_CR0 = _host(0, _N)
    HOST_CR3 = _host(1, _N)
    HOST_CR4 = _host(2, _N)
    HOST_FS_BASE = _host(3, _N)
    HOST_GS_BASE = _host(4, _N)
    HOST_TR_BASE = _host(5, _N)
    HOST_GDTR_BASE = _host(6, _N)
    HOST_IDTR_BASE = _host(7, _N)
    HOST_IA32_SYSENTER_ESP = _host(8, _N)
    HOST_IA32_SYSENTER_EIP = _host(9, _N)
    HOST_RSP = _host(10, _N)
    HOST_RIP = _host(11, _N)
    HOST_IA32_S_CET = _host(12, _N)
    HOST_SSP = _host(13, _N)
    HOST_IA32_INTERRUPT_SSP_TABLE_ADDRESS = _host(14, _N)

    @property
    def encoding(self) -> Encoding:
        """The parts of the encoding."""
        return Encoding(self)

    @property
    def area(self) -> Area:
        """The part of the VMCS that holds the field."""
        return Encoding(self).area

    @property
    def width(self) -> Width:
        """The width of the field."""
        return Encoding(self).width


MASKS: dict[int, int] = {f: (1 << f.width.bits) - 1 for f in Field}
"""The bits that each field can hold."""
