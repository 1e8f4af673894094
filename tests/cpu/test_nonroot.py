"""VM exits that instructions of a real guest cause: what is recorded, and what happens where no exit is wanted."""

from __future__ import annotations

import pytest

from hvemu.vmx.capabilities import CAPABILITIES
from hvemu.vmx.controls import Entry, Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Reason
from hvemu.x86.registers import Gpr, Sreg
from tests.cpu.nonroot_rig import (
    BITMAPS,
    CODE,
    DATA,
    ENTRY,
    EXIT,
    HANDLERS,
    PIN,
    PRIMARY,
    SECONDARY,
    STACK,
    Rig,
    fields,
)

ALL, WIDE = (16, 32, 64), (32, 64)
UD, GP, RF = 6, 13, 0x10000


def handler(vector, bits):
    """RIP in the handler of *vector*, as the rig lays it out."""
    return 16 * vector if bits == 16 else HANDLERS + 16 * vector


def exits(rig, code, **expected):
    """Assert that *code* leaves the guest at once, with exactly these fields, the rest 0, and touches no register.

    But for RF, which is as the frame of a fault would have it.
    """
    assert rig.enter() is None
    before = rig.registers()
    assert fields(rig.run(code)) == {name: v for name, v in expected.items() if v or name == "reason"}
    if expected["reason"] is Reason.EXCEPTION_OR_NMI:
        before.rflags |= RF
    assert rig.registers() == before


def passes(rig, code, rip):
    """Assert that *code*, one instruction, causes no exit and ends at *rip*, counted from its start."""
    start = rig.state.rip
    assert rig.run(code) is None
    assert rig.state.rip - start == rip


def follows(rig, code, count=1):
    """Assert that *code*, *count* instructions at RIP, causes no exit."""
    rig.put(bytes.fromhex(code), rig.state.rip + rig.state.segment(Sreg.CS).base)
    assert rig.run(limit=count) is None


# -- instructions that one control decides on, or none ----------------------------------------------------------------

PREFIXES = {16: ("", "2e", "66", "6667", "64"), 32: ("", "2e", "66", "6667", "64"), 64: ("", "2e", "66", "48", "6741")}
# name: (code, reason, field and bit of the control)
ONE_CONTROL = {
    "HLT": ("f4", Reason.HLT, (PRIMARY, "hlt_exiting")),
    "PAUSE": ("f390", Reason.PAUSE, (PRIMARY, "pause_exiting")),
    "WBINVD": ("0f09", Reason.WBINVD_OR_WBNOINVD, (SECONDARY, "wbinvd_exiting")),
    "RDTSC": ("0f31", Reason.RDTSC, (PRIMARY, "rdtsc_exiting")),
    "RDPMC": ("0f33", Reason.RDPMC, (PRIMARY, "rdpmc_exiting")),
    "MONITOR": ("0f01c8", Reason.MONITOR, (PRIMARY, "monitor_exiting")),
    "MWAIT": ("0f01c9", Reason.MWAIT, (PRIMARY, "mwait_exiting")),
}
UNCONDITIONAL = {"CPUID": ("0fa2", Reason.CPUID), "INVD": ("0f08", Reason.INVD), "VMCALL": ("0f01c1", Reason.VMCALL)}


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("name", ONE_CONTROL)
def test_an_instruction_exits_when_its_control_is_1(name, bits):
    code, reason, (field, control) = ONE_CONTROL[name]
    rig = Rig(bits).set(SECONDARY, enable_ept=1).set(field, **{control: 1})
    prefixes = ("",) if name in ("PAUSE", "MONITOR", "MWAIT") else PREFIXES[bits]
    for prefix in prefixes:
        exits(rig, prefix + code, reason=reason, instruction_length=len(prefix + code) // 2)
    assert rig.vmcs[Field.VM_EXIT_REASON] == reason


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_an_instruction_exits_whatever_the_controls_say(name, bits):
    code, reason = UNCONDITIONAL[name]
    rig = Rig(bits)
    for prefix in ("",) if name == "VMCALL" else PREFIXES[bits]:
        exits(rig, prefix + code, reason=reason, instruction_length=len(prefix + code) // 2)


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("name", ["PAUSE", "WBINVD"])
def test_without_the_control_an_instruction_that_does_nothing_passes(name, bits):
    passes(Rig(bits), ONE_CONTROL[name][0], 2)


@pytest.mark.parametrize("bits", ALL)
def test_without_the_control_hlt_halts(bits):
    rig = Rig(bits)
    passes(rig, "f4", 1)
    assert rig.cpu.halted


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("offset", [0, 1000, 2**64 - 500])
def test_rdtsc_reads_the_counter_and_the_offset(bits, offset):
    rig = Rig(bits)
    rig.vmcs[Field.TSC_OFFSET] = offset
    rig.set(PRIMARY, use_tsc_offsetting=1)
    assert rig.run("0f31") is None
    assert rig.state.gpr(Gpr.RDX) << 32 | rig.state.gpr(Gpr.RAX) == (rig.clock.now - 1 + offset) % 2**64
    rig.leave().set(PRIMARY, use_tsc_offsetting=0)
    rig.state.rip -= 2
    assert rig.run() is None
    assert rig.state.gpr(Gpr.RDX) << 32 | rig.state.gpr(Gpr.RAX) == rig.clock.now - 1


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("enabled", [0, 1])
@pytest.mark.parametrize("exiting", [0, 1])
def test_rdtscp_must_be_enabled_and_then_follows_the_control_of_rdtsc(bits, enabled, exiting):
    rig = Rig(bits).set(SECONDARY, enable_rdtscp=enabled).set(PRIMARY, rdtsc_exiting=exiting).gpr(rcx=99)
    rig.cpu.msrs.write(0xC000_0103, 0x1234)
    if enabled and exiting:
        exits(rig, "0f01f9", reason=Reason.RDTSCP, instruction_length=3)
    elif enabled:
        passes(rig, "0f01f9", 3)
        assert rig.state.gpr(Gpr.RCX) == 0x1234
    else:
        assert rig.run("0f01f9") is None
        assert rig.state.rip == handler(UD, bits)


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize(("name", "vector"), [("RDPMC", GP), ("MONITOR", UD), ("MWAIT", UD)])
def test_without_the_control_what_the_processor_does_not_have_faults(bits, name, vector):
    rig = Rig(bits)
    assert rig.run(ONE_CONTROL[name][0]) is None
    assert rig.state.rip == handler(vector, bits)


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize("code", ["f4", "0f08", "0f09", "0f30", "0f32", "0f20c0", "0f22c0", "0f0138", "0f06"])
def test_a_fault_for_privilege_comes_before_the_exit(bits, code):
    rig = Rig(bits, 3).set(PRIMARY, hlt_exiting=1, invlpg_exiting=1, cr3_load_exiting=1, cr3_store_exiting=1)
    rig.set(SECONDARY, wbinvd_exiting=1)
    rig.vmcs[Field.EXCEPTION_BITMAP] = 1 << GP
    exits(rig, code, reason=Reason.EXCEPTION_OR_NMI, interruption_information=0x8000_0B0D)


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize(
    ("code", "reason"), [("0fa2", "CPUID"), ("0f01c1", "VMCALL"), ("f390", "PAUSE"), ("0f31", "RDTSC")]
)
def test_instructions_of_programs_exit_too(bits, code, reason):
    rig = Rig(bits, 3).set(PRIMARY, pause_exiting=1, rdtsc_exiting=1)
    exits(rig, code, reason=Reason[reason], instruction_length=len(code) // 2)


# -- VMX instructions --------------------------------------------------------------------------------------------------

NO_INDEX, NO_BASE, BIT_32, REGISTER = 1 << 22, 1 << 27, 1 << 11, 1 << 10
A16, A32, A64, DS, SS, GS = 0, 1 << 7, 2 << 7, 3 << 15, 2 << 15, 5 << 15
# code of the form [EAX/RAX or BX+SI]: (reason, instruction information without its address size, segment and base)
VMX = {
    "0f01c2": ("VMLAUNCH", None), "0f01c3": ("VMRESUME", None), "0f01c4": ("VMXOFF", None),
    "0fc730": ("VMPTRLD", 0), "660fc730": ("VMCLEAR", 0), "f30fc730": ("VMXON", 0), "0fc738": ("VMPTRST", 0),
    "0f7808": ("VMREAD", 1 << 28), "0f7908": ("VMWRITE", 1 << 28),
    "660f388008": ("INVEPT", 1 << 28), "660f388108": ("INVVPID", 1 << 28),
}  # fmt: skip


@pytest.mark.parametrize("code", VMX)
@pytest.mark.parametrize("cpl", [0, 3])
def test_vmx_instructions_exit_in_64_bit_mode_at_any_cpl(code, cpl):
    reason, information = VMX[code]
    memory = A64 | DS | NO_INDEX  # the base is RAX, number 0
    exits(Rig(64, cpl), code, reason=Reason[reason], instruction_length=len(code) // 2,
          instruction_information=0 if information is None else information | memory)  # fmt: skip


@pytest.mark.parametrize("code", VMX)
def test_vmx_instructions_but_vmcall_are_undefined_in_real_mode(code):
    rig = Rig(16)
    assert rig.run(code) is None
    assert rig.state.rip == handler(UD, 16)


def test_a_displacement_and_registers_are_in_the_information():
    """VMREAD RCX, R10; VMWRITE R9, GS:[RBX + 8 * RDI - 128]."""
    exits(Rig(64), "440f78d1", reason=Reason.VMREAD, instruction_length=4,
          instruction_information=1 << 3 | 1 << 10 | 10 << 28)  # fmt: skip
    exits(Rig(64), "65440f794cfb80", reason=Reason.VMWRITE, instruction_length=7, qualification=2**64 - 128,
          instruction_information=3 | 2 << 7 | 5 << 15 | 7 << 18 | 3 << 23 | 9 << 28)  # fmt: skip


# -- descriptor tables -------------------------------------------------------------------------------------------------

GDTR, LDTR = Reason.ACCESS_TO_GDTR_OR_IDTR, Reason.ACCESS_TO_LDTR_OR_TR
SGDT, SIDT, LGDT, LIDT = (n << 28 for n in range(4))
SLDT, STR, LLDT, LTR = (n << 28 for n in range(4))
BX, SI, EAX_BASE = 3 << 23, 6 << 18, 0
# (bits, code): (reason, qualification, information)
TABLE_CASES = {
    (16, "0f01160060"): (GDTR, 0x6000, LGDT | A16 | DS | NO_INDEX | NO_BASE),
    (16, "0f0158f0"): (GDTR, 2**64 - 16, LIDT | A16 | DS | BX | SI),
    (16, "660f0140f0"): (GDTR, 2**64 - 16, SGDT | A16 | DS | BX | SI | BIT_32),
    (16, "670f0108"): (GDTR, 0, SIDT | A32 | DS | NO_INDEX | EAX_BASE),
    (32, "0f011500000600"): (GDTR, DATA, LGDT | A32 | DS | NO_INDEX | NO_BASE | BIT_32),
    (32, "660f011500000600"): (GDTR, DATA, LGDT | A32 | DS | NO_INDEX | NO_BASE),
    (32, "0f015cb404"): (GDTR, 4, LIDT | 2 | A32 | SS | 6 << 18 | 4 << 23 | BIT_32),
    (32, "650f014000"): (GDTR, 0, SGDT | A32 | GS | NO_INDEX | BIT_32),
    (32, "0f00d0"): (LDTR, 0, LLDT | REGISTER),
    (32, "0f00db"): (LDTR, 0, LTR | REGISTER | 3 << 3),
    (32, "0f00c1"): (LDTR, 0, SLDT | REGISTER | 1 << 3),
    (32, "0f00cf"): (LDTR, 0, STR | REGISTER | 7 << 3),
    (32, "0f0018"): (LDTR, 0, LTR | A32 | DS | NO_INDEX),
    (64, "0f011500010000"): (GDTR, CODE + 7 + 0x100, LGDT | A64 | DS | NO_INDEX | NO_BASE),
    (64, "67430f01544b80"): (GDTR, 2**64 - 128, LGDT | 1 | A32 | DS | 9 << 18 | 11 << 23),
    (64, "41 0f01 0c24".replace(" ", "")): (GDTR, 0, SIDT | A64 | DS | NO_INDEX | 12 << 23),
    (64, "410f00d7"): (LDTR, 0, LLDT | REGISTER | 15 << 3),
    (64, "480f00c8"): (LDTR, 0, STR | REGISTER),
    (64, "0f0040 7f".replace(" ", "")): (LDTR, 0x7F, SLDT | A64 | DS | NO_INDEX),
}


@pytest.mark.parametrize(("bits", "code"), TABLE_CASES)
def test_descriptor_table_accesses_exit_when_the_control_is_1(bits, code):
    reason, qualification, information = TABLE_CASES[bits, code]
    rig = Rig(bits).set(SECONDARY, descriptor_table_exiting=1).gpr(rsp=STACK)
    exits(rig, code, reason=reason, instruction_length=len(code) // 2, qualification=qualification,
          instruction_information=information)  # fmt: skip


@pytest.mark.parametrize("bits", WIDE)
def test_without_the_control_descriptor_tables_are_loaded_and_stored(bits):
    rig = Rig(bits).gpr(rax=DATA, rbx=0x98 if bits == 32 else 0xA0)
    rig.word(DATA, 0x1_0000_0123, 10)
    code = "0f0110"  # lgdt [rax]
    passes(rig, code, 3)
    assert (rig.state.gdtr.base, rig.state.gdtr.limit) == (0x1_0000, 0x123)
    rig.state.rip = CODE
    passes(rig, "0f0108", 3)  # sidt [rax]
    assert rig.ram.read(DATA, 2) == (0x7FF if bits == 32 else 0xFFF)
    assert rig.ram.read(DATA + 2, 4) == 0x4000
    rig.state.rip = CODE
    passes(rig, "0f00c9", 3)  # str ecx
    assert rig.state.gpr(Gpr.RCX) & 0xFFFF == (0x98 if bits == 32 else 0xA0)


@pytest.mark.parametrize("umip", [0, 1])
@pytest.mark.parametrize("code", ["0f0100", "0f0108", "0f00c0", "0f00c8"])
def test_umip_comes_before_the_exit_of_a_program(code, umip):
    rig = Rig(64, 3).set(SECONDARY, descriptor_table_exiting=1)
    rig.vmcs[Field.GUEST_CR4] |= umip << 11
    rig.vmcs[Field.EXCEPTION_BITMAP] = 1 << GP
    exit_ = rig.run(code)
    assert exit_.reason is (Reason.EXCEPTION_OR_NMI if umip else GDTR if code[3] == "1" else LDTR)


# -- INVLPG ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "code", "gva"),
    [(16, "0f013f", 0x1234), (16, "650f013f", 0x1234), (32, "0f013f", 0x12345678), (32, "670f013d", 0x5678),
     (64, "0f013f", 0x8000_0000_1234_5678), (64, "670f013f", 0x1234_5678), (64, "0f013d10000000", CODE + 0x17)],
)  # fmt: skip
def test_invlpg_exits_with_the_linear_address(bits, code, gva):
    rig = Rig(bits).set(PRIMARY, invlpg_exiting=1)
    rig.gpr(rdi=0x8000_0000_1234_5678 if bits == 64 else 0x1234_5678, rbx=0x1234)
    exits(rig, code, reason=Reason.INVLPG, qualification=gva, instruction_length=len(code) // 2)


def test_without_the_control_invlpg_drops_a_translation():
    rig = Rig(64).gpr(rdi=DATA)
    table_entry = 0x8_3000 + 8 * (DATA >> 12)
    rig.word(DATA, 0xAAAA), rig.word(DATA + 0x1000, 0xBBBB)
    passes(rig, "488b07", 3)
    rig.word(table_entry, DATA + 0x1000 | 7)
    follows(rig, "0f013f488b07", 2)
    assert rig.state.gpr(Gpr.RAX) == 0xBBBB


# -- MOV DR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("dr", range(8))
@pytest.mark.parametrize("from_dr", [0, 1])
def test_mov_dr_exits_at_any_cpl_and_whatever_dr7_and_cr4_say(bits, cpl, dr, from_dr):
    rig = Rig(bits, cpl).set(PRIMARY, mov_dr_exiting=1)
    rig.vmcs[Field.GUEST_CR4] |= 8  # DE
    rig.vmcs[Field.GUEST_DR7] |= 1 << 13  # GD
    code = f"0f2{1 if from_dr else 3}{0xC0 | dr << 3 | 6:02x}"
    exits(rig, code, reason=Reason.MOV_DR, instruction_length=3, qualification=dr | from_dr << 4 | 6 << 8)


def test_a_high_register_is_in_the_qualification():
    exits(Rig(64).set(PRIMARY, mov_dr_exiting=1), "410f23fd", reason=Reason.MOV_DR, instruction_length=4,
          qualification=7 | 13 << 8)  # fmt: skip


@pytest.mark.parametrize("bits", WIDE)
def test_without_the_control_mov_dr_moves(bits):
    rig = Rig(bits).gpr(rax=0x1234)
    passes(rig, "0f23d0", 3)
    assert rig.state.dr(2) == 0x1234
    follows(rig, "0f21d3")
    assert rig.state.gpr(Gpr.RBX) == 0x1234


# -- MSRs --------------------------------------------------------------------------------------------------------------

STAR, TSC_AUX = 0xC000_0081, 0xC000_0103
# MSR: where its bit is in the bitmaps for reads; writes lie 2048 bytes further
MSR_BITS = {0x10: 0x10, 0x174: 0x174, 0x1FFF: 0x1FFF, STAR: 1024 * 8 + 0x81, TSC_AUX: 1024 * 8 + 0x103}


@pytest.mark.parametrize("write", [0, 1])
@pytest.mark.parametrize("msr", [*MSR_BITS, 0x2000, 0x4000_0000, 0xBFFF_FFFF, 0xC000_2000, 0xFFFF_FFFF])
def test_without_bitmaps_every_msr_access_exits(msr, write):
    rig = Rig(64).gpr(rcx=msr | 0xABCD << 32)
    exits(rig, "0f30" if write else "0f32", reason=Reason.WRMSR if write else Reason.RDMSR, instruction_length=2)


@pytest.mark.parametrize("write", [0, 1])
@pytest.mark.parametrize("msr", [0x2000, 0x4000_0000, 0xBFFF_FFFF, 0xC000_2000, 0xFFFF_FFFF])
def test_msrs_outside_the_bitmaps_exit(msr, write):
    rig = Rig(64).set(PRIMARY, use_msr_bitmaps=1).gpr(rcx=msr)
    rig.vmcs[Field.MSR_BITMAP_ADDRESS] = BITMAPS
    exits(rig, "0f30" if write else "0f32", reason=Reason.WRMSR if write else Reason.RDMSR, instruction_length=2)


@pytest.mark.parametrize("write", [0, 1])
@pytest.mark.parametrize("msr", MSR_BITS)
def test_an_msr_exits_by_its_own_bit_alone(msr, write):
    rig = Rig(64).set(PRIMARY, use_msr_bitmaps=1).gpr(rcx=msr, rax=0x55, rdx=0)
    rig.vmcs[Field.MSR_BITMAP_ADDRESS] = BITMAPS
    rig.vmcs[Field.EXCEPTION_BITMAP] = 1 << GP
    bit = MSR_BITS[msr] + 2048 * 8 * write
    rig.host.write(BITMAPS + bit // 8, 1, 1 << bit % 8)
    code = "0f30" if write else "0f32"
    exits(rig, code, reason=Reason.WRMSR if write else Reason.RDMSR, instruction_length=2)
    rig.host.write_bytes(BITMAPS, b"\xff" * 4096)
    rig.host.write(BITMAPS + bit // 8, 1, 0xFF ^ 1 << bit % 8)
    if msr == 0x1FFF:  # not there: the access is the processor's to refuse
        exits(rig, code, reason=Reason.EXCEPTION_OR_NMI, interruption_information=0x8000_0B0D)
        return
    passes(rig, code, 2)
    if write and msr != 0x10:
        assert rig.cpu.msrs.read(msr) == 0x55


# -- port I/O ----------------------------------------------------------------------------------------------------------

# code: (size, in, immediate)
PORT_CODES = {
    "e470": (1, 1, 1), "e570": (4, 1, 1), "66e570": (2, 1, 1), "ec": (1, 1, 0), "ed": (4, 1, 0), "66ed": (2, 1, 0),
    "e670": (1, 0, 1), "e770": (4, 0, 1), "66e770": (2, 0, 1), "ee": (1, 0, 0), "ef": (4, 0, 0), "66ef": (2, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize("code", PORT_CODES)
def test_port_io_exits_unconditionally(bits, code):
    size, in_, immediate = PORT_CODES[code]
    port = 0x70 if immediate else 0x3F8
    rig = Rig(bits).set(PRIMARY, unconditional_io_exiting=1).gpr(rdx=0xABC_03F8)
    exits(rig, code, reason=Reason.IO_INSTRUCTION, instruction_length=len(code) // 2,
          qualification=size - 1 | in_ << 3 | immediate << 6 | port << 16)  # fmt: skip


# (bits, code): (size, in, rep, address size, segment, gva)
STRINGS = {
    (16, "6c"): (1, 1, 0, 0, 0, 0x2000), (16, "676d"): (2, 1, 0, 1, 0, 0x2000), (16, "266e"): (1, 0, 0, 0, 0, 0x3000),
    (32, "6d"): (4, 1, 0, 1, 0, 0x1_2000), (32, "f3666f"): (2, 0, 1, 1, 3, 0x1_3000),
    (32, "67656e"): (1, 0, 0, 0, 5, 0x3000),
    (64, "f36c"): (1, 1, 1, 2, 0, 0x7_0001_2000), (64, "676f"): (4, 0, 0, 1, 3, 0x1_3000),
    (64, "f3656f"): (4, 0, 1, 2, 5, 0x7_0001_3000),
}  # fmt: skip


@pytest.mark.parametrize(("bits", "code"), STRINGS)
def test_string_io_exits_with_its_address_before_any_check_of_it(bits, code):
    size, in_, rep, address_size, segment, gva = STRINGS[bits, code]
    rig = Rig(bits).set(PRIMARY, unconditional_io_exiting=1)
    high = {16: 0, 32: 0x1_0000, 64: 0x7_0001_0000}[bits]
    rig.gpr(rdx=0x1F0, rcx=2, rdi=high + 0x2000, rsi=high + 0x3000)
    exits(rig, code, reason=Reason.IO_INSTRUCTION, instruction_length=len(code) // 2, guest_linear=gva,
          qualification=size - 1 | in_ << 3 | 1 << 4 | rep << 5 | 0x1F0 << 16,
          instruction_information=address_size << 7 | segment << 15)  # fmt: skip


@pytest.mark.parametrize(
    ("port", "byte", "bit"), [(0, 0, 0), (0x3F9, 0x7F, 1), (0x7FFF, 4095, 7), (0x8000, 4096, 0), (0xFFFF, 8191, 7)]
)
@pytest.mark.parametrize("code", ["ee", "ec"])
def test_a_port_exits_by_its_own_bit_alone(port, byte, bit, code):
    rig = Rig(32).set(PRIMARY, use_io_bitmaps=1, unconditional_io_exiting=1).gpr(rdx=port, rax=0x5A)
    rig.vmcs[Field.IO_BITMAP_A_ADDRESS], rig.vmcs[Field.IO_BITMAP_B_ADDRESS] = BITMAPS, BITMAPS + 4096
    rig.host.write(BITMAPS + byte, 1, 1 << bit)
    exits(rig, code, reason=Reason.IO_INSTRUCTION, instruction_length=1, qualification=port << 16 | (code == "ec") << 3)
    rig.host.write_bytes(BITMAPS, b"\xff" * 8192)
    rig.host.write(BITMAPS + byte, 1, 0xFF ^ 1 << bit)
    passes(rig, code, 1)
    if code == "ee":
        assert rig.ports.written == [(port, 1, 0x5A)]
    else:
        assert rig.state.gpr(Gpr.RAX) == 0x44


@pytest.mark.parametrize(
    ("port", "code", "exit_"),
    [(0x80, "ef", 1), (0x7D, "ef", 1), (0x7C, "ef", 0), (0xFFFD, "ef", 1), (0xFFFC, "ef", 0), (0xFFFF, "66ef", 1)],
)
def test_a_wide_access_exits_by_any_of_its_ports_or_when_it_wraps(port, code, exit_):
    rig = Rig(32).set(PRIMARY, use_io_bitmaps=1).gpr(rdx=port)
    rig.vmcs[Field.IO_BITMAP_A_ADDRESS], rig.vmcs[Field.IO_BITMAP_B_ADDRESS] = BITMAPS, BITMAPS + 4096
    rig.host.write(BITMAPS + 0x80 // 8, 1, 1)
    assert (rig.run(code) is not None) is bool(exit_)


@pytest.mark.parametrize("allowed", [False, True])
def test_the_checks_of_iopl_and_the_tss_come_before_the_exit(allowed):
    rig = Rig(32, 3).set(PRIMARY, unconditional_io_exiting=1).gpr(rdx=0x3F8)
    rig.vmcs[Field.EXCEPTION_BITMAP] = 1 << GP
    rig.word(0x6066, 0x68, 2)  # the bitmap of the TSS begins at 0x68
    rig.word(0x6068 + 0x3F8 // 8, 0 if allowed else 1, 2)
    if allowed:
        exits(rig, "ee", reason=Reason.IO_INSTRUCTION, instruction_length=1, qualification=0x3F8 << 16)
    else:
        exits(rig, "ee", reason=Reason.EXCEPTION_OR_NMI, interruption_information=0x8000_0B0D)


# -- control registers -------------------------------------------------------------------------------------------------

PE, MP, EM, TS, NE, WP, AM, PG = 1, 2, 4, 8, 0x20, 1 << 16, 1 << 18, 1 << 31
DE, PAE, PGE, VMXE, SMEP = 8, 0x20, 0x80, 1 << 13, 1 << 20


def cr(cr, kind, gpr=0, **more):
    return cr | kind << 4 | gpr << 8 | more.get("memory", 0) << 6 | more.get("source", 0) << 16


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("gpr", [0, 6])
def test_the_guest_reads_the_shadow_where_the_host_owns_bits(bits, number, gpr):
    rig = Rig(bits)
    mask, shadow = 0xAAAA_AAAA, 0xCCCC_CCCC
    rig.vmcs[Field[f"CR{number}_GUEST_HOST_MASK"]], rig.vmcs[Field[f"CR{number}_READ_SHADOW"]] = mask, shadow
    real = rig.vmcs[Field[f"GUEST_CR{number}"]]
    passes(rig, f"0f20{0xC0 | number << 3 | gpr:02x}", 3)
    assert rig.state.gpr(gpr) == shadow & mask | real & ~mask & 2**32 - 1


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("masked", [False, True])
def test_smsw_reads_the_shadow_too(bits, masked):
    rig = Rig(bits).gpr(rax=2**64 - 1, rbx=DATA & 0xFFFF if bits == 16 else DATA, rsi=0)
    rig.vmcs[Field.CR0_GUEST_HOST_MASK], rig.vmcs[Field.CR0_READ_SHADOW] = (0xFFFF, 0x1235) if masked else (0, 0)
    expected = 0x1235 if masked else rig.vmcs[Field.GUEST_CR0] & 0xFFFF
    passes(rig, "660f01e0" if bits != 16 else "0f01e0", 3 + (bits != 16))
    assert rig.state.gpr(Gpr.RAX) == 2**64 - 0x10000 + expected
    follows(rig, "0f0123" if bits != 16 else "0f0120")
    assert rig.ram.read(DATA & 0xFFFF if bits == 16 else DATA, 2) == expected


# (control register, mask, shadow, value written, does it exit?)
MASKED = [
    (0, 0, 0, PE | NE | TS, False), (0, TS, 0, PE | NE, False), (0, TS, TS, PE | NE, True),
    (0, TS, 0, PE | NE | TS, True),
    (0, WP | TS, TS, PE | NE | TS, False), (0, WP, 0, PE | NE | WP | MP, True),
    (4, 0, 0, VMXE | DE, False), (4, VMXE, 0, DE, False), (4, VMXE, 0, VMXE | DE, True), (4, DE, DE, VMXE, True),
]  # fmt: skip


@pytest.mark.parametrize(("number", "mask", "shadow", "value", "exit_"), MASKED)
def test_a_write_exits_when_it_differs_from_the_shadow_in_a_bit_of_the_host(number, mask, shadow, value, exit_):
    rig = Rig(32).gpr(rbp=value)
    rig.vmcs[Field[f"CR{number}_GUEST_HOST_MASK"]], rig.vmcs[Field[f"CR{number}_READ_SHADOW"]] = mask, shadow
    before, code = rig.vmcs[Field[f"GUEST_CR{number}"]], f"0f22{0xC5 | number << 3:02x}"
    if exit_:
        exits(rig, code, reason=Reason.CR_ACCESS, instruction_length=3, qualification=cr(number, 0, 5))
    else:
        passes(rig, code, 3)
        always = 0x10 if number == 0 else 0  # CR0.ET
        assert rig.vmcs[Field[f"GUEST_CR{number}"]] == value & ~mask | before & mask | always


def test_a_host_that_hides_paging_keeps_it_while_the_guest_changes_its_own_bits():
    rig = Rig(64)
    rig.vmcs[Field.CR0_GUEST_HOST_MASK], rig.vmcs[Field.CR0_READ_SHADOW] = PG | PE | NE, 0
    before = rig.vmcs[Field.GUEST_CR0]
    rig.gpr(rax=TS)
    passes(rig, "0f22c0", 3)
    assert rig.vmcs[Field.GUEST_CR0] == before | TS
    assert rig.state.efer & 0x400


@pytest.mark.parametrize(
    ("number", "value"), [(0, PE), (4, DE), (4, VMXE | 1 << 22), (0, NE | PE | 1 << 32), (0, NE | PG)]
)
def test_the_fixed_bits_of_vmx_and_reserved_ones_fault(number, value):
    rig = Rig(64 if value >> 32 else 32).gpr(rax=value)
    rig.vmcs[Field.CR0_GUEST_HOST_MASK] = rig.vmcs[Field.CR4_GUEST_HOST_MASK] = 0
    rig.vmcs[Field.EXCEPTION_BITMAP] = 1 << GP
    exits(rig, f"0f22{0xC0 | number << 3:02x}", reason=Reason.EXCEPTION_OR_NMI, interruption_information=0x8000_0B0D)


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize(("mask", "shadow", "exit_"), [(0, 0, False), (0, TS, False), (TS, 0, False), (TS, TS, True)])
def test_clts(bits, mask, shadow, exit_):
    rig = Rig(bits)
    rig.vmcs[Field.CR0_GUEST_HOST_MASK] |= mask
    rig.vmcs[Field.CR0_READ_SHADOW] |= shadow
    rig.vmcs[Field.GUEST_CR0] |= TS
    if exit_:
        exits(rig, "0f06", reason=Reason.CR_ACCESS, instruction_length=2, qualification=cr(0, 2))
    else:
        passes(rig, "0f06", 2)
        assert bool(rig.vmcs[Field.GUEST_CR0] & TS) is bool(mask)


@pytest.mark.parametrize("memory", [0, 1])
@pytest.mark.parametrize(("mask", "shadow", "source", "exit_"), [
    (0, 0, MP | TS | PE, False), (TS, 0, MP | PE, False), (TS, TS, MP | PE, True), (PE, 0, PE | 0xFFF0, True),
    (PE, PE, 0xFFF0, False), (PE, 0, 0, False), (WP | NE, 0, 0xFFF1, False),
])  # fmt: skip
def test_lmsw(mask, shadow, source, exit_, memory):
    rig = Rig(32).gpr(rbx=DATA if memory else source | 0xABCD_0000)
    rig.word(DATA, source, 2)
    rig.vmcs[Field.CR0_GUEST_HOST_MASK], rig.vmcs[Field.CR0_READ_SHADOW] = mask, shadow
    before, code = rig.vmcs[Field.GUEST_CR0], "0f0133" if memory else "0f01f3"
    if exit_:
        exits(rig, code, reason=Reason.CR_ACCESS, instruction_length=3, guest_linear=DATA * memory,
              qualification=cr(0, 3, memory=memory, source=source))  # fmt: skip
    else:
        passes(rig, code, 3)
        own = (MP | EM | TS) & ~mask
        assert rig.vmcs[Field.GUEST_CR0] == before & ~own | source & own


@pytest.mark.parametrize("bits", WIDE)
def test_cr3_exits_both_ways_but_for_the_target_values(bits):
    rig = Rig(bits).set(PRIMARY, cr3_load_exiting=1, cr3_store_exiting=1)
    targets = [0x8_0000, 0x7000, 0x6000, 0x5000]
    for n, value in enumerate(targets):
        rig.vmcs[Field[f"CR3_TARGET_VALUE_{n}"]] = value
    rig.vmcs[Field.CR3_TARGET_COUNT] = 2
    exits(rig, "0f20d9", reason=Reason.CR_ACCESS, instruction_length=3, qualification=cr(3, 1, 1))
    for value in targets[2:]:
        rig.gpr(rsi=value)
        exits(rig, "0f22de", reason=Reason.CR_ACCESS, instruction_length=3, qualification=cr(3, 0, 6))
    rig.gpr(rsi=targets[0])
    passes(rig, "0f22de", 3)
    assert rig.vmcs[Field.GUEST_CR3] == targets[0]


@pytest.mark.parametrize("bits", WIDE)
def test_without_the_controls_cr3_is_the_guests(bits):
    rig = Rig(bits).gpr(rsi=0x8_0000)
    passes(rig, "0f22de", 3)
    follows(rig, "0f20d9")
    assert rig.state.gpr(Gpr.RCX) == 0x8_0000


@pytest.mark.parametrize("exiting", [0, 1])
def test_cr8(exiting):
    rig = Rig(64).set(PRIMARY, cr8_load_exiting=exiting, cr8_store_exiting=exiting).gpr(r9=5)
    if exiting:
        exits(rig, "450f22c1", reason=Reason.CR_ACCESS, instruction_length=4, qualification=cr(8, 0, 9))
        exits(rig, "450f20c2", reason=Reason.CR_ACCESS, instruction_length=4, qualification=cr(8, 1, 10))
    else:
        passes(rig, "450f22c1", 4)
        follows(rig, "450f20c2")
        assert rig.state.gpr(10) == 5


# -- what is on offer -------------------------------------------------------------------------------------------------

# The controls whose effect on a running guest the tests of this directory show. VPIDs tag translations, which no guest
# sees; the controls for host state and IA32_EFER are those of tests/vmx.
SHOWN = {
    PIN: "external_interrupt_exiting nmi_exiting virtual_nmis",
    PRIMARY: "interrupt_window_exiting use_tsc_offsetting hlt_exiting invlpg_exiting mwait_exiting rdpmc_exiting "
    "rdtsc_exiting cr3_load_exiting cr3_store_exiting cr8_load_exiting cr8_store_exiting nmi_window_exiting "
    "mov_dr_exiting unconditional_io_exiting use_io_bitmaps use_msr_bitmaps monitor_exiting pause_exiting "
    "activate_secondary_controls",
    SECONDARY: "enable_ept descriptor_table_exiting enable_rdtscp enable_vpid wbinvd_exiting unrestricted_guest",
    EXIT: "save_debug_controls host_address_space_size acknowledge_interrupt_on_exit save_ia32_pat load_ia32_pat "
    "save_ia32_efer load_ia32_efer",
    ENTRY: "load_debug_controls ia32e_mode_guest load_ia32_pat load_ia32_efer",
}


REGISTERS = {
    PIN: PinBased,
    PRIMARY: PrimaryProcessorBased,
    SECONDARY: SecondaryProcessorBased,
    EXIT: Exit,
    ENTRY: Entry,
}


@pytest.mark.parametrize("field", SHOWN, ids=lambda field: field.name)
def test_no_control_is_on_offer_that_is_not_shown_here(field):
    offered = REGISTERS[field](CAPABILITIES[field].offered)
    assert {name for name in offered.fields if getattr(offered, name)} == set(SHOWN[field].split())
