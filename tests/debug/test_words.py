from __future__ import annotations

import re

import pytest

from hvemu.debug import words
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import (
    CrAccess,
    DrAccess,
    EptViolation,
    EventType,
    IdtVectoring,
    Interruption,
    IoInstruction,
    Reason,
    TaskSwitch,
)
from hvemu.x86.registers import Gpr
from tests.debug.guests import ORIGIN, SPIN, session

PF, GP, BP = 14, 13, 3
HARDWARE, SOFTWARE = EventType.HARDWARE_EXCEPTION, EventType.SOFTWARE_INTERRUPT
MASK0, SHADOW0 = Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW
MASK4, SHADOW4 = Field.CR4_GUEST_HOST_MASK, Field.CR4_READ_SHADOW
PG, NW, PE, TS = 1 << 31, 1 << 29, 1, 1 << 3


GUEST = session(SPIN)


def told(exit_: VmExit, fields=None, **registers: int) -> str:
    """The words for *exit_* of a guest with these registers, under a VMCS with these fields and no other controls."""
    for gpr in Gpr:
        GUEST.truth.set_gpr(gpr, registers.get(gpr.name.lower(), 0))
    for field in (MASK0, SHADOW0, MASK4, SHADOW4):
        GUEST.vmcs[field] = (fields or {}).get(field, 0)
    return words.explain(exit_, GUEST)


@pytest.mark.parametrize("reason", Reason)
def test_every_exit_has_its_name_and_one_to_three_sentences(reason):
    name, colon, text = told(VmExit(reason)).partition(": ")
    assert (name, colon) == (reason.name, ": ")
    assert text.endswith(".")
    assert 1 <= len(re.findall(r"\.(?= |$)", text)) <= 3
    assert f"{ORIGIN:#x}" in text or "VM entry failed" in text


@pytest.mark.parametrize(("reason", "control"), words.CONTROLS.items(), ids=lambda x: getattr(x, "name", ""))
def test_an_exit_that_a_control_asks_for_names_the_control(reason, control):
    assert control in told(VmExit(reason))


def cr(kind: CrAccess.Kind, number: int = 0, gpr: int = 0, **more: int) -> VmExit:
    return VmExit(Reason.CR_ACCESS, int(CrAccess(cr=number, kind=kind, gpr=gpr, **more)))


def ept(**bits: int) -> VmExit:
    return VmExit(Reason.EPT_VIOLATION, int(EptViolation(**bits)), guest_linear=0x4000_0008, guest_physical=0x31_0008)


def io(**fields: int) -> VmExit:
    return VmExit(Reason.IO_INSTRUCTION, int(IoInstruction(**fields)))


def event(vector: int, kind: EventType, **more: int) -> VmExit:
    information = Interruption(vector=vector, type=kind, valid=1, error_code_valid="error_code" in more)
    return VmExit(Reason.EXCEPTION_OR_NMI, interruption_information=int(information), **more)


KIND = CrAccess.Kind
CASES = [
    (
        cr(KIND.MOV_TO_CR, gpr=0),
        {"fields": {MASK0: PG, SHADOW0: PE}, "rax": PG | PE},
        ["to write 0x80000001 to CR0", "owns CR0.PG, so"],
    ),
    (
        cr(KIND.MOV_TO_CR, gpr=1),
        {"fields": {MASK0: PG | NW | PE, SHADOW0: PE}, "rcx": PG | NW},
        ["to write 0xa0000000 to CR0", "owns CR0.PE and CR0.NW and CR0.PG, so"],
    ),
    (
        cr(KIND.MOV_TO_CR, 4, gpr=3),
        {"fields": {MASK4: 0x2020, SHADOW4: 0}, "rbx": 0x30},
        ["to write 0x30 to CR4", "owns CR4.PAE, so"],
    ),
    (cr(KIND.MOV_TO_CR, 3, gpr=7), {"rdi": 0x5000}, ["to write 0x5000 to CR3", "CR3-load exiting"]),
    (cr(KIND.MOV_FROM_CR, 3), {}, ["to read CR3", "CR3-store exiting"]),
    (cr(KIND.MOV_FROM_CR, 8), {}, ["to read CR8", "CR8-store exiting"]),
    (cr(KIND.CLTS), {}, ["to clear CR0.TS", "owns CR0.TS"]),
    (
        cr(KIND.LMSW, lmsw_source=9),
        {"fields": {MASK0: PG | TS, SHADOW0: PG}},
        ["to write 0x9 to CR0", "owns CR0.TS, so"],
    ),
    (io(port=0x3F8), {"rax": 0x1234_5668}, ["to write 0x68 'h', 1 byte, to port 0x3f8 (UART, data)"]),
    (io(port=0x80, size_code=3), {"rax": 0x1234_5668}, ["to write 0x12345668, 4 bytes, to port 0x80."]),
    (io(port=0x3FD, in_=1), {}, ["to read 1 byte from port 0x3fd (UART, line status)"]),
    (io(port=0x1F0, in_=1, string=1, size_code=1), {}, ["to store 2 bytes an item from port 0x1f0"]),
    (io(port=0xE9, string=1), {}, ["to send 1 byte an item to port 0xe9 (debug console)"]),
    (VmExit(Reason.CPUID), {"rax": 0x8000_0000, "rcx": 7}, ["leaf 0x80000000, subleaf 0x7", "always leaves the guest"]),
    (VmExit(Reason.RDMSR), {"rcx": 0xC000_0080}, ["MSR 0xc0000080 (IA32_EFER)", "uses no MSR bitmaps"]),
    (VmExit(Reason.WRMSR), {"rcx": 0x123, "rax": 0x10, "rdx": 0x2}, ["0x2:00000010 (EDX:EAX)", "MSR 0x123."]),
    (VmExit(Reason.INVLPG, 0xABC000), {}, ["gva 0xabc000", "INVLPG exiting"]),
    (VmExit(Reason.MOV_DR, int(DrAccess(dr=7, gpr=2))), {"rdx": 0x401}, ["write 0x401 to DR7", "MOV-DR exiting"]),
    (VmExit(Reason.MOV_DR, int(DrAccess(dr=6, from_dr=1))), {}, ["read DR6"]),
    (
        ept(fetch=1, linear_valid=1, linear_is_gpa=1),
        {},
        ["fetches the instruction", "gpa 0x310008, which is gva 0x40000008", "maps nothing"],
    ),
    (
        ept(write=1, readable=1, executable=1, linear_valid=1, linear_is_gpa=1),
        {},
        ["write to gpa 0x310008", "readable and executable only"],
    ),
    (ept(read=1, linear_valid=1), {}, ["read gpa 0x310008, in the page tables that translate gva 0x40000008"]),
    (VmExit(Reason.EPT_MISCONFIGURATION, guest_physical=0x5000, detail="The rule."), {}, ["gpa 0x5000", "The rule."]),
    (
        event(GP, HARDWARE, error_code=0x10),
        {},
        ["#GP (General Protection), error code 0x10", "exception bitmap names vector 13"],
    ),
    (
        event(PF, HARDWARE, error_code=7, qualification=0x1234),
        {},
        ["#PF (Page Fault) at gva 0x1234, error code 0x7 (user, write, not allowed)"],
    ),
    (event(PF, HARDWARE, error_code=0x10, qualification=0), {}, ["(supervisor, fetch, not present)"]),
    (event(PF, HARDWARE, error_code=9, qualification=0), {}, ["(supervisor, read, reserved bit set)"]),
    (event(BP, EventType.SOFTWARE_EXCEPTION), {}, ["#BP (Breakpoint)"]),
    (event(2, EventType.NMI), {}, ["an NMI arrived", "NMI exiting"]),
    (
        VmExit(Reason.EXTERNAL_INTERRUPT, interruption_information=0x8000_0020),
        {},
        ["vector 0x20,", "external-interrupt exiting"],
    ),
    (VmExit(Reason.EXTERNAL_INTERRUPT), {}, ["an interrupt of the host arrived"]),
    (VmExit(Reason.TRIPLE_FAULT, detail="triple fault: #GP(0x0), then #DF(0x0)"), {}, ["(#GP(0x0), then #DF(0x0))"]),
    (VmExit(Reason.TASK_SWITCH, int(TaskSwitch(selector=0x28, source=3))), {}, ["a task gate in the IDT", "TSS 0x28"]),
    (VmExit(Reason.TASK_SWITCH, int(TaskSwitch(selector=0x28, source=2))), {}, ["by JMP to the TSS 0x28"]),
    (VmExit(Reason.ENTRY_FAILURE_GUEST_STATE, 4), {}, ["VMCS_LINK_POINTER"]),
    (VmExit(Reason.HLT, what="PAUSED"), {}, ["PAUSED: "]),
]


@pytest.mark.parametrize(("exit_", "given", "fragments"), CASES, ids=[repr(case[0]) for case in CASES])
def test_what_an_exit_says_is_decoded(exit_, given, fragments):
    text = told(exit_, **given)
    assert [fragment for fragment in fragments if fragment not in text] == [], text


@pytest.mark.parametrize(
    ("event_", "name"),
    [
        ((PF, HARDWARE), "#PF (Page Fault)"),
        ((0x80, SOFTWARE), "INT 0x80"),
        ((0x20, EventType.EXTERNAL_INTERRUPT), "an external interrupt, vector 0x20"),
        ((2, EventType.NMI), "an NMI"),
    ],
)
def test_an_exit_during_a_delivery_names_the_event(event_, name):
    vector, kind = event_
    vectoring = int(IdtVectoring(vector=vector, type=kind, valid=1))
    text = told(VmExit(Reason.EPT_VIOLATION, idt_vectoring=vectoring))
    assert text.endswith(f" It was met while the processor delivered {name}.")


def test_a_trap_of_a_guest_in_ring_1_says_which_ring_it_takes_it_for():
    s = session("hello32", "deprivilege")
    while s.vm.books.by_reason["LGDT"] == 0:
        s.step()
        told_ = s.words()
        if "lgdt" in told_:
            assert "in ring 1, which it takes for ring 0: #GP" in told_
            assert "The processor's IDT is the monitor's" in told_
    assert s.exit is not None


def test_the_first_paging_exit_of_a_guest_is_what_the_manual_says():
    s = session("paging")
    while s.exit is None or s.exit.reason is not Reason.CR_ACCESS:
        s.step()
    text = s.words()
    assert re.fullmatch(
        r"CR_ACCESS: the guest executes `mov cr0, eax` at 0x[0-9a-f]+ <main\+0x[0-9a-f]+> to write 0x80010011 to CR0\. "
        r"The hypervisor owns CR0\.PG, so the processor left the guest\.",
        text,
    ), text
