"""What is said about a VMCS: every clause that does not hold, in the order of the manual, and what would help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.report.vmcs_check import as_json, judge, render
from hvemu.report.vmcs_template import as_json as template_json
from hvemu.report.vmcs_template import as_toml
from hvemu.vmx.checks import CHECKS
from hvemu.vmx.fields import MASKS, Field
from hvemu.vmx.vmcs_file import Given, Kind, read

LOG = (Path(__file__).parents[1] / "vmx/kvm.log").read_text(encoding="utf-8")
AUTOLOAD = "MSR guest autoload:\n   0: msr=0xc0000081 value=0x0000000000000000\n   1: msr={} value=0x{}\n"


def of_dump(*changes, capabilities=None):
    """Judge the dump with *changes*, pairs of texts; each must be found once or, for both states, twice."""
    text = LOG
    for old, new in changes:
        assert 1 <= text.count(old) <= 2, old
        text = text.replace(old, new)
    return judge(read(text.encode()), capabilities)


def names(verdict):
    return [violation.row.name for violation in verdict.violations]


def test_a_real_looking_dump_enters():
    verdict = of_dump()
    assert (verdict.enters, names(verdict), verdict.capabilities) == (True, [], "any")
    assert "its cause is not among the fields" in "\n".join(render(verdict, "kvm.log"))


# One wrong field each: what is changed in the dump, the clause, the field at fault, and its value in the first fix.
WRONG = [
    ("RFLAGS=0x00000246", "RFLAGS=0x00000244", "rflags_reserved_bits", "GUEST_RFLAGS", "0x246"),
    ("RIP = 0xffffffff81e5a13b", "RIP = 0x0fffffff81e5a13b", "rip_is_extended", "GUEST_RIP", "0xffffffff81e5a13b"),
    ("CR0: actual=0x0000000080050033", "CR0: actual=0x0000000080050032", "cr0_pg_needs_pe", "GUEST_CR0", "0x80050033"),
    ("CR0: actual=0x0000000080050033", "CR0: actual=0x0000000080050013", "cr0_fixed_bits", "GUEST_CR0", "0x80050033"),
    ("CR4: actual=0x0000000000772ef0", "CR4: actual=0x0000000000770ef0", "cr4_fixed_bits", "GUEST_CR4", "0x772ef0"),
    ("CR4: actual=0x0000000000772ef0", "CR4: actual=0x0000000000772ed0", "ia32e_mode_needs_paging_and_pae",
     "GUEST_CR4", "0x772ef0"),
    ("CR3 = 0x000000000a60e003", "CR3 = 0xffff88800a60e003", "cr3_is_physical", "GUEST_CR3", None),
    ("DR7 = 0x0000000000000400", "DR7 = 0x0000000100000400", "dr7_is_32_bit", "GUEST_DR7", "0x400"),
    ("Sysenter RSP=fffffe0000003000", "Sysenter RSP=00fffe0000003000", "guest_ia32_sysenter_esp_is_canonical",
     "GUEST_IA32_SYSENTER_ESP", "0xfffffe0000003000"),
    ("attr=0x0a09b", "attr=0x0e09b", "cs_default_size_is_not_set_in_64_bit_mode", "GUEST_CS_ACCESS_RIGHTS", "0xa09b"),
    ("SS:   sel=0x0018, attr=0x0c093", "SS:   sel=0x0018, attr=0x0c091", "ss_type_is_accessed_writable_data",
     "GUEST_SS_ACCESS_RIGHTS", "0xc093"),
    ("SS:   sel=0x0018, attr=0x0c093", "SS:   sel=0x0018, attr=0x04093", "ss_granularity_1_if_usable",
     "GUEST_SS_ACCESS_RIGHTS", "0xc093"),
    ("base=0xffff88807dc00000", "base=0x00ff88807dc00000", "gs_base_is_canonical", "GUEST_GS_BASE",
     "0xffff88807dc00000"),
    ("TR:   sel=0x0040, attr=0x0008b", "TR:   sel=0x0040, attr=0x00089", "tr_type_is_busy_tss",
     "GUEST_TR_ACCESS_RIGHTS", "0x8b"),
    ("TR:   sel=0x0040, attr=0x0008b", "TR:   sel=0x0044, attr=0x0008b", "tr_selector_is_in_the_gdt",
     "GUEST_TR_SELECTOR", "0x40"),
    ("limit=0x0000007f", "limit=0x0001007f", "guest_gdtr_limit_is_16_bit", "GUEST_GDTR_LIMIT", "0x7f"),
    ("ActivityState = 00000000", "ActivityState = 00000004", "activity_is_supported", "GUEST_ACTIVITY_STATE", "0x0"),
    ("Interruptibility = 00000000", "Interruptibility = 00000003", "not_blocked_by_sti_and_mov_ss",
     "GUEST_INTERRUPTIBILITY_STATE", "0x1"),
    ("DebugExceptions = 0x0000000000000000", "DebugExceptions = 0x0000000000000010", "pending_debug_reserved_bits",
     "GUEST_PENDING_DEBUG_EXCEPTIONS", "0x0"),
    ("DebugCtl = 0x0000000000000000", "DebugCtl = 0x0000000000000008", "debugctl_reserved_bits",
     "GUEST_IA32_DEBUGCTL", "0x0"),
    ("VMEntry: intr_info=00000000", "VMEntry: intr_info=80000203", "injected_vector",
     "VM_ENTRY_INTERRUPTION_INFORMATION", "0x80000202"),
    ("EPT pointer = 0x000000011a4b905e", "EPT pointer = 0x000000011a4b9056", "eptp_walk_length", "EPT_POINTER",
     "0x11a4b905e"),
    ("Virtual processor ID = 0x0001", "Virtual processor ID = 0x0000", "vpid_is_not_zero", "VPID", "0x1"),
    ("PinBased=0x000000ff", "PinBased=0x000000f7", "virtual_nmis_need_nmi_exiting", "PIN_BASED_VM_EXECUTION_CONTROLS",
     "0xd7"),
    ("PinBased=0x000000ff", "PinBased=0x000000e9", "pin_based_reserved_bits", "PIN_BASED_VM_EXECUTION_CONTROLS",
     "0xff"),
    ("virt-APIC addr = 0x0000000117b2e000", "virt-APIC addr = 0x0000000117b2e040", "virtual_apic_address_is_aligned",
     "VIRTUAL_APIC_ADDRESS", "0x117b2e000"),
    ("CS=0010 SS=0018", "CS=0013 SS=0018", "host_cs_selector_has_no_rpl_and_ti", "HOST_CS_SELECTOR", "0x10"),
    ("TR=0040", "TR=0000", "host_tr_selector_is_not_null", "HOST_TR_SELECTOR", None),
    ("CR4=0000000000772ef0", "CR4=0000000000772ed0", "host_cr4_has_pae", "HOST_CR4", "0x772ef0"),
    ("GSBase=ffff8f8d7f540000", "GSBase=00008f8d7f540000", "host_gs_base_is_canonical", "HOST_GS_BASE", None),
    ("TSC Multiplier = 0x0001000000000000", "TSC Multiplier = 0x0000000000000000", "tsc_multiplier_is_not_zero",
     "TSC_MULTIPLIER", None),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "clause", "field", "fixed"), WRONG, ids=[w[2] for w in WRONG])
def test_a_dump_with_one_wrong_field_names_it(old, new, clause, field, fixed):
    verdict = of_dump((old, new))
    assert names(verdict) == [clause]
    (violation,) = verdict.violations
    assert violation.fixes[0].field.name == field
    assert fixed is None or f"{violation.fixes[0].new:#x}" == fixed
    text = "\n".join(render(verdict, "kvm.log"))
    assert f"1. {clause}, SDM 3C" in text
    assert f"   fix    {field} = " in text


def test_what_some_processor_allows_is_not_held_against_a_dump():
    """IA32_VMX_BASIC[56] lets an exception come without its error code."""
    general_protection = ("VMEntry: intr_info=00000000", "VMEntry: intr_info=8000030d")
    assert names(of_dump(general_protection)) == []
    assert "injected_error_code_is_there" in names(of_dump(general_protection, capabilities="hvemu"))


def test_every_clause_is_listed_in_the_order_of_the_manual():
    verdict = of_dump(
        ("RFLAGS=0x00000246", "RFLAGS=0x00000244"), ("CS=0010 SS=0018", "CS=0013 SS=0018"),
        ("Virtual processor ID = 0x0001", "Virtual processor ID = 0x0000"),
        ("CR3 = 0x000000000a60e003", "CR3 = 0xffff88800a60e003"),
    )  # fmt: skip
    assert names(verdict) == [
        "vpid_is_not_zero", "host_cs_selector_has_no_rpl_and_ti", "cr3_is_physical", "rflags_reserved_bits",
    ]  # fmt: skip
    assert verdict.report == "VM-instruction error 7, VM entry with invalid control field(s)"
    lines = [*render(verdict, "kvm.log")]
    assert lines[0] == "kvm.log: VM entry fails: 4 clauses do not hold"


def test_by_hvemus_capabilities_the_controls_of_a_newer_processor_are_refused():
    verdict = of_dump(capabilities="hvemu")
    assert {"pin_based_reserved_bits", "secondary_processor_based_reserved_bits"} <= {*names(verdict)}


def test_any_other_file_is_judged_by_hvemus_capabilities():
    values = {Field.PIN_BASED_VM_EXECUTION_CONTROLS: 0x96}
    assert names(judge(Given(Kind.TOML, values)))[0] == "pin_based_reserved_bits"
    assert "pin_based_reserved_bits" not in names(judge(Given(Kind.TOML, values), "any"))


@pytest.mark.parametrize(("la57", "legal"), [(0, False), (1 << 12, True)])
def test_five_level_paging_tells_that_addresses_are_wider(la57, legal):
    cr4 = f"CR4: actual={0x772EF0 | la57:#018x}"
    verdict = of_dump(("CR4: actual=0x0000000000772ef0", cr4), ("base=0xffff88807dc00000", "base=0x00f0000000000000"))
    assert verdict.enters is legal


def test_what_a_file_leaves_out_is_assumed_only_where_it_counts():
    assumed = {f.name for f in of_dump().assumed}
    assert {"MSR_BITMAP_ADDRESS", "CR3_TARGET_COUNT", "VMCS_LINK_POINTER"} <= assumed
    assert not {"IO_BITMAP_A_ADDRESS", "VMREAD_BITMAP_ADDRESS", "GUEST_SSP", "HOST_IA32_PKRS"} & assumed
    shadowing = f"SecondaryExec={0x21237EB | 1 << 14:#010x}"
    assert Field.VMREAD_BITMAP_ADDRESS in of_dump(("SecondaryExec=0x021237eb", shadowing)).assumed


def test_an_assumed_field_is_marked_where_a_clause_reads_it():
    verdict = judge(read(b"GUEST_INTERRUPTIBILITY_STATE = 1"))
    text = "\n".join(render(verdict, "x.toml"))
    assert "GUEST_RFLAGS (0x6820) = 0x2  fixed1  (assumed)" in text
    assert "\n   fix    GUEST_INTERRUPTIBILITY_STATE = 0x0: clear bit 0 (blocking_by_sti)\n   report" in text


@pytest.mark.parametrize(
    ("index", "value", "clause"),
    [("0xc0000100", "0" * 16, "is_not_a_segment_base"), ("0x00000802", "0" * 16, "is_not_an_apic_register"),
     ("0xc0000082", "8" + "0" * 15, "can_be_written"), ("0x00000277", "3" + "0" * 15, "can_be_written"),
     ("0x00000600", "8" + "0" * 15, None), ("0xc0000082", "f" * 16, None)],
)  # fmt: skip
def test_the_msrs_of_the_load_area_are_judged(index, value, clause):
    text = LOG.replace("*** Host State ***", AUTOLOAD.format(index, value) + "*** Host State ***")
    verdict = judge(read(text.encode()))
    assert (verdict.msr and verdict.msr.row.name) == clause
    if clause:
        assert verdict.report == "VM exit with reason 34, VM-entry failure due to MSR loading, qualification 2"
        assert f'1. {clause}, SDM 3C "Loading MSRs"' in "\n".join(render(verdict, "kvm.log"))


def test_hvemu_has_no_other_msrs_than_its_own():
    area = b"VM_ENTRY_MSR_LOAD_AREA = [{index = 0x600, value = 0}]"
    assert judge(read(area)).msr.number == 1
    assert judge(read(area), "any").msr is None


def test_the_object_for_scripts():
    document = as_json(of_dump(("RFLAGS=0x00000246", "RFLAGS=0x00000244")), "kvm.log")
    assert json.loads(json.dumps(document)) == document
    assert {key: document[key] for key in ("file", "kind", "capabilities", "enters", "msr_load")} == {
        "file": "kvm.log", "kind": "KVM dump", "capabilities": "any", "enters": False, "msr_load": None,
    }  # fmt: skip
    (failure,) = document["failures"]
    assert failure["clause"] == "rflags_reserved_bits"
    assert failure["area"] == "guest"
    assert failure["fields"] == [
        {"name": "GUEST_RFLAGS", "encoding": "0x6820", "value": "0x244", "decoded": "pf zf if_", "assumed": False}
    ]
    assert failure["fixes"] == [
        {"field": "GUEST_RFLAGS", "value": "0x246", "words": "GUEST_RFLAGS = 0x246: set bit 1 (fixed1)"}
    ]
    assert document["assumed"]["CR3_TARGET_COUNT"] == "0x0"


@pytest.mark.parametrize("text", ["\n".join(as_toml()), json.dumps(template_json())], ids=["toml", "json"])
@pytest.mark.parametrize("capabilities", ["hvemu", "any"])
def test_the_template_enters_and_leaves_nothing_to_assume(text, capabilities):
    verdict = judge(read(text.encode()), capabilities)
    assert (verdict.enters, verdict.assumed) == (True, ())


def test_the_template_has_every_field_that_a_clause_reads():
    read_by_clauses = {f.name for row in CHECKS for f in row.reads}
    assert read_by_clauses <= template_json().keys()


def test_the_template_says_what_bits_mean():
    lines = [*as_toml()]
    assert "GUEST_CR0 = 0x0000000080010031  # pe et ne wp pg" in lines
    assert [line.strip() for line in lines if line.startswith("\n#")] == [
        "# control fields", "# host-state area", "# guest-state area",
    ]  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(Field)), st.integers(0, 2**64 - 1)), st.sampled_from(["any", "hvemu"]))
def test_any_values_are_judged(values, capabilities):
    given_ = Given(Kind.JSON, {Field(f): v & MASKS[f] for f, v in values.items()})
    verdict = judge(given_, capabilities)
    assert [*render(verdict, "x")]
    assert json.dumps(as_json(verdict, "x"))
