"""Why a VM exit happened: the basic exit reasons and the fields that explain them.

Each register below is one exit-information field, laid out as SDM 3C "VM-Exit Information Fields" and
"Basic VM-Exit Information" print it.
"""

from __future__ import annotations

from enum import IntEnum

from hvemu.bits import Register, bit, bits, field


class Reason(IntEnum):
    """Basic exit reasons (SDM 3D "VMX Basic Exit Reasons")."""

    EXCEPTION_OR_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT_SIGNAL = 3
    STARTUP_IPI = 4
    IO_SMI = 5
    OTHER_SMI = 6
    INTERRUPT_WINDOW = 7
    NMI_WINDOW = 8
    TASK_SWITCH = 9
    CPUID = 10
    GETSEC = 11
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDPMC = 15
    RDTSC = 16
    RSM = 17
    VMCALL = 18
    VMCLEAR = 19
    VMLAUNCH = 20
    VMPTRLD = 21
    VMPTRST = 22
    VMREAD = 23
    VMRESUME = 24
    VMWRITE = 25
    VMXOFF = 26
    VMXON = 27
    CR_ACCESS = 28
    MOV_DR = 29
    IO_INSTRUCTION = 30
    RDMSR = 31
    WRMSR = 32
    ENTRY_FAILURE_GUEST_STATE = 33
    ENTRY_FAILURE_MSR_LOADING = 34
    MWAIT = 36
    MONITOR_TRAP_FLAG = 37
    MONITOR = 39
    PAUSE = 40
    ENTRY_FAILURE_MACHINE_CHECK = 41
    TPR_BELOW_THRESHOLD = 43
    APIC_ACCESS = 44
    VIRTUALIZED_EOI = 45
    ACCESS_TO_GDTR_OR_IDTR = 46
    ACCESS_TO_LDTR_OR_TR = 47
    EPT_VIOLATION = 48
    EPT_MISCONFIGURATION = 49
    INVEPT = 50
    RDTSCP = 51
    VMX_PREEMPTION_TIMER_EXPIRED = 52
    INVVPID = 53
    WBINVD_OR_WBNOINVD = 54
    XSETBV = 55
    APIC_WRITE = 56
    RDRAND = 57
    INVPCID = 58
    VMFUNC = 59
    ENCLS = 60
    RDSEED = 61
    PAGE_MODIFICATION_LOG_FULL = 62
    XSAVES = 63
    XRSTORS = 64
    PCONFIG = 65
    SPP_RELATED_EVENT = 66
    UMWAIT = 67
    TPAUSE = 68
    LOADIWKEY = 69
    ENCLV = 70
    ENQCMD_PASID_TRANSLATION_FAILURE = 72
    ENQCMDS_PASID_TRANSLATION_FAILURE = 73
    BUS_LOCK = 74
    INSTRUCTION_TIMEOUT = 75
    SEAMCALL = 76
    TDCALL = 77
    RDMSRLIST = 78
    WRMSRLIST = 79


class ExitReason(Register):
    """The exit-reason field: the basic reason and how the exit came about."""

    basic = field(15, 0, Reason)
    shadow_stack_busy = bit(25)
    bus_lock = bit(26)
    enclave_mode = bit(27)
    pending_mtf = bit(28)
    from_root = bit(29)
    entry_failure = bit(31)


class CrAccess(Register):
    """Exit qualification for control-register accesses."""

    class Kind(IntEnum):
        """Access type."""

        MOV_TO_CR, MOV_FROM_CR, CLTS, LMSW = range(4)

    cr = bits(3, 0)
    kind = field(5, 4, Kind)
    lmsw_memory = bit(6)
    gpr = bits(11, 8)
    lmsw_source = bits(31, 16)


class IoInstruction(Register):
    """Exit qualification for I/O instructions. *size_code* is the size of the access in bytes, less one."""

    size_code = bits(2, 0)
    in_ = bit(3)
    string = bit(4)
    rep = bit(5)
    immediate = bit(6)
    port = bits(31, 16)

    @property
    def size(self) -> int:
        """Bytes accessed: 1, 2 or 4."""
        return self.size_code + 1


class DrAccess(Register):
    """Exit qualification for MOV DR."""

    dr = bits(2, 0)
    from_dr = bit(4)
    gpr = bits(11, 8)


class EptViolation(Register):
    """Exit qualification for EPT violations. *linear_is_gpa*: the access to the final gpa, not to a page table."""

    read = bit(0)
    write = bit(1)
    fetch = bit(2)
    readable = bit(3)
    writable = bit(4)
    executable = bit(5)
    user_executable = bit(6)
    linear_valid = bit(7)
    linear_is_gpa = bit(8)
    user_linear = bit(9)
    writable_linear = bit(10)
    execute_disable_linear = bit(11)
    nmi_unblocking_due_to_iret = bit(12)
    shadow_stack_access = bit(13)
    supervisor_shadow_stack = bit(14)
    guest_paging_verification = bit(15)
    asynchronous = bit(16)


class DebugException(Register):
    """Exit qualification for debug exceptions."""

    b = bits(3, 0)
    bld = bit(11)
    bd = bit(13)
    bs = bit(14)
    rtm = bit(16)


class PendingDebug(Register):
    """Pending debug exceptions (SDM 3C "Guest Non-Register State")."""

    b = bits(3, 0)
    bld = bit(11)
    enabled_breakpoint = bit(12)
    bs = bit(14)
    rtm = bit(16)


class TaskSwitch(Register):
    """Exit qualification for task switches."""

    class Source(IntEnum):
        """What initiated the switch."""

        CALL, IRET, JMP, TASK_GATE_IN_IDT = range(4)

    selector = bits(15, 0)
    source = field(31, 30, Source)


class EntryFailure(IntEnum):
    """Exit qualification of exit reason 33 (SDM 3C "VM-Entry Failures During or After Loading Guest State")."""

    OTHER = 0
    PDPTE = 2
    NMI_INJECTION = 3
    VMCS_LINK_POINTER = 4


class EventType(IntEnum):
    """Type of an event in interruption information."""

    EXTERNAL_INTERRUPT = 0
    RESERVED = 1
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5
    SOFTWARE_EXCEPTION = 6
    OTHER_EVENT = 7


class Interruption(Register):
    """VM-exit interruption information. *nmi_unblocking*: the fault was met by an IRET that unblocked NMIs."""

    vector = bits(7, 0)
    type = field(10, 8, EventType)
    error_code_valid = bit(11)
    nmi_unblocking_due_to_iret = bit(12)
    valid = bit(31)


class EntryInterruption(Register):
    """VM-entry interruption information: the event to inject."""

    vector = bits(7, 0)
    type = field(10, 8, EventType)
    deliver_error_code = bit(11)
    reserved = bits(30, 12)
    valid = bit(31)


class IdtVectoring(Register):
    """IDT-vectoring information: the event whose delivery met the VM exit."""

    vector = bits(7, 0)
    type = field(10, 8, EventType)
    error_code_valid = bit(11)
    valid = bit(31)


class StringInformation(Register):
    """VM-exit instruction information of INS and OUTS. *address_size*: 0, 1, 2 for 16, 32, 64 bits."""

    address_size = bits(9, 7)
    segment = bits(17, 15)


class _MemoryInformation(Register):
    """The part that every form with a memory operand shares. *segment* is an Sreg, *index* and *base* are Gprs."""

    scaling = bits(1, 0)
    address_size = bits(9, 7)
    segment = bits(17, 15)
    index = bits(21, 18)
    index_invalid = bit(22)
    base = bits(26, 23)
    base_invalid = bit(27)


class DescriptorTableInformation(_MemoryInformation):
    """VM-exit instruction information of LIDT, LGDT, SIDT and SGDT. *operand_32*: 32 bits, else 16."""

    class Identity(IntEnum):
        """Which instruction."""

        SGDT, SIDT, LGDT, LIDT = range(4)

    operand_32 = bit(11)
    identity = field(29, 28, Identity)


class SystemSegmentInformation(_MemoryInformation):
    """VM-exit instruction information of LLDT, LTR, SLDT and STR. *register_form*: *reg1* is the operand."""

    class Identity(IntEnum):
        """Which instruction."""

        SLDT, STR, LLDT, LTR = range(4)

    reg1 = bits(6, 3)
    register_form = bit(10)
    identity = field(29, 28, Identity)


class VmxMemoryInformation(_MemoryInformation):
    """VM-exit instruction information of VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS, XSAVES."""


class VmxOperandInformation(_MemoryInformation):
    """VM-exit instruction information of VMREAD and VMWRITE.

    *reg1* is the operand when *register_form*, *reg2* holds the encoding of the field. INVEPT, INVPCID and INVVPID
    use the same layout, without a register form.
    """

    reg1 = bits(6, 3)
    register_form = bit(10)
    reg2 = bits(31, 28)


class Interruptibility(Register):
    """Interruptibility state (SDM 3C "Guest Non-Register State")."""

    blocking_by_sti = bit(0)
    blocking_by_mov_ss = bit(1)
    blocking_by_smi = bit(2)
    blocking_by_nmi = bit(3)
    enclave_interruption = bit(4)


class Activity(IntEnum):
    """Activity state (SDM 3C "Guest Non-Register State")."""

    ACTIVE, HLT, SHUTDOWN, WAIT_FOR_SIPI = range(4)
