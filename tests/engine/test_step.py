"""A step is one instruction, on both clocks, and the guest cannot tell that it was stepped."""

from __future__ import annotations

import itertools

import pytest

from hvemu.engine.second_level import SecondLevelCode
from hvemu.engine.traps import Kind
from hvemu.x86.registers import Gpr, Sreg
from tests.engine.rig import (
    BITS,
    CODE,
    DATA,
    GDT,
    IF,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    STACK,
    TF,
    rig,
    summary,
)

CLOCKS = pytest.mark.parametrize("counted", [True, False])
RETIRED = (Kind.LIMIT, 0)
BS = 1 << 14
OTHER = 0x4_0000  # another page of RAM


def prepared(bits, cpl=0, *, counted, flags=2):
    r = rig(bits, cpl, counted=counted)
    for gpr, value in ((RAX, 0x1234), (RBX, 0x3000), (RCX, 3), (RDX, 0x7FFF), (RDI, 0x3100), (RSI, 0x3200)):
        r.gpr(gpr, value)
    r.state.rflags = flags
    r.state.dr6 = 0xFFFF_0FF0
    for n in range(64):
        r.word(0x3200 + 8 * n, 0x0101_0101_0101_0101 * (n % 255))
    return r


def picture(r):
    """Return all that the guest can see."""
    s = r.state
    return {
        "gprs": [*s.regs], "rip": s.rip, "rflags": s.rflags, "dr6": s.dr6, "dr7": s.dr7, "cpl": s.cpl,
        "segments": [s.segment(n) for n in Sreg], "crs": [s.cr[n] for n in (0, 2, 3, 4)], "tr": s.tr,
        "shadow": s.blocking_by_sti_or_mov_ss, "ram": bytes(r.ram[:0x8_0000]),
    }  # fmt: skip


PLAIN = {
    "nop": b"\x90", "mov": b"\x89\xd8", "add": b"\x01\xd8", "load": b"\x8b\x07", "store": b"\x89\x07", "push": b"\x50",
    "pop": b"\x58", "pushf": b"\x9c", "popf": b"\x9d", "cli": b"\xfa", "sti": b"\xfb", "std": b"\xfd", "lahf": b"\x9f",
    "sahf": b"\x9e", "jump to itself": b"\xeb\xfe", "jump": b"\xeb\x10", "call": b"\xe8\x10\x00\x00\x00",
    "ret": b"\xc3",
    "loop": b"\xe2\xfe", "jcxz": b"\xe3\x10", "mov ds": b"\x8e\xd8", "mov es from memory": b"\x8e\x07",
    "cmpxchg": b"\x0f\xb1\x17",
    "lock add": b"\xf0\x01\x07", "movs": b"\xa4", "rep movs": b"\xf3\xa4", "rep stos": b"\xf3\xaa",
    "repne scas": b"\xf2\xae", "repe cmps": b"\xf3\xa6", "rep with count 0": b"\xf3\xa4", "mul": b"\xf7\xe1",
    "enter": b"\xc8\x10\x00\x00", "leave": b"\xc9", "mov cr3": b"\x0f\x20\xd8", "smsw": b"\x0f\x01\xe0",
    "clts": b"\x0f\x06", "sgdt": b"\x0f\x01\x07", "fninit": b"\xdb\xe3",
    "xadd": b"\x0f\xc1\x07",
    "bts": b"\x0f\xab\x07", "lss": b"\x0f\xb2\x27",
}  # fmt: skip
STOPPING = {
    "cpuid": (b"\x0f\xa2", (Kind.CPUID, 0)), "hlt": (b"\xf4", (Kind.HLT, 0)), "in": (b"\xec", (Kind.IO, 0)),
    "outs": (b"\x6e", (Kind.IO, 0)), "ud2": (b"\x0f\x0b", (Kind.EXCEPTION, 6)), "rdmsr": (b"\x0f\x32", (Kind.MSR, 0)),
    "int3": (b"\xcc", (Kind.SOFTWARE_INT, 3)), "int": (b"\xcd\x80", (Kind.SOFTWARE_INT, 0x80)),
    "int 6": (b"\xcd\x06", (Kind.SOFTWARE_INT, 6)), "div by zero": (b"\xf6\xf5", (Kind.EXCEPTION, 0)),
    "invlpg": (b"\x0f\x01\x3f", (Kind.INVLPG, 0)),
}  # fmt: skip


def begin(name, code, bits, flags, *, counted, cpl=0):
    r = prepared(bits, cpl, counted=counted, flags=flags)
    selector = r.state.segment(Sreg.DS).selector
    if name in ("mov ds", "mov es from memory"):
        r.gpr(RAX, selector)
        r.word(0x3100, selector)
    if name == "rep with count 0":
        r.gpr(RCX, 0)
    if name == "lss":
        size = 2 if bits == 16 else 4
        r.word(0x3100, STACK & 0xFFFF | 0x8000)
        r.word(0x3100 + size, r.state.segment(Sreg.SS).selector, 2)
    top = r.state.gpr(RSP)
    if name in ("popf", "ret"):
        r.word(top, 0x246 if name == "popf" else r.start + 0x40)
    if name == "jump":
        r.ram[CODE + 0x100 : CODE + 0x104] = b"\x40" * 4
    r.put(code + b"\x47" * 20)
    r.state.rip = r.start
    return r


@pytest.mark.parametrize(("name", "bits"), [*itertools.product(PLAIN, BITS)])
@pytest.mark.parametrize("flags", [2, 2 | IF], ids=["IF=0", "IF=1"])
def test_a_step_on_the_free_clock_is_a_step_on_the_counted_clock(name, bits, flags):
    results = []
    for counted in (True, False):
        r = begin(name, PLAIN[name], bits, flags, counted=counted)
        results.append((summary(r.engine.step()), picture(r)))
    (stop, counted_clock), (free_stop, free_clock) = results
    assert free_stop == stop == RETIRED
    assert free_clock == counted_clock
    assert not free_clock["rflags"] & TF


@CLOCKS
@pytest.mark.parametrize(("name", "bits"), [*itertools.product(STOPPING, BITS)])
def test_a_step_onto_something_sensitive_stops_as_a_run_does(name, bits, counted):
    code, expected = STOPPING[name]
    r = begin(name, code, bits, 2, counted=counted)
    before = picture(r)
    assert summary(r.engine.step()) == expected
    after = picture(r)
    if expected[0] is Kind.SOFTWARE_INT:
        assert after.pop("rip") == before.pop("rip") + len(code)
    assert after == before


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_a_step_that_faults_leaves_everything(bits, counted):
    r = begin("", b"\x8b\x07", bits, 2, counted=counted)
    r.engine.second_level.unmap(0x3000, 0x1000)
    r.engine.flush_tlb()
    before = picture(r)
    stop = r.engine.step()
    assert (stop.kind, stop.address) == (Kind.SECOND_LEVEL, 0x3000 if bits == 16 else 0x3100)
    assert picture(r) == before


@CLOCKS
@pytest.mark.parametrize("flags", [2, 2 | TF])
def test_a_step_is_one_instruction_of_a_block_that_was_run_before(flags, counted):
    r = prepared(32, counted=counted)
    code = b"\x40" * 20 + b"\xf4"
    assert r.run(code).kind is Kind.HLT  # now the block is known
    r.state.rip = r.start
    r.state.rflags = flags
    for n in range(1, 20):
        stop = r.engine.step()
        assert summary(stop) == ((Kind.EXCEPTION, 1) if flags & TF else RETIRED)
        assert r.offset == n
    r.state.rflags = 2
    assert r.engine.run(1000).kind is Kind.HLT


@CLOCKS
def test_steps_through_a_program_lead_where_a_run_leads(counted):
    # a loop with calls, flags on the stack, and string instructions
    code = (
        b"\xb9\x05\x00\x00\x00"  # mov ecx, 5
        b"\x9c\x58\x50\x9d"  # L: pushf; pop eax; push eax; popf
        b"\x51\xb9\x02\x00\x00\x00\xf3\xa4\x59"  # push ecx; mov ecx, 2; rep movsb; pop ecx
        b"\x16\x17\x1e\x1f\xe2\xed\xf4"  # push ss; pop ss; push ds; pop ds; loop L; hlt
    )
    r = prepared(32, counted=counted)
    assert r.run(code, limit=10_000).kind is Kind.HLT
    expected = picture(r)
    r = prepared(32, counted=counted)
    r.put(code)
    r.state.rip = r.start
    steps = 0
    while (stop := r.engine.step()).kind is Kind.LIMIT:
        steps += 1
        assert not r.state.rflags & TF
    assert stop.kind is Kind.HLT
    assert picture(r) == expected
    iterations = 3 if counted else 2  # finding the end takes a step of its own on the counted clock only
    assert steps == 1 + 5 * (12 + iterations)


@CLOCKS
@pytest.mark.parametrize("flags", [2, 2 | TF])
def test_a_step_over_pushf_pushes_the_guests_own_trap_flag(flags, counted):
    r = begin("pushf", b"\x9c", 32, flags, counted=counted)
    r.engine.step()
    assert r.peek(STACK - 4, 4) == flags


@CLOCKS
@pytest.mark.parametrize("old", [2, 2 | TF])
@pytest.mark.parametrize("new", [2, 2 | TF])
@pytest.mark.parametrize("code", [b"\x9d", b"\xcf"], ids=["popf", "iret"])
def test_a_step_that_loads_the_flags_keeps_the_trap_flag_that_it_loads(code, new, old, counted):
    r = prepared(32, counted=counted, flags=old)
    for n, value in enumerate((new,) if code == b"\x9d" else (CODE + 0x40, 8, new)):
        r.word(STACK + 4 * n, value, 4)
    r.put(code + b"\x90" * 0x50)
    r.state.rip = r.start
    stop = r.engine.step()
    assert summary(stop) == ((Kind.EXCEPTION, 1) if old & TF else RETIRED)
    assert (r.offset, r.state.rflags) == (1 if code == b"\x9d" else 0x40, new)
    stop = r.engine.step()
    assert summary(stop) == ((Kind.EXCEPTION, 1) if new & TF else RETIRED)
    assert r.offset == (2 if code == b"\x9d" else 0x41)


@CLOCKS
@pytest.mark.parametrize("sysret", [b"\x48\x0f\x07", b"\x0f\x07"], ids=["64-bit", "32-bit"])
@pytest.mark.parametrize("flags", [0x202, 0x302])
def test_a_step_over_sysret_ends_at_its_target(sysret, flags, counted):
    r = prepared(64, counted=counted)
    r.engine.write_msr(0xC000_0081, 0x0123 << 48)
    r.state.efer |= 1
    r.gpr(RCX, CODE + 0x100)
    r.gpr(11, flags)
    r.put(b"\x90" * 8, CODE + 0x100)
    r.put(sysret)
    r.state.rip = r.start
    stop = r.engine.step()
    assert summary(stop) in ([RETIRED] if flags == 0x202 else [RETIRED, (Kind.EXCEPTION, 1)])
    assert (r.offset, r.state.rflags, r.state.cpl) == (0x100, flags, 3)


@CLOCKS
@pytest.mark.parametrize("code", [b"\x8e\xd0", b"\x17"], ids=["mov ss", "pop ss"])
def test_a_step_over_a_load_of_ss_does_not_run_the_next_instruction(code, counted):
    r = prepared(32, counted=counted)
    r.gpr(RAX, 0x10)
    r.word(STACK, 0x10)
    r.put(code + b"\x40\x40")
    r.state.rip = r.start
    assert summary(r.engine.step()) == RETIRED
    assert (r.offset, r.state.gpr(RAX), r.state.blocking_by_sti_or_mov_ss) == (len(code), 0x10, True)
    assert summary(r.engine.step()) == RETIRED
    assert (r.offset, r.state.gpr(RAX), r.state.blocking_by_sti_or_mov_ss) == (len(code) + 1, 0x11, False)


@CLOCKS
def test_a_step_into_another_task_saves_the_flags_of_the_old_one_as_they_were(counted):
    r = prepared(32, counted=counted)
    new = 0x7_8000
    r.word(GDT + 0xC0, 0x0000_8900_0000_0067 | new << 16)
    r.word(GDT + 0x98, 0x0000_8B00_0000_0067 | 0x7_0000 << 16)
    fields = {0x20: CODE + 0x200, 0x24: 2, 0x38: 0x5_8000, 0x4C: 8, 0x50: 16, 0x54: 16, 0x48: 16}
    for offset, value in fields.items():
        r.word(new + offset, value, 4)
    r.put(b"\x90\x90", CODE + 0x200)
    r.put(b"\xea\x00\x00\x00\x00\xc0\x00")
    r.state.rip = r.start
    assert summary(r.engine.step()) == RETIRED
    assert (r.offset, r.state.tr.selector, r.state.rflags) == (0x200, 0xC0, 2)
    assert r.peek(0x7_0000 + 0x24, 4) == 2


@CLOCKS
def test_a_step_keeps_what_dr6_says(counted):
    for dr6 in (0xFFFF_0FF0, 0xFFFF_0FF0 | BS, 0xFFFF_0FF3):
        r = prepared(32, counted=counted)
        r.state.dr6 = dr6
        r.put(b"\x90\x90")
        r.state.rip = r.start
        r.engine.step()
        assert r.state.dr6 == dr6


def test_a_step_on_the_free_clock_keeps_the_other_blocks(monkeypatch):
    r = prepared(32, counted=False)
    r.ram[CODE : CODE + 6] = b"\xe8\xfb\x0f\x00\x00\xf4"  # call CODE + 0x1000; hlt
    r.ram[CODE + 0x1000 : CODE + 0x1002] = b"\x40\xc3"
    for n, code in enumerate((b"\x9c\x90", b"\x9d\x90", b"\x16\x90", b"\x17\x90", b"\x90\x90", b"\xcf")):
        r.ram[DATA + 16 * n : DATA + 16 * n + len(code)] = code
    r.state.rip = CODE
    assert r.engine.run(1).kind is Kind.HLT
    for n in range(5):
        r.state.rip = DATA + 16 * n
        assert r.engine.step().kind is Kind.LIMIT
    translated = []
    monkeypatch.setattr(r.engine._hooks._pages, "add", translated.append)
    r.state.rip = CODE
    assert r.engine.run(1).kind is Kind.HLT
    assert translated == []


@CLOCKS
def test_a_window_that_is_open_comes_before_the_instruction(counted):
    r = prepared(32, counted=counted, flags=2 | IF)
    r.engine.open_window(True)
    r.put(b"\x40\x40")
    r.state.rip = r.start
    assert summary(r.engine.step()) == (Kind.WINDOW, 0)
    assert (r.offset, r.state.rflags) == (0, 2 | IF)
    assert summary(r.engine.step()) == RETIRED
    assert r.offset == 1


# -- one page of the second level elsewhere ---------------------------------------------------------------------------

PAGE = 0x3000
THROUGH = {
    "mov": (b"\x89\x03", {RAX: 0x1234}, {0: (0x1234, 4)}),
    "mov with an immediate": (b"\xc7\x43\x10\x78\x56\x34\x12", {}, {0x10: (0x1234_5678, 4)}),
    "movs": (b"\xa5", {RSI: DATA, RDI: PAGE + 8}, {8: (0xDDCC_BBAA, 4)}),
    "one iteration of rep movs": (b"\xf3\xa5", {RSI: DATA, RDI: PAGE + 8, RCX: 4}, {8: (0xDDCC_BBAA, 4), 12: (0, 4)}),
    "one iteration of rep stos": (b"\xf3\xaa", {RAX: 0x77, RDI: PAGE, RCX: 4}, {0: (0x77, 1), 1: (0, 1)}),
    "xchg": (b"\x87\x03", {RAX: 0x55}, {0: (0x55, 4)}),
    "cmpxchg": (b"\xf0\x0f\xb1\x13", {RAX: 0, RDX: 0x99}, {0: (0x99, 4)}),
    "bts": (b"\xf0\x0f\xab\x03", {RAX: 5}, {0: (0x20, 4)}),
    "push": (b"\x50", {RAX: 0xABCD, RSP: PAGE + 0x100}, {0x100: (0, 4)}),
    "add": (b"\x01\x03", {RAX: 7}, {0: (7, 4)}),
    "call": (b"\xff\x13", {RSP: DATA + 64}, {}),
}


@CLOCKS
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", THROUGH)
@pytest.mark.parametrize("was", ["missing", "read-only", "writable"])
def test_a_step_through_another_page_sees_and_writes_that_page(name, was, bits, counted):
    code, registers, expected = THROUGH[name]
    r = rig(bits, counted=counted)
    for gpr, value in ({RBX: PAGE} | registers).items():
        r.gpr(gpr, value)
    r.word(DATA, 0xDDCC_BBAA, 4)
    level = r.engine.second_level
    level.unmap(PAGE, 0x1000)
    if was != "missing":
        level.map(PAGE, PAGE, 0x1000, writable=was == "writable")
    r.engine.flush_tlb()
    old = level.lookup(PAGE)
    if name == "call":
        r.word(OTHER, CODE + 0x200)
    r.put(code + b"\x90" * 4)
    r.state.rip = r.start
    assert summary(r.engine.step_through(PAGE, OTHER)) == RETIRED
    for offset, (value, size) in expected.items():
        assert r.peek(OTHER + offset, size) == value
    if name == "push":
        assert r.peek(OTHER + 0x100 - bits // 8, bits // 8) == 0xABCD
    if name == "call":
        assert r.offset == 0x200
    elif "iteration" in name:
        assert (r.offset, r.state.gpr(RCX)) == (0, 3)
    else:
        assert r.offset == len(code)
    assert r.ram[PAGE : PAGE + 0x1000] == bytes(0x1000)
    assert level.lookup(PAGE) == old
    r.put(b"\x89\x03\xf4")
    r.gpr(RBX, PAGE)
    r.state.rip = r.start
    assert r.engine.run(1000).kind is (Kind.HLT if was == "writable" else Kind.SECOND_LEVEL)


@CLOCKS
def test_a_step_through_a_page_may_read_what_was_put_there(counted):
    r = rig(32, counted=counted)
    r.engine.second_level.unmap(PAGE, 0x1000)
    r.engine.flush_tlb()
    r.word(OTHER + 0x20, 0xCAFE, 4)
    r.put(b"\xa1" + (PAGE + 0x20).to_bytes(4, "little"))
    r.state.rip = r.start
    assert summary(r.engine.step_through(PAGE, OTHER)) == RETIRED
    assert r.state.gpr(RAX) == 0xCAFE


@CLOCKS
@pytest.mark.parametrize("code", [b"\x89\x03", b"\x8b\x03", b"\x87\x03"], ids=["store", "load", "xchg"])
def test_an_access_that_goes_on_in_the_next_page_stops_there_and_nothing_is_done(code, counted):
    r = rig(32, counted=counted)
    r.engine.second_level.unmap(PAGE, 0x2000)
    r.engine.flush_tlb()
    r.gpr(RBX, PAGE + 0xFFE)
    r.gpr(RAX, 0x1234_5678)
    r.put(code)
    r.state.rip = r.start
    stop = r.engine.step_through(PAGE, OTHER)
    assert (stop.kind, stop.address) == (Kind.SECOND_LEVEL, PAGE + 0x1000)
    assert SecondLevelCode(stop.error_code).wr is (code == b"\x89\x03")
    assert (r.offset, r.state.gpr(RAX)) == (0, 0x1234_5678)
    assert r.ram[OTHER : OTHER + 0x1000] == bytes(0x1000)


@CLOCKS
def test_an_access_that_goes_on_in_a_page_that_is_there_reaches_both(counted):
    r = rig(32, counted=counted)
    r.engine.second_level.unmap(PAGE, 0x1000)
    r.engine.flush_tlb()
    r.gpr(RBX, PAGE + 0xFFE)
    r.gpr(RAX, 0x1234_5678)
    r.put(b"\x89\x03")
    r.state.rip = r.start
    assert summary(r.engine.step_through(PAGE, OTHER)) == RETIRED
    assert (r.peek(OTHER + 0xFFE, 2), r.peek(PAGE + 0x1000, 2)) == (0x5678, 0x1234)


@CLOCKS
def test_a_step_through_a_part_of_a_large_page_leaves_the_rest(counted):
    r = rig(32, counted=counted)
    assert r.engine.second_level.lookup(PAGE).size == 0x20_0000
    r.gpr(RBX, PAGE)
    r.gpr(RAX, 1)
    r.put(b"\x89\x03\xa3" + (PAGE + 0x1000).to_bytes(4, "little") + b"\xf4")
    r.state.rip = r.start
    assert summary(r.engine.step_through(PAGE, OTHER)) == RETIRED
    assert r.engine.run(1000).kind is Kind.HLT
    assert (r.peek(PAGE, 4), r.peek(OTHER, 4), r.peek(PAGE + 0x1000, 4)) == (0, 1, 1)
    mapping = r.engine.second_level.lookup(PAGE)
    assert (mapping.hpa, mapping.writable) == (PAGE, True)


@CLOCKS
def test_a_step_through_stops_as_a_step_does_and_still_puts_the_page_back(counted):
    r = rig(32, counted=counted)
    r.engine.second_level.unmap(PAGE, 0x1000)
    r.put(b"\x0f\xa2")
    r.state.rip = r.start
    assert summary(r.engine.step_through(PAGE, OTHER)) == (Kind.CPUID, 0)
    assert r.engine.second_level.lookup(PAGE) is None


@CLOCKS
def test_stepping_leaves_no_trace_in_a_register(counted):
    r = prepared(64, counted=counted)
    code = b"".join(bytes([0x48 | (n >> 3), 0xFF, 0xC0 | n & 7]) for n in range(16) if n != Gpr.RSP)  # inc each
    before = [*r.state.regs]
    r.put(code)
    r.state.rip = r.start
    for _ in range(15):
        assert summary(r.engine.step()) == RETIRED
    assert [*r.state.regs] == [value + (n != Gpr.RSP) for n, value in enumerate(before)]
