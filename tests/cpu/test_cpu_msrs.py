"""CPUID and the model-specific registers, as a guest meets them."""

from __future__ import annotations

import pytest

from hvemu.guest.image import Image
from hvemu.machine import Machine, technique_for
from hvemu.x86.registers import Sreg
from tests.cpu.silicon import RAX, RBX, RCX, RDX, RSI, program, silicon

ALL, WIDE = (16, 32, 64), (32, 64)
EFER, FS_BASE, GS_BASE, KERNEL_GS, TSC_AUX, STAR = (
    0xC000_0080,
    0xC000_0100,
    0xC000_0101,
    0xC000_0102,
    0xC000_0103,
    0xC000_0081,
)
SNIPPETS = """
    cpuid_: cpuid
        hlt
    rdmsr_: rdmsr
        hlt
    wrmsr_: wrmsr
        hlt
    monitor: .byte 0x0f, 0x01, 0xc8
        hlt
    mwait: .byte 0x0f, 0x01, 0xc9
        hlt
    invd_: invd
        inc esi
        hlt
    wbinvd_: wbinvd
        inc esi
        hlt
    pause_: pause
        inc esi
        hlt
    rdpmc_: rdpmc
        hlt
"""
LONG = """
    bases: mov rax, fs:[rdi + 0x10]
        mov rbx, gs:[rdi + 0x10]
        hlt
    swap: swapgs
        hlt
    nx: mov eax, [rdi + 0x200000]
        hlt
    rdfsbase_: .byte 0xf3, 0x48, 0x0f, 0xae, 0xc0
        hlt
    wrgsbase_: .byte 0xf3, 0x48, 0x0f, 0xae, 0xd8
        hlt
    syscall_: syscall
"""
CODE = {mode: program(mode, SNIPPETS + (LONG if mode == 64 else "")) for mode in ALL}


def write(s, index, value):
    """WRMSR; return the vector that it meets, or None."""
    return s.gpr(RCX, index).gpr(RAX, value & 0xFFFF_FFFF).gpr(RDX, value >> 32).vector("wrmsr_")


def read(s, index):
    """RDMSR; return what it reads, or None for #GP."""
    vector = s.gpr(RCX, index).vector("rdmsr_")
    if vector is not None:
        assert vector == 13
        return None
    return s.reg(RDX) << 32 | s.reg(RAX)


# -- CPUID ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("ring", [0, 3])
def test_cpuid_answers_everywhere_and_clears_the_upper_halves(mode, ring):
    if mode == 16:
        ring = 0
    s = silicon(CODE[mode], ring).gpr(RAX, 0xFFFF_FFFF_0000_0000).gpr(RCX, 0xFFFF_FFFF_0000_0000)
    s.gpr(RBX, 0xFFFF_FFFF_FFFF_FFFF).gpr(RDX, 0xFFFF_FFFF_FFFF_FFFF)
    s.vector("cpuid_")
    assert b"".join(s.reg(r).to_bytes(4, "little") for r in (RBX, RDX, RCX)) == b"GenuineIntel"


def test_cpuid_offers_long_mode_and_paging_to_match():
    s = silicon(CODE[64]).gpr(RAX, 0x8000_0001)
    s.halts("cpuid_")
    assert s.reg(RDX) & 1 << 29  # Intel 64
    assert s.reg(RDX) & 1 << 20  # NX
    s.gpr(RAX, 1).halts("cpuid_")
    assert s.reg(RCX) & 1 << 3 == 0  # no MONITOR
    assert s.reg(RDX) & 1 << 6  # PAE


@pytest.mark.parametrize(("mode", "offered"), [(16, False), (32, False), (64, True)])
def test_cpuid_offers_syscall_in_64_bit_mode_only(mode, offered):
    s = silicon(CODE[mode]).gpr(RAX, 0x8000_0001).halts("cpuid_")
    assert bool(s.reg(RDX) & 1 << 11) is offered


# -- RDMSR and WRMSR --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("name", ["rdmsr_", "wrmsr_"])
def test_a_program_may_not_use_them(mode, name):
    s = silicon(CODE[mode], 3).gpr(RCX, 0x174)
    assert s.vector(name) == 13
    assert s.frame(2) == [0, s.at(name)]


@pytest.mark.parametrize("mode", ALL)
def test_a_register_that_is_not_there_is_refused(mode):
    for name in ("rdmsr_", "wrmsr_"):
        s = silicon(CODE[mode]).gpr(RCX, 0x1234_5678)
        assert s.vector(name) == 13


@pytest.mark.parametrize("mode", ALL)
def test_what_is_written_is_read_back_by_the_low_half_of_rcx(mode):
    s = silicon(CODE[mode])
    s.gpr(RAX, 0xFFFF_FFFF_0000_1234).gpr(RDX, 0xFFFF_FFFF_0000_0000).gpr(RCX, 0xFFFF_FFFF_0000_0174)
    assert s.vector("wrmsr_") is None
    assert read(s, 0x174) == 0x1234
    assert read(s, 0xFFFF_FFFF_0000_0174) == 0x1234


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x176, 1 << 47),  # not canonical
        (0x174, 1 << 32),
        (0xC000_0082, 0x8000_0000_0000_0000),
        (0xC000_0084, 1 << 32),
        (FS_BASE, 1 << 63),
        (EFER, 1 << 1),
        (EFER, 0),  # LME, while paging is on
        (0x277, 0x0202_0202_0202_0202),  # no such memory type
        (0xFE, 0),  # read-only
        (TSC_AUX, 1 << 32),
    ],
)
def test_values_that_a_register_may_not_hold_are_refused(index, value):
    s = silicon(CODE[64])
    old = read(s, index)
    s.cpu.halted = False
    assert write(s, index, value) == 13
    assert s.frame(2) == [0, s.at("wrmsr_")]
    assert s.cpu.msrs.read(index) == old


@pytest.mark.parametrize("mode", WIDE)
def test_what_firmware_leaves(mode):
    """VMX enabled and locked; MTRRs on, write-back where no range says otherwise."""
    s = silicon(CODE[mode])
    assert read(s, 0x3A) == 5
    assert write(s, 0x3A, 1) == 13  # locked
    assert read(silicon(CODE[mode]), 0x2FF) == 0xC06


# -- registers with effects -------------------------------------------------------------------------------------------


def test_fs_and_gs_bases_count_at_once():
    s = silicon(CODE[64])
    s.poke(0x4_0010, 8, 0x1111)
    s.poke(0x5_0010, 8, 0x2222)
    assert write(s, FS_BASE, 0x4_0000) is None
    assert write(s, GS_BASE, 0x5_0000) is None
    s.halts("bases")
    assert (s.reg(RAX), s.reg(RBX)) == (0x1111, 0x2222)
    assert read(s, FS_BASE) == 0x4_0000


def test_a_base_is_wide_and_the_limit_does_not_count():
    s = silicon(CODE[64])
    assert write(s, GS_BASE, 0xFFFF_8000_0000_0000) is None
    assert s.state.segment(Sreg.GS).base == 0xFFFF_8000_0000_0000


def test_swapgs_exchanges_the_two_bases():
    s = silicon(CODE[64])
    write(s, GS_BASE, 0x1000)
    write(s, KERNEL_GS, 0x2000)
    s.halts("swap")
    assert (read(s, GS_BASE), read(s, KERNEL_GS)) == (0x2000, 0x1000)


@pytest.mark.parametrize("name", ["rdfsbase_", "wrgsbase_"])
def test_the_base_instructions_need_cr4_fsgsbase(name):
    s = silicon(CODE[64], 3).gpr(RAX, 0x7000)
    assert s.vector(name) == 6
    s = silicon(CODE[64], 3).gpr(RAX, 0x7000)
    s.state.cr4 |= 1 << 16
    s.state.set_segment(Sreg.FS, s.state.segment(Sreg.FS))
    assert s.vector(name) == 13  # at the HLT behind it
    assert s.frame(2)[1] == s.at(name) + 5
    assert s.state.segment(Sreg.GS).base == (0x7000 if name == "wrgsbase_" else 0)


def test_efer_nxe_gives_bit_63_a_meaning():
    s = silicon(CODE[64])
    s.poke(0x3008, 8, 0x20_0083 | 1 << 63)
    assert s.vector("nx") == 14
    assert s.frame(1) == [9]  # a reserved bit in an entry that is present
    s = silicon(CODE[64])
    s.poke(0x3008, 8, 0x20_0083 | 1 << 63)
    assert write(s, EFER, 0x900) is None
    assert s.vector("nx") is None


def test_efer_keeps_lma():
    s = silicon(CODE[64])
    assert read(s, EFER) == 0x500
    assert write(s, EFER, 0x901) is None
    assert read(s, EFER) == 0xD01


def test_efer_sce_makes_syscall_an_instruction():
    s = silicon(CODE[64])
    assert s.vector("syscall_") == 6
    s = silicon(CODE[64])
    s.cpu.msrs.write(0xC000_0082, s.at("invd_"))
    assert write(s, EFER, 0x501) is None
    s.halts("syscall_")
    assert s.reg(RSI) == 1


# -- instructions that are not there, or do nothing -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("name", ["monitor", "mwait"])
@pytest.mark.parametrize("ring", [0, 3])
def test_monitor_and_mwait_are_undefined(mode, name, ring):
    s = silicon(CODE[mode], 0 if mode == 16 else ring)
    assert s.vector(name) == 6


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("name", ["invd_", "wbinvd_", "pause_"])
def test_caches_and_pauses_do_nothing(mode, name):
    s = silicon(CODE[mode]).halts(name)
    assert s.reg(RSI) == 1


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize(("name", "good"), [("invd_", False), ("wbinvd_", False), ("pause_", True)])
def test_which_of_them_a_program_may_use(mode, name, good):
    s = silicon(CODE[mode], 3)
    assert s.vector(name) == 13
    assert bool(s.reg(RSI)) is good


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("pce", [0, 1 << 8])
@pytest.mark.parametrize("ring", [0, 3])
def test_there_are_no_performance_counters(mode, pce, ring):
    s = silicon(CODE[mode], 0 if mode == 16 else ring)
    s.state.cr4 |= pce
    assert s.vector("rdpmc_") == 13


@pytest.mark.parametrize("technique", ["bare", "deprivilege", "hardware"])
def test_firmware_leaves_the_same_under_every_technique(technique):
    """The guest exits with what it reads of IA32_MTRR_DEF_TYPE."""
    code = program(32, "mov ecx, 0x2ff\nrdmsr\nmov edx, 0xf4\nout dx, eax\nhlt")
    image = Image("firmware", 32, ((code.origin, code.code),), code.origin)
    result = Machine(image, technique_for(technique, None), ram=4 << 20).run()
    assert result.ending.code == 0xC06
