"""SYSCALL, SYSENTER and SYSEXIT on plain data: what SDM 2B loads into each register."""

from __future__ import annotations

import pytest

from hvemu.cpu.syscall import FMASK, LSTAR, STAR, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP, syscall, sysenter, sysexit
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import CpuMode, mode
from hvemu.x86.vectors import Fault, Vector
from tests.cpu.machines import long, protected, vm86

FLAGS = 0x40303  # CF, IF, TF, AC
FLAT_CODE64, FLAT_CODE32, FLAT_DATA = 0xA09B, 0xC09B, 0xC093
DPL3 = 3 << 5


class Msrs(dict):
    """MSRs by index; those not given are 0."""

    def __missing__(self, index):
        return 0


def attributes(state, sreg):
    segment = state.segment(sreg)
    return segment.selector, segment.base, segment.limit, int(segment.rights)


# -- SYSCALL ----------------------------------------------------------------------------------------------------------


def prepared(level=3):
    m = long(level)
    m.state.efer |= 1
    m.state.rflags = FLAGS | 2
    return m.state


@pytest.mark.parametrize("level", range(4))
def test_syscall_enters_the_kernel(level):
    state = prepared(level)
    old = {gpr: state.gpr(gpr) for gpr in Gpr}
    msrs = Msrs({STAR: 0xAAAA_0043 << 32 | 0xFFFF_FFFF, LSTAR: 0xFFFF_8000_0000_1000, FMASK: 0x300})
    syscall(state, msrs.__getitem__, 0x1234_5678_9ABC)
    assert state.rip == 0xFFFF_8000_0000_1000
    assert (state.gpr(Gpr.RCX), state.gpr(Gpr.R11)) == (0x1234_5678_9ABC, FLAGS | 2)
    assert state.rflags == 0x40003
    assert attributes(state, Sreg.CS) == (0x40, 0, 0xFFFF_FFFF, FLAT_CODE64)  # RPL is forced to 0
    assert attributes(state, Sreg.SS) == (0x48, 0, 0xFFFF_FFFF, FLAT_DATA)
    assert (state.cpl, mode(state)) == (0, CpuMode.LONG64)
    assert {gpr: state.gpr(gpr) for gpr in Gpr if gpr not in (Gpr.RCX, Gpr.R11)} == {
        gpr: value for gpr, value in old.items() if gpr not in (Gpr.RCX, Gpr.R11)
    }


def test_syscall_keeps_bit_1_of_the_flags_and_drops_rf():
    state = prepared()
    state.rflags = 0x10002
    syscall(state, Msrs({FMASK: 2}).__getitem__, 0)
    assert state.rflags == 2


def test_syscall_is_undefined_without_sce_and_outside_64_bit_mode():
    state = long(3).state
    compatible = prepared()
    code = compatible.segment(Sreg.CS)
    compatible.set_segment(Sreg.CS, type(code)(code.selector, 0, code.limit, code.rights.replace(l=0, db=1)))
    for bad in (state, compatible, protected(3).state, vm86().state):
        before = (bad.rip, bad.rflags, bad.gpr(Gpr.RCX))
        with pytest.raises(Fault) as raised:
            syscall(bad, Msrs().__getitem__, 5)
        assert raised.value == Fault(Vector.UD)
        assert (bad.rip, bad.rflags, bad.gpr(Gpr.RCX)) == before


# -- SYSENTER ---------------------------------------------------------------------------------------------------------

ENTER = Msrs({SYSENTER_CS: 0x13, SYSENTER_ESP: 0xFFFF_8000_0001_2340, SYSENTER_EIP: 0xFFFF_8000_0056_7890})


@pytest.mark.parametrize("machine", [protected, long])
@pytest.mark.parametrize("level", range(4))
def test_sysenter_enters_the_kernel(machine, level):
    state = machine(level).state
    state.rflags = FLAGS | 0x10002
    sysenter(state, ENTER.__getitem__)
    wide = machine is long
    mask = 0xFFFF_FFFF_FFFF_FFFF if wide else 0xFFFF_FFFF
    assert state.rip == 0xFFFF_8000_0056_7890 & mask
    assert state.gpr(Gpr.RSP) == 0xFFFF_8000_0001_2340 & mask
    assert state.rflags == 0x40103  # IF and RF are gone, TF is not
    assert attributes(state, Sreg.CS) == (0x10, 0, 0xFFFF_FFFF, FLAT_CODE64 if wide else FLAT_CODE32)
    assert attributes(state, Sreg.SS) == (0x18, 0, 0xFFFF_FFFF, FLAT_DATA)
    assert state.cpl == 0


def test_sysenter_leaves_virtual_8086_mode():
    state = vm86().state
    sysenter(state, ENTER.__getitem__)
    assert state.rflags & 0x20000 == 0
    assert mode(state) is CpuMode.PROTECTED


@pytest.mark.parametrize("selector", [0, 1, 2, 3, 0x10000])
def test_a_null_selector_means_that_there_is_no_kernel(selector):
    for instruction in (sysenter, sysexit):
        state = protected(0).state
        with pytest.raises(Fault) as raised:
            instruction(state, Msrs({SYSENTER_CS: selector}).__getitem__)
        assert raised.value == Fault(Vector.GP, 0)


def test_both_need_protected_mode():
    from hvemu.x86.state import PlainState

    for instruction in (sysenter, sysexit):
        with pytest.raises(Fault) as raised:
            instruction(PlainState(), ENTER.__getitem__)
        assert raised.value == Fault(Vector.GP, 0)


# -- SYSEXIT ----------------------------------------------------------------------------------------------------------


def test_sysexit_returns_to_32_bit_code_of_ring_3():
    state = protected(0).state
    state.set_gpr(Gpr.RDX, 0xFFFF_FFFF_0040_1000)
    state.set_gpr(Gpr.RCX, 0xFFFF_FFFF_0080_0000)
    flags = state.rflags
    sysexit(state, Msrs({SYSENTER_CS: 0x10}).__getitem__)
    assert (state.rip, state.gpr(Gpr.RSP)) == (0x40_1000, 0x80_0000)
    assert attributes(state, Sreg.CS) == (0x23, 0, 0xFFFF_FFFF, FLAT_CODE32 | DPL3)
    assert attributes(state, Sreg.SS) == (0x2B, 0, 0xFFFF_FFFF, FLAT_DATA | DPL3)
    assert (state.cpl, state.rflags) == (3, flags)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_sysexit_is_for_ring_0(level):
    with pytest.raises(Fault) as raised:
        sysexit(protected(level).state, ENTER.__getitem__)
    assert raised.value == Fault(Vector.GP, 0)
