"""Which instructions and events exit, for every setting of the control that decides."""

from __future__ import annotations

import pytest

from hvemu.vmx import intercepts
from hvemu.vmx.controls import Exit, PinBased, PrimaryProcessorBased, SecondaryProcessorBased
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import DebugException, EventType, IoInstruction, Reason
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.state import PlainState
from hvemu.x86.vectors import Fault, Vector

PIN = Field.PIN_BASED_VM_EXECUTION_CONTROLS
PRIMARY = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
SECONDARY = Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS


def vmcs_with(primary=0, secondary=0, pin=0, **fields):
    vmcs = Vmcs()
    vmcs[PRIMARY], vmcs[SECONDARY], vmcs[PIN] = primary, secondary, pin
    for name, value in fields.items():
        vmcs[Field[name]] = value
    return vmcs


def memory(set_bits):
    """Return a reader of memory in which the bits numbered *set_bits* (hpa * 8 + bit) are 1."""

    def read(hpa, size):
        assert size == 1
        return sum(1 << b for b in range(8) if hpa * 8 + b in set_bits)

    return read


ALWAYS = ["CPUID", "GETSEC", "INVD", "XSETBV", "INVEPT", "INVVPID", "VMCALL", "VMCLEAR", "VMLAUNCH", "VMPTRLD",
          "VMPTRST", "VMREAD", "VMRESUME", "VMWRITE", "VMXOFF", "VMXON", "TASK_SWITCH"]  # fmt: skip
# control bit numbers as printed in SDM 3C "Processor-Based VM-Execution Controls"
BY_PRIMARY = {"HLT": 7, "INVLPG": 9, "MWAIT": 10, "RDPMC": 11, "RDTSC": 12, "MOV_DR": 23, "MONITOR": 29, "PAUSE": 30}
BY_SECONDARY = {"ACCESS_TO_GDTR_OR_IDTR": 2, "ACCESS_TO_LDTR_OR_TR": 2, "WBINVD_OR_WBNOINVD": 6, "RDRAND": 11,
                "RDSEED": 16}  # fmt: skip


@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize("controls", [0, 2**32 - 1])
def test_unconditional_exits(name, controls):
    assert intercepts.instruction(vmcs_with(controls, controls), Reason[name], 3) == VmExit(Reason[name], 0, 3)


@pytest.mark.parametrize(("name", "number"), BY_PRIMARY.items())
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("control", [0, 1])
def test_exits_under_a_primary_control(name, number, others, control):
    controls = (2**32 - 1 if others else 0) & ~(1 << number) | control << number
    exit_ = intercepts.instruction(vmcs_with(controls), Reason[name], 2, qualification=5)
    assert exit_ == (VmExit(Reason[name], 5, 2) if control else None)


@pytest.mark.parametrize(("name", "number"), BY_SECONDARY.items())
@pytest.mark.parametrize("control", [0, 1])
@pytest.mark.parametrize("activated", [0, 1])
def test_exits_under_a_secondary_control(name, number, control, activated):
    exit_ = intercepts.instruction(vmcs_with(activated << 31, control << number), Reason[name], 2, information=7)
    expected = VmExit(Reason[name], 0, 2, instruction_information=7) if control and activated else None
    assert exit_ == expected


@pytest.mark.parametrize("rdtsc", [0, 1])
@pytest.mark.parametrize("activated", [0, 1])
@pytest.mark.parametrize("enabled", [0, 1])
def test_rdtscp_must_be_enabled_and_then_follows_rdtsc(rdtsc, activated, enabled):
    vmcs = vmcs_with(rdtsc << 12 | activated << 31, enabled << 3)
    if activated and enabled:
        assert intercepts.instruction(vmcs, Reason.RDTSCP, 3) == (VmExit(Reason.RDTSCP, 0, 3) if rdtsc else None)
    else:
        with pytest.raises(Fault) as caught:
            intercepts.instruction(vmcs, Reason.RDTSCP, 3)
        assert caught.value == Fault(Vector.UD)


def test_mov_dr_has_its_own_qualification():
    vmcs = vmcs_with(1 << 23)
    assert intercepts.mov_dr(vmcs, 7, 3, 3, from_dr=True) == VmExit(Reason.MOV_DR, 0x317, 3)
    assert intercepts.mov_dr(vmcs_with(), 7, 3, 3, from_dr=False) is None


A, B = 0x10000, 0x20000
IO = {"IO_BITMAP_A_ADDRESS": A, "IO_BITMAP_B_ADDRESS": B}


def never(hpa, size):
    raise AssertionError("the bitmaps are not in use")


@pytest.mark.parametrize("unconditional", [0, 1])
def test_without_bitmaps_io_follows_one_control(unconditional):
    assert intercepts.io_exits(vmcs_with(unconditional << 24), 0x20, 1, never) is bool(unconditional)


@pytest.mark.parametrize("unconditional", [0, 1])
@pytest.mark.parametrize(
    ("port", "size", "bit", "exits"),
    [
        (0x20, 1, A * 8 + 0x20, True),
        (0x20, 1, A * 8 + 0x21, False),
        (0x20, 2, A * 8 + 0x21, True),
        (0x1D, 4, A * 8 + 0x20, True),
        (0x1D, 4, A * 8 + 0x21, False),
        (0x8000, 1, B * 8, True),
        (0x8000, 1, A * 8, False),
        (0x7FFF, 2, B * 8, True),  # an access over the border looks into both
        (0x7FFF, 1, A * 8 + 0x7FFF, True),
        (0xFFFF, 1, B * 8 + 0x7FFF, True),
        (0xFFFF, 1, 0, False),
        (0xFFFF, 2, 0, True),  # wraps around
        (0xFFFD, 4, 0, True),
        (0xFFFC, 4, 0, False),
    ],
)
def test_io_bitmaps_ignore_the_unconditional_control(unconditional, port, size, bit, exits):
    vmcs = vmcs_with(1 << 25 | unconditional << 24, **IO)
    assert intercepts.io_exits(vmcs, port, size, memory({bit})) is exits


def test_io_records_qualification_and_operand():
    access = IoInstruction(size_code=1, in_=1, string=1, rep=1, port=0x1F0)
    exit_ = intercepts.io(vmcs_with(1 << 24), access, 2, never, linear=0x5000, information=0x80)
    assert exit_ == VmExit(Reason.IO_INSTRUCTION, 0x1F0_0039, 2, instruction_information=0x80, guest_linear=0x5000)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    ("index", "byte", "bit"),
    [
        (0, 0, 0),
        (0x174, 0x2E, 4),
        (0x1FFF, 0x3FF, 7),
        (0xC000_0000, 0x400, 0),
        (0xC000_0080, 0x410, 0),
        (0xC000_1FFF, 0x7FF, 7),
    ],
)
def test_msr_bitmaps(write, index, byte, bit):
    vmcs = vmcs_with(1 << 28, MSR_BITMAP_ADDRESS=0x3000)
    reason = Reason.WRMSR if write else Reason.RDMSR
    mine, other = (0x3000 + byte + 0x800 * w for w in (write, not write))
    assert intercepts.msr(vmcs, index, 2, memory({mine * 8 + bit}), write=write) == VmExit(reason, 0, 2)
    assert intercepts.msr(vmcs, index, 2, memory({other * 8 + bit}), write=write) is None


@pytest.mark.parametrize("index", [0x2000, 0xBFFF_FFFF, 0xC000_2000, 0xFFFF_FFFF])
def test_msrs_outside_the_bitmaps_exit(index):
    assert intercepts.msr(vmcs_with(1 << 28), index, 2, never, write=False) == VmExit(Reason.RDMSR, 0, 2)


def test_without_bitmaps_every_msr_exits():
    assert intercepts.msr(vmcs_with(), 0x10, 2, never, write=True) == VmExit(Reason.WRMSR, 0, 2)


@pytest.mark.parametrize("vector", [v for v in Vector if v not in (Vector.PF, Vector.NMI)])
@pytest.mark.parametrize("wanted", [0, 1])
def test_the_exception_bitmap(vector, wanted):
    others = ~(1 << vector) & 0xFFFF_FFFF
    bitmap = 1 << vector if wanted else others
    exit_ = intercepts.exception(vmcs_with(EXCEPTION_BITMAP=bitmap, GUEST_CR0=1), Fault(vector))
    assert (exit_ is not None) is bool(wanted)


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("error_code", range(32))
@pytest.mark.parametrize(("mask", "match"), [(0, 0), (0, 1), (1, 1), (0x1F, 6), (3, 2), (1, 2)])
def test_page_faults_are_filtered_by_their_error_code(wanted, error_code, mask, match):
    vmcs = vmcs_with(EXCEPTION_BITMAP=wanted << 14, PAGE_FAULT_ERROR_CODE_MASK=mask, PAGE_FAULT_ERROR_CODE_MATCH=match)
    exits = intercepts.exception_exits(vmcs, Fault(Vector.PF, error_code))
    assert exits is (bool(wanted) if error_code & mask == match else not wanted)


ALL = {"EXCEPTION_BITMAP": 0xFFFF_FFFF, "GUEST_CR0": 1}


@pytest.mark.parametrize(
    ("fault", "more", "expected"),
    [
        (Fault(Vector.UD), {}, VmExit(Reason(0), interruption_information=0x8000_0306)),
        (Fault(Vector.GP, 0x18), {}, VmExit(Reason(0), interruption_information=0x8000_0B0D, error_code=0x18)),
        (Fault(Vector.PF, 2, cr2=0xDEAD000), {}, VmExit(Reason(0), 0xDEAD000, 0, 0x8000_0B0E, 2)),
        (Fault(Vector.DB), {"debug": DebugException(bs=1)}, VmExit(Reason(0), 0x4000, 0, 0x8000_0301)),
        (Fault(Vector.BP), {"length": 1}, VmExit(Reason(0), 0, 1, 0x8000_0603)),
        (Fault(Vector.OF), {"length": 1}, VmExit(Reason(0), 0, 1, 0x8000_0604)),
        (
            Fault(Vector.DB),
            {"kind": EventType.PRIVILEGED_SOFTWARE_EXCEPTION, "length": 1},
            VmExit(Reason(0), 0, 1, 0x8000_0501),
        ),
        (Fault(Vector.SS, 0), {"nmi_unblocking": True}, VmExit(Reason(0), interruption_information=0x8000_1B0C)),
    ],
)
def test_what_an_exception_records(fault, more, expected):
    if "debug" in more:
        more = {"debug": int(more["debug"])}
    assert intercepts.exception(vmcs_with(**ALL), fault, **more) == expected


def test_no_error_code_in_real_address_mode():
    exit_ = intercepts.exception(vmcs_with(EXCEPTION_BITMAP=1 << 13), Fault(Vector.GP, 0))
    assert exit_.interruption_information == 0x8000_030D


def test_external_interrupts():
    def refuse():
        raise AssertionError("not acknowledged")

    assert intercepts.external_interrupt(vmcs_with(), refuse) is None
    exiting = PinBased(external_interrupt_exiting=1)
    assert intercepts.external_interrupt(vmcs_with(pin=exiting), refuse) == VmExit(Reason.EXTERNAL_INTERRUPT)
    vmcs = vmcs_with(pin=exiting, VM_EXIT_CONTROLS=Exit(acknowledge_interrupt_on_exit=1))
    exit_ = intercepts.external_interrupt(vmcs, lambda: 0x31)
    assert exit_ == VmExit(Reason.EXTERNAL_INTERRUPT, interruption_information=0x8000_0031)


def test_nmis():
    assert intercepts.nmi(vmcs_with()) is None
    exit_ = intercepts.nmi(vmcs_with(pin=PinBased(nmi_exiting=1)))
    assert exit_ == VmExit(Reason.EXCEPTION_OR_NMI, interruption_information=0x8000_0202)


@pytest.mark.parametrize("control", [0, 1])
@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("shadow", [False, True])
def test_the_interrupt_window(control, flag, shadow):
    state = PlainState(rflags=2 | flag << 9, blocking_by_sti_or_mov_ss=shadow)
    exit_ = intercepts.interrupt_window(vmcs_with(PrimaryProcessorBased(interrupt_window_exiting=control)), state)
    assert exit_ == (VmExit(Reason.INTERRUPT_WINDOW) if control and flag and not shadow else None)


@pytest.mark.parametrize("control", [0, 1])
@pytest.mark.parametrize(("blocking", "is_open"), [(0, True), (1, True), (2, False), (8, False)])
def test_the_nmi_window(control, blocking, is_open):
    vmcs = vmcs_with(PrimaryProcessorBased(nmi_window_exiting=control), GUEST_INTERRUPTIBILITY_STATE=blocking)
    assert intercepts.nmi_window(vmcs) == (VmExit(Reason.NMI_WINDOW) if control and is_open else None)


def test_ept_exits_carry_addresses():
    assert intercepts.ept_violation(0x181, 0x5000, 0xC000) == VmExit(
        Reason.EPT_VIOLATION, 0x181, guest_linear=0xC000, guest_physical=0x5000
    )
    assert intercepts.ept_misconfiguration(0x5000) == VmExit(Reason.EPT_MISCONFIGURATION, guest_physical=0x5000)
    assert intercepts.triple_fault() == VmExit(Reason.TRIPLE_FAULT)


def test_secondary_controls_count_only_when_activated():
    every = SecondaryProcessorBased(enable_ept=1)
    assert [intercepts.secondary(vmcs_with(activated << 31, every)) for activated in (0, 1)] == [0, 2]
