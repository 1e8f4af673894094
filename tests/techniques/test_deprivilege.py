"""The monitor of a kernel in ring 1: what traps, what does not, and that the bare machine does the same."""

from __future__ import annotations

import pytest

from hvemu.events import How
from hvemu.techniques.vm import Budget
from hvemu.x86.registers import Gpr
from tests.techniques.kernels import CODE, DATA, EXIT_0, HANDLERS, kernel, machine

BUDGET = Budget(max_instructions=20_000, max_exits=2000)
GDT = 0x12_8000
PLACE = 0xFF80_0000  # where the monitor is, unless the guest is there
OUT = 0x12_0000
RING1 = 1
# A GDT of the guest's own: flat kernel code and data, user code and data, a TSS, an LDT, another data segment, a
# conforming segment, a call gate
TSS, LDT, TASK2 = 0x12_9000, 0x12_A000, 0x12_B000
GATE_TARGET = CODE + 0x800


def le(value, size):
    return value.to_bytes(size, "little")


def system(base, limit, kind):
    return limit & 0xFFFF | (base & 0xFFFFFF) << 16 | kind << 40 | (base >> 24) << 56


DESCRIPTORS = {
    0x08: 0x00CF_9A00_0000_FFFF, 0x10: 0x00CF_9200_0000_FFFF, 0x18: 0x00CF_FA00_0000_FFFF, 0x20: 0x00CF_F200_0000_FFFF,
    0x28: system(TSS, 0x67, 0x89), 0x30: system(LDT, 0x1F, 0x82), 0x38: 0x00CF_9000_0000_FFFF,
    0x40: 0x00CF_9E00_0000_FFFF, 0x48: 8 << 16 | GATE_TARGET & 0xFFFF | (GATE_TARGET >> 16) << 48 | 0xEC << 40,
    0x50: system(TASK2, 0x67, 0x89), 0x58: 0x0040_9200_0000_0FFF, 0x60: 0x00CF_1200_0000_FFFF,
}  # fmt: skip
LGDT = "0f0115" + le(GDT - 8, 4).hex()
RELOAD = "ea" + le(CODE + 7 + 7 + 7, 4).hex() + "0800"  # after LIDT, LGDT and this far jump
SEGMENTS = "b8100000008ed88ec08ed0" + "bc00000a00"  # mov eax, 0x10; mov ds, es, ss; mov esp, 0xa0000
TABLES = {
    GDT - 8: le(0x67, 2) + le(GDT, 4),
    GDT: b"".join(le(DESCRIPTORS.get(at, 0), 8) for at in range(0, 0x68, 8)),
    TSS: le(0, 4) + le(0x9_0000, 4) + le(0x10, 4) + bytes(0x58) + le(0, 2) + le(0x68, 2),
    LDT: le(0, 8) + le(0x00CF_9200_0000_FFFF, 8) + le(0x00CF_9A00_0000_FFFF, 8) + bytes(8),
    OUT: bytes(256),
}
MASK = "b0ffe621e6a1"  # no interrupts: where the monitor guesses that they are on there would be a difference
OWN = LGDT + RELOAD + SEGMENTS + MASK
START = CODE + 7 + len(bytes.fromhex(OWN))
STORE = "a3"  # mov [moffs], eax


def store(index):
    return "a3" + le(OUT + 4 * index, 4).hex()


def put(address, text):
    """Bytes that go to *address* of the image."""
    return {address: bytes.fromhex(text)}


def build(code, handlers=None, extra=None, own=True):
    return kernel((OWN if own else "") + code + EXIT_0, handlers, {**TABLES, **(extra or {})})


def run(image, technique="deprivilege"):
    m = machine(image, technique)
    return m, m.run(BUDGET)


def seen(m, result):
    """What the guest could see: ending, console, its data, its registers."""
    view = m.technique.view
    registers = [view.gpr(n) for n in range(8) if n != Gpr.RAX]
    return (
        result.ending, result.console, result.instructions, m.vm.ram.read_bytes(OUT, 256), registers,
        view.cr0, view.cr3, view.cr4, view.gdtr, view.idtr, view.ldtr.selector, view.tr.selector,
    )  # fmt: skip


def same(image):
    """Assert that the guest sees the same on the bare machine; return what the monitor counted."""
    monitored = run(image)
    assert seen(*monitored) == seen(*run(image, "bare"))
    return monitored[1].by_reason


PRINT_FAULT = {  # handlers of exceptions: a letter, the error code, and the end
    13: "58" + "e6e9" + "b047e6e9" + EXIT_0, 6: "b055e6e9" + EXIT_0, 11: "58e6e9b04ee6e9" + EXIT_0,
    12: "58e6e9b053e6e9" + EXIT_0, 10: "58e6e9b054e6e9" + EXIT_0, 14: "58e6e90f20d0a300001200b050e6e9" + EXIT_0,
}  # fmt: skip

# -- what traps -------------------------------------------------------------------------------------------------------

# name: (code for a kernel with its own tables, what it is counted as)
PRIVILEGED = {
    "CLI": ("fa", "CLI"), "STI": ("b0ffe621e6a1fbfa", "STI"), "CLTS": ("0f06", "CLTS"), "WBINVD": ("0f09", "WBINVD"),
    "INVD": ("0f08", "INVD"), "INVLPG": ("0f013d00001200", "INVLPG"), "LMSW": ("b83b0000000f01f0", "LMSW"),
    "LMSW [m]": ("0f0135" + le(OUT + 0x40, 4).hex(), "LMSW"),
    "MOV TO CR0": ("0f20c083c82a0f22c00f20c1", "MOV_TO_CR0"), "MOV FROM CR0": ("0f20c189c8" + store(0), "MOV_FROM_CR0"),
    "MOV TO CR2": ("b8785634120f22d00f20d1", "MOV_TO_CR2"), "MOV TO CR3": ("b8003012000f22d80f20d9", "MOV_TO_CR3"),
    "MOV TO CR4": ("b88c0000000f22e00f20e1", "MOV_TO_CR4"), "MOV FROM CR4": ("0f20e1", "MOV_FROM_CR4"),
    "MOV TO DR0": ("b8785634120f23c00f21c1", "MOV_TO_DR0"), "MOV TO DR6": ("31c00f23f00f21f1", "MOV_TO_DR6"),
    "MOV TO DR7": ("b8000000000f23f80f21f9", "MOV_TO_DR7"), "MOV FROM DR4": ("0f21e1", "MOV_FROM_DR4"),
    "RDMSR": ("b9770200000f32" + store(0), "RDMSR"),
    "WRMSR": ("b974010000b812000000ba000000000f300f32" + store(0), "WRMSR"),
    "LGDT": (LGDT, "LGDT"), "LIDT": ("0f011d" + le(0x9000 - 8, 4).hex(), "LIDT"),
    "LLDT": ("b8300000000f00d0", "LLDT"), "LLDT 0": ("31c00f00d0", "LLDT"),
    "LTR": ("b8280000000f00d8" + "a1" + le(GDT + 0x2C, 4).hex() + store(0), "LTR"),
    "MOV SS": ("b8100000008ed0", "LOAD_SS"), "POP SS": ("6a1017", "LOAD_SS"),
    "LSS": ("6a106800000a000fb22424", "LOAD_SS"), "RETF": ("6a0868" + le(START + 8, 4).hex() + "cb", "RETF"),
    "IRET": ("9c6a0868" + le(START + 9, 4).hex() + "cf", "IRET"),
}  # fmt: skip


@pytest.mark.parametrize("name", PRIVILEGED)
def test_a_privileged_instruction_traps_and_does_what_it_does_in_ring_0(name):
    code, counted = PRIVILEGED[name]
    reasons = same(build(code, PRINT_FAULT, {OUT + 0x40: le(0x3B, 2)}))
    extra = 1 if counted in ("LGDT", "LIDT", "LOAD_SS") else 0  # what the start-up code did
    assert reasons[counted] == 1 + extra


# code of a program in ring 3, which a handler of #GP ends
USER = {
    name: code
    for name, (code, _) in PRIVILEGED.items()
    if name not in ("MOV SS", "POP SS", "LSS", "RETF", "IRET", "STI")
}
USER |= {"STI": "fb", "HLT": "f4", "IN": "e4e9", "OUT": "e6e9", "SYSEXIT": "0f35"}
ENTER_RING_3 = "b8280000000f00d8" + "6a23" + "680000 0b00".replace(" ", "") + "6a02" + "6a1b" + "68{}" + "cf"
PROGRAM = CODE + 0x400


def in_ring_3(code, handlers, extra=None, start=""):
    enter = ENTER_RING_3.format(le(PROGRAM, 4).hex())
    return build(start + enter, handlers, {PROGRAM: bytes.fromhex(code), **(extra or {})})


@pytest.mark.parametrize("name", USER)
def test_in_a_program_it_is_the_guests_fault(name):
    code = USER[name]
    _m, result = run(in_ring_3(code, PRINT_FAULT))
    assert same(in_ring_3(code, PRINT_FAULT)) == result.by_reason
    assert result.console == b"\0G"


@pytest.mark.parametrize(("code", "what"), [("cd80", "INT_0x80"), ("cc", "INT_0x3")])
@pytest.mark.parametrize("ring", [0, 3])
def test_software_interrupts_go_through_the_guests_own_gates(code, what, ring):
    handlers = {0x80: "b049e6e9" + EXIT_0, 3: "b042e6e9" + EXIT_0}
    dpl3 = {0x9000 + 8 * int(what[4:], 16) + 5: b"\xee"}
    image = in_ring_3(code, handlers, dpl3) if ring else build(code, handlers)
    assert same(image)[what] == 1


def test_a_program_may_not_use_a_gate_of_ring_0():
    reasons = same(in_ring_3("cd80", {**PRINT_FAULT, 0x80: EXIT_0}))
    assert reasons["INT_0x80"] == 1


# -- what does not trap: the holes -------------------------------------------------------------------------------------

# name: (code that stores into OUT, 4 bytes each, values in ring 1)
HOLES = {
    "PUSHF": ("fa9c58" + "2500320000" + store(0), [0x200]),  # IF is 1 after CLI, IOPL 0
    "PUSHF with IOPL": ("68003000009d9c58" + "2500320000" + store(0), [0x200]),  # POPF does not change IOPL
    "POPF": ("fb6a029d9c58" + "2500020000" + store(0), [0x200]),  # nor IF
    "SMSW": ("0f01e0" + "25ffff0000" + store(0), [0x31]),  # PE, ET and NE: the low half of the monitor's CR0
    "STR": ("0f00c8" + store(0), [0xFFF8]),
    "SLDT": ("31c00f00c0" + store(0), [0]),
    "SGDT": ("0f0105" + le(OUT + 2, 4).hex(), [0x67 << 16, PLACE]),
    "SIDT": ("0f010d" + le(OUT + 2, 4).hex(), [0x7FF << 16, PLACE + 0x2_0000]),
    "MOV from CS": ("31c08cc8" + store(0), [0x08 | RING1]),
    "MOV from SS": ("31c08cd0" + store(0), [0x10 | RING1]),
    "PUSH CS": ("0e58" + store(0), [0x08 | RING1]),
    "LAR": ("b8080000000f02c025 00 f0f0 00".replace(" ", "") + store(0), [0x00C0_B000]),  # DPL 1
    "LSL": ("b8100000000f03c0" + store(0), [0xFFFF_FFFF]),
    "VERR": ("66b80800" + "0f00e0" + "0f94c0" + "0fb6c0" + store(0), [1]),
    "VERW": ("66b80800" + "0f00e8" + "0f94c0" + "0fb6c0" + store(0), [0]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLES)
def test_an_unprivileged_instruction_does_not_trap_and_shows_the_truth(name):
    code, values = HOLES[name]
    _, without = run(build(code[:2] if code[:2] in ("fa", "fb") else ""))
    m, result = run(build(code, PRINT_FAULT))
    assert result.ending.code == 0
    assert [m.vm.ram.read(OUT + 4 * n, 4) for n in range(len(values))] == values
    pages = {"HIDDEN_PAGE": result.by_reason["HIDDEN_PAGE"]}  # the only difference: data and stack that are touched
    assert result.by_reason == {**without.by_reason, **pages}


def test_umip_closes_some_of_the_holes():
    """With CR4.UMIP the processor refuses them outside ring 0, and the monitor answers."""
    code = "b8000800000f22e0" + "0f0105" + le(OUT, 4).hex() + "0f010d" + le(OUT + 8, 4).hex() + "0f00c8" + store(4)
    code += "0f00c0" + store(5) + "0f01e0" + store(6) + "0f0125" + le(OUT + 28, 4).hex()
    reasons = same(build(code))
    assert {name: reasons[name] for name in ("SGDT", "SIDT", "STR", "SLDT", "SMSW")} == {
        "SGDT": 1, "SIDT": 1, "STR": 1, "SLDT": 1, "SMSW": 2
    }  # fmt: skip


# -- faults that are the guest's own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [
    "b8ff0000008ed8", "b8600000008ed8", "b8600000008ed0", "b8280000008ed8", "b8090000008ed0",
    "b8000000800f22e0", "b9ffff00000f32", "b8480000000f00d8",
    "ea000000001800", "ea000000006000", "ea00000000ff00", "9a000000001000", "b8380000000f00d0", "0f0b",
    "6a1b68" + le(START, 4).hex() + "cb", "6a6068" + le(START, 4).hex() + "cb",
])  # fmt: skip
def test_faults_of_the_kernel_are_what_they_are_on_the_bare_machine(code):
    image = build(code + "ebfe", PRINT_FAULT)
    m, result = run(image)
    assert seen(m, result)[:3] == seen(*run(image, "bare"))[:3]
    assert chr(result.console[-1]) in "GUNSTP"


@pytest.mark.parametrize(
    "code", ["f7f0", "0f0b", "0f35", "ea00000000ff00", "66b810008ed8", "66b860008ed8", "66b810008ed0", "9a000000000800"]
)
def test_faults_of_a_program_too(code):
    image = in_ring_3("31c0" + code + "ebfe", {**PRINT_FAULT, 0: "b044e6e9" + EXIT_0})
    assert seen(*run(image))[:3] == seen(*run(image, "bare"))[:3]


# -- segments, gates and tasks ----------------------------------------------------------------------------------------

ACCESSED = "a1" + le(GDT + 0x3C, 4).hex()  # the upper half of descriptor 0x38


@pytest.mark.parametrize("sreg", ["d8", "c0", "e0", "e8"])
def test_loading_a_segment_sets_its_accessed_bit_in_the_guests_table(sreg):
    m, result = run(build("b8380000008e" + sreg + ACCESSED + store(0), PRINT_FAULT))
    assert m.vm.ram.read(OUT, 4) == 0x00CF_9100
    assert result.by_reason["HIDDEN_DESCRIPTOR"] >= 1
    same(build("b8380000008e" + sreg + ACCESSED + store(0), PRINT_FAULT))


def test_a_store_into_the_gdt_counts_at_once():
    """Descriptor 0x60 becomes present; a data segment is loaded with it and read through."""
    code = "c605" + le(GDT + 0x65, 4).hex() + "92" + "b8600000008ed8" + "a1" + le(OUT + 0x80, 4).hex() + store(1)
    reasons = same(build(code, PRINT_FAULT, {OUT + 0x80: b"here"}))
    assert reasons["TRACED_WRITE"] >= 1


def test_the_monitors_table_follows_an_lgdt_across_two_pages():
    at = 0x13_0FF0
    table = TABLES[GDT]
    code = "0f0115" + le(OUT + 0x80, 4).hex() + "b8100000008ed8" + "b8580000008ec0" + "b8380000008ee0" + "8ce3"
    same(build(code, PRINT_FAULT, {at: table, OUT + 0x80: le(0x67, 2) + le(at, 4)}))


def test_a_16_bit_lgdt_loads_24_bits_of_base():
    code = "660f0115" + le(OUT + 0x80, 4).hex() + "b8100000008ed8"
    same(build(code, PRINT_FAULT, {OUT + 0x80: le(0x67, 2) + le(0xAB00_0000 | GDT, 4)}))


@pytest.mark.parametrize(
    "code", ["b80c0000008ed8a100001200", "ea" + le(START + 15, 4).hex() + "1400", "b80c0000008ed0"]
)
def test_segments_of_an_ldt(code):
    same(build("b8300000000f00d0" + code, PRINT_FAULT))


def test_a_store_into_the_ldt_counts_too():
    code = "b8300000000f00d0" + "c605" + le(LDT + 0x1D, 4).hex() + "92" + "b81c0000008ed8"
    same(build(code, PRINT_FAULT))


def test_a_conforming_segment_runs_in_the_ring_of_its_caller():
    """A program jumps to code of ring 0 that conforms, and asks who it is."""
    target = CODE + 0x500
    image = in_ring_3("ea" + le(target, 4).hex() + "4000", PRINT_FAULT, put(target, "31c08cc8" + "50" + "f4"))
    m, result = run(image)
    assert result.console == b"\0G"
    assert m.vm.ram.read(0xB_0000 - 4, 4) == 0x43
    assert same(image) == result.by_reason


def test_a_call_gate_leads_to_ring_0_and_back():
    """The kernel prints the CS of its caller; the program goes on to a privileged instruction."""
    image = in_ring_3("9a000000004800" + "f4", PRINT_FAULT, put(GATE_TARGET, "8b442404" + "e6e9" + "cb"))
    assert same(image)["LCALL"] == 1


def test_a_call_gate_from_the_kernel_itself():
    same(build("9a000000004800", PRINT_FAULT, put(GATE_TARGET, "b043e6e9cb")))


TASK_CODE = CODE + 0x600
SECOND_TASK = (
    le(0, 4) + bytes(0x18) + le(0, 4) + le(TASK_CODE, 4) + le(2, 4) + bytes(16) + le(0xC_0000, 4) + bytes(12)
    + le(0x10, 4) + le(0x08, 4) + le(0x10, 4) + le(0x10, 4) + le(0, 4) + le(0, 4) + le(0, 4) + le(0x68_0000, 4)
)  # fmt: skip


@pytest.mark.parametrize(("far", "end"), [("ea", EXIT_0), ("9a", "cf" + EXIT_0)])
def test_task_switches(far, end):
    """By JMP, and by CALL, from which IRET with NT comes back."""
    assert len(SECOND_TASK) == 0x68
    code = "b8280000000f00d8" + far + "000000005000"
    image = build(code, PRINT_FAULT, {TASK2: SECOND_TASK, **put(TASK_CODE, "b032e6e9" + end)})
    _m, result = run(image)
    assert (result.ending.code, result.console) == (0, b"2")
    same(image)


def test_sysenter_and_sysexit():
    entry = CODE + 0x700
    msrs = "".join(
        "b9" + le(index, 4).hex() + "b8" + le(value, 4).hex() + "31d2" + "0f30"
        for index, value in ((0x174, 8), (0x175, 0x9_0000), (0x176, entry))
    )
    kernel_side = "b053e6e9" + "ba" + le(PROGRAM + 2, 4).hex() + "b900000b00" + "0f35"
    image = in_ring_3("0f34" + "f4", PRINT_FAULT, put(entry, kernel_side), start=msrs)
    _m, result = run(image)
    assert result.console == b"S\0G"
    assert same(image)["SYSENTER"] == 1


# -- interrupts -------------------------------------------------------------------------------------------------------

PICS = "b011e620b020e621b004e621b001e621b0fee621" + "b034e643b000e640b008e640"  # vectors from 0x20, the timer fast
TICK = {0x20: "50b02ee6e9b020e62058cf"}


def test_a_halt_that_cli_preceded_is_taken_for_one_with_interrupts_on():
    _m, result = run(build("b0ffe621e6a1faf4", PRINT_FAULT))
    assert result.ending.how is How.HALTED
    assert result.ending.why.endswith("no device will ever interrupt it")


def test_interrupts_that_popf_enables_are_seen_at_the_next_halt():
    image = build("fa" + PICS + "68020200009d" + "f4", {**PRINT_FAULT, **TICK})
    _m, result = run(image)
    assert (result.ending.code, result.console) == (0, b".")


def test_interrupts_reach_a_program_in_ring_3():
    wait = "8b1d00001200" + "83fb02" + "72f5" + "f4"
    count = {0x20: "50ff0500001200b020e62058cf"}
    image = in_ring_3(wait, {**PRINT_FAULT, **count}, start="fa" + PICS)
    m = machine(image, "deprivilege")
    result = m.run(Budget(max_instructions=10_000_000))
    assert result.console == b"\0G"
    assert m.vm.ram.read(OUT, 4) == 2


@pytest.mark.parametrize("technique", ["bare", "deprivilege", "hardware"])
@pytest.mark.parametrize("after", ["43", "fa"])
def test_cli_keeps_them_away_and_sti_lets_one_instruction_pass(after, technique):
    """After 2 ms with interrupts off one is pending; it comes after the instruction behind STI, even if CLI follows."""
    code = "fa" + PICS + "b980841e00" + "e2fe" + "bb01000000" + "fb" + "43" + after + "43"
    image = build(code, {**PRINT_FAULT, 0x20: "891d04001200" + EXIT_0})
    m = machine(image, technique)
    result = m.run(Budget(max_instructions=5_000_000))
    assert result.ending.code == 0
    assert m.vm.ram.read(OUT + 4, 4) == 2


# -- programs with privileges of their own ----------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 1])
def test_the_io_bitmap_of_the_guests_tss_decides(bit):
    bitmap = {TSS + 0x66: le(0x68, 2), TSS + 0x68: bytes(0x1D) + le(bit << 1, 1) + b"\xff" * 0x20}
    limit = {GDT + 0x28: le(system(TSS, 0xA0, 0x89), 8)}
    image = in_ring_3("b041e6e9f4", PRINT_FAULT, {**bitmap, **limit})
    _m, result = run(image)
    assert result.console == (b"\0G" if bit else b"A\0G")
    assert same(image) == result.by_reason


def test_iopl_of_an_emulated_iret_counts():
    """RETF and IRET to RPL 0 trap, so their flags are the guest's: CLI in a program with IOPL 3 then passes."""
    enter = "b8280000000f00d8" + "9c58" + "0d00300000" + "50" + "6a0868" + "{}" + "cf"
    again = "6a23680000 0b006a1b68".replace(" ", "") + le(PROGRAM, 4).hex() + "cb"
    at = START + len(bytes.fromhex(enter.format("00000000")))
    image = build(enter.format(le(at, 4).hex()) + again, PRINT_FAULT, put(PROGRAM, "fafb" + "b041e6e9" + "f4"))
    _m, result = run(image)
    assert result.console == b"A\0G"
    assert same(image) == result.by_reason


@pytest.mark.parametrize("tsd", [0, 4])
@pytest.mark.parametrize("ring", [0, 3])
def test_rdtsc_and_cr4_tsd(tsd, ring):
    set_tsd = "b8" + le(tsd, 4).hex() + "0f22e0"
    code = "0f31" + "c60500001200" + "41"
    image = in_ring_3(code + "f4", PRINT_FAULT, start=set_tsd) if ring else build(set_tsd + code, PRINT_FAULT)
    m, result = run(image)
    assert m.vm.ram.read(OUT, 1) == (0 if tsd and ring else 0x41)
    assert result.by_reason.get("RDTSC", 0) == bool(tsd and not ring)


def test_the_time_stamp_counter_is_one_wherever_it_is_read():
    """WRMSR, RDTSC, which does not trap, and RDMSR."""
    code = "b910000000b80000000031d2" + "0f30" + "0f31" + store(0) + "0f32" + store(1)
    m, _result = run(build(code, PRINT_FAULT))
    first, second = m.vm.ram.read(OUT, 4), m.vm.ram.read(OUT + 4, 4)
    assert 0 < first < second < 20_000


# -- modes that cannot be deprivileged --------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "words"), [
    ("0f20c024fe0f22c0", "real mode"),
    ("b8000012000f22d8b8200000000f22e0b9800000c00f320d000100000f300f20c00d000000800f22c0", "long mode"),
    ("6a006a006a006a006a006a006802000200" + "6a006a00" + "cf", "virtual-8086"),
])  # fmt: skip
def test_a_mode_without_rings_to_give_away_ends_the_guest_with_one_clear_line(code, words):
    _m, result = run(build(code + "e6f4", PRINT_FAULT))
    assert result.ending.how is How.DIED
    assert result.ending.why.startswith("deprivilege cannot run " + words)
    assert "\n" not in result.ending.why


# -- debug registers --------------------------------------------------------------------------------------------------

DEBUG = {1: "0f21f0" + store(0) + "31c00f23f8" + "b044e6e9" + EXIT_0}


@pytest.mark.parametrize("code", [
    "9c810c2400010000" + "9d" + "90",  # single step
    "b8" + le(START + 16, 4).hex() + "0f23c0" + "b8020400000f23f8" + "90",  # a breakpoint on the NOP
    "b8" + le(OUT + 8, 4).hex() + "0f23c0" + "b802040d000f23f8" + "a308001200",  # on a store
    "b8002400000f23f8" + "0f21c0",  # general detect
    "f1",
])  # fmt: skip
def test_debug_exceptions_are_the_guests(code):
    same(build(code + "9090", {**PRINT_FAULT, **DEBUG}))


def test_the_layout_of_these_kernels_has_room():
    assert max(HANDLERS + 64 * 0x80 + 64, 0x9000 + 0x800) < CODE
    assert START < PROGRAM < DATA
