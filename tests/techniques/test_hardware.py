"""The hypervisor on VT-x: whose handlers it calls, and what the guest sees of it."""

from __future__ import annotations

import pytest

from hvemu.events import Ending, How
from hvemu.guest.image import from_source
from hvemu.memory.ept import EptPaging
from hvemu.memory.ept_walk import LOOK, EptViolation, walk_ept
from hvemu.memory.physical import Ram
from hvemu.techniques.base import INJECT, RESUME, STOP
from hvemu.techniques.exits.table import handles
from hvemu.techniques.hardware import Hardware
from hvemu.techniques.vm import Budget
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Reason
from hvemu.x86.registers import Gpr
from hvemu.x86.segments import Gate
from hvemu.x86.vectors import Fault, Vector
from tests.techniques.kernels import CODE, DATA, EXIT_0, EXIT_1, HANDLERS, RAM, kernel, machine

VMCALL, CPUID, PRINT_AL = "0f01c1", "0fa2", "e6e9"
MIB = 1 << 20
BUDGET = Budget(max_exits=200, max_instructions=100_000)


def run(image, handlers=None, budget=BUDGET):
    return machine(image, Hardware(handlers)).run(budget)


def calling(function):
    """The table with *function* as handler of VMCALL."""
    return {Reason.VMCALL: lambda vm, _qualification: function(vm)}


# -- handlers ---------------------------------------------------------------------------------------------------------


def test_a_handler_of_ones_own_takes_the_place_of_the_one_that_comes_with_hvemu():
    table = {}

    @handles(Reason.CPUID, int, table=table)
    def lie(vm, _qualification):
        vm.state.set_gpr(Gpr.RBX, ord("!"))
        return vm.advance()

    image = kernel("31c0" + CPUID + "88d8" + PRINT_AL + EXIT_0)
    assert run(image, table).console == b"!"
    assert run(image).console == b"G"  # GenuineIntel: the other table was not touched


def test_a_handler_gets_the_qualification_as_its_type():
    from hvemu.vmx.reasons import IoInstruction

    table, seen = {}, []

    @handles(Reason.IO_INSTRUCTION, IoInstruction, table=table)
    def io(vm, q):
        seen.append((type(q), q.port, q.size, bool(q.in_)))
        return STOP if q.port == 0xF4 else vm.advance()

    run(kernel("66baf803ed" + EXIT_0), table)
    assert seen == [(IoInstruction, 0x3F8, 4, True), (IoInstruction, 0xF4, 1, False)]


def test_stop_ends_the_run_and_says_whose_exit_it_was():
    result = run(kernel(VMCALL + EXIT_0), calling(lambda vm: STOP))
    assert result.ending == Ending(How.STOPPED, why="VMCALL: a handler stopped the guest")
    assert result.by_reason["VMCALL"] == 1


def test_resume_without_advance_executes_the_instruction_again():
    result = run(kernel(VMCALL + EXIT_0), calling(lambda vm: RESUME), Budget(max_exits=10))
    assert result.ending.how is How.EXITS
    assert result.by_reason["VMCALL"] >= 8


# a handler of #GP that prints the error code, that of #UD another letter, of #PF CR2's low byte
GUEST_HANDLERS = {13: "58" + PRINT_AL + EXIT_0, 6: "b055" + PRINT_AL + EXIT_0, 14: "580f20d0" + PRINT_AL + EXIT_0}
FAULTS = [(Fault(Vector.GP, 0x47), b"G"), (Fault(Vector.UD), b"U"), (Fault(Vector.PF, 2, cr2=0x1250), b"P")]


@pytest.mark.parametrize("way", ["raised", "INJECT"])
@pytest.mark.parametrize(("fault", "seen"), FAULTS, ids=str)
def test_a_fault_that_a_handler_raises_or_returns_reaches_the_guest(way, fault, seen):
    def handler(vm):
        if way == "INJECT":
            return INJECT(fault)
        raise fault

    result = run(kernel(VMCALL + EXIT_1, GUEST_HANDLERS), calling(handler))
    assert (result.ending.code, result.console) == (0, seen)


def test_a_handler_that_is_missing_ends_the_guest_with_one_clear_line():
    hypervisor = Hardware()
    del hypervisor.handlers[Reason.CPUID]
    result = machine(kernel(CPUID + EXIT_0), hypervisor).run(BUDGET)
    assert result.ending == Ending(How.DIED, why="no handler for the VM exit VmExit(CPUID, instruction_length=0x2)")


def test_exits_are_counted_by_reason():
    result = run(
        kernel(CPUID * 3 + "b910000000" + "0f32" * 2 + VMCALL + "0f08" + "0f09" + EXIT_0),
        calling(lambda vm: vm.advance()),
    )
    assert result.ending.code == 0
    assert result.by_reason == {
        "CPUID": 3, "EPT_VIOLATION": 1, "IO_INSTRUCTION": 1, "RDMSR": 2, "VMCALL": 1, "INVD": 1
    }  # fmt: skip
    assert result.exits == sum(result.by_reason.values())


# -- events that go back into the guest -------------------------------------------------------------------------------


def wanting(*vectors):
    """A VMCALL handler that asks for exceptions."""

    def handler(vm):
        vm.vmcs[Field.EXCEPTION_BITMAP] = sum(1 << vector for vector in vectors)
        return vm.advance()

    return calling(handler)


DIVIDE, UD2, GP_FAULT, INT3, OVERFLOW = "31c9f7f1", "0f0b", "b8000000800f22e0", "cc", "b8ffffff7f83c001ce"


@pytest.mark.parametrize("wanted", [(), tuple(range(32))])
def test_an_exception_that_is_intercepted_arrives_like_one_that_is_not(wanted):
    handlers = {0: "b044" + PRINT_AL + "83042402cf", 6: "b055" + PRINT_AL + "83042402cf", 3: "b033" + PRINT_AL + "cf",
                13: "58" + "0447" + PRINT_AL + "83042403cf", 4: "b04f" + PRINT_AL + "cf"}  # fmt: skip
    code = VMCALL + DIVIDE + UD2 + INT3 + GP_FAULT + OVERFLOW + EXIT_0
    result = run(kernel(code, handlers), wanting(*wanted))
    assert (result.ending.code, result.console) == (0, b"DU3GO")
    assert result.by_reason.get("EXCEPTION_OR_NMI", 0) == (4 if wanted else 0)  # #GP comes from a handler


@pytest.mark.parametrize("wanted", [(), tuple(range(32))])
def test_an_intercepted_single_step_is_in_dr6_when_the_guest_gets_it(wanted):
    # the handler prints bits 15:8 of DR6, where 0x4f has BS, and clears TF in the frame
    handlers = {1: "0f21f0c1e808" + PRINT_AL + "81642408fffeffff" + "cf"}
    result = run(kernel(VMCALL + "9c810c2400010000" + "9d" + "9090" + EXIT_0, handlers), wanting(*wanted))
    assert (result.ending.code, result.console) == (0, b"\x4f")


@pytest.mark.parametrize("wanted", [(), tuple(range(32)), (13,), (11,), (8,)])
def test_a_double_fault_is_made_by_the_hypervisor_when_it_takes_the_exceptions_apart(wanted):
    """#GP whose gate is empty."""
    result = run(kernel(VMCALL + GP_FAULT + EXIT_1, {8: "58b044" + PRINT_AL + EXIT_0}), wanting(*wanted))
    assert (result.ending.code, result.console) == (0, b"D")


@pytest.mark.parametrize("wanted", [(), tuple(range(32))])
def test_a_triple_fault_says_which_exceptions_led_there(wanted):
    result = run(kernel(VMCALL + UD2 + EXIT_1), wanting(*wanted))
    assert result.ending.how is How.DIED
    whole = "triple fault: #UD, then #GP(0x33), then #GP(0x6b), then #DF(0x0), then #GP(0x43)"
    assert result.ending.why == ("triple fault: #DF(0x0), then #GP(0x43)" if wanted else whole)


def test_an_nmi_arrives_once():
    def handler(vm):
        vm.cpu.request_nmi()
        return vm.advance()

    result = run(kernel(VMCALL + "9090" + EXIT_0, {2: "b04e" + PRINT_AL + "cf"}), calling(handler))
    assert (result.ending.code, result.console) == (0, b"N")
    assert result.by_reason["EXCEPTION_OR_NMI"] == 1


def test_an_nmi_wakes_a_guest_that_halts_with_interrupts_off():
    def halt(vm, _qualification):
        vm.asleep = True
        vm.cpu.request_nmi()
        return vm.advance()

    result = run(kernel("faf4" + EXIT_0, {2: "b04e" + PRINT_AL + "cf"}), {Reason.HLT: halt})
    assert (result.ending.code, result.console) == (0, b"N")


TIMER = """
.include "lib/kernel32.inc"
tick:
    inc dword ptr [ticks]
    mov al, 0x20
    out 0x20, al
    iretd
.p2align 2
ticks:
    .long 0
main:
    SET_GATE 0x20, tick
    mov al, 0x11            # the controllers: vectors from 0x20, only the timer enabled
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34            # counter 0: periodic
    out 0x43, al
    mov al, 0x00
    out 0x40, al
    mov al, 0x10
    out 0x40, al
    vmcall
    sti
again:
    hlt
    cmp dword ptr [ticks], 5
    jb again
    cli
    EXIT 0
"""


@pytest.mark.parametrize("exiting", [True, False])
def test_a_guest_that_halts_is_woken_by_its_timer(exiting):
    def handler(vm):
        primary = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
        vm.vmcs[primary] = vm.vmcs[primary] & ~(1 << 7) | exiting << 7
        return vm.advance()

    result = run(from_source(TIMER), calling(handler))
    assert result.ending.code == 0
    assert result.by_reason.get("HLT", 0) == (5 if exiting else 0)
    assert result.by_reason.get("EXTERNAL_INTERRUPT", 0) >= (0 if exiting else 5)


@pytest.mark.parametrize("exiting", [True, False])
def test_a_guest_that_halts_for_good_is_named(exiting):
    def handler(vm):
        primary = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
        vm.vmcs[primary] = vm.vmcs[primary] & ~(1 << 7) | exiting << 7
        return vm.advance()

    result = run(kernel(VMCALL + "faf4"), calling(handler))
    assert result.ending == Ending(How.HALTED, why=f"HLT before {CODE + 12:#x} with interrupts disabled")


FAR = 0x30_0000  # in a piece of memory that is not mapped before it is used


@pytest.mark.parametrize(("code", "vector"), [("0f0b", 6), ("cd21", 0x21)])
@pytest.mark.parametrize(("move", "place"), [
    ("0f011d" + (FAR - 8).to_bytes(4, "little").hex(), "IDT"),
    ("bc" + (FAR + 0x1000).to_bytes(4, "little").hex(), "stack"),
])  # fmt: skip
def test_an_event_whose_delivery_found_memory_missing_arrives_once(code, vector, move, place):
    gate = Gate.make(8, HANDLERS + 64 * vector, type=14, p=1).to_bytes(8, "little")
    far = {FAR - 8: (0x7FF).to_bytes(2, "little") + FAR.to_bytes(4, "little"), FAR + 8 * vector: gate}
    image = kernel(move + code + EXIT_0, {vector: "b045e6e9" + ("83042402" if vector == 6 else "") + "cf"}, far)
    hypervisor = Hardware()
    m = machine(image, hypervisor)
    if place == "IDT":  # loading IDTR reads the piece: forget it again
        m.run(Budget(max_instructions=2))
        hypervisor.ept.unmap(2 * MIB, 2 * MIB)
        hypervisor.nonroot.invalidate()
    result = m.run(BUDGET)
    assert (result.ending.code, result.console) == (0, b"E")
    assert result.by_reason["EPT_VIOLATION"] == (3 if place == "IDT" else 2)


# -- memory -----------------------------------------------------------------------------------------------------------


def mapped(hypervisor):
    """The 2 MiB pieces of the guest's memory that EPT maps."""
    ept, host = EptPaging(hypervisor.ept.root), Ram(hypervisor.cpu.engine.ram)

    def present(gpa):
        try:
            return walk_ept(ept, host.read, gpa, LOOK).hpa == hypervisor.ram.base + gpa
        except EptViolation:
            return False

    return [present(gpa) for gpa in range(0, RAM, 2 * MIB)]


@pytest.mark.parametrize(
    ("touch", "pieces"), [("", [True, False]), ("a100002000", [True, True]), ("a300003f00", [True, True])]
)
def test_memory_is_mapped_when_it_is_touched(touch, pieces):
    hypervisor = Hardware()
    m = machine(kernel(touch + EXIT_0), hypervisor)
    assert mapped(hypervisor) == [False, False]
    m.run(BUDGET)
    assert mapped(hypervisor) == pieces


NO_RAM = "000000f0"  # 0xf0000000, little-endian


@pytest.mark.parametrize("technique", ["bare", "hardware", "deprivilege"])
def test_where_there_is_no_ram_loads_see_ones_and_stores_are_lost(technique):
    code = (
        "a1" + NO_RAM + "a300001200" + "c705" + NO_RAM + "78563412" + "a1" + NO_RAM + "a304001200"
        + "ff05" + NO_RAM + "be" + NO_RAM + "bf08001200" + "a5" + "be00001200bf" + NO_RAM + "f3a4" + EXIT_0
    )  # fmt: skip
    m = machine(kernel(code, data={DATA: bytes(12)}), technique)
    assert m.run(BUDGET).ending.code == 0
    assert m.vm.ram.read_bytes(DATA, 12) == b"\xff" * 12


@pytest.mark.parametrize("technique", ["bare", "hardware", "deprivilege"])
def test_code_where_there_is_no_ram_is_an_undefined_instruction(technique):
    image = kernel("ea" + NO_RAM + "0800", {6: EXIT_0})
    assert machine(image, technique).run(BUDGET).ending.code == 0


def test_a_stack_where_there_is_no_ram_ends_the_guest_with_one_clear_line():
    result = run(kernel("bc" + NO_RAM + "0f0b", {6: EXIT_0}))
    assert result.ending.how is How.DIED
    assert result.ending.why.startswith("write at gpa 0xeffffffc: no RAM there, and an event was being delivered")


@pytest.mark.parametrize("technique", ["bare", "hardware", "deprivilege"])
def test_string_output_from_memory_that_was_not_touched_yet(technique):
    text = b"from far away"
    image = kernel("be00003000b90d00000066bae900f36e" + EXIT_0, data={0x30_0000: text})
    assert machine(image, technique).run(BUDGET).console == text


@pytest.mark.parametrize("technique", ["bare", "hardware", "deprivilege"])
def test_string_input_into_memory_that_was_not_touched_yet(technique):
    """From a port where there is nothing."""
    m = machine(kernel("bf00003000b90d00000066ba3412f36c" + EXIT_0), technique)
    assert m.run(BUDGET).ending.code == 0
    assert m.vm.ram.read_bytes(0x30_0000, 14) == b"\xff" * 13 + b"\0"


# -- control registers that are shared --------------------------------------------------------------------------------


def test_a_handler_may_take_control_register_bits_away_while_the_guest_runs():
    """The guest reads CR4 before and after; TSD is hidden by the shadow from then on."""

    def handler(vm):
        vm.vmcs[Field.CR4_GUEST_HOST_MASK] |= 4
        vm.vmcs[Field.CR4_READ_SHADOW] &= ~4
        return vm.advance()

    m = machine(kernel("b8040000000f22e0" + "0f20e3" + VMCALL + "0f20e1" + EXIT_0), Hardware(calling(handler)))
    assert m.run(BUDGET).ending.code == 0
    state = m.vm.cpu.state
    assert (state.gpr(Gpr.RBX), state.gpr(Gpr.RCX)) == (4, 0)


@pytest.mark.parametrize("technique", ["bare", "hardware"])
@pytest.mark.parametrize(("code", "register", "value"), [
    ("0f20c0", Gpr.RAX, 0x11), ("0f01e3", Gpr.RBX, None), ("0f20e1", Gpr.RCX, 0),
    ("0f20c083c82a0f22c00f20c3", Gpr.RBX, 0x3B), ("0f20c083c8080f22c00f060f20c3", Gpr.RBX, 0x11),
    ("b80f0000000f01f00f20c3", Gpr.RBX, 0x1F),
])  # fmt: skip
def test_the_guest_sees_its_own_control_registers(technique, code, register, value):
    m = machine(kernel(code + "e6f4"), technique)
    m.run(BUDGET)
    found = m.vm.cpu.state.gpr(register)
    assert found == value if value is not None else found & 0xFFFF == 0x11
