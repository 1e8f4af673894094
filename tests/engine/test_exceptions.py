"""Exceptions as stops: vector, error code, address, and registers as they were before the instruction."""

from __future__ import annotations

import itertools

import pytest

from hvemu.engine.traps import Kind
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, Segment, TableRegister
from tests.engine.rig import (
    BITS,
    CODE,
    DATA,
    GDT,
    NX,
    NXE,
    PAE,
    PD,
    PDPT,
    PML4,
    PS,
    RAX,
    RBX,
    RCX,
    RSP,
    RW,
    SMEP,
    US,
    P,
    rig,
    summary,
)

UD2 = b"\x0f\x0b"
SMAP = 1 << 21
CLOCKS = pytest.mark.parametrize("counted", [True, False])


def paged(cpl=0, *, efer=0, cr4=0, counted=True):
    """Long mode with 4 KiB pages; entries of the last table at 0x83000."""
    r = rig(64, cpl, counted=counted)
    r.word(PD, 0x8_3000 | US | RW | P)
    for page in range(512):
        r.word(0x8_3000 + 8 * page, page << 12 | US * (cpl == 3) | RW | P)
    r.long_mode(PML4, efer=efer, cr4=cr4)
    return r


def entry(r, gva, value):
    r.word(0x8_3000 + 8 * (gva >> 12), value)
    r.engine.flush_tlb()


# -- vectors ----------------------------------------------------------------------------------------------------------

# name: what prepares it, the instruction, vector, error code, code sizes
FAULTS = {
    "div by zero": (b"\x31\xc9", b"\xf7\xf1", 0, 0, BITS),
    "bound": (b"", b"\x62\x03", 5, 0, (16, 32)),
    "ud2": (b"", UD2, 6, 0, BITS),
    "mov to cs": (b"", b"\x8e\xc8", 6, 0, BITS),
    "lock nop": (b"", b"\xf0\x90", 6, 0, BITS),
    "selector beyond the table": (b"\xb8\x34\x12\x00\x00", b"\x8e\xd8", 13, 0x1234, (32, 64)),
    "segment that is not present": (b"\xb8\xa0\x00\x00\x00", b"\x8e\xd8", 11, 0xA0, (32, 64)),
    "stack that is not present": (b"\xb8\xa0\x00\x00\x00", b"\x8e\xd0", 12, 0xA0, (32, 64)),
    "far jump to a null selector": (b"", b"\xea\x00\x00\x00\x00\x00\x00", 13, 0, (32,)),
    "iret to a task that is none": (b"\x68\x00\x40\x00\x00\x9d", b"\xcf", 10, 0, (32,)),
    "non-canonical address": (b"\x48\xb8" + bytes(7) + b"\x80", b"\x8a\x00", 13, 0, (64,)),
    "sixteen bytes": (b"", b"\x66" * 15 + b"\x90", 13, 0, BITS),
}


@CLOCKS
@pytest.mark.parametrize(("name", "bits"), [(name, bits) for name, (*_, sizes) in FAULTS.items() for bits in sizes])
def test_an_exception_stops_with_its_vector_and_error_code_on_the_instruction(name, bits, counted):
    before, code, vector, error_code, _ = FAULTS[name]
    r = rig(bits, counted=counted)
    r.word(GDT + 0xA0, 0x00CF_1300_0000_FFFF)  # data, not present
    r.gpr(RAX, 5)
    r.gpr(RBX, 0x4000)  # BOUND reads its limits here: 0 and 0
    stop = r.run(b"\x90" + before + code)
    assert (summary(stop), stop.error_code) == ((Kind.EXCEPTION, vector), error_code)
    assert r.offset == 1 + len(before)


@pytest.mark.parametrize(
    ("cr0_bit", "code", "vector"), [(3, b"\xd9\xe8", 7), (3, b"\x0f\x58\xc1", 7), (2, b"\xd9\xe8", 7)]
)
def test_the_fpu_that_is_not_available_raises_nm(cr0_bit, code, vector):
    r = rig(32)
    r.state.cr4 = 0x200
    r.state.cr0 |= 1 << cr0_bit
    assert summary(r.run(code)) == (Kind.EXCEPTION, vector)


def test_an_unmasked_fpu_exception_raises_mf_at_the_next_fpu_instruction():
    r = rig(32)
    r.state.cr0 |= 0x20
    r.word(DATA, 0x037B, 2)  # control word: zero divide unmasked
    # fninit; fldcw [DATA]; fld1; fldz; fdivp; fwait
    code = b"\xdb\xe3\xd9\x2d" + DATA.to_bytes(4, "little") + b"\xd9\xe8\xd9\xee\xde\xf9\x9b"
    assert summary(r.run(code)) == (Kind.EXCEPTION, 16)
    assert r.offset == len(code) - 1


def test_an_unaligned_access_raises_no_ac():
    r = rig(32, 3)
    r.state.cr0 |= 1 << 18
    r.state.rflags = 2 | 1 << 18
    stop = r.run(b"\xa1" + (DATA + 1).to_bytes(4, "little") + b"\x0f\xa2")
    assert summary(stop) == (Kind.CPUID, 0)


# -- opcodes that arrive as #UD ----------------------------------------------------------------------------------------

UNDEFINED = {
    "vmcall": b"\x0f\x01\xc1", "vmlaunch": b"\x0f\x01\xc2", "vmresume": b"\x0f\x01\xc3", "vmxoff": b"\x0f\x01\xc4",
    "vmxon": b"\xf3\x0f\xc7\x33", "vmptrld": b"\x0f\xc7\x33", "vmclear": b"\x66\x0f\xc7\x33",
    "vmptrst": b"\x0f\xc7\x3b",
    "vmread": b"\x0f\x78\xc0", "vmwrite": b"\x0f\x79\xc0", "invept": b"\x66\x0f\x38\x80\x03",
    "invvpid": b"\x66\x0f\x38\x81\x03", "vmfunc": b"\x0f\x01\xd4", "vmrun": b"\x0f\x01\xd8", "vmmcall": b"\x0f\x01\xd9",
    "vmload": b"\x0f\x01\xda", "vmsave": b"\x0f\x01\xdb", "stgi": b"\x0f\x01\xdc", "clgi": b"\x0f\x01\xdd",
    "skinit": b"\x0f\x01\xde", "invlpga": b"\x0f\x01\xdf", "rdpid": b"\xf3\x0f\xc7\xf8", "icebp": b"\xf1",
    "getsec": b"\x0f\x37", "rsm": b"\x0f\xaa", "vaddps": b"\xc5\xf4\x58\xc2",
}  # fmt: skip


@CLOCKS
@pytest.mark.parametrize(("name", "bits"), [*itertools.product(UNDEFINED, BITS)])
def test_an_opcode_that_the_emulator_lacks_arrives_as_ud_with_rip_on_it(name, bits, counted):
    r = rig(bits, counted=counted)
    r.gpr(RBX, 0x4000)
    assert summary(r.run(b"\x90" + UNDEFINED[name])) == (Kind.EXCEPTION, 6)
    assert r.offset == 1
    assert r.engine.fetch().startswith(UNDEFINED[name])


# -- page faults ------------------------------------------------------------------------------------------------------

MISSING = 0x4_0000


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize(
    ("code", "wr"), [(b"\xa0", 0), (b"\xa2", 2), (b"\xfe\x04\x25", 2)], ids=["load", "store", "read-modify-write"]
)
@pytest.mark.parametrize("present", [False, True])
def test_a_page_fault_says_whether_it_was_present_a_write_and_by_a_user(code, wr, cpl, present):
    r = paged(cpl)
    entry(r, MISSING, (MISSING | P) if present else 0)  # present: for supervisors, read-only
    address = (MISSING + 0x123).to_bytes(8 if len(code) == 1 else 4, "little")
    stop = r.run(b"\x90" + code + address + b"\x0f\xa2")
    if present and not wr and cpl == 0:
        assert stop.kind is Kind.CPUID
        return
    if code == b"\xfe\x04\x25" and (not present or cpl == 3):
        wr = stop.error_code & 2  # the processor may report either for the read part
    assert (summary(stop), stop.error_code, stop.address) == (
        (Kind.EXCEPTION, 14), present | wr | (4 if cpl == 3 else 0), MISSING + 0x123,
    )  # fmt: skip
    assert (r.offset, r.state.cr2) == (1, 0)  # CR2 is for who delivers


@pytest.mark.parametrize(
    ("efer", "cr4", "bits", "expected"),
    [
        (NXE, 0, NX | US | RW | P, 0x15),
        (0, 0, 0, 0x4),
        (NXE, 0, 0, 0x14),
        (0, SMEP, 0, 0x14),
        (0, 0, NX | US | RW | P, 0xD),
    ],
    ids=["NX page", "not present", "not present, NXE", "not present, SMEP", "NX is reserved"],
)
def test_a_fetch_that_faults_says_so_if_nx_or_smep_is_on(efer, cr4, bits, expected):
    r = paged(3, efer=efer, cr4=cr4)
    entry(r, MISSING, bits and (MISSING | bits))
    stop = r.run(b"\x90\x68" + MISSING.to_bytes(4, "little") + b"\xc3")  # push; ret
    assert (summary(stop), stop.error_code, stop.address) == ((Kind.EXCEPTION, 14), expected, MISSING)
    assert (r.state.rip, r.engine.instructions, r.engine.fetch()) == (MISSING, 3, b"")


def test_smep_stops_the_kernel_from_running_code_of_users():
    r = paged(0, cr4=SMEP)
    entry(r, MISSING, MISSING | US | RW | P)
    stop = r.run(b"\x68" + MISSING.to_bytes(4, "little") + b"\xc3")
    assert (summary(stop), stop.error_code, stop.address) == ((Kind.EXCEPTION, 14), 0x11, MISSING)


@pytest.mark.parametrize("ac", [False, True])
def test_smap_stops_the_kernel_from_reading_data_of_users_unless_ac_is_set(ac):
    r = paged(0, cr4=SMAP)
    entry(r, MISSING, MISSING | US | RW | P)
    r.state.rflags = 2 | ac << 18
    stop = r.run(b"\xa0" + MISSING.to_bytes(8, "little") + b"\x0f\xa2")
    assert summary(stop) == ((Kind.CPUID, 0) if ac else (Kind.EXCEPTION, 14))
    assert stop.error_code == (0 if ac else 1)


@pytest.mark.parametrize("level", ["PML4", "PDPT", "PD"])
def test_a_reserved_bit_in_any_level_sets_rsvd(level):
    r = paged()
    table = {"PML4": PML4, "PDPT": PDPT, "PD": PD}[level]
    r.word(table, r.peek(table) | (NX if level != "PML4" else PS))
    r.engine.flush_tlb()
    stop = r.run(b"\x90")
    assert (summary(stop), stop.error_code, stop.address) == ((Kind.EXCEPTION, 14), 9, CODE)


def test_a_page_fault_in_the_second_page_of_an_access_names_the_second_page():
    r = paged()
    entry(r, MISSING, 0)
    stop = r.run(b"\x48\xa1" + (MISSING - 3).to_bytes(8, "little"))
    assert (summary(stop), stop.address) == ((Kind.EXCEPTION, 14), MISSING)


# -- one fault after the other ----------------------------------------------------------------------------------------


@CLOCKS
@pytest.mark.parametrize("first", ["page fault", "general protection", "divide"])
def test_a_second_fault_is_itself_and_no_double_fault(first, counted):
    r = paged(counted=counted)
    entry(r, MISSING, 0)
    codes = {
        "page fault": (b"\xa0" + MISSING.to_bytes(8, "little"), 14),
        "general protection": (b"\xb8\x34\x12\x00\x00\x8e\xd8", 13),
        "divide": (b"\x31\xc9\xf7\xf1", 0),
    }
    for then in codes:
        assert summary(r.run(codes[first][0])) == (Kind.EXCEPTION, codes[first][1])
        assert summary(r.run(codes[then][0])) == (Kind.EXCEPTION, codes[then][1])


# -- deviations that the layers above know of (docs/deviations.md) ----------------------------------------------------


def test_a_stack_access_that_is_not_canonical_raises_gp_and_not_ss():
    r = rig(64)
    r.gpr(RSP, 0x8000_0000_0000_0000)
    assert summary(r.run(b"\x50")) == (Kind.EXCEPTION, 13)


def test_movaps_does_not_check_alignment():
    r = rig(64)
    r.state.cr4 |= 0x200
    r.gpr(RBX, DATA + 1)
    assert summary(r.run(b"\x0f\x28\x03\x0f\xa2")) == (Kind.CPUID, 0)


def test_smsw_writes_16_bits_of_a_32_bit_register():
    r = rig(32)
    r.gpr(RAX, 0xFFFF_FFFF)
    r.run(b"\x0f\x01\xe0\xf4")
    assert r.state.gpr(RAX) == 0xFFFF_0000 | r.state.cr0 & 0xFFFF


@pytest.mark.parametrize("code", [b"\x0f\x01\x13", b"\x0f\x01\x1b"], ids=["lgdt", "lidt"])
def test_a_table_base_that_is_not_canonical_is_accepted(code):
    r = rig(64)
    r.gpr(RBX, DATA)
    r.word(DATA, 0xFF, 2)
    r.word(DATA + 2, 1 << 60)
    assert r.run(code + b"\xf4").kind is Kind.HLT
    assert TableRegister(1 << 60, 0xFF) in (r.state.gdtr, r.state.idtr)


def test_reserved_bits_of_cr4_are_accepted_when_its_writes_are_not_armed():
    r = rig(64)
    r.gpr(RAX, PAE | 1 << 31)
    assert r.run(b"\x0f\x22\xe0\xf4").kind is Kind.HLT
    assert r.state.cr4 == PAE | 1 << 31


def test_rf_is_not_cleared_by_each_instruction():
    r = rig(32)
    r.state.rflags = 2 | 1 << 16
    r.run(b"\x90\x90\x90\xf4", limit=2)
    assert r.state.rflags & 1 << 16


def test_segment_limits_are_not_checked():
    r = rig(32)
    r.state.set_segment(Sreg.FS, Segment(0x10, 0, 0xF, AccessRights(type=3, s=1, p=1, db=1)))
    assert r.run(b"\x64\xa0" + DATA.to_bytes(4, "little") + b"\xf4").kind is Kind.HLT


def test_virtual_8086_mode_runs_16_bit_code_and_traps_what_iopl_forbids():
    for iopl, code, expected in (
        (3, b"\xfa\x0f\xa2", (Kind.CPUID, 0)), (0, b"\xfa", (Kind.EXCEPTION, 13)), (0, b"\x9c", (Kind.EXCEPTION, 13)),
        (0, b"\x9d", (Kind.EXCEPTION, 13)), (0, b"\xcf", (Kind.EXCEPTION, 13)), (0, b"\xcd\x10", (Kind.EXCEPTION, 13)),
        (3, b"\xcd\x10", (Kind.SOFTWARE_INT, 0x10)), (3, b"\x9c\x0f\xa2", (Kind.CPUID, 0)),
    ):  # fmt: skip
        r = rig(32)
        for sreg in Sreg:
            value = CODE >> 4 if sreg is Sreg.CS else 0x100
            r.state.set_segment(sreg, Segment(value, value << 4, 0xFFFF, AccessRights(type=3, s=1, dpl=3, p=1)))
        r.state.rflags = 2 | 1 << 17 | iopl << 12
        r.gpr(Gpr.RSP, 0x800)
        assert summary(r.run(code)) == expected, (iopl, code)


def test_a_task_switch_by_a_far_jump_is_native():
    r = rig(32)
    new = 0x7_8000
    r.word(GDT + 0xC0, 0x0000_8900_0000_0067 | (new & 0xFFFFFF) << 16)
    r.word(GDT + 0x98, 0x0000_8B00_0000_0067 | 0x7_0000 << 16)
    for offset, value in ((0x20, CODE + 0x200), (0x24, 2), (0x38, 0x5_8000), (0x2C, 0x1234), (0x4C, 8), (0x50, 16),
                          (0x54, 16), (0x48, 16), (0x58, 0), (0x5C, 0)):  # fmt: skip
        r.word(new + offset, value, 4)
    r.put(b"\x0f\xa2", CODE + 0x200)
    r.gpr(RCX, 0x77)
    assert r.run(b"\xea\x00\x00\x00\x00\xc0\x00").kind is Kind.CPUID
    assert (r.offset, r.state.tr.selector, r.state.gpr(RCX)) == (0x200, 0xC0, 0x1234)
    assert r.peek(0x7_0000 + 0x2C, 4) == 0x77
    assert r.state.cr0 & 8


def test_xsave_and_xrstor_are_native():
    r = rig(64)
    r.state.cr4 |= 1 << 18 | 0x200
    r.gpr(RAX, 7)
    r.gpr(2, 0)
    r.gpr(RBX, DATA)
    # pcmpeqd xmm1, xmm1; xsave [rbx]; pxor xmm1, xmm1; xrstor [rbx]; movq rcx, xmm1
    code = b"\x66\x0f\x76\xc9\x0f\xae\x23\x66\x0f\xef\xc9\x0f\xae\x2b\x66\x48\x0f\x7e\xc9\xf4"
    assert r.run(code).kind is Kind.HLT
    assert r.state.gpr(RCX) == (1 << 64) - 1
