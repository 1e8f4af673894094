"""EPT under a running guest: what violations and misconfigurations report, and what the guest sees between them."""

from __future__ import annotations

import pytest

from hvemu.memory.ept import ENTRY_SIZE, PTE, RW, RWX, RX, R
from hvemu.memory.ept_walk import LOOK, walk_ept
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import Reason
from hvemu.x86.registers import Gpr
from tests.cpu import machines
from tests.cpu.nonroot_rig import (
    CODE,
    DATA,
    GUEST_HPA,
    HANDLERS,
    PIN,
    PRIMARY,
    RAM,
    SECONDARY,
    STACK,
    TABLES,
    Rig,
    fields,
)

READ, WRITE, FETCH, READABLE, WRITABLE, EXECUTABLE, LINEAR, FINAL = 1, 2, 4, 8, 16, 32, 0x80, 0x100
PAGE, PT = 0x1000, TABLES + 0x3000
WIDE = (32, 64)
A, D = 0x20, 0x40  # of guest page tables
UD, PF = 6, 14


def small(bits, *, accessed_dirty=False, largest=0x20_0000):
    """A guest whose pages are split where a test changes them, or all small where EPT has flags for each."""
    return Rig(bits, accessed_dirty=accessed_dirty, largest=PAGE if accessed_dirty else largest)


def violation(exit_, qualification, gpa, gva, **more):
    expected = {
        "reason": Reason.EPT_VIOLATION,
        "qualification": qualification,
        "guest_physical": gpa,
        "guest_linear": gva,
    }
    assert fields(exit_) == {name: v for name, v in (expected | more).items() if v is not None}


def leaf(rig, gpa):
    """The EPT entry that maps *gpa*."""
    return walk_ept(rig.nonroot._dimension.ept, rig.host.read, gpa, LOOK).steps[-1]


def again(rig, gpa, rights=None):
    """Map a page that was missing, and go on."""
    rig.ept.map(gpa & -PAGE, GUEST_HPA + (gpa & -PAGE), PAGE, rights or RWX)
    rig.nonroot.invalidate()


# -- violations of data and code --------------------------------------------------------------------------------------

HOLE = DATA
# (code, bits of the access, distance of its gva from HOLE); RDI is in the hole, RSI at DATA + 0x2000
DATA_CASES = {
    "8b07": (READ, 0x100), "8907": (WRITE, 0x100), "8b7ffc": (READ, 0xFC), "ff07": (READ, 0x100), "8707": (READ, 0x100),
    "a5": (WRITE, 0x100), "f3a4": (WRITE, 0x100), "ae": (READ, 0x100), "0fae07": (WRITE, 0x100),
    "f60701": (READ, 0x100),
    "ff17": (READ, 0x100), "ff37": (READ, 0x100), "0fc70f": (READ, 0x100), "0fab07": (READ, 0x100),
}  # fmt: skip


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize("code", DATA_CASES)
def test_an_access_to_a_missing_page_names_its_addresses(bits, code):
    access, offset = DATA_CASES[code]
    rig = small(bits).gpr(rdi=HOLE + 0x100, rsi=DATA + 0x2000, rcx=5)
    rig.ept.unmap(HOLE, PAGE)
    rig.enter()
    before = rig.registers()
    exit_ = rig.run(code)
    assert exit_.qualification & (READ | WRITE) in ({READ, WRITE} if code == "0fae07" else {access})
    violation(exit_, exit_.qualification & 3 | LINEAR | FINAL, HOLE + offset, HOLE + offset)
    assert rig.registers() == before
    again(rig, HOLE)
    assert rig.run() is None


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize(
    ("code", "access", "distance"),
    [("50", WRITE, 0), ("58", READ, 1), ("e800000000", WRITE, 0), ("c3", READ, 1), ("9c", WRITE, 0), ("c9", READ, 1)],
)
@pytest.mark.parametrize("at", [0x800, 0])
def test_the_stack_may_be_missing_too(bits, code, access, distance, at):
    """Of a push below HOLE + *at*, or of a pop above it."""
    rig = small(bits)
    item = bits // 8
    gva = HOLE + at - (0 if distance else item)
    rig.gpr(rsp=HOLE + at, rbp=HOLE + at)
    rig.ept.unmap(gva & -PAGE, PAGE)
    violation(rig.run(code), access | LINEAR | FINAL, gva, gva)


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize("write", [0, 1])
def test_an_access_across_pages_names_the_one_that_is_missing(bits, write):
    rig = small(bits).gpr(rdi=HOLE - 2)
    rig.ept.unmap(HOLE, PAGE)
    violation(rig.run("8907" if write else "8b07"), (WRITE if write else READ) | LINEAR | FINAL, HOLE, HOLE)


@pytest.mark.parametrize("bits", WIDE)
def test_a_fetch_from_a_missing_page(bits):
    rig = small(bits)
    rig.ept.unmap(CODE, PAGE)
    violation(rig.run("90"), FETCH | LINEAR | FINAL, CODE, CODE)
    again(rig, CODE)
    assert rig.run("90") is None


@pytest.mark.parametrize("bits", WIDE)
def test_an_instruction_that_crosses_into_a_missing_page(bits):
    rig = small(bits)
    rig.put(bytes.fromhex("b878563412"), CODE + PAGE - 2)
    rig.ept.unmap(CODE + PAGE, PAGE)
    rig.vmcs[Field.GUEST_RIP] = CODE + PAGE - 2
    violation(rig.run(), FETCH | LINEAR | FINAL, CODE + PAGE, CODE + PAGE)
    again(rig, CODE + PAGE)
    assert rig.run() is None
    assert rig.state.gpr(Gpr.RAX) == 0x12345678


def test_real_mode_has_segments_in_its_linear_addresses():
    rig = small(16)
    rig.vmcs[Field.GUEST_DS_SELECTOR], rig.vmcs[Field.GUEST_DS_BASE] = HOLE >> 4, HOLE
    rig.ept.unmap(HOLE, PAGE)
    violation(rig.run("a13412"[:2] + "3402"), READ | LINEAR | FINAL, HOLE + 0x234, HOLE + 0x234)


@pytest.mark.parametrize("code", ["8ed8", "8ed0", "0f00d0"])
def test_a_descriptor_table_may_be_missing(code):
    rig = small(32).gpr(rax=0x20)
    rig.vmcs[Field.GUEST_GDTR_BASE] = HOLE
    rig.ept.unmap(HOLE, PAGE)
    exit_ = rig.run(code)
    violation(exit_, READ | LINEAR | FINAL, exit_.guest_physical, exit_.guest_physical)
    assert HOLE + 0x20 <= exit_.guest_physical < HOLE + 0x28


# -- rights -----------------------------------------------------------------------------------------------------------

NAMED = {R: READABLE, RW: READABLE | WRITABLE, RX: READABLE | EXECUTABLE}


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize("rights", NAMED, ids=repr)
@pytest.mark.parametrize("kind", ["read", "write", "fetch", "modify"])
def test_rights_are_enforced_and_reported(bits, rights, kind):
    rig = small(bits).gpr(rdi=HOLE + 8, rax=0x55)
    rig.put(b"\x90", HOLE + 8)
    rig.ept.protect(HOLE, PAGE, rights)
    needs = {"read": R, "write": RW, "modify": RW, "fetch": RX}[kind]
    if kind == "fetch":
        rig.vmcs[Field.GUEST_RIP] = HOLE + 8
        exit_ = rig.run()
    else:
        exit_ = rig.run({"read": "8b1f", "write": "8907", "modify": "ff07"}[kind])
    if needs & ~rights:
        bit = {"write": WRITE, "modify": WRITE, "fetch": FETCH}[kind]
        violation(exit_, bit | NAMED[rights] | LINEAR | FINAL, HOLE + 8, HOLE + 8)
    else:
        assert exit_ is None
        value = rig.ram.read(HOLE + 8, 4)
        assert value == {"write": 0x55, "modify": 0x91}.get(kind, 0x90)


def test_data_in_a_page_without_execute_permission_is_as_good_as_any():
    rig = small(64).gpr(rdi=HOLE + 8, rsi=HOLE + 0x100, rcx=64)
    rig.ept.protect(HOLE, PAGE, RW)
    rig.ram.write_bytes(HOLE + 0x100, bytes(range(64)))
    assert rig.run("f3a4ebfe", limit=66) is None
    assert rig.ram.read_bytes(HOLE + 8, 64) == bytes(range(64))


def test_execute_permission_that_is_taken_away_counts_after_invept():
    rig = small(64)
    assert rig.run("9090909090", limit=2) is None
    rig.ept.protect(CODE, PAGE, RW)
    assert rig.run(limit=1) is None  # an old translation may stay until INVEPT
    rig.nonroot.invalidate()
    violation(rig.run(), FETCH | READABLE | WRITABLE | LINEAR | FINAL, CODE + 3, CODE + 3)


def test_a_loop_between_pages_stops_where_execution_is_no_longer_allowed():
    rig = small(32)
    rig.put(bytes.fromhex("e9fbef0000"[:2] + "fb0f0000"))  # jmp CODE + 0x1000
    rig.put(bytes.fromhex("e9fbefffff"), CODE + PAGE)  # jmp CODE
    assert rig.run(limit=10) is None
    rig.ept.protect(CODE + PAGE, PAGE, R)
    rig.nonroot.invalidate()
    violation(rig.run(limit=10), FETCH | READABLE | LINEAR | FINAL, CODE + PAGE, CODE + PAGE)


# -- guest page tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [0, PAGE, 2 * PAGE, 3 * PAGE])
@pytest.mark.parametrize("accessed_dirty", [False, True])
def test_a_missing_page_table_is_not_the_final_access(table, accessed_dirty):
    rig = small(64, accessed_dirty=accessed_dirty)
    rig.ept.unmap(TABLES + table, PAGE)
    span = {0: 1 << 39, PAGE: 1 << 30, 2 * PAGE: 1 << 21, 3 * PAGE: PAGE}[table]
    gpa = TABLES + table + 8 * (CODE // span % 512)
    violation(rig.run("90"), READ | WRITE * accessed_dirty | LINEAR, gpa, CODE)


def test_a_page_table_that_only_the_operand_needs():
    rig = small(64).gpr(rdi=0x20_0000 + 0x123)
    rig.word(TABLES + 2 * PAGE + 8, HOLE | 7)  # the second 2 MiB
    rig.ept.unmap(HOLE, PAGE)
    violation(rig.run("8907"), READ | LINEAR, HOLE, 0x20_0123)


@pytest.mark.parametrize("flags", [0, A, A | D])
@pytest.mark.parametrize("accessed_dirty", [False, True])
def test_page_tables_in_a_page_that_may_only_be_read(flags, accessed_dirty):
    """Reading entries passes unless EPT counts it as a write; setting an accessed flag is a write."""
    rig = small(64, accessed_dirty=accessed_dirty).gpr(rdi=0x20_0000 + 0x123)
    rig.word(TABLES + 2 * PAGE + 8, HOLE | 7 | A)
    rig.word(HOLE, DATA + PAGE | 7 | flags)
    rig.word(DATA + PAGE + 0x123, 0x5EED)
    rig.ept.protect(HOLE, PAGE, RX)
    exit_ = rig.run("8b07")
    if flags and not accessed_dirty:
        assert exit_ is None
        assert rig.state.gpr(Gpr.RAX) == 0x5EED
        assert rig.ram.read(HOLE, 8) == DATA + PAGE | 7 | flags
    else:
        violation(exit_, READ | WRITE | READABLE | EXECUTABLE | LINEAR, HOLE, 0x20_0123)


def test_code_runs_under_page_tables_that_may_only_be_read():
    rig = small(64).gpr(rcx=20)
    for n in range(4):
        for slot in range(512) if n == 3 else range(1):
            at = TABLES + n * PAGE + 8 * slot
            rig.word(at, rig.ram.read(at, 8) | A | D)
    rig.ept.protect(TABLES, 4 * PAGE, RX)
    assert rig.run("ffc9" + "75fc" + "ebfe", limit=41) is None
    assert rig.state.gpr(Gpr.RCX) == 0


# -- misconfigurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [2, 6, 4, GUEST_HPA + DATA | 7 | 2 << 3, GUEST_HPA + DATA | 7 | 6 << 3 | 1 << 45])
@pytest.mark.parametrize("code", ["8b07", "8907"])
def test_a_misconfiguration_reports_the_guest_physical_address_alone(entry, code):
    rig = small(64, largest=PAGE).gpr(rdi=HOLE + 0x18)
    rig.enter()
    rig.host.write(leaf(rig, HOLE).hpa, ENTRY_SIZE, entry)
    assert fields(rig.run(code)) == {"reason": Reason.EPT_MISCONFIGURATION, "guest_physical": HOLE + 0x18}


# -- accessed and dirty flags -----------------------------------------------------------------------------------------

EPT_A, EPT_D = 1 << 8, 1 << 9


def flags(rig, gpa):
    return leaf(rig, gpa).entry & (EPT_A | EPT_D)


@pytest.mark.parametrize("bits", WIDE)
@pytest.mark.parametrize("enabled", [False, True])
def test_dirty_is_set_by_the_first_write_even_after_reads(bits, enabled):
    rig = small(bits, accessed_dirty=enabled, largest=PAGE).gpr(rdi=DATA)
    assert rig.run("8b078b078907ebfe", limit=2) is None
    assert flags(rig, DATA) == (EPT_A if enabled else 0)
    assert rig.run(limit=1) is None
    assert flags(rig, DATA) == (EPT_A | EPT_D if enabled else 0)
    assert flags(rig, CODE) == (EPT_A if enabled else 0)
    assert flags(rig, DATA + PAGE) == 0
    if bits == 64:
        assert flags(rig, PT) == (EPT_A | EPT_D if enabled else 0)


def test_a_flag_that_is_cleared_is_set_again_after_invept():
    rig = small(32, accessed_dirty=True).gpr(rdi=DATA)
    assert rig.run("89078907ebfe") is None
    at = leaf(rig, DATA)
    rig.host.write(at.hpa, ENTRY_SIZE, at.entry & ~(EPT_A | EPT_D))
    rig.nonroot.invalidate()
    assert flags(rig, DATA) == 0
    assert rig.run() is None
    assert flags(rig, DATA) == EPT_A | EPT_D


def test_what_the_cpu_model_writes_is_dirty_too():
    rig = small(32, accessed_dirty=True)
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = 1 << 31 | 3 << 8 | UD
    assert rig.run("90") is None
    assert flags(rig, STACK - 4) == EPT_A | EPT_D
    assert flags(rig, machines.IDT) == EPT_A


# -- while an event is delivered --------------------------------------------------------------------------------------

EXTERNAL = 1 << 31 | 0x33


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize(("gpa", "access"), [(machines.IDT, READ), (STACK - PAGE, WRITE), (machines.GDT, READ)])
@pytest.mark.parametrize("event", ["ud", "external", "int"])
def test_delivery_may_meet_a_violation_and_the_event_is_injected_again(injected, gpa, access, event):
    vector, kind, length = {"ud": (UD, 3, 0), "external": (0x33, 0, 0), "int": (0x80, 4, 2)}[event]
    rig = small(32)
    rig.vmcs[Field.GUEST_RFLAGS] |= 0x200
    rig.ept.unmap(gpa, PAGE)
    if injected:
        rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = 1 << 31 | kind << 8 | vector
        rig.vmcs[Field.VM_ENTRY_INSTRUCTION_LENGTH] = length
    elif event == "external":
        rig.interrupts.vectors, rig.cpu.attention = [0x33], True
    exit_ = rig.run({"ud": "0f0b", "external": "90", "int": "cd80"}[event])
    at = {machines.IDT: machines.IDT + 8 * vector, STACK - PAGE: exit_.guest_physical, machines.GDT: machines.GDT + 8}[
        gpa
    ]
    violation(
        exit_,
        access | LINEAR | FINAL,
        at,
        at,
        idt_vectoring=1 << 31 | kind << 8 | vector,
        instruction_length=length or None,
    )
    assert gpa <= at < gpa + PAGE
    assert rig.state.rip == CODE
    rig.ept.map(gpa, GUEST_HPA + gpa, PAGE)
    rig.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = exit_.idt_vectoring
    rig.vmcs[Field.VM_ENTRY_INSTRUCTION_LENGTH] = exit_.instruction_length
    assert rig.run(limit=3) is None
    assert rig.state.rip == HANDLERS + 16 * vector
    assert rig.state.gpr(Gpr.RSP) == STACK - 12  # one frame: it arrived once
    assert rig.ram.read(STACK - 12, 4) == CODE + length
    assert rig.interrupts.vectors == []


def test_a_misconfiguration_during_delivery_names_the_event():
    rig = small(32, largest=PAGE)
    rig.enter()
    rig.host.write(leaf(rig, machines.IDT).hpa, ENTRY_SIZE, 2)
    assert fields(rig.run("0f0b")) == {
        "reason": Reason.EPT_MISCONFIGURATION,
        "guest_physical": machines.IDT + 8 * UD,
        "idt_vectoring": 1 << 31 | 3 << 8 | UD,
    }


# -- what the CPU model does itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "access"), [("6e", READ), ("6c", WRITE), ("0f0137", READ), ("0f0127", WRITE)])
def test_emulated_instructions_meet_violations_too(code, access):
    """OUTSB, INSB; LMSW and SMSW, which stop because a host owns bits of CR0."""
    rig = small(32).gpr(rdi=HOLE + 4, rsi=HOLE + 4, rdx=0x3F8)
    rig.ept.unmap(HOLE, PAGE)
    rig.enter()
    before = rig.registers()
    violation(rig.run(code), access | LINEAR | FINAL, HOLE + 4, HOLE + 4)
    assert rig.registers() == before
    assert rig.ports.written == []
    again(rig, HOLE)
    assert rig.run() is None


def test_the_pdptes_of_mov_to_cr3_have_no_linear_address():
    rig = small(32).gpr(rax=HOLE)
    rig.vmcs[Field.GUEST_CR4] |= 0x20
    rig.word(TABLES, TABLES + PAGE | 1)
    rig.word(TABLES + PAGE, 0 | 0x87)  # 2 MiB
    rig.vmcs[Field.GUEST_CR3] = TABLES
    rig.vmcs[Field.GUEST_CR0] |= 1 << 31
    rig.ept.unmap(HOLE, PAGE)
    violation(rig.run("0f22d8"), READ, HOLE, None)


# -- translations that are kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [PAGE, 0x20_0000])
def test_a_remapped_page_is_seen_after_invept(largest):
    rig = Rig(32, largest=largest).gpr(rdi=DATA)
    rig.word(DATA, 0x1111), rig.word(DATA + PAGE, 0x2222)
    assert rig.run("8b078b07") is None
    rig.ept.map(DATA, GUEST_HPA + DATA + PAGE, PAGE)
    rig.nonroot.invalidate()
    assert rig.run() is None
    assert rig.state.gpr(Gpr.RAX) == 0x2222
    assert rig.nonroot.physical.read(DATA, 4) == 0x2222


def test_vm_entry_follows_a_new_ept_pointer():
    from hvemu.memory.ept_tables import EptTables

    rig = small(32).gpr(rdi=DATA)
    rig.word(DATA, 0x1111), rig.word(DATA + PAGE, 0x2222)
    assert rig.run("8b07") is None
    other = EptTables(rig.host, rig.frames, largest=PAGE)
    other.map(0, GUEST_HPA, RAM)
    other.map(DATA, GUEST_HPA + DATA + PAGE, PAGE)
    rig.vmcs[Field.EPT_POINTER] = rig.vmcs[Field.EPT_POINTER] & 0xFFF | other.root
    rig.leave()
    rig.state.rip = CODE
    assert rig.run() is None
    assert rig.state.gpr(Gpr.RAX) == 0x2222


def test_without_ept_guest_physical_addresses_are_the_hosts():
    rig = Rig(64).set(SECONDARY, enable_ept=0, unrestricted_guest=0).gpr(rdi=DATA)
    rig.host.write_bytes(0, rig.ram.read_bytes(0, 1 << 20))
    rig.host.write(DATA, 8, 0x1234)
    rig.host.write_bytes(CODE, bytes.fromhex("488b070fa2"))
    assert rig.run(limit=2).reason is Reason.CPUID
    assert rig.state.gpr(Gpr.RAX) == 0x1234
    assert rig.nonroot.physical is rig.host


def test_without_ept_there_is_nothing_beyond_the_hosts_memory():
    rig = Rig(64).set(SECONDARY, enable_ept=0, unrestricted_guest=0).gpr(rdi=DATA)
    rig.host.write_bytes(0, rig.ram.read_bytes(0, 1 << 20))
    rig.host.write(PT + 8 * (DATA >> 12), 8, 0x4000_0000 | 7)
    rig.host.write_bytes(CODE, bytes.fromhex("488b070fa2"))
    assert rig.run(limit=2).reason is Reason.CPUID
    assert rig.state.gpr(Gpr.RAX) == 2**64 - 1


@pytest.mark.parametrize("secret", [PIN, PRIMARY])
def test_controls_are_what_vm_entry_last_saw(secret):
    """Writing a control between two entries counts at the next one only."""
    rig = Rig(32)
    assert rig.run("9090f4") is None
    rig.set(PRIMARY, hlt_exiting=1)
    rig.vmcs.values[secret] = rig.vmcs.values[secret]
    assert rig.leave().run(limit=5).reason is Reason.HLT


def test_guest_physical_addresses_wider_than_the_tables():
    rig = small(64).gpr(rdi=DATA)
    rig.word(PT + 8 * (DATA >> 12), 0x80_0000_0000 - PAGE | 7)
    violation(rig.run("8b07"), READ | LINEAR | FINAL, 0x80_0000_0000 - PAGE, DATA)


def test_the_leaf_of_a_page_is_at_the_last_level():
    rig = small(32, largest=PAGE)
    rig.enter()
    assert leaf(rig, DATA).level is PTE
