"""Port I/O stops exactly before its instruction, wherever it stands and whatever was there before."""

from __future__ import annotations

import itertools
import random

import pytest

from hvemu.engine.scan import io_instructions, is_string_io, may_have_io, may_have_string_io
from hvemu.engine.sites import _IDLE
from hvemu.engine.traps import Kind
from hvemu.x86.decode import decode, disassemble
from hvemu.x86.vectors import Fault
from tests.engine.rig import BITS, CODE, DATA, PML4, RAX, RBX, RCX, RDI, RDX, RSI, RW, P, rig, summary

CLOCKS = pytest.mark.parametrize("counted", [True, False])
IO = {
    "in al, imm": b"\xe4\x40", "in eax, imm": b"\xe5\x40", "out imm, al": b"\xe6\x40", "out imm, eax": b"\xe7\x40",
    "in al, dx": b"\xec", "in eax, dx": b"\xed", "out dx, al": b"\xee", "out dx, eax": b"\xef", "insb": b"\x6c",
    "insd": b"\x6d", "outsb": b"\x6e", "outsd": b"\x6f", "in ax, dx": b"\x66\xed", "rep insb": b"\xf3\x6c",
    "repne outsd": b"\xf2\x6f", "fs outsb": b"\x64\x6e",
}  # fmt: skip
INC = {16: b"\x66\x40", 32: b"\x40", 64: b"\xff\xc0"}  # inc eax
STORE = {16: b"\x67\x66\xc7\x03\x78\x56\x34\x12", 32: b"\xc7\x03\x78\x56\x34\x12", 64: b"\xc7\x03\x78\x56\x34\x12"}


@CLOCKS
@pytest.mark.parametrize(("name", "bits"), [*itertools.product(IO, BITS)])
def test_nothing_behind_port_io_in_the_middle_of_a_block_has_run(name, bits, counted):
    r = rig(bits, counted=counted)
    for _ in range(2):  # the first time the block is new; the second time it is not
        for gpr, value in ((RAX, 0), (RBX, 0x3000), (RCX, 5), (RDI, 0x3100), (RSI, 0x3200), (RDX, 0x80)):
            r.gpr(gpr, value)
        r.word(0x3000, 0, 4)
        before = r.engine.instructions
        stop = r.run(INC[bits] * 2 + IO[name] + STORE[bits] + INC[bits] + b"\xf4")
        assert summary(stop) == (Kind.IO, 0)
        assert (r.offset, r.state.gpr(RAX), r.peek(0x3000, 4)) == (len(INC[bits]) * 2, 2, 0)
        assert (r.state.gpr(RCX), r.state.gpr(RDI), r.state.gpr(RSI)) == (5, 0x3100, 0x3200)
        assert r.engine.instructions - before == (2 if counted else 0)


@CLOCKS
@pytest.mark.parametrize("bits", BITS)
def test_code_goes_on_behind_port_io_as_if_it_had_run(bits, counted):
    r = rig(bits, counted=counted)
    code = (INC[bits] + b"\xee") * 5 + b"\xf4"
    stop = r.run(code)
    for n in range(1, 6):
        assert (stop.kind, r.state.gpr(RAX)) == (Kind.IO, n)
        r.state.retire(r.state.rip + 1)
        stop = r.engine.run(1000)
    assert stop.kind is Kind.HLT
    assert r.engine.instructions == (5 if counted else 0)


@CLOCKS
@pytest.mark.parametrize("cpl", [0, 1, 3])
@pytest.mark.parametrize("code", [b"\xec", b"\xee", b"\x6c", b"\x6e"])
def test_port_io_stops_at_every_privilege_level_before_any_access_to_memory(cpl, code, counted):
    r = rig(32, cpl, counted=counted)
    r.gpr(RDI, 0x1000_0000)  # nothing is there, and the processor would check the port first
    r.gpr(RSI, 0x1000_0000)
    assert summary(r.run(code)) == (Kind.IO, 0)


@CLOCKS
def test_ins_does_not_touch_its_destination(counted):
    r = rig(32, 3, counted=counted)
    r.gpr(RDI, DATA)
    r.word(DATA, 0x1122_3344, 4)
    assert r.run(b"\x6d").kind is Kind.IO
    assert r.peek(DATA, 4) == 0x1122_3344


@CLOCKS
@pytest.mark.parametrize("io", [b"\xec", b"\x6e"], ids=["in", "outs"])
def test_port_io_that_crosses_a_page_stops(io, counted):
    r = rig(32, counted=counted)
    at = CODE + 0xFFF
    r.put(b"\x66" + io + b"\xf4", at)
    r.state.rip = at
    assert r.engine.run(1000).kind is Kind.IO
    assert r.state.rip == at


@CLOCKS
@pytest.mark.parametrize("io", [b"\xec", b"\x6c"], ids=["in", "ins"])
def test_a_jump_into_the_middle_of_a_known_block_stops_too(io, counted):
    r = rig(32, counted=counted)
    code = b"\x40\x40" + io + b"\x40\xf4"
    for start in (2, 1, 0):
        r.put(code)
        r.state.rip = CODE + start
        assert r.engine.run(1000).kind is Kind.IO
        assert r.offset == 2


@CLOCKS
@pytest.mark.parametrize("io", [b"\xec", b"\xee", b"\x6c", b"\x6e"])
def test_code_that_replaces_port_io_runs_and_port_io_that_replaces_code_stops(io, counted):
    r = rig(32, counted=counted)
    for _ in range(3):
        assert r.run(b"\x90" + io + b"\x40\xf4").kind is Kind.IO
        r.gpr(RAX, 0)
        assert r.run(b"\x90\x90\x40\xf4").kind is Kind.HLT
        assert r.state.gpr(RAX) == 1


@CLOCKS
@pytest.mark.parametrize("io", [b"\xec", b"\x6c"])
def test_a_guest_that_writes_port_io_over_its_own_code_stops_at_it(io, counted):
    call = b"\xe8" + (0x100 - 5).to_bytes(4, "little", signed=True)
    again = b"\xe8" + (0x100 - 12).to_bytes(4, "little", signed=True)
    r = rig(32, counted=counted)
    r.gpr(RBX, CODE + 0x100)
    r.gpr(RAX, io[0] - 1)
    r.put(b"\x90\x40\xc3", CODE + 0x100)
    assert r.run(call + b"\x88\x03" + again + b"\xf4").kind is Kind.IO  # mov [ebx], al between the two calls
    assert r.offset == 0x100


@CLOCKS
@pytest.mark.parametrize("io", [b"\xec", b"\x6c"])
def test_the_same_address_may_hold_port_io_in_one_address_space_and_other_code_in_another(io, counted):
    r = rig(64, counted=counted)
    page = 0x4_0000
    for n, (root, hpa) in enumerate(((PML4, page), (0x9_0000, page + 0x1000))):
        table = 0xA_0000 + 0x4000 * n
        for level in range(1, 4):
            r.word(root if level == 1 else table + 0x1000 * (level - 2), table + 0x1000 * (level - 1) | RW | P)
        for number in range(512):
            r.word(table + 0x2000 + 8 * number, number << 12 | RW | P)
        r.word(table + 0x2000 + 8 * (page >> 12), hpa | RW | P)
    r.ram[page : page + 4] = b"\x90" + io + b"\x90\xf4"
    r.ram[page + 0x1000 : page + 0x1004] = b"\x90\x90\x90\xf4"
    for _ in range(4):
        for root, kind in ((PML4, Kind.IO), (0x9_0000, Kind.HLT)):
            r.state.cr3 = root
            r.state.rip = page
            assert r.engine.run(1000).kind is kind


def test_hooks_that_other_code_runs_through_are_removed():
    r = rig(32, counted=False)
    r.run(b"\xec\x90\x90\xf4")
    sites = r.engine._hooks.sites
    assert sites.hold(CODE + 1)
    loop = b"\x90\x48\x75\xfc\xf4"  # nop; dec eax; jnz -4: runs through CODE + 1
    r.gpr(RAX, 2 * _IDLE)
    assert r.run(loop).kind is Kind.HLT
    assert r.state.gpr(RAX) == 0
    assert not sites.hold(CODE + 1)
    assert r.run(b"\xec\x90\x90\xf4").kind is Kind.IO


def test_hooks_stay_while_port_io_goes_on():
    r = rig(32, counted=False)
    sites = r.engine._hooks.sites
    for _ in range(3 * _IDLE):
        assert r.run(b"\xec\x90\x90\xf4").kind is Kind.IO
        r.state.retire(r.state.rip + 1)
        assert r.engine.run(1000).kind is Kind.HLT
    assert sites.hold(CODE + 1)


@CLOCKS
def test_the_counted_clock_needs_no_hook_for_in_and_out(counted):
    r = rig(32, counted=counted)
    for code in (b"\xe4\x40", b"\xec", b"\xee"):
        r.run(code + b"\x90\xf4")
        assert r.engine._hooks.sites.hold(CODE + len(code)) is not counted
    r.run(b"\x6e\x90\xf4")
    assert r.engine._hooks.sites.hold(CODE)


@CLOCKS
@pytest.mark.parametrize("code", [b"\xf0\x6d", b"\xf0\xf3\x6c", b"\xf0\xec"])
def test_port_io_with_a_lock_prefix_stops_and_it_is_the_decoder_that_refuses_it(code, counted):
    r = rig(32, counted=counted)
    r.gpr(RDI, DATA)
    r.gpr(RCX, 1)
    assert summary(r.run(b"\x90" + code)) == (Kind.IO, 0)
    assert r.offset == 1
    with pytest.raises(Fault):
        decode(r.engine.fetch(), 32)


# -- the scan ---------------------------------------------------------------------------------------------------------


def up_to_the_first_undefined(code, bits):
    """Return *code* as far as a block can go: the processor leaves it at an undefined instruction."""
    sizes = [i.length for i in itertools.takewhile(lambda i: i.mnemonic != "db", disassemble(code, 0, bits))]
    return code[: sum(sizes)]


def reference(code, gva, bits):
    found = []
    for instruction in disassemble(code, gva, bits):
        if instruction.mnemonic in ("in", "out", "ins", "outs"):
            found.append((gva, gva + instruction.length, instruction.mnemonic in ("ins", "outs")))
        gva += instruction.length
    return found


@pytest.mark.parametrize("bits", BITS)
def test_the_quick_scan_finds_what_the_decoder_finds(bits):
    random_bytes = random.Random(bits)
    pool = [*range(256), *b"\x6c\x6d\x6e\x6f\xe4\xec\xee\xef\x66\x67\xf2\xf3\x0f" * 8]
    for _ in range(400):
        code = up_to_the_first_undefined(bytes(random_bytes.choices(pool, k=24)), bits)
        expected = reference(code, 0x1000, bits)
        assert [*io_instructions(code, 0x1000, bits)] == expected, code.hex()
        assert may_have_io(code) or not expected
        assert may_have_string_io(code) or not any(is_string for *_, is_string in expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("name", "code"), IO.items())
def test_the_first_instruction_is_recognized(name, code, bits):
    assert is_string_io(code + b"\x90" * 4, bits) is ("ins" in name or "outs" in name)
    assert not is_string_io(b"\x90" + code, bits)
    assert not is_string_io(code[:1] if len(code) > 1 else b"", bits)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"\x66\x0f\x38\x00\xec", []),  # pshufb xmm5, xmm4
        (b"\x66\x0f\x3a\x21\xc1\x6c", []),  # insertps xmm0, xmm1, 0x6c
        (b"\xb0\xec\xec", [(2, 3, False)]),  # mov al, 0xec; in al, dx
        (b"\xb8\x6c\x6d\x6e\x6f\x6c", [(5, 6, True)]),  # mov eax, 0x6f6e6d6c; insb
    ],
)
def test_bytes_and_names_that_look_like_port_io_are_not_taken_for_it(code, expected):
    assert [*io_instructions(code, 0, 64)] == expected
