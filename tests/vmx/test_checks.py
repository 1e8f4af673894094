"""Every clause of VM entry rejects its counterexample, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hvemu.vmx.capabilities import CAPABILITIES, CR4_FIXED1
from hvemu.vmx.checks import CHECKS, CheckArea, Section
from hvemu.vmx.clauses import failures, plan, plan_for
from hvemu.vmx.entry import EntryFailed, vm_entry
from hvemu.vmx.fail import VmFail
from hvemu.vmx.fields import Field
from hvemu.vmx.processor import ANY, HVEMU, UNKNOWN, Surroundings
from hvemu.vmx.reasons import Reason
from hvemu.vmx.template import minimal_vmcs
from hvemu.x86 import msrs
from hvemu.x86.state import PlainState

SEGMENTS = ["CS", "SS", "DS", "ES", "FS", "GS"]
TEMPLATE = {f: minimal_vmcs()[f] for f in Field}
NEVER_OFFERED = {"secondary_processor_based", "vm_exit_controls", "vm_entry_controls"}
WITHOUT_ACCESSED_DIRTY = replace(HVEMU, ept_vpid=HVEMU.ept_vpid.replace(accessed_dirty=0))
CR4 = {Field.HOST_CR4, Field.GUEST_CR4}


def edited(edit):
    vmcs = minimal_vmcs()
    for field, value in edit.items():
        vmcs[field] = value
    return vmcs


def broken(on=HVEMU, **edit):
    """Return the names of the clauses that the minimal VMCS with *edit* violates."""
    return [c.name for c in failures(TEMPLATE | {Field[name]: value for name, value in edit.items()}, on=on)]


def offered(edit):
    """Whether the modelled processor offers every control and every bit of CR4 in *edit*."""
    controls = (value & ~CAPABILITIES[f].may_be_one for f, value in edit.items() if f in CAPABILITIES)
    return not any(controls) and not any(value & ~CR4_FIXED1 for f, value in edit.items() if f in CR4)


def where(check):
    """Return the processor on which the counterexample of *check* breaks nothing that comes before."""
    if check.name == "eptp_accessed_dirty":
        return WITHOUT_ACCESSED_DIRTY
    by_hvemu = offered(check.breaks) or check.name.removesuffix("_reserved_bits") in NEVER_OFFERED
    return HVEMU if by_hvemu and check.name != "pending_rtm_excludes_mov_ss" else ANY


@pytest.mark.parametrize("on", [HVEMU, ANY], ids=["hvemu", "any"])
def test_the_minimal_vmcs_passes_every_check(on):
    assert broken(on) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.name)
def test_each_check_rejects_its_counterexample_first(check):
    vmcs = edited(check.breaks)
    assert next(failures(vmcs, check.area, where(check), check.near)) is check
    assert plan().first_failure(vmcs, where(check), check.near) is check


@pytest.mark.parametrize("check", [c for c in CHECKS if where(c) is HVEMU], ids=lambda c: c.name)
def test_vm_entry_refuses_each_counterexample_as_a_real_processor_does(check):
    """SDM 3C: error 7 for controls, error 8 for host state, an exit with reason 33 for guest state."""
    vmcs, state = edited(check.breaks), PlainState(rip=0x1234)
    with pytest.raises((VmFail, EntryFailed)) as caught:
        vm_entry(vmcs, state, launch=True, around=check.near)
    error = caught.value
    assert error.why.startswith(f"{check.name}: ")
    if check.area is CheckArea.GUEST_STATE:
        assert (error.exit.reason, error.exit.qualification) == (
            Reason.ENTRY_FAILURE_GUEST_STATE, check.qualification,
        )  # fmt: skip
    else:
        assert error.number == {CheckArea.CONTROLS: 7, CheckArea.HOST_STATE: 8}[check.area]
    assert (state.rip, vmcs.launched) == (0x1234, False)


@pytest.mark.parametrize("check", [c for c in CHECKS if where(c) is HVEMU], ids=lambda c: c.name)
def test_each_check_is_found_by_the_fields_of_its_counterexample(check):
    some = plan_for(frozenset(check.breaks), around=check.near is not UNKNOWN)
    assert some.first_failure(edited(check.breaks), HVEMU, check.near) is not None


@pytest.mark.parametrize("check", [c for c in CHECKS if c.looks_around], ids=lambda c: c.name)
def test_a_clause_on_what_is_not_known_is_not_judged(check):
    assert check not in failures(edited(check.breaks), on=where(check))


def combinations():
    """Yield pairs of rows whose counterexamples can be had at once, each row with several others."""
    for first, one in enumerate(CHECKS):
        for distance in (1, 2, 5, 23, 71, 113):
            other = CHECKS[(first + distance) % len(CHECKS)]
            same = where(one) is where(other) and one.near is other.near
            if same and one.breaks.keys().isdisjoint(other.breaks):
                yield sorted((one, other), key=CHECKS.index)


def test_of_two_violations_the_one_that_the_manual_orders_first_is_reported():
    judged = 0
    for one, other in combinations():
        values = TEMPLATE | one.breaks | other.breaks
        if not one.passes(values, where(one), one.near) and not other.passes(values, where(one), one.near):
            first = plan().first_failure(values, where(one), one.near)
            assert CHECKS.index(first) <= CHECKS.index(one)
            judged += 1
    assert judged > len(CHECKS)


def test_names_are_unique_and_clauses_are_sentences():
    assert len({c.name for c in CHECKS}) == len(CHECKS)
    assert [c.name for c in CHECKS if not c.words().endswith((".", ").")) or "{" in c.words()] == []


# SDM 3C, chapter "VM Entries": its sections in order, and some bullets of each in order.
ORDER = {
    Section.EXECUTION_CONTROLS: """
        pin_based_reserved_bits primary_processor_based_reserved_bits secondary_processor_based_reserved_bits
        cr3_target_count io_bitmap_a_address_is_aligned msr_bitmap_address_is_aligned virtual_apic_address_is_aligned
        tpr_threshold_reserved_bits tpr_threshold_fits_vtpr virtual_nmis_need_nmi_exiting
        nmi_window_needs_virtual_nmis apic_access_address_is_aligned apic_virtualization_needs_tpr_shadow
        x2apic_mode_excludes_apic_accesses virtual_interrupts_need_interrupt_exiting
        posted_interrupts_need_virtual_interrupts posted_interrupts_need_acknowledgement posted_interrupt_vector
        posted_interrupt_descriptor_address_is_aligned vpid_is_not_zero eptp_memory_type eptp_walk_length
        eptp_accessed_dirty eptp_supervisor_shadow_stack eptp_reserved_bits pml_needs_ept pml_address_is_aligned
        unrestricted_guest_needs_ept mode_based_execute_control_needs_ept sub_page_write_permissions_need_ept
        vm_function_controls_reserved_bits eptp_switching_needs_ept eptp_list_address_is_aligned
        vmread_bitmap_address_is_aligned vmwrite_bitmap_address_is_aligned
        virtualization_exception_information_address_is_aligned guest_physical_trace_needs
        tsc_multiplier_is_not_zero""",
    Section.EXIT_CONTROLS: """
        vm_exit_controls_reserved_bits saving_the_timer_needs_the_timer vm_exit_msr_store_address_is_aligned
        vm_exit_msr_store_address_is_physical vm_exit_msr_store_area_ends_in_memory vm_exit_msr_load_address_is_aligned
        vm_exit_msr_load_area_ends_in_memory""",
    Section.ENTRY_CONTROLS: """
        vm_entry_controls_reserved_bits injected_type injected_vector injected_error_code_is_there
        injected_error_code_is_allowed injected_reserved_bits injected_error_code_bits injected_instruction_length
        vm_entry_msr_load_address_is_aligned vm_entry_msr_load_area_ends_in_memory no_smm_outside_smm""",
    Section.HOST_REGISTERS: """
        host_cr0_fixed_bits host_cr4_fixed_bits host_cet_needs_wp host_cr3_is_physical
        host_ia32_sysenter_esp_is_canonical host_pat_is_legal host_efer_reserved_bits host_efer_matches_address_space
        host_s_cet_reserved_bits host_ssp_is_aligned host_pkrs_is_32_bit""",
    Section.HOST_SEGMENTS: """
        host_cs_selector_has_no_rpl_and_ti host_tr_selector_has_no_rpl_and_ti host_cs_selector_is_not_null
        host_tr_selector_is_not_null host_ss_selector_is_not_null host_fs_base_is_canonical
        host_tr_base_is_canonical""",
    Section.ADDRESS_SPACE: """
        host_outside_ia32e_mode host_in_ia32e_mode ia32e_guest_needs_64_bit_host host_pcid_needs_64_bit_host
        host_rip_is_32_bit host_cr4_has_pae host_rip_is_canonical""",
    Section.GUEST_REGISTERS: """
        cr0_fixed_bits cr0_pg_needs_pe cr4_fixed_bits cet_needs_wp debugctl_reserved_bits
        ia32e_mode_needs_paging_and_pae pcid_needs_ia32e_mode cr3_is_physical dr7_is_32_bit
        guest_ia32_sysenter_esp_is_canonical pat_is_legal efer_reserved_bits efer_lma_matches_mode
        efer_lma_matches_lme bndcfgs_reserved_bits s_cet_reserved_bits pkrs_is_32_bit uinv_is_8_bit""",
    Section.GUEST_SEGMENTS: """
        tr_selector_is_in_the_gdt ldtr_selector_is_in_the_gdt_if_usable ss_rpl_equals_cs_rpl cs_base_in_vm86
        tr_base_is_canonical ldtr_base_is_canonical_if_usable cs_base_is_32_bit ss_base_is_32_bit_if_usable
        cs_limit_in_vm86 cs_rights_in_vm86 cs_type_is_accessed_code ss_type_is_accessed_writable_data
        ds_type_is_accessed ds_code_is_readable cs_is_code_or_data ds_is_code_or_data_if_usable cs_data_has_dpl_0
        cs_non_conforming_dpl_equals_ss_dpl cs_conforming_dpl_is_not_above_ss_dpl ss_dpl_equals_rpl
        ss_dpl_is_0_in_real_mode ds_dpl_is_not_below_rpl cs_is_present cs_reserved_bits_11_8
        cs_default_size_is_not_set_in_64_bit_mode cs_granularity_0 cs_granularity_1 cs_reserved_bits_31_17
        tr_type_is_busy_tss tr_is_system tr_is_present tr_reserved_bits_11_8 tr_granularity_0 tr_granularity_1
        tr_is_usable tr_reserved_bits_31_17 ldtr_type_is_ldt_if_usable ldtr_is_system_if_usable
        ldtr_is_present_if_usable ldtr_reserved_bits_11_8_if_usable ldtr_granularity_0_if_usable
        ldtr_reserved_bits_31_17_if_usable""",
    Section.GUEST_TABLES: "guest_gdtr_base_is_canonical guest_idtr_base_is_canonical guest_gdtr_limit_is_16_bit",
    Section.GUEST_RIP: """
        rip_is_32_bit rip_is_extended rflags_reserved_bits vm86_needs_protected_mode injected_interrupt_needs_if
        ssp_is_aligned""",
    Section.GUEST_OTHER: """
        activity_is_supported halted_only_in_ring_0 blocking_needs_activity injected_event_wakes_from_hlt
        injected_event_wakes_from_shutdown no_event_wakes_from_wait_for_sipi interruptibility_reserved_bits
        not_blocked_by_sti_and_mov_ss blocking_by_sti_needs_if injected_interrupt_is_not_blocked
        injected_nmi_is_not_blocked_by_mov_ss not_blocked_by_smi injected_nmi_is_not_blocked_by_sti
        injected_virtual_nmi_is_not_blocked enclave_interruption_excludes_mov_ss pending_debug_reserved_bits
        pending_single_step_is_there pending_single_step_is_not_there pending_rtm_stands_alone
        pending_rtm_excludes_mov_ss link_pointer_is_aligned link_pointer_is_physical link_pointer_names_a_vmcs
        link_pointer_names_the_right_kind link_pointer_is_not_the_current_vmcs""",
    Section.GUEST_PDPTES: "guest_pdpte0_reserved_bits guest_pdpte3_reserved_bits pdptes_in_memory",
}


def test_rows_are_in_the_order_of_the_manual():
    named = {name for names in ORDER.values() for name in names.split()}
    assert [(c.section, c.name) for c in CHECKS if c.name in named] == [
        (section, name) for section, names in ORDER.items() for name in names.split()
    ]
    assert [*dict.fromkeys(c.section for c in CHECKS)] == [*ORDER]


def test_controls_come_before_host_state_before_guest_state():
    order = [[*CheckArea].index(c.area) for c in CHECKS]
    assert order == sorted(order)


def test_an_explanation_names_clause_field_value_and_what_silicon_says():
    vmcs = edited({Field.GUEST_CR0: 0x8000_0030})
    (check,) = failures(vmcs, CheckArea.GUEST_STATE)
    clause, value, report = check.explain(vmcs).splitlines()
    assert clause.startswith("cr0_pg_needs_pe: If CR0.PG is 1, CR0.PE must be 1. [SDM 3C ")
    assert value == "  GUEST_CR0 = 0x80000030  et ne pg"
    assert report.startswith("  a real processor reports VM exit with reason 33")
    assert report.endswith("qualification 0")


def test_a_rule_shows_what_the_processor_offers():
    (row,) = (c for c in CHECKS if c.name == "pin_based_reserved_bits")
    assert row.words().endswith("Must be 1: 0x16; may be 1: 0x3f.")
    assert row.words(ANY).endswith("Must be 1: 0x16; may be 1: 0xffffffff.")


@pytest.mark.parametrize("bit", range(64))
def test_the_debugctl_field_may_hold_what_wrmsr_can_put_in_the_msr(bit):
    (row,) = (row for row in msrs.ROWS if row.index == msrs.DEBUGCTL)
    names = broken(GUEST_IA32_DEBUGCTL=1 << bit)
    assert (names == []) is (row.rule(0, 1 << bit) is not None)


# One edit each that the manual allows, though it looks like one that it forbids.
LEGAL = {
    "unrestricted guests run in real-address mode": {
        "GUEST_CR0": 0x30, "VM_ENTRY_CONTROLS": 0x11FB, "GUEST_CS_ACCESS_RIGHTS": 0xC093, "GUEST_IA32_EFER": 0,
    },
    "EFER is not looked at unless it is loaded": {"VM_ENTRY_CONTROLS": 0x13FB, "GUEST_IA32_EFER": 0xFFFF},
    "an unusable segment may hold anything": {"GUEST_DS_ACCESS_RIGHTS": 0x1_0F00, "GUEST_DS_LIMIT": 0x1234_5678},
    "a secondary control counts only when activated": {
        "PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS": 0x0400_6172,
        "SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS": 0xFFFF_FFFF,
    },
    "a bitmap address counts only when used": {"MSR_BITMAP_ADDRESS": 0x123},
    "an event without its valid bit is no event": {"VM_ENTRY_INTERRUPTION_INFORMATION": 0x7FFF_FFFF},
    "an NMI may be injected with IF=0": {"VM_ENTRY_INTERRUPTION_INFORMATION": 0x8000_0202},
    "#MC wakes a halted guest": {"VM_ENTRY_INTERRUPTION_INFORMATION": 0x8000_0312, "GUEST_ACTIVITY_STATE": 1},
    "#MC wakes a guest in shutdown": {"VM_ENTRY_INTERRUPTION_INFORMATION": 0x8000_0312, "GUEST_ACTIVITY_STATE": 2},
    "INT 80H in ring 3": {
        "VM_ENTRY_INTERRUPTION_INFORMATION": 0x8000_0480, "VM_ENTRY_INSTRUCTION_LENGTH": 2,
        "GUEST_CS_ACCESS_RIGHTS": 0xA0FB, "GUEST_SS_ACCESS_RIGHTS": 0xC0F3, "GUEST_SS_SELECTOR": 0x13,
    },
    "a conforming code segment below SS": {"GUEST_CS_ACCESS_RIGHTS": 0xA09F, "GUEST_SS_ACCESS_RIGHTS": 0xC0F3},
    "a PDPTE that is not present may hold anything": {
        "VM_ENTRY_CONTROLS": 0x11FB, "GUEST_CS_ACCESS_RIGHTS": 0xC09B, "GUEST_PDPTE0": 0xFFFF_FFFF_FFFF_FFFE,
    },
    "an NMI in an STI shadow without an event to inject": {
        "GUEST_INTERRUPTIBILITY_STATE": 1, "GUEST_RFLAGS": 0x202,
    },
}  # fmt: skip


@pytest.mark.parametrize("edit", LEGAL.values(), ids=LEGAL)
def test_what_the_manual_allows_passes(edit):
    assert broken(**edit) == []


WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17}


@pytest.mark.parametrize("vector", range(32))
@pytest.mark.parametrize("deliver", [0, 1])
@pytest.mark.parametrize("real", [False, True])
def test_error_codes_go_with_their_vectors_outside_real_mode(vector, deliver, real):
    edit = LEGAL["unrestricted guests run in real-address mode"] if real else {}
    names = broken(VM_ENTRY_INTERRUPTION_INFORMATION=0x8000_0300 | deliver << 11 | vector, **edit)
    legal = deliver == (vector in WITH_ERROR_CODE and not real)
    assert names == ([] if legal else [f"injected_error_code_is_{'allowed' if deliver else 'there'}"])


@pytest.mark.parametrize("length", [0, 1, 15, 16])
@pytest.mark.parametrize(("kind", "counts"), [(3, False), (4, True), (5, True), (6, True)])
def test_software_events_have_a_length(length, kind, counts):
    names = broken(VM_ENTRY_INTERRUPTION_INFORMATION=0x8000_0003 | kind << 8, VM_ENTRY_INSTRUCTION_LENGTH=length)
    assert names == ([] if not counts or 1 <= length <= 15 else ["injected_instruction_length"])


@pytest.mark.parametrize("register", SEGMENTS)
@pytest.mark.parametrize(
    ("limit", "granular", "legal"),
    [(0, 0, True), (0xFFFFF, 0, True), (0xFFFFF, 1, True), (0xFFFFE, 1, False), (0x10_0000, 0, False),
     (0x10_0FFF, 1, True), (0x10_0FFF, 0, False), (0xFFFF_FFFF, 1, True)],
)  # fmt: skip
def test_granularity(register, limit, granular, legal):
    rights = {"CS": 0xA09B}.get(register, 0xC093) & ~0x8000 | granular << 15
    names = broken(**{f"GUEST_{register}_LIMIT": limit, f"GUEST_{register}_ACCESS_RIGHTS": rights})
    suffix = "" if register == "CS" else "_if_usable"
    assert names == ([] if legal else [f"{register.lower()}_granularity_{1 - granular}{suffix}"])


@pytest.mark.parametrize("bit", range(64))
def test_rflags_reserved_bits(bit):
    # SDM 3C: 63:22, 15, 5, 3 reserved. VM (17) is refused for another reason; TF and the others are free.
    reserved = bit >= 22 or bit in {15, 5, 3}
    names = broken(GUEST_RFLAGS=2 | 1 << bit)
    assert ("rflags_reserved_bits" in names) is reserved
    assert ("vm86_needs_protected_mode" in names) is (bit == 17)


@pytest.mark.parametrize(
    ("rip", "legal"),
    [(0, True), (2**47 - 1, True), (2**47, True), (2**48 - 1, True), (2**48, False), (2**63, False),
     (2**64 - 2**48, True), (2**64 - 2**48 - 1, False), (2**64 - 1, True)],
)  # fmt: skip
def test_rip_need_not_be_canonical_but_its_high_bits_are_equal(rip, legal):
    assert broken(GUEST_RIP=rip) == ([] if legal else ["rip_is_extended"])


@pytest.mark.parametrize("field", ["GUEST_FS_BASE", "GUEST_TR_BASE", "GUEST_GDTR_BASE", "HOST_IDTR_BASE", "HOST_RIP"])
@pytest.mark.parametrize(
    ("gva", "legal"),
    [(0, True), (2**47 - 1, True), (2**47, False), (2**64 - 2**47, True), (2**64 - 2**47 - 1, False), (2**63, False)],
)
def test_other_addresses_must_be_canonical(field, gva, legal):
    assert (broken(**{field: gva}) == []) is legal


@pytest.mark.parametrize(("gva", "legal"), [(2**47, True), (2**56 - 1, True), (2**56, False), (2**64 - 2**56, True)])
def test_a_processor_with_57_bit_addresses_takes_more_of_them(gva, legal):
    assert (broken(replace(ANY, linear_address_width=57), GUEST_FS_BASE=gva) == []) is legal


# Every event of interest, and the activity states in which SDM 3C "Checks on Guest Non-Register State" lets it be
# injected (0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI).
WAKING = {
    "external interrupt": (0x8000_0020, {0, 1}),
    "NMI": (0x8000_0202, {0, 1, 2}),
    "#DB": (0x8000_0301, {0, 1}),
    "#BP by INT3": (0x8000_0603, {0}),
    "#UD": (0x8000_0306, {0}),
    "#GP": (0x8000_0B0D, {0}),
    "#MC": (0x8000_0312, {0, 1, 2}),
    "INT 80H": (0x8000_0480, {0}),
    "INT1": (0x8000_0501, {0}),
    "pending MTF exit": (0x8000_0700, {0, 1}),
    "no event": (0x0000_0306, {0, 1, 2, 3}),
}


@pytest.mark.parametrize("activity", range(5))
@pytest.mark.parametrize(("event", "states"), WAKING.values(), ids=WAKING)
def test_an_event_is_injected_where_it_would_wake_the_processor(activity, event, states):
    names = broken(
        ANY,
        VM_ENTRY_INTERRUPTION_INFORMATION=event,
        VM_ENTRY_INSTRUCTION_LENGTH=1,
        GUEST_ACTIVITY_STATE=activity,
        GUEST_RFLAGS=0x202,
    )
    assert (names == []) is (activity in states)


# Interruptibility state, and the events that may not be injected with it (IF is 1, "virtual NMIs" is 1).
BLOCKED = {0: set(), 1: {"external interrupt", "NMI"}, 2: {"external interrupt", "NMI"}, 8: {"NMI"}}


@pytest.mark.parametrize(("blocking", "blocked"), BLOCKED.items())
@pytest.mark.parametrize("event", WAKING)
def test_an_event_is_not_injected_where_it_is_blocked(blocking, blocked, event):
    names = broken(
        PIN_BASED_VM_EXECUTION_CONTROLS=0x3E,
        VM_ENTRY_INTERRUPTION_INFORMATION=WAKING[event][0],
        VM_ENTRY_INSTRUCTION_LENGTH=1,
        GUEST_INTERRUPTIBILITY_STATE=blocking,
        GUEST_RFLAGS=0x202,
    )
    if event == "pending MTF exit":
        assert names == ["injected_type"]
    else:
        assert (names == []) is (event not in blocked)


@pytest.mark.parametrize("activity", [0, 1])
@pytest.mark.parametrize("blocking", [0, 1, 2])
@pytest.mark.parametrize("tf", [0, 1])
@pytest.mark.parametrize("btf", [0, 1])
@pytest.mark.parametrize("bs", [0, 1])
def test_a_pending_single_step_goes_with_tf_where_it_is_delayed(activity, blocking, tf, btf, bs):
    """A brute-force reading of SDM 3C "Checks on Guest Non-Register State", pending debug exceptions."""
    names = broken(
        ANY,
        GUEST_ACTIVITY_STATE=activity,
        GUEST_INTERRUPTIBILITY_STATE=blocking,
        GUEST_RFLAGS=0x202 | tf << 8,
        GUEST_IA32_DEBUGCTL=btf << 1,
        GUEST_PENDING_DEBUG_EXCEPTIONS=bs << 14,
    )
    delayed = blocking != 0 or activity == 1
    wrong = delayed and bs != (tf and not btf)
    assert bool({*names} & {"pending_single_step_is_there", "pending_single_step_is_not_there"}) is wrong


@pytest.mark.parametrize("bit", range(64))
def test_pending_debug_exceptions_reserved_bits(bit):
    legal = bit in {0, 1, 2, 3, 12, 14}
    assert (broken(GUEST_PENDING_DEBUG_EXCEPTIONS=1 << bit) == []) is legal


@pytest.mark.parametrize("number", range(4))
def test_a_present_pdpte_has_no_reserved_bits(number):
    # SDM 3A "PAE Paging": 2:1, 8:5 and those beyond the physical-address width, here 40.
    edit = {"VM_ENTRY_CONTROLS": 0x11FB, "GUEST_CS_ACCESS_RIGHTS": 0xC09B}
    refused = {bit for bit in range(64) if broken(**edit, **{f"GUEST_PDPTE{number}": 1 | 1 << bit})}
    assert refused == {1, 2, 5, 6, 7, 8, *range(40, 64)}


def test_the_tpr_threshold_is_at_most_the_class_of_vtpr():
    values = TEMPLATE | {
        Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: 0x8420_6172,
        Field.VIRTUAL_APIC_ADDRESS: 0x5000,
        Field.TPR_THRESHOLD: 7,
    }
    for vtpr in range(256):
        memory = bytes(0x80) + bytes([vtpr])
        around = Surroundings(read=lambda hpa, size, memory=memory: memory[hpa - 0x5000 : hpa - 0x5000 + size])
        names = [c.name for c in failures(values, CheckArea.CONTROLS, ANY, around)]
        assert names == ([] if vtpr >= 0x70 else ["tpr_threshold_fits_vtpr"])
