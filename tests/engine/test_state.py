"""The registers that the engine shows are those of the processor, and what is written to them is what it runs with."""

from __future__ import annotations

import itertools

import pytest

from hvemu.engine.layout import MSR_SLOTS
from hvemu.engine.traps import Kind
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, Segment, TableRegister
from tests.engine.rig import (
    BITS,
    CODE,
    DATA,
    ET,
    GDT,
    IF,
    PE,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    STACK,
    TF,
    Rig,
    rig,
    summary,
)

ARITHMETIC, DF = 0x8D5, 0x400
VM, IOPL3, NT, AC, ID = 1 << 17, 3 << 12, 1 << 14, 1 << 18, 1 << 21
CPUID = b"\x0f\xa2"

# -- general registers ------------------------------------------------------------------------------------------------


def test_every_general_register_is_seen_as_the_code_left_it():
    r = rig(64)
    code = b"".join(  # movabs reg, n * 0x0101010101010101
        bytes([0x48 | reg >> 3, 0xB8 | reg & 7]) + bytes([reg + 1] * 8) for reg in range(16) if reg != RSP
    )
    assert r.run(code + CPUID).kind is Kind.CPUID
    expected = {reg: int.from_bytes(bytes([reg + 1] * 8), "little") for reg in range(16)} | {RSP: STACK}
    assert {reg: r.state.gpr(reg) for reg in Gpr} == expected


def test_every_general_register_is_what_was_written_when_the_code_runs():
    r = rig(64)
    for reg in range(16):
        r.gpr(reg, 0x1111_1111_1111_1111 * reg)
    code = b"".join(  # mov [abs32], reg
        bytes([0x48 | (reg >> 3) << 2, 0x89, 0x04 | (reg & 7) << 3, 0x25]) + (DATA + 8 * reg).to_bytes(4, "little")
        for reg in range(16)
    )
    r.run(code + CPUID)
    assert [r.peek(DATA + 8 * reg) for reg in range(16)] == [0x1111_1111_1111_1111 * reg for reg in range(16)]


# -- flags ------------------------------------------------------------------------------------------------------------

OPERATIONS = {
    "add": b"\x01\xd8", "adc": b"\x11\xd8", "sub": b"\x29\xd8", "sbb": b"\x19\xd8", "cmp": b"\x39\xd8",
    "and": b"\x21\xd8", "xor": b"\x31\xc0", "neg": b"\xf7\xd8", "inc": b"\xff\xc0", "dec": b"\xff\xc8",
    "shl": b"\xd1\xe0", "shr": b"\xd1\xe8", "sar": b"\xd1\xf8", "rol": b"\xd1\xc0", "mul": b"\xf7\xe3",
    "bt": b"\x0f\xa3\xd8", "bsf": b"\x0f\xbc\xc3", "xadd": b"\x0f\xc1\xd8", "stc": b"\xf9", "cmc": b"\xf5",
    "sahf": b"\x9e", "std": b"\xfd", "none": b"",
}  # fmt: skip
STOPS = {
    "exit": (CPUID, Kind.CPUID), "port": (b"\xee", Kind.IO), "string port": (b"\x6e", Kind.IO),
    "fault": (b"\x0f\x0b", Kind.EXCEPTION), "int n": (b"\xcd\x20", Kind.SOFTWARE_INT), "limit": (b"", Kind.LIMIT),
    "syscall": (b"\x0f\x05", Kind.SYSCALL),
}  # fmt: skip
VALUES = ((0x7FFF_FFFF, 1), (0xFFFF_FFFF, 1), (0, 0), (0x8000_0000, 0x8000_0000), (0x1234_5678, 0x0F0F_0F0F))


def pushed(r) -> int:
    """Run PUSHF at RIP; return what it pushes."""
    r.put(b"\x9c\xf4", DATA)
    r.state.rip = DATA
    r.gpr(RSP, STACK)
    assert r.engine.run(1000).kind is Kind.HLT
    return r.peek(r.state.gpr(RSP), 4)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stop_of_any_kind_shows_and_keeps_the_flags(operation, counted):
    for values, before in itertools.product(VALUES, (2, 2 | ARITHMETIC | DF | ID)):

        def start(code, values=values, before=before):
            r = rig(64, counted=counted)
            r.gpr(RAX, values[0])
            r.gpr(RBX, values[1])
            r.gpr(RSI, DATA + 0x100)
            r.state.rflags = before
            r.put(code)
            r.state.rip = r.start
            return r

        r = start(OPERATIONS[operation] + b"\x9c\xf4")  # what PUSHF pushes without any stop in between
        assert r.engine.run(1000).kind is Kind.HLT
        expected = r.peek(STACK - 8)
        for stop, kind in STOPS.values():
            r = start(OPERATIONS[operation] + stop + b"\x90")
            if kind is Kind.LIMIT:
                assert r.engine.step().kind is kind
            else:
                assert r.engine.run(1000).kind is kind
            if kind is not Kind.LIMIT or operation != "none":
                assert r.state.rflags == expected, stop
            shown = r.state.rflags
            assert pushed(r) == shown


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("flag", [1, 4, 0x10, 0x40, 0x80, IF, DF, 0x800, IOPL3, NT, AC, ID])
def test_each_flag_that_is_written_is_what_pushf_pushes(flag, bits):
    r = rig(bits)
    r.state.rflags = flag | 2
    assert r.state.rflags == flag | 2
    assert pushed(r) == flag | 2
    r.state.rflags = 2
    assert pushed(r) == 2


def test_conditional_jumps_obey_flags_that_were_written():
    for taken in (False, True):
        r = rig(32)
        r.state.rflags = 0x42 if taken else 2
        assert r.run(b"\x74\x01\xf4" + CPUID).kind is (Kind.CPUID if taken else Kind.HLT)  # jz +1


def test_df_that_is_written_turns_string_instructions_round():
    r = rig(32)
    r.gpr(RSI, DATA)
    r.state.rflags = 2 | DF
    assert r.run(b"\xac\xf4").kind is Kind.HLT  # lodsb
    assert r.state.gpr(RSI) == DATA - 1


# -- segments and modes -----------------------------------------------------------------------------------------------

CODE16, DATA16, DATA_OFF, COMPATIBLE = 0x90, 0xA0, 0xA8, 0xB0
FAR_MODES = {
    "16-bit code": (CODE16, 0x0000_9B01_0000_FFFF),
    "32-bit code": (0x88, 0x00CF_9B00_0000_FFFF),
    "32-bit code with a base": (0xC0, 0x00CF_9B00_1000_FFFF),
}


def hflags_after_refresh(r) -> tuple[int, int]:
    """Return the emulator's own cached facts and those that the state computes from the registers."""
    native = r.state.hflags
    r.state.hflags ^= native & 0x807F & ~8  # spoil CPL, CS32, SS32, ADDSEG, CS64
    r.state.refresh()
    return native, r.state.hflags


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("cpl", [0, 1, 2, 3])
def test_the_cached_facts_hold_from_the_start(bits, cpl):
    if bits == 16 and cpl:
        cpl = 0
    r = rig(bits, cpl)
    r.run(CPUID)
    native, computed = hflags_after_refresh(r)
    assert computed == native
    assert (r.state.cpl, r.state.code_bits) == (cpl, bits)


@pytest.mark.parametrize("name", FAR_MODES)
def test_a_native_far_jump_leaves_the_cached_facts_that_refresh_computes(name):
    selector, raw = FAR_MODES[name]
    r = rig(32)
    r.word(GDT + selector, raw)
    base = (raw >> 16 & 0xFFFFFF) | (raw >> 56) << 24
    target = CODE + 0x100 - base
    r.put(CPUID, CODE + 0x100)
    assert r.run(b"\xea" + target.to_bytes(4, "little") + selector.to_bytes(2, "little")).kind is Kind.CPUID
    native, computed = hflags_after_refresh(r)
    assert computed == native
    assert r.state.segment(Sreg.CS) == Segment(
        selector, base, (raw & 0xFFFF) | (0xFFFF_0000 if raw >> 55 & 1 else 0), AccessRights(raw >> 40 & 0xF0FF)
    )


@pytest.mark.parametrize("sreg", [Sreg.ES, Sreg.SS, Sreg.DS, Sreg.FS, Sreg.GS])
@pytest.mark.parametrize("raw", [0x0000_9301_2345_FFFF, 0x00CF_9300_0000_FFFF, 0x0040_9300_0040_0FFF])
def test_a_native_segment_load_leaves_the_hidden_part_and_the_cached_facts(sreg, raw):
    r = rig(32)
    r.word(GDT + DATA16, raw)
    r.gpr(RAX, DATA16)
    assert r.run(bytes([0x8E, 0xC0 | sreg << 3]) + b"\x90" + CPUID).kind is Kind.CPUID  # a NOP against the shadow
    limit = (raw & 0xFFFF) | (raw >> 32 & 0xF0000)
    limit = limit << 12 | 0xFFF if raw >> 55 & 1 else limit
    base = (raw >> 16 & 0xFFFFFF) | (raw >> 56) << 24
    assert r.state.segment(sreg) == Segment(DATA16, base, limit, AccessRights(raw >> 40 & 0xF0FF))
    native, computed = hflags_after_refresh(r)
    assert computed == native


def test_a_segment_that_is_written_is_what_code_addresses_with():
    r = rig(32)
    r.state.set_segment(Sreg.FS, Segment(0x55, DATA, 0xFFFF_FFFF, AccessRights(type=3, s=1, p=1, db=1, g=1)))
    r.ram[DATA + 8] = 0x77
    r.run(b"\x64\xa0\x08\x00\x00\x00\x8c\xe3\xf4")  # mov al, fs:[8]; mov ebx, fs
    assert (r.state.gpr(RAX), r.state.gpr(RBX)) == (0x77, 0x55)


@pytest.mark.parametrize(("db", "expected"), [(0, 0x1_0FFE), (1, 0x1_FFFE)])
def test_the_size_of_ss_that_is_written_is_the_size_of_the_stack_pointer(db, expected):
    r = rig(32)
    flat = r.state.segment(Sreg.SS)
    r.state.set_segment(Sreg.SS, Segment(0x10, 0, 0xFFFF_FFFF, flat.rights.replace(db=db)))
    r.gpr(RSP, 0x2_0000 if db else 0x1_1000)
    r.run(b"\x66\x50\xf4")  # push ax
    assert r.state.gpr(RSP) == expected


def test_the_dpl_of_ss_that_is_written_is_the_privilege_level():
    r = rig(32, 3)
    assert summary(r.run(b"\xf4")) == (Kind.EXCEPTION, 13)
    r = rig(32)
    assert summary(r.run(b"\xf4")) == (Kind.HLT, 0)


@pytest.mark.parametrize(
    ("bits", "rights"), [(16, AccessRights(type=11, s=1, p=1)), (32, AccessRights(type=11, s=1, p=1, db=1))]
)
def test_the_rights_of_cs_that_are_written_choose_the_code_size(bits, rights):
    r = rig(32)
    r.state.set_segment(Sreg.CS, Segment(8, 0, 0xFFFF_FFFF, rights))
    r.gpr(RAX, 0xFFFF_FFFF)
    r.run(b"\x40\xf4")  # inc ax or inc eax
    assert r.state.code_bits == bits
    assert r.state.gpr(RAX) == (0xFFFF_0000 if bits == 16 else 0)


def test_compatibility_mode_is_a_cs_without_l_in_long_mode():
    r = rig(64)
    r.state.set_segment(Sreg.CS, Segment(8, 0, 0xFFFF_FFFF, AccessRights(type=11, s=1, p=1, db=1, g=1)))
    r.gpr(RAX, 0xFFFF_FFFF_FFFF_FFFF)
    r.run(b"\x40\xf4")  # inc eax; in 64-bit code a REX prefix
    assert (r.state.code_bits, r.state.gpr(RAX), r.offset) == (32, 0, 1)
    native, computed = hflags_after_refresh(r)
    assert computed == native


def test_an_iret_to_virtual_8086_mode_and_a_written_vm_flag_give_the_same_mode():
    r = rig(32)
    for n, value in enumerate((0x100, CODE >> 4, VM | IOPL3 | 2, 0x100, 0, 0x11, 0x22, 0x33, 0x44)):
        r.word(STACK + 4 * n, value, 4)  # EIP CS EFLAGS ESP SS ES DS FS GS
    r.put(CPUID, CODE + 0x100)
    assert r.run(b"\xcf").kind is Kind.CPUID
    native, computed = hflags_after_refresh(r)
    assert computed == native
    assert (r.state.cpl, r.state.code_bits, r.state.rflags & VM) == (3, 16, VM)
    assert r.state.segment(Sreg.GS).base == 0x440
    r.state.rflags &= ~VM
    assert (r.state.cpl, r.state.rflags & VM) == (3, 0)


def test_table_registers_are_seen_and_written():
    r = rig(32)
    r.state.idtr = TableRegister(0x1234_5678, 0x7FF)
    r.state.gdtr = TableRegister(0x8765_4320, 0x1F)
    r.gpr(RDI, DATA)
    r.run(b"\x0f\x01\x0f\x0f\x01\x47\x08\xf4")  # sidt [edi]; sgdt [edi+8]
    assert (r.peek(DATA, 2), r.peek(DATA + 2, 4)) == (0x7FF, 0x1234_5678)
    assert (r.peek(DATA + 8, 2), r.peek(DATA + 10, 4)) == (0x1F, 0x8765_4320)
    r.word(DATA, 0xFF00_0000 << 16 | 0x3FF)
    r.run(b"\x0f\x01\x1f\xf4")  # lidt [edi]
    assert r.state.idtr == TableRegister(0xFF00_0000, 0x3FF)


def test_ldtr_and_tr_are_seen_and_written():
    r = rig(32)
    r.state.ldtr = Segment(0x48, DATA, 0x17, AccessRights(type=2, p=1))
    r.word(DATA + 8, 0x00CF_9300_0000_FFFF)
    r.gpr(RAX, 0x0C)
    r.run(b"\x8e\xe0\x0f\x00\xc3\x0f\x00\xc9\xf4")  # mov fs, ax; sldt bx; str cx
    assert (r.state.segment(Sreg.FS).selector, r.state.gpr(RBX) & 0xFFFF, r.state.gpr(RCX) & 0xFFFF) == (
        0xC,
        0x48,
        0x98,
    )
    r.word(GDT + 0x98, 0x0000_8907_0000_0067)
    r.gpr(RAX, 0x98)
    r.run(b"\x0f\x00\xd8\xf4")  # ltr ax
    assert r.state.tr == Segment(0x98, 0x7_0000, 0x67, AccessRights(type=11, p=1))


# -- control registers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "value"), [(0, PE | ET | 1 << 18), (3, 0x12000), (4, 0x200), (4, 0x10)])
def test_a_control_register_that_is_written_is_what_code_reads(number, value):
    r = rig(32)
    r.engine.write_cr(number, value)
    assert r.state.cr[number] == value
    r.run(bytes([0x0F, 0x20, 0xC0 | number << 3]) + b"\xf4")
    assert r.state.gpr(RAX) == value


def test_write_cr_stores_even_what_the_processor_would_refuse():
    r = rig(32)
    r.engine.write_cr(4, 0xF800_0000)
    r.engine.write_cr(0, PE)  # ET cannot be cleared on a processor
    assert (r.state.cr0, r.state.cr4) == (PE, 0xF800_0000)


def test_paging_that_is_turned_on_translates_and_turned_off_does_not():
    r = rig(32)
    directory, table = 0x8_0000, 0x8_1000
    r.word(directory, table | 3, 4)
    for page in range(256):
        r.word(table + 4 * page, page << 12 | 3, 4)
    r.word(table + 4 * (DATA >> 12), DATA + 0x1000 | 3, 4)
    r.ram[DATA], r.ram[DATA + 0x1000] = 1, 2
    load = b"\xa0" + DATA.to_bytes(4, "little") + b"\xf4"  # mov al, [DATA]
    r.state.cr3 = directory
    for cr0, expected in ((PE | ET, 1), (PE | ET | 1 << 31, 2), (PE | ET, 1)):
        r.engine.write_cr(0, cr0)
        r.run(load)
        assert r.state.gpr(RAX) == expected


def test_cr3_that_is_written_forgets_translations():
    r = rig(64)
    r.run(b"\xa0" + DATA.to_bytes(8, "little") + b"\xf4")
    r.word(0x9_0000, 0x9_1003)
    r.word(0x9_1000, 0x9_2003)
    r.word(0x9_2000, 0x9_3003)
    for page in range(256):
        r.word(0x9_3000 + 8 * page, (page if page != DATA >> 12 else page + 1) << 12 | 3)
    r.ram[DATA + 0x1000] = 9
    r.state.cr3 = 0x9_0000
    r.run(b"\xa0" + DATA.to_bytes(8, "little") + b"\xf4")
    assert r.state.gpr(RAX) == 9


def test_cr2_and_the_debug_registers_are_seen_and_written():
    r = rig(64)
    r.state.cr2 = 0x1234_5678_9ABC
    for n in range(4):
        r.state.set_dr(n, 0x1000 * n + 1)
    r.state.dr6, r.state.dr7 = 0xFFFF_0FF1, 0x400
    code = (
        b"\x0f\x20\xd0" + b"".join(bytes([0x0F, 0x21, 0xC0 | n << 3 | n + 1]) for n in range(2)) + b"\x0f\x21\xf2\xf4"
    )
    r.run(code)  # mov rax, cr2; mov rcx, dr0; mov rdx, dr1; mov rdx, dr6
    assert (r.state.gpr(RAX), r.state.gpr(RCX), r.state.gpr(RDX)) == (0x1234_5678_9ABC, 1, 0xFFFF_0FF1)


def test_cr8_is_seen_and_written():
    r = rig(64)
    r.state.cr8 = 5
    r.run(b"\x44\x0f\x20\xc0\xb9\x07\x00\x00\x00\x44\x0f\x22\xc1\xf4")  # mov rax, cr8; mov ecx, 7; mov cr8, rcx
    assert (r.state.gpr(RAX), r.state.cr8) == (5, 7)


def test_efer_never_shows_the_bit_of_the_engines_own_mode():
    r = rig(64)
    assert r.state.efer == 0x500
    r.state.efer = 0xD01
    r.run(CPUID)
    assert r.state.efer == 0xD01


# -- MSRs that the emulator consults ----------------------------------------------------------------------------------


def test_swapgs_uses_kernel_gs_base():
    r = rig(64)
    r.engine.write_msr(0xC000_0102, 0xFFFF_8000_1234_5678)
    r.state.set_segment(Sreg.GS, Segment(0x10, 0x77, 0xFFFF_FFFF, r.state.segment(Sreg.GS).rights))
    r.run(b"\x0f\x01\xf8" + CPUID)
    assert (r.engine.read_msr(0xC000_0102), r.state.segment(Sreg.GS).base) == (0x77, 0xFFFF_8000_1234_5678)


def test_sysexit_uses_sysenter_cs():
    r = rig(32)
    r.engine.write_msr(0x174, 0x1208)
    r.gpr(RCX, STACK)
    r.gpr(RDX, CODE + 0x100)
    r.put(b"\xf4", CODE + 0x100)
    assert summary(r.run(b"\x0f\x35")) == (Kind.EXCEPTION, 13)  # HLT at CPL 3
    assert (r.state.segment(Sreg.CS).selector, r.state.segment(Sreg.SS).selector, r.offset) == (0x121B, 0x1223, 0x100)


def test_sysret_uses_star():
    r = rig(64)
    r.engine.write_msr(0xC000_0081, 0x0123 << 48)
    r.state.efer |= 1
    r.gpr(RCX, CODE + 0x100)
    r.gpr(11, 0x202)
    r.put(b"\xf4", CODE + 0x100)
    assert summary(r.run(b"\x48\x0f\x07")) == (Kind.EXCEPTION, 13)
    assert (r.state.segment(Sreg.CS).selector, r.state.rflags, r.offset) == (0x133, 0x202, 0x100)


@pytest.mark.parametrize("index", MSR_SLOTS)
def test_an_msr_slot_keeps_what_is_written_over_a_run(index):
    r = rig(64)
    r.engine.write_msr(index, 0x0607_0406)
    r.run(CPUID)
    assert r.engine.read_msr(index) == 0x0607_0406


def test_other_msrs_are_not_the_engines():
    with pytest.raises(KeyError):
        rig(64).engine.read_msr(0x10)
    with pytest.raises(KeyError):
        rig(64).engine.write_msr(0x10, 0)


# -- shadows and the end of an instruction ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [b"\xfb", b"\x8e\xd0"], ids=["sti", "mov ss"])
def test_a_shadow_is_seen_and_cleared(code):
    r = rig(32)
    r.gpr(RAX, 0x10)
    r.run(code + b"\x90\x90", limit=1)
    assert r.state.blocking_by_sti_or_mov_ss
    r.engine.run(1)
    assert not r.state.blocking_by_sti_or_mov_ss
    r.state.blocking_by_sti_or_mov_ss = True
    assert r.state.blocking_by_sti_or_mov_ss
    r.engine.run(1)
    assert not r.state.blocking_by_sti_or_mov_ss


@pytest.mark.parametrize(("flags", "due"), [(2, False), (2 | TF, True), (2 | 0x10000, False), (2 | TF | 0x10000, True)])
def test_retire_clears_rf_and_the_shadow_and_says_whether_a_single_step_trap_is_due(flags, due):
    r = rig(32)
    r.state.rflags, r.state.blocking_by_sti_or_mov_ss = flags, True
    assert r.state.retire(0x1234) is due
    assert (r.state.rip, r.state.rflags, r.state.blocking_by_sti_or_mov_ss) == (0x1234, flags & ~0x10000, False)


# -- snapshots --------------------------------------------------------------------------------------------------------

COUNTDOWN = b"\x40\xd1\xe0\x4b\x75\xfb\xf4"  # inc eax; shl eax; dec ebx; jnz


def test_a_snapshot_continues_on_another_engine_as_on_its_own():
    r = rig(32)
    r.gpr(RBX, 10)
    r.run(COUNTDOWN, limit=17)
    registers, memory = r.engine.snapshot(), bytes(r.ram[:])
    other = Rig(counted=False).reset(64, 3)
    other.ram[:] = memory
    other.engine.restore(registers)
    assert r.engine.run(1000) == other.engine.run(1000)
    assert [*r.state.regs] == [*other.state.regs]
    assert (r.state.rip, r.state.rflags) == (other.state.rip, other.state.rflags)


def test_a_snapshot_that_is_restored_undoes_everything():
    r = rig(32)
    r.gpr(RBX, 10)
    r.run(COUNTDOWN, limit=17)
    registers = r.engine.snapshot()
    assert r.engine.run(1000).kind is Kind.HLT
    end = (r.state.gpr(RAX), r.state.rflags)
    r.reset(64, 3)
    r.put(COUNTDOWN)
    r.engine.restore(registers)
    assert r.engine.run(1000).kind is Kind.HLT
    assert (r.state.gpr(RAX), r.state.rflags) == end
    assert r.state.rip == CODE + len(COUNTDOWN) - 1


def test_a_snapshot_does_not_bring_back_breakpoints_that_the_emulator_has_freed():
    r = rig(32)
    r.gpr(RAX, CODE + 0x100)
    r.gpr(RCX, 0x402)
    r.gpr(RDX, 0x400)
    assert r.run(b"\x0f\x23\xc0\x0f\x23\xf9\xf4").kind is Kind.HLT  # mov dr0, eax; mov dr7, ecx
    assert any(r.state.breakpoints)
    registers = r.engine.snapshot()
    assert r.run(b"\x0f\x23\xfa\xf4").kind is Kind.HLT  # mov dr7, edx
    assert not any(r.state.breakpoints)
    r.engine.restore(registers)
    assert (r.state.dr7, any(r.state.breakpoints)) == (0x402, False)
    assert r.run(b"\x0f\x23\xfa\xf4").kind is Kind.HLT
