"""The controls of a VMCS, bit by bit with the manual's names (SDM 3C "VM-Execution Control Fields")."""

from __future__ import annotations

from hvemu.bits import Register, bit, bits


class PinBased(Register):
    """Pin-based VM-execution controls (SDM 3C "Pin-Based VM-Execution Controls")."""

    external_interrupt_exiting = bit(0)
    nmi_exiting = bit(3)
    virtual_nmis = bit(5)
    activate_vmx_preemption_timer = bit(6)
    process_posted_interrupts = bit(7)


class PrimaryProcessorBased(Register):
    """Primary processor-based controls (SDM 3C "Processor-Based VM-Execution Controls")."""

    interrupt_window_exiting = bit(2)
    use_tsc_offsetting = bit(3)
    hlt_exiting = bit(7)
    invlpg_exiting = bit(9)
    mwait_exiting = bit(10)
    rdpmc_exiting = bit(11)
    rdtsc_exiting = bit(12)
    cr3_load_exiting = bit(15)
    cr3_store_exiting = bit(16)
    activate_tertiary_controls = bit(17)
    cr8_load_exiting = bit(19)
    cr8_store_exiting = bit(20)
    use_tpr_shadow = bit(21)
    nmi_window_exiting = bit(22)
    mov_dr_exiting = bit(23)
    unconditional_io_exiting = bit(24)
    use_io_bitmaps = bit(25)
    monitor_trap_flag = bit(27)
    use_msr_bitmaps = bit(28)
    monitor_exiting = bit(29)
    pause_exiting = bit(30)
    activate_secondary_controls = bit(31)


class SecondaryProcessorBased(Register):
    """Secondary processor-based controls (SDM 3C "Processor-Based VM-Execution Controls")."""

    virtualize_apic_accesses = bit(0)
    enable_ept = bit(1)
    descriptor_table_exiting = bit(2)
    enable_rdtscp = bit(3)
    virtualize_x2apic_mode = bit(4)
    enable_vpid = bit(5)
    wbinvd_exiting = bit(6)
    unrestricted_guest = bit(7)
    apic_register_virtualization = bit(8)
    virtual_interrupt_delivery = bit(9)
    pause_loop_exiting = bit(10)
    rdrand_exiting = bit(11)
    enable_invpcid = bit(12)
    enable_vm_functions = bit(13)
    vmcs_shadowing = bit(14)
    enable_encls_exiting = bit(15)
    rdseed_exiting = bit(16)
    enable_pml = bit(17)
    ept_violation_ve = bit(18)
    conceal_vmx_from_pt = bit(19)
    enable_xsaves_xrstors = bit(20)
    pasid_translation = bit(21)
    mode_based_execute_control_for_ept = bit(22)
    sub_page_write_permissions_for_ept = bit(23)
    intel_pt_uses_guest_physical_addresses = bit(24)
    use_tsc_scaling = bit(25)
    enable_user_wait_and_pause = bit(26)
    enable_pconfig = bit(27)
    enable_enclv_exiting = bit(28)
    vmm_bus_lock_detection = bit(30)
    instruction_timeout = bit(31)


class Exit(Register):
    """VM-exit controls (SDM 3C "VM-Exit Controls")."""

    save_debug_controls = bit(2)
    host_address_space_size = bit(9)
    load_ia32_perf_global_ctrl = bit(12)
    acknowledge_interrupt_on_exit = bit(15)
    save_ia32_pat = bit(18)
    load_ia32_pat = bit(19)
    save_ia32_efer = bit(20)
    load_ia32_efer = bit(21)
    save_vmx_preemption_timer_value = bit(22)
    clear_ia32_bndcfgs = bit(23)
    conceal_vmx_from_pt = bit(24)
    clear_ia32_rtit_ctl = bit(25)
    clear_ia32_lbr_ctl = bit(26)
    clear_uinv = bit(27)
    load_cet_state = bit(28)
    load_pkrs = bit(29)
    save_ia32_perf_global_ctl = bit(30)
    activate_secondary_controls = bit(31)


class Entry(Register):
    """VM-entry controls (SDM 3C "VM-Entry Controls")."""

    load_debug_controls = bit(2)
    ia32e_mode_guest = bit(9)
    entry_to_smm = bit(10)
    deactivate_dual_monitor_treatment = bit(11)
    load_ia32_perf_global_ctrl = bit(13)
    load_ia32_pat = bit(14)
    load_ia32_efer = bit(15)
    load_ia32_bndcfgs = bit(16)
    conceal_vmx_from_pt = bit(17)
    load_ia32_rtit_ctl = bit(18)
    load_uinv = bit(19)
    load_cet_state = bit(20)
    load_guest_ia32_lbr_ctl = bit(21)
    load_pkrs = bit(22)


class VmFunctions(Register):
    """VM-function controls (SDM 3C "VM-Function Controls")."""

    eptp_switching = bit(0)


class EptPointer(Register):
    """Extended-page-table pointer (SDM 3C "Extended-Page-Table Pointer (EPTP)").

    *walk_length* is the number of levels less one; *frame* is the hpa of the EPT PML4 table, in pages.
    """

    memory_type = bits(2, 0)
    walk_length = bits(5, 3)
    enable_accessed_dirty = bit(6)
    supervisor_shadow_stack = bit(7)
    reserved = bits(11, 8)
    frame = bits(51, 12)


class RegionHeader(Register):
    """The first four bytes of a VMCS region (SDM 3C "Format of the VMCS Region")."""

    revision_id = bits(30, 0)
    shadow = bit(31)
