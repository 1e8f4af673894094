"""Ring deprivileging is real: what traps outside ring 0, and the textbook holes that do not."""

from __future__ import annotations

import itertools

import pytest

from hvemu.engine.traps import Kind
from hvemu.x86.registers import Sreg
from tests.engine.rig import DATA, GDT, IF, RAX, RBX, RSP, STACK, rig, summary

RINGS = [*itertools.product((1, 2, 3), (32, 64))]
CPUID = b"\x0f\xa2"
PRIVILEGED = {
    "cli": b"\xfa", "sti": b"\xfb", "hlt": b"\xf4", "clts": b"\x0f\x06", "lmsw ax": b"\x0f\x01\xf0",
    "mov eax, cr0": b"\x0f\x20\xc0", "mov eax, cr2": b"\x0f\x20\xd0", "mov eax, cr3": b"\x0f\x20\xd8",
    "mov eax, cr4": b"\x0f\x20\xe0", "mov cr0, eax": b"\x0f\x22\xc0", "mov cr2, eax": b"\x0f\x22\xd0",
    "mov cr3, eax": b"\x0f\x22\xd8", "mov cr4, eax": b"\x0f\x22\xe0", "mov eax, dr0": b"\x0f\x21\xc0",
    "mov eax, dr7": b"\x0f\x21\xf8", "mov dr0, eax": b"\x0f\x23\xc0", "mov dr7, eax": b"\x0f\x23\xf8",
    "lgdt [ebx]": b"\x0f\x01\x13", "lidt [ebx]": b"\x0f\x01\x1b", "lldt ax": b"\x0f\x00\xd0", "ltr ax": b"\x0f\x00\xd8",
    "invlpg [ebx]": b"\x0f\x01\x3b", "invd": b"\x0f\x08", "wbinvd": b"\x0f\x09", "rdmsr": b"\x0f\x32",
    "wrmsr": b"\x0f\x30", "sysexit": b"\x0f\x35",
}  # fmt: skip
HOLES = {
    "pushf": b"\x9c", "popf": b"\x9d", "sgdt [ebx]": b"\x0f\x01\x03", "sidt [ebx]": b"\x0f\x01\x0b",
    "sldt ax": b"\x0f\x00\xc0", "str ax": b"\x0f\x00\xc8", "smsw ax": b"\x0f\x01\xe0", "lar ecx, eax": b"\x0f\x02\xc8",
    "lsl ecx, eax": b"\x0f\x03\xc8", "verr ax": b"\x0f\x00\xe0", "verw ax": b"\x0f\x00\xe8",
    "mov eax, cs": b"\x8c\xc8", "mov eax, ss": b"\x8c\xd0", "mov ds, eax": b"\x8e\xd8", "push fs": b"\x0f\xa0",
    "pop fs": b"\x0f\xa1",
}  # fmt: skip


def ring(cpl, bits):
    r = rig(bits, cpl)
    selector = r.state.segment(Sreg.DS).selector
    r.gpr(RAX, selector)
    r.gpr(RBX, DATA)
    r.gpr(RSP, STACK - 16)
    r.word(STACK - 16, selector if bits == 64 else selector | selector << 32)
    return r


@pytest.mark.parametrize(("cpl", "bits"), RINGS)
@pytest.mark.parametrize("name", PRIVILEGED)
def test_a_privileged_instruction_raises_gp_before_anything_that_is_armed(name, cpl, bits):
    r = ring(cpl, bits)
    r.engine.arm({Kind(n) for n in range(Kind.IDTR_READ, Kind.TR_WRITE + 1)} | {Kind.INVLPG})
    r.engine.arm_registers(cr_read=0xFFFF, cr_write=0xFFFF, dr_read=0xFFFF, dr_write=0xFFFF)
    stop = r.run(b"\x90" + PRIVILEGED[name])
    assert (summary(stop), stop.error_code) == ((Kind.EXCEPTION, 13), 0)
    assert (r.offset, r.engine.instructions) == (1, 1)


@pytest.mark.parametrize(("cpl", "bits"), RINGS)
@pytest.mark.parametrize("name", HOLES)
def test_a_sensitive_instruction_that_is_not_privileged_does_not_trap(name, cpl, bits):
    r = ring(cpl, bits)
    assert summary(r.run(HOLES[name] + CPUID)) == (Kind.CPUID, 0)
    assert r.offset == len(HOLES[name])


@pytest.mark.parametrize(("cpl", "bits"), RINGS)
@pytest.mark.parametrize(("before", "popped"), [(2 | IF, 2), (2, 2 | IF)])
def test_popf_silently_keeps_if(cpl, bits, before, popped):
    r = ring(cpl, bits)
    r.state.rflags = before
    r.word(STACK - 16, popped | 0x41)
    assert r.run(b"\x9d" + CPUID).kind is Kind.CPUID
    assert r.state.rflags == before | 0x41


@pytest.mark.parametrize(("cpl", "bits"), RINGS)
def test_pushf_shows_the_interrupt_flag_and_iopl_as_they_are(cpl, bits):
    r = ring(cpl, bits)
    r.state.rflags = 0x1202
    r.run(b"\x9c" + CPUID)
    assert r.peek(r.state.gpr(RSP), 4) == 0x1202


@pytest.mark.parametrize(("cpl", "bits"), RINGS)
def test_the_code_segment_tells_its_ring(cpl, bits):
    r = ring(cpl, bits)
    r.run(b"\x8c\xc8" + CPUID)
    assert r.state.gpr(RAX) == 8 + 17 * cpl


@pytest.mark.parametrize(("cpl", "bits"), RINGS)
def test_sidt_sgdt_smsw_and_str_show_the_tables_of_the_processor(cpl, bits):
    r = ring(cpl, bits)
    r.run(b"\x0f\x01\x03\x0f\x01\xe0\x0f\x00\xc9" + CPUID)
    assert r.peek(DATA, 6) == GDT << 16 | 0xFF
    assert (r.state.gpr(RAX) & 0xFFFF, r.state.gpr(1) & 0xFFFF) == (r.state.cr0 & 0xFFFF, 0x98)


@pytest.mark.parametrize("cpl", [1, 2, 3])
@pytest.mark.parametrize("iopl", [0, 1, 2, 3])
def test_cli_and_sti_obey_iopl(cpl, iopl):
    for code, flag in ((b"\xfa", 0), (b"\xfb", IF)):
        r = ring(cpl, 32)
        r.state.rflags = 2 | iopl << 12 | (IF ^ flag)
        stop = r.run(code + CPUID)
        assert summary(stop) == ((Kind.CPUID, 0) if cpl <= iopl else (Kind.EXCEPTION, 13))
        assert r.state.rflags & IF == (flag if cpl <= iopl else IF ^ flag)


@pytest.mark.parametrize("cpl", [1, 2, 3])
def test_a_ring_is_entered_by_iret(cpl):
    r = rig(32)
    code, data = 8 + 17 * cpl, 0x10 + 17 * cpl
    for n, value in enumerate((0x1_0100, code, 0x202, STACK - 64, data)):
        r.word(STACK + 4 * n, value, 4)
    r.put(b"\xf4", 0x1_0100)
    assert summary(r.run(b"\xcf")) == (Kind.EXCEPTION, 13)  # HLT
    assert (r.offset, r.state.cpl, r.state.gpr(RSP)) == (0x100, cpl, STACK - 64)


@pytest.mark.parametrize(("cpl", "bits"), [(0, 32), (1, 32), (3, 32), (3, 64)])
def test_the_five_table_reads_can_be_armed_at_any_level_as_umip_needs(cpl, bits):
    kinds = {Kind.IDTR_READ, Kind.GDTR_READ, Kind.LDTR_READ, Kind.TR_READ}
    for code, kind in ((b"\x0f\x01\x0b", Kind.IDTR_READ), (b"\x0f\x01\x03", Kind.GDTR_READ),
                       (b"\x0f\x00\xc0", Kind.LDTR_READ), (b"\x0f\x00\xc8", Kind.TR_READ)):  # fmt: skip
        r = ring(cpl, bits)
        r.engine.arm(kinds)
        assert summary(r.run(code)) == (kind, 0)
    r = ring(cpl, bits)
    r.engine.arm_registers(cr_read=1, cr_write=0, dr_read=0, dr_write=0)
    assert summary(r.run(b"\x0f\x01\xe0")) == (Kind.CR_READ, 0)
