"""Exceptions, interrupts, NMIs and injected events of a guest in VMX non-root operation."""

from __future__ import annotations

import pytest

from hvemu.vmx.entry import EntryFailed
from hvemu.vmx.fail import VmFail
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Reason
from hvemu.x86.registers import Gpr, Sreg
from tests.cpu import machines
from tests.cpu.nonroot_rig import CODE, DATA, EXIT, HANDLERS, PIN, PRIMARY, SECONDARY, STACK, Rig, fields

DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS, NP, SS, GP, PF = 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14
EXTERNAL, NMI_TYPE, HARDWARE, SOFTWARE, PRIVILEGED, SOFTWARE_EXCEPTION = 0, 2, 3, 4, 5, 6
VALID, HAS_CODE = 1 << 31, 1 << 11
ALL, WIDE = (16, 32, 64), (32, 64)
IDT_GATE = machines.IDT


def information(vector, kind, code=None):
    return VALID | (HAS_CODE if code is not None else 0) | kind << 8 | vector


def handler(vector, bits):
    return 16 * vector if bits == 16 else HANDLERS + 16 * vector


def bitmap(rig, *vectors):
    rig.vmcs[Field.EXCEPTION_BITMAP] = sum(1 << v for v in vectors)
    return rig


def expected(reason, **values):
    return {"reason": reason} | {name: v for name, v in values.items() if v}


def absent(rig, vector):
    """Mark the gate of *vector* not present."""
    size = 16 if rig.bits == 64 else 8
    at = IDT_GATE + size * vector + 5
    rig.word(at, rig.ram.read(at, 1) & 0x7F, 1)
    return rig


# -- the exception bitmap ---------------------------------------------------------------------------------------------

# vector: (code, type, error code, length); EAX is 0 and EBX 1, which is no value for CR4
FAULTS = {
    DE: ("f7f0", HARDWARE, None, 0), DB: ("f1", PRIVILEGED, None, 1), BP: ("cc", SOFTWARE_EXCEPTION, None, 1),
    UD: ("0f0b", HARDWARE, None, 0), GP: ("0f22e3", HARDWARE, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("vector", FAULTS)
@pytest.mark.parametrize("wanted", [False, True])
def test_an_exception_exits_exactly_when_its_bit_is_1(bits, vector, wanted):
    code, kind, error_code, length = FAULTS[vector]
    rig = Rig(bits).gpr(rbx=1)
    rig.vmcs[Field.EXCEPTION_BITMAP] = 1 << vector if wanted else 2**32 - 1 ^ 1 << vector
    rig.vmcs[Field.PAGE_FAULT_ERROR_CODE_MATCH] = 1  # with a mask of 0: no page fault exits
    exit_ = rig.run(code)
    if not wanted:
        assert exit_ is None
        assert rig.state.rip == handler(vector, bits)
        return
    real = bits == 16  # where no error code is pushed
    assert fields(exit_) == expected(
        Reason.EXCEPTION_OR_NMI, instruction_length=length,
        interruption_information=information(vector, kind, None if real else error_code),
    )  # fmt: skip
    assert rig.state.rip == (0 if real else CODE)


@pytest.mark.parametrize(("code", "vector", "error_code"), [
    ("8edb", GP, 0x98), ("8ed3", GP, 0x98), ("8ee1", NP, 0xB0), ("0f00d9", NP, 0xB8), ("ce", OF, None),
    ("62 05 00000600", BR, None), ("d9d0", NM, None), ("8ed2", SS, 0xA8),
])  # fmt: skip
def test_protected_mode_has_more_of_them(code, vector, error_code):
    rig = bitmap(Rig(32).gpr(rax=5, rbx=0x98, rcx=0xB0, rdx=0xA8), vector)
    rig.word(machines.GDT + 0xA8, machines.DATA32 & ~(1 << 47))
    rig.word(machines.GDT + 0xB0, machines.DATA32 & ~(1 << 47))
    rig.word(machines.GDT + 0xB8, 0x0000_0900_6000_0067)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x800  # OF
    if vector is NM:
        rig.vmcs[Field.GUEST_CR0] |= 8
    if code == "0f00d9":
        rig.gpr(rcx=0xB8)
    exit_ = rig.run(code.replace(" ", ""))
    kind = SOFTWARE_EXCEPTION if vector == OF else HARDWARE
    assert fields(exit_) == expected(
        Reason.EXCEPTION_OR_NMI, interruption_information=information(vector, kind, error_code), error_code=error_code,
        instruction_length=vector == OF,
    )  # fmt: skip


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize(("mask", "match"), [(0, 0), (0, 1), (7, 2), (7, 6), (2, 2), (1, 1), (0xFFFF_FFFF, 2)])
def test_page_faults_exit_by_mask_and_match(wanted, mask, match):
    """Write to an absent page: error code 2."""
    rig = Rig(64).gpr(rdi=DATA)
    rig.word(0x8_3000 + 8 * (DATA >> 12), 0)
    bitmap(rig, PF) if wanted else None
    rig.vmcs[Field.PAGE_FAULT_ERROR_CODE_MASK], rig.vmcs[Field.PAGE_FAULT_ERROR_CODE_MATCH] = mask, match
    rig.state.cr2 = 0x5EED
    exit_ = rig.run("488907")
    if (2 & mask == match) is bool(wanted):
        assert fields(exit_) == expected(
            Reason.EXCEPTION_OR_NMI,
            interruption_information=information(PF, HARDWARE, 2),
            error_code=2,
            qualification=DATA,
        )
        assert rig.state.cr2 == 0x5EED  # SDM: the exit does not load it
    else:
        assert exit_ is None
        assert (rig.state.rip, rig.state.cr2) == (handler(PF, 64), DATA)


# -- debug exceptions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("stale", [0xFFFF0FF0, 0xFFFF0FF0 | 0xF, 0xFFFF4FF0 | 0x2002])
def test_a_single_step_that_exits_is_in_the_qualification_and_not_in_dr6(bits, stale):
    rig = bitmap(Rig(bits), DB)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x100
    rig.state.dr6 = stale
    exit_ = rig.run("90f4", limit=5)
    assert fields(exit_) == expected(
        Reason.EXCEPTION_OR_NMI, qualification=1 << 14, interruption_information=information(DB, HARDWARE)
    )
    assert rig.state.dr6 == stale
    assert rig.state.rip - (0 if bits == 16 else CODE) == 1


@pytest.mark.parametrize("bits", ALL)
def test_after_emulated_instructions_too(bits):
    rig = bitmap(Rig(bits), DB)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x100
    exit_ = rig.run("0f09f4", limit=5)
    assert fields(exit_) == expected(
        Reason.EXCEPTION_OR_NMI, qualification=1 << 14, interruption_information=information(DB, HARDWARE)
    )
    assert rig.state.dr6 == 0xFFFF0FF0


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("code", ["0f21c0", "0f23c0"])
def test_general_detect(code, wanted):
    rig = Rig(32)
    rig.vmcs[Field.GUEST_DR7] |= 1 << 13
    if wanted:
        exit_ = bitmap(rig, DB).run(code)
        assert fields(exit_) == expected(
            Reason.EXCEPTION_OR_NMI, qualification=1 << 13, interruption_information=information(DB, HARDWARE)
        )
        assert (rig.state.dr6, rig.state.dr7) == (0xFFFF0FF0, 0x2400)
    else:
        assert rig.run(code) is None
        assert (rig.state.dr6, rig.state.dr7) == (0xFFFF2FF0, 0x400)
        assert rig.state.rip == handler(DB, 32)


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize(
    ("dr7", "code", "hit"), [(0x402 | 0 << 16, "909090", 1), (0x408 | 1 << 20 | 3 << 22, "8907", 2)]
)
def test_breakpoints(wanted, dr7, code, hit):
    rig = Rig(32).gpr(rdi=DATA)
    rig.vmcs[Field.GUEST_DR7] = dr7
    rig.state.set_dr(0, CODE + 1), rig.state.set_dr(1, DATA)
    if wanted:
        exit_ = bitmap(rig, DB).run(code, limit=3)
        assert fields(exit_) == expected(
            Reason.EXCEPTION_OR_NMI, qualification=hit, interruption_information=information(DB, HARDWARE)
        )
        assert rig.state.dr6 == 0xFFFF0FF0
    else:
        assert rig.run(code, limit=3) is None
        assert rig.state.dr6 == 0xFFFF0FF0 | hit
        assert rig.state.rip == handler(DB, 32)


def test_int1_has_nothing_to_say_in_the_qualification():
    rig = bitmap(Rig(32), DB)
    rig.state.dr6 = 0xFFFF4FF3
    exit_ = rig.run("f1")
    assert fields(exit_) == expected(
        Reason.EXCEPTION_OR_NMI, interruption_information=information(DB, PRIVILEGED), instruction_length=1
    )
    assert rig.state.dr6 == 0xFFFF4FF3


# -- exits while an event is delivered --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize(("code", "vector", "kind", "length", "ext"), [
    ("cd80", 0x80, SOFTWARE, 2, 0), ("cc", BP, SOFTWARE_EXCEPTION, 1, 0), ("f1", DB, PRIVILEGED, 1, 1),
    ("0f0b", UD, HARDWARE, 0, 1),
])  # fmt: skip
def test_a_fault_during_delivery_names_the_event(bits, code, vector, kind, length, ext):
    rig = absent(bitmap(Rig(bits), NP), vector)
    exit_ = rig.run(code)
    assert fields(exit_) == expected(
        Reason.EXCEPTION_OR_NMI, interruption_information=information(NP, HARDWARE, 0),
        error_code=vector << 3 | 2 | ext,
        idt_vectoring=information(vector, kind), instruction_length=length,
    )  # fmt: skip
    assert rig.state.rip == CODE


@pytest.mark.parametrize("bits", WIDE)
def test_the_second_exception_exits_before_it_makes_a_double_fault(bits):
    rig = absent(bitmap(Rig(bits), NP, DF).gpr(rbx=1), GP)
    exit_ = rig.run("0f22e3")
    assert fields(exit_) == expected(
        Reason.EXCEPTION_OR_NMI, interruption_information=information(NP, HARDWARE, 0), error_code=GP << 3 | 3,
        idt_vectoring=information(GP, HARDWARE, 0),
    )  # fmt: skip


@pytest.mark.parametrize("bits", WIDE)
def test_a_double_fault_that_exits_was_met_by_no_delivery(bits):
    rig = absent(bitmap(Rig(bits), DF).gpr(rbx=1), GP)
    exit_ = rig.run("0f22e3")
    assert fields(exit_) == expected(Reason.EXCEPTION_OR_NMI, interruption_information=information(DF, HARDWARE, 0))


def test_a_double_fault_whose_delivery_faults_names_the_double_fault():
    rig = absent(absent(bitmap(Rig(32), PF, TS).gpr(rbx=1), GP), DF)
    assert rig.run("0f22e3").reason is Reason.TRIPLE_FAULT
    rig = absent(absent(bitmap(Rig(32), UD).gpr(rbx=1), GP), DF)
    exit_ = rig.run("0f22e3")
    assert fields(exit_) == {"reason": Reason.TRIPLE_FAULT}
    assert rig.state.rip == CODE


def test_a_page_fault_during_delivery_of_a_page_fault_keeps_the_first_address_in_cr2():
    rig = bitmap(Rig(64).gpr(rdi=DATA, rsp=DATA + 0x2000), PF)
    rig.vmcs[Field.EXCEPTION_BITMAP] = 0
    rig.vmcs[Field.PAGE_FAULT_ERROR_CODE_MASK], rig.vmcs[Field.PAGE_FAULT_ERROR_CODE_MATCH] = (
        2,
        0,
    )  # reads pass, stores exit
    rig.word(0x8_3000 + 8 * (DATA >> 12), 0), rig.word(0x8_3000 + 8 * ((DATA + 0x1000) >> 12), 0)
    exit_ = rig.run("488b07")
    assert rig.state.cr2 == DATA
    assert (exit_.interruption_information, exit_.error_code) == (information(PF, HARDWARE, 0), 2)
    assert (exit_.idt_vectoring, exit_.idt_error_code) == (information(PF, HARDWARE, 0), 0)
    assert DATA + 0x1000 <= exit_.qualification < DATA + 0x2000


@pytest.mark.parametrize(("code", "vector", "rf"), [("0f0b", UD, 1), ("f1", DB, 0), ("cc", BP, 0)])
@pytest.mark.parametrize("delivered", [False, True])
def test_rf_is_saved_as_in_the_frame_that_the_event_would_have_had(code, vector, rf, delivered):
    rig = bitmap(Rig(32), *([] if delivered else [vector]))
    if delivered:
        rig.ept.unmap(0, 0x20_0000)
        rig.ept.map(CODE, CODE + 0x20_0000, 0x1000)
        assert rig.run(code).reason is Reason.EPT_VIOLATION
    else:
        assert rig.run(code).reason is Reason.EXCEPTION_OR_NMI
    assert rig.state.rflags == 2 | rf << 16


# -- external interrupts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("acknowledge", [0, 1])
@pytest.mark.parametrize("if_", [0, 1])
def test_an_external_interrupt_exits_whatever_if_says(bits, acknowledge, if_):
    rig = Rig(bits).set(PIN, external_interrupt_exiting=1).set(EXIT, acknowledge_interrupt_on_exit=acknowledge)
    rig.vmcs[Field.GUEST_RFLAGS] |= if_ << 9
    rig.interrupts.vectors, rig.cpu.attention = [0x33], True
    exit_ = rig.run("9090")
    assert fields(exit_) == expected(
        Reason.EXTERNAL_INTERRUPT, interruption_information=information(0x33, EXTERNAL) if acknowledge else 0
    )
    assert rig.interrupts.vectors == ([] if acknowledge else [0x33])
    assert rig.engine.instructions == 0


@pytest.mark.parametrize("bits", ALL)
def test_without_the_control_the_guest_takes_the_interrupt_when_if_is_1(bits):
    rig = Rig(bits)
    rig.interrupts.vectors, rig.cpu.attention = [0x33], True
    assert rig.run("90fb9090", limit=2) is None  # NOP, STI; one more NOP is in its shadow
    assert rig.interrupts.vectors == [0x33]
    assert rig.run(limit=1) is None
    assert rig.interrupts.vectors == []
    assert rig.state.rip == handler(0x33, bits)


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize(
    ("code", "shadow"), [("fb9090", True), ("90fb9090", True), ("8ed09090", True), ("909090", False)]
)
def test_the_interrupt_window_opens_at_if_and_after_a_shadow(bits, code, shadow):
    rig = Rig(bits).set(PRIMARY, interrupt_window_exiting=1)
    if not code.startswith(("fb", "90fb")):
        rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
    if code.startswith("8e"):  # MOV SS, EAX; before it the window is open already
        rig.gpr(rax=0 if bits == 16 else 0x10)
        rig.set(PRIMARY, interrupt_window_exiting=0)
        assert rig.run(code) is None
        rig.leave().set(PRIMARY, interrupt_window_exiting=1)
        assert rig.state.blocking_by_sti_or_mov_ss
        exit_ = rig.run(limit=5)
        ran = 2
    else:
        exit_ = rig.run(code, limit=5)
        ran = {"fb9090": 2, "90fb9090": 3, "909090": 0}[code]
    assert fields(exit_) == {"reason": Reason.INTERRUPT_WINDOW}
    assert rig.engine.instructions == ran


def test_a_window_is_not_open_while_if_is_0():
    rig = Rig(32).set(PRIMARY, interrupt_window_exiting=1)
    assert rig.run("90909090", limit=4) is None


def test_an_open_window_comes_before_an_external_interrupt():
    rig = Rig(32).set(PRIMARY, interrupt_window_exiting=1).set(PIN, external_interrupt_exiting=1)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
    rig.interrupts.vectors, rig.cpu.attention = [0x33], True
    assert rig.run("90").reason is Reason.INTERRUPT_WINDOW
    assert rig.interrupts.vectors == [0x33]
    rig.set(PRIMARY, interrupt_window_exiting=0)
    assert rig.run().reason is Reason.EXTERNAL_INTERRUPT


# -- HLT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["interrupt", "nmi", "window"])
def test_an_exit_from_hlt_records_it_and_vm_entry_goes_back_to_it(event):
    rig = Rig(32).set(PIN, external_interrupt_exiting=1, nmi_exiting=1)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x200 if event == "window" else 0
    assert rig.run("f490") is None
    assert rig.cpu.halted
    if event == "interrupt":
        rig.interrupts.vectors, rig.cpu.attention = [0x33], True
    elif event == "nmi":
        rig.cpu.request_nmi()
    else:
        rig.leave().set(PRIMARY, interrupt_window_exiting=1)
        rig.vmcs[Field.GUEST_ACTIVITY_STATE] = 1
    assert rig.enter() is None
    exit_ = rig.cpu.run(10)
    rig.nonroot.leave(exit_)
    assert (
        exit_.reason.name
        == {"interrupt": "EXTERNAL_INTERRUPT", "nmi": "EXCEPTION_OR_NMI", "window": "INTERRUPT_WINDOW"}[event]
    )
    assert (rig.vmcs[Field.GUEST_ACTIVITY_STATE], rig.state.rip) == (1, CODE + 1)
    rig.set(PRIMARY, interrupt_window_exiting=0)
    rig.interrupts.vectors = []
    assert rig.nonroot.enter() is None
    assert rig.cpu.run(10) is None
    assert (rig.cpu.halted, rig.state.rip) == (True, CODE + 1)


@pytest.mark.parametrize(("activity", "interrupt", "nmi"), [(1, True, True), (2, False, True), (3, False, False)])
def test_what_wakes_an_inactive_guest(activity, interrupt, nmi):
    """HLT, shutdown, wait-for-SIPI; what wakes is on its way out of the guest, which the field goes on to say."""
    for asks, wakes, reason in ((0, interrupt, Reason.EXTERNAL_INTERRUPT), (1, nmi, Reason.EXCEPTION_OR_NMI)):
        rig = Rig(32).set(PIN, external_interrupt_exiting=1, nmi_exiting=1)
        rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
        rig.vmcs[Field.GUEST_ACTIVITY_STATE] = activity
        assert rig.enter() is None
        assert rig.cpu.run(10) is None
        if asks:
            rig.cpu.request_nmi()
        else:
            rig.interrupts.vectors, rig.cpu.attention = [0x33], True
        exit_ = rig.cpu.run(10)
        assert (exit_ is not None) is wakes
        assert rig.engine.instructions == 0
        if exit_ is not None:
            assert exit_.reason is reason
            rig.nonroot.leave(exit_)
            assert rig.vmcs[Field.GUEST_ACTIVITY_STATE] == activity


def test_an_nmi_that_is_injected_ends_shutdown():
    rig = Rig(32)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
    rig.vmcs[Field.GUEST_ACTIVITY_STATE] = 2
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = information(NMI, NMI_TYPE)
    rig.put(bytes.fromhex("cf"), HANDLERS + 16 * NMI)
    assert rig.run("9090", limit=2) is None  # IRET, and one instruction more
    rig.interrupts.vectors, rig.cpu.attention = [0x33], True
    assert rig.run(limit=1) is None
    assert rig.state.rip == handler(0x33, 32)


def test_an_injected_event_ends_hlt():
    rig = Rig(32)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
    rig.vmcs[Field.GUEST_ACTIVITY_STATE] = 1
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = information(0x33, EXTERNAL)
    assert rig.run("90") is None
    assert (rig.cpu.halted, rig.state.rip) == (False, handler(0x33, 32))


# -- NMIs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL)
def test_an_nmi_exits_when_its_control_is_1(bits):
    rig = Rig(bits).set(PIN, nmi_exiting=1)
    rig.cpu.request_nmi()
    exit_ = rig.run("90")
    assert fields(exit_) == expected(Reason.EXCEPTION_OR_NMI, interruption_information=information(NMI, NMI_TYPE))
    assert rig.engine.instructions == 0


@pytest.mark.parametrize("bits", ALL)
def test_without_the_control_the_guest_takes_it_and_blocks_the_next_until_iret(bits):
    rig = Rig(bits)
    rig.put(bytes.fromhex({16: "90cf", 32: "90cf", 64: "9048cf"}[bits]), HANDLERS + 16 * NMI)
    rig.cpu.request_nmi()
    assert rig.run("9090", limit=1) is None
    assert rig.state.rip == handler(NMI, bits) + 1
    assert rig.cpu.nmi_blocked
    rig.cpu.request_nmi()
    assert rig.run(limit=1) is None  # IRET
    assert rig.run(limit=1) is None
    assert (rig.state.rip, rig.cpu.nmi_pending) == (handler(NMI, bits) + 1, False)


def test_blocking_by_nmi_goes_into_the_interruptibility_state_and_comes_from_there():
    rig = Rig(32).set(PIN, nmi_exiting=1, virtual_nmis=1)
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = information(NMI, NMI_TYPE)
    rig.put(bytes.fromhex("0fa2cf"), HANDLERS + 16 * NMI)  # CPUID, IRET
    assert rig.run("90").reason is Reason.CPUID
    assert rig.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] == 8
    rig.state.rip += 2
    rig.put(bytes.fromhex("0fa2"))
    assert rig.run(limit=2).reason is Reason.CPUID
    assert (rig.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE], rig.state.rip) == (0, CODE)


def test_with_virtual_nmis_a_real_one_exits_while_the_virtual_one_is_blocked():
    rig = Rig(32).set(PIN, nmi_exiting=1, virtual_nmis=1)
    rig.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] = 8
    rig.cpu.request_nmi()
    assert fields(rig.run("90")) == expected(
        Reason.EXCEPTION_OR_NMI, interruption_information=information(NMI, NMI_TYPE)
    )


def test_the_nmi_window_opens_after_iret():
    rig = Rig(32).set(PIN, nmi_exiting=1, virtual_nmis=1).set(PRIMARY, nmi_window_exiting=1)
    rig.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] = 8
    rig.gpr(rsp=STACK)
    for n, value in enumerate((CODE + 0x100, 8, 2)):
        rig.word(STACK + 4 * n, value, 4)
    exit_ = rig.run("90cf", limit=5)
    assert fields(exit_) == {"reason": Reason.NMI_WINDOW}
    assert (rig.state.rip, rig.engine.instructions) == (CODE + 0x100, 2)


def test_the_nmi_window_is_open_at_once_when_nothing_blocks():
    rig = Rig(32).set(PIN, nmi_exiting=1, virtual_nmis=1).set(PRIMARY, nmi_window_exiting=1)
    assert fields(rig.run("90")) == {"reason": Reason.NMI_WINDOW}
    assert rig.engine.instructions == 0


def test_iret_leaves_blocking_alone_when_real_nmis_exit_and_there_are_no_virtual_ones():
    rig = Rig(32).set(PIN, nmi_exiting=1)
    rig.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] = 8
    for n, value in enumerate((CODE + 0x100, 8, 2)):
        rig.word(STACK + 4 * n, value, 4)
    rig.put(bytes.fromhex("0fa2"), CODE + 0x100)
    assert rig.run("cf", limit=2).reason is Reason.CPUID
    assert rig.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] == 8


# -- injection --------------------------------------------------------------------------------------------------------

# (vector, type, error code, instruction length)
INJECTED = [
    (0x20, EXTERNAL, None, 0), (0xFF, EXTERNAL, None, 0), (NMI, NMI_TYPE, None, 0), (UD, HARDWARE, None, 0),
    (GP, HARDWARE, 0x1234, 0), (PF, HARDWARE, 6, 0), (DB, HARDWARE, None, 0), (DF, HARDWARE, 0, 0),
    (15, HARDWARE, None, 0),
    (0x80, SOFTWARE, None, 2), (0x80, SOFTWARE, None, 3), (DB, PRIVILEGED, None, 1), (BP, SOFTWARE_EXCEPTION, None, 1),
    (OF, SOFTWARE_EXCEPTION, None, 2),
]  # fmt: skip


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize(("vector", "kind", "code", "length"), INJECTED)
def test_injection_delivers_every_type(bits, vector, kind, code, length):
    rig = Rig(bits)
    code = None if bits == 16 else code
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
    rig.vmcs[Field.GUEST_DR7] = 0x2400
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = information(vector, kind, code)
    rig.vmcs[Field.VM_ENTRY_EXCEPTION_ERROR_CODE] = code or 0
    rig.vmcs[Field.VM_ENTRY_INSTRUCTION_LENGTH] = length
    rig.state.cr2 = 0x5EED
    bitmap(rig, vector % 32)  # which does not count for what is injected
    sp = rig.state.gpr(Gpr.RSP)
    assert rig.enter() is None
    assert rig.engine.instructions == (1 if kind >= SOFTWARE else 0)
    assert rig.state.rip == handler(vector, bits)
    item = {16: 2, 32: 4, 64: 8}[bits]
    top, base = rig.state.gpr(Gpr.RSP), rig.state.segment(Sreg.SS).base
    frame = [rig.ram.read(base + top + n * item, item) for n in range((sp - top) // item)]
    if code is not None:
        assert frame.pop(0) == code
    assert frame[0] == (0 if bits == 16 else CODE) + length
    assert frame[2] & 0x200
    assert len(frame) == (5 if bits == 64 else 3)
    assert not rig.state.rflags & 0x200
    assert (rig.state.cr2, rig.state.dr6, rig.state.dr7) == (0x5EED, 0xFFFF0FF0, 0x2400)
    assert rig.cpu.nmi_blocked is (kind == NMI_TYPE)


@pytest.mark.parametrize("kind", [EXTERNAL, HARDWARE, SOFTWARE])
def test_a_fault_during_injection_exits_by_the_bitmap_and_names_the_event(kind):
    vector = {EXTERNAL: 0x33, HARDWARE: UD, SOFTWARE: 0x80}[kind]
    rig = absent(bitmap(Rig(32), NP), vector)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = information(vector, kind)
    rig.vmcs[Field.VM_ENTRY_INSTRUCTION_LENGTH] = 2
    exit_ = rig.run("90")
    assert fields(exit_) == expected(
        Reason.EXCEPTION_OR_NMI, interruption_information=information(NP, HARDWARE, 0),
        error_code=vector << 3 | 2 | (kind != SOFTWARE), idt_vectoring=information(vector, kind),
        instruction_length=2 if kind == SOFTWARE else 0,
    )  # fmt: skip
    assert not rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] & VALID


def test_a_fault_during_injection_that_nobody_wants_is_delivered():
    rig = absent(Rig(32), 0x33)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = information(0x33, EXTERNAL)
    assert rig.run("90") is None
    assert rig.state.rip == handler(NP, 32)


def test_injecting_into_a_guest_without_handlers_is_a_triple_fault():
    rig = Rig(32)
    rig.vmcs[Field.GUEST_IDTR_LIMIT] = 0
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = information(UD, HARDWARE)
    assert fields(rig.run("90")) == {"reason": Reason.TRIPLE_FAULT}


# -- VM entry and what it loads ---------------------------------------------------------------------------------------


def test_entry_checks_and_launch_state():
    rig = Rig(32)
    rig.vmcs[Field.GUEST_RFLAGS] = 0
    with pytest.raises(EntryFailed):
        rig.nonroot.enter()
    rig = Rig(32)
    rig.vmcs.launched = True
    assert rig.nonroot.enter() is None
    rig = Rig(32).set(SECONDARY, enable_ept=0)
    with pytest.raises(VmFail):
        rig.nonroot.enter()


@pytest.mark.parametrize("msr", ["CS", "ESP", "EIP"])
def test_sysenter_msrs_are_loaded_and_saved(msr):
    index, field = {"CS": 0x174, "ESP": 0x175, "EIP": 0x176}[msr], Field[f"GUEST_IA32_SYSENTER_{msr}"]
    rig = Rig(64).set(PRIMARY, use_msr_bitmaps=1).gpr(rcx=index, rax=0x1234)
    rig.vmcs[Field.MSR_BITMAP_ADDRESS] = 0xF_0000
    rig.vmcs[field] = 0x77
    assert rig.run("0f30") is None
    rig.put(bytes.fromhex("0fa2"), CODE + 2)
    assert rig.run().reason is Reason.CPUID
    assert rig.vmcs[field] == 0x1234
    rig.cpu.msrs.write(index, 0x9999)  # the host's own
    rig.state.rip = CODE
    rig.put(bytes.fromhex("0f32"))
    assert rig.run() is None
    assert rig.state.gpr(Gpr.RAX) == 0x1234


@pytest.mark.parametrize("load", [0, 1])
@pytest.mark.parametrize("save", [0, 1])
def test_pat_is_loaded_and_saved_when_controls_say_so(load, save):
    from tests.cpu.nonroot_rig import ENTRY

    rig = Rig(64).set(PRIMARY, use_msr_bitmaps=1).set(ENTRY, load_ia32_pat=load).set(EXIT, save_ia32_pat=save)
    rig.vmcs[Field.MSR_BITMAP_ADDRESS] = 0xF_0000
    rig.vmcs[Field.GUEST_IA32_PAT] = 0x0606_0606_0606_0606
    rig.gpr(rcx=0x277)
    assert rig.run("0f32") is None
    assert rig.state.gpr(Gpr.RAX) == (0x0606_0606 if load else 0x0007_0406)
    rig.gpr(rax=0x0404_0404, rdx=0x0404_0404)
    rig.put(bytes.fromhex("0f300fa2"), CODE + 2)
    assert rig.run(limit=3).reason is Reason.CPUID
    assert rig.vmcs[Field.GUEST_IA32_PAT] == (0x0404_0404_0404_0404 if save else 0x0606_0606_0606_0606)
