"""What this processor's VMX offers, and the capability MSRs that say so (SDM 3D "VMX Capability Reporting Facility").

One declaration per group of controls: which bits are reserved and fixed to 1, and which may be 1. Everything else, the
IA32_VMX_* MSRs and the checks of VM entry, is computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.bits import Register, bit, bits
from hvemu.vmx.controls import Entry, Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import Encoding, Field
from hvemu.x86.cpuid import Offer
from hvemu.x86.registers import Cr0, Cr4

REVISION_ID = 1
REGION_SIZE = 4096
WRITE_BACK = 6
CR3_TARGETS = 4


def _ones(*numbers: int) -> int:
    return sum(1 << n for n in numbers)


@dataclass(frozen=True, slots=True)
class Capability:
    """One group of controls. *default1*: reserved bits that are 1; *relaxed*: those of them that TRUE_* lets be 0."""

    offered: int
    default1: int = 0
    relaxed: int = 0

    @property
    def must_be_one(self) -> int:
        """Bits that VM entry requires to be 1, as the TRUE_* MSR reports them."""
        return self.default1 & ~self.relaxed

    @property
    def may_be_one(self) -> int:
        """Bits that VM entry allows to be 1."""
        return self.offered | self.default1

    @property
    def msr(self) -> int:
        """The plain MSR: every default1 bit is fixed."""
        return self.may_be_one << 32 | self.default1

    @property
    def true_msr(self) -> int:
        """The TRUE_* MSR."""
        return self.may_be_one << 32 | self.must_be_one

    def adjust(self, wanted: int) -> int:
        """Return the legal value nearest to *wanted*: what every hypervisor computes from the MSR."""
        return (wanted | self.must_be_one) & self.may_be_one


PIN = Capability(
    PinBased(external_interrupt_exiting=1, nmi_exiting=1, virtual_nmis=1),
    default1=_ones(1, 2, 4),
)
PRIMARY = Capability(
    PrimaryProcessorBased(
        interrupt_window_exiting=1, use_tsc_offsetting=1, hlt_exiting=1, invlpg_exiting=1, mwait_exiting=1,
        rdpmc_exiting=1, rdtsc_exiting=1, cr3_load_exiting=1, cr3_store_exiting=1, cr8_load_exiting=1,
        cr8_store_exiting=1, nmi_window_exiting=1, mov_dr_exiting=1, unconditional_io_exiting=1, use_io_bitmaps=1,
        use_msr_bitmaps=1, monitor_exiting=1, pause_exiting=1, activate_secondary_controls=1,
    ),
    default1=_ones(1, 4, 5, 6, 8, 13, 14, 15, 16, 26),
    relaxed=PrimaryProcessorBased(cr3_load_exiting=1, cr3_store_exiting=1),
)  # fmt: skip
SECONDARY = Capability(
    SecondaryProcessorBased(
        enable_ept=1, descriptor_table_exiting=1, enable_rdtscp=1, enable_vpid=1, wbinvd_exiting=1,
        unrestricted_guest=1,
    ),
)  # fmt: skip
EXIT = Capability(
    Exit(
        save_debug_controls=1, host_address_space_size=1, acknowledge_interrupt_on_exit=1, save_ia32_pat=1,
        load_ia32_pat=1, save_ia32_efer=1, load_ia32_efer=1,
    ),
    default1=_ones(0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 16, 17),
    relaxed=Exit(save_debug_controls=1),
)  # fmt: skip
ENTRY = Capability(
    Entry(load_debug_controls=1, ia32e_mode_guest=1, load_ia32_pat=1, load_ia32_efer=1),
    default1=_ones(0, 1, 2, 3, 4, 5, 6, 7, 8, 12),
    relaxed=Entry(load_debug_controls=1),
)
CAPABILITIES: dict[Field, Capability] = {
    Field.PIN_BASED_VM_EXECUTION_CONTROLS: PIN,
    Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: PRIMARY,
    Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: SECONDARY,
    Field.VM_EXIT_CONTROLS: EXIT,
    Field.VM_ENTRY_CONTROLS: ENTRY,
}

CR0_FIXED0 = int(Cr0(pe=1, ne=1, pg=1))
"""Bits of CR0 that VMX operation fixes to 1."""
CR0_FIXED1 = 0xFFFF_FFFF
"""Bits of CR0 that may be 1."""
CR4_FIXED0 = int(Cr4(vmxe=1))
CR4_FIXED1 = Offer(vmx=True).cr4
"""Bits of CR4 that may be 1: those of the features that CPUID offers."""


class Basic(Register):
    """IA32_VMX_BASIC (SDM 3D "Basic VMX Information")."""

    revision_id = bits(30, 0)
    region_size = bits(44, 32)
    addresses_32_bit = bit(48)
    dual_monitor = bit(49)
    memory_type = bits(53, 50)
    ins_outs_information = bit(54)
    true_controls = bit(55)
    hardware_exception_without_error_code = bit(56)


class Misc(Register):
    """IA32_VMX_MISC (SDM 3D "VMX Capability Reporting Facility")."""

    preemption_timer_rate = bits(4, 0)
    stores_lma = bit(5)
    activity_hlt = bit(6)
    activity_shutdown = bit(7)
    activity_wait_for_sipi = bit(8)
    cr3_targets = bits(24, 16)
    msr_list_size = bits(27, 25)
    vmwrite_exit_information = bit(29)
    injects_length_zero = bit(30)
    mseg_revision = bits(63, 32)


class EptVpid(Register):
    """IA32_VMX_EPT_VPID_CAP (SDM 3D "VMX Capability Reporting Facility")."""

    execute_only = bit(0)
    walk_length_4 = bit(6)
    walk_length_5 = bit(7)
    uncacheable = bit(8)
    write_back = bit(14)
    pages_2m = bit(16)
    pages_1g = bit(17)
    invept = bit(20)
    accessed_dirty = bit(21)
    advanced_exit_information = bit(22)
    supervisor_shadow_stack = bit(23)
    invept_single = bit(25)
    invept_all = bit(26)
    invvpid = bit(32)
    invvpid_address = bit(40)
    invvpid_single = bit(41)
    invvpid_all = bit(42)
    invvpid_retaining_globals = bit(43)


BASIC = Basic(
    revision_id=REVISION_ID, region_size=REGION_SIZE, memory_type=WRITE_BACK, ins_outs_information=1, true_controls=1
)
MISC = Misc(stores_lma=1, activity_hlt=1, activity_shutdown=1, activity_wait_for_sipi=1, cr3_targets=CR3_TARGETS)
EPT_VPID = EptVpid(
    walk_length_4=1, uncacheable=1, write_back=1, pages_2m=1, pages_1g=1, invept=1, accessed_dirty=1,
    invept_single=1, invept_all=1, invvpid=1, invvpid_address=1, invvpid_single=1, invvpid_all=1,
    invvpid_retaining_globals=1,
)  # fmt: skip

MSRS: dict[int, int] = {
    0x480: int(BASIC),
    0x481: PIN.msr,
    0x482: PRIMARY.msr,
    0x483: EXIT.msr,
    0x484: ENTRY.msr,
    0x485: int(MISC),
    0x486: CR0_FIXED0,
    0x487: CR0_FIXED1,
    0x488: CR4_FIXED0,
    0x489: CR4_FIXED1,
    0x48A: int(Encoding(index=max(f.encoding.index for f in Field))),
    0x48B: SECONDARY.msr,
    0x48C: int(EPT_VPID),
    0x48D: PIN.true_msr,
    0x48E: PRIMARY.true_msr,
    0x48F: EXIT.true_msr,
    0x490: ENTRY.true_msr,
}
"""The capability MSRs, IA32_VMX_BASIC (480H) to IA32_VMX_TRUE_ENTRY_CTLS (490H)."""
