from __future__ import annotations

import re

from tests.debug.guests import SPIN, ask, paused, session


def test_the_gdt_is_decoded():
    lines = ask(paused("rings", "program"), "gdt").splitlines()
    # gdt.inc: five flat segments, the TSS, and the call gate of this guest; the program runs in ring 3.
    assert re.match(r"0x0008  base 0x0 limit 0xffffffff  32-bit code, execute/read,.* DPL 0", lines[1])
    assert re.match(r"0x0018  base 0x0 limit 0xffffffff  32-bit code, execute/read,.* DPL 3  <- CS$", lines[3])
    assert re.match(r"0x0020  base 0x0 limit 0xffffffff  32-bit data, read/write,.* DPL 3  <- .*SS", lines[4])
    assert re.match(r"0x0028  base 0x[0-9a-f]+ limit 0x67  32-bit TSS, busy, DPL 0  <- TR$", lines[5])
    assert re.fullmatch(r"0x0030  0x0008:0x[0-9a-f]+ <called>  32-bit call gate, DPL 3", lines[6])


def test_the_idt_is_decoded():
    lines = ask(paused("rings", "program"), "idt").splitlines()
    assert lines[0] == "IDTR base 0x90000 limit 0x7ff"
    assert re.fullmatch(r"0x0d #GP  0x0008:0x[0-9a-f]+ <general_protection>  32-bit interrupt gate, DPL 0", lines[1])
    assert re.fullmatch(r"0x80      0x0008:0x[0-9a-f]+ <system_call>  32-bit interrupt gate, DPL 3", lines[2])
    assert lines[3] == "254 empty entries"


def test_real_mode_has_interrupt_vectors():
    s = session("hello16")
    s.vm.ram.write_bytes(0x21 * 4, bytes.fromhex("34 12 00 f0"))
    assert "0x21      f000:1234" in ask(s, "idt").splitlines()
    assert "does not use it" in ask(s, "gdt").splitlines()[0]


def test_sixty_four_bit_tables_have_wide_entries():
    s = session(SPIN, "bare")
    s.truth.efer = 0x500  # LME and LMA
    tss = (0x67).to_bytes(2, "little") + bytes.fromhex("00 00 20 89 00 00 78 56 34 12 00 00 00 00")
    gate = bytes.fromhex("00 10 08 00 01 8e 20 00 ff ff ff ff 00 00 00 00")  # IST 1
    s.vm.ram.write_bytes(0x2000, bytes(8) + tss)
    s.vm.ram.write_bytes(0x3000, gate)
    table = type(s.truth.gdtr)
    s.truth.gdtr, s.truth.idtr = table(0x2000, 23), table(0x3000, 15)
    (entry,) = ask(s, "gdt").splitlines()[1:]
    assert entry.startswith("0x0008  base 0x1234567800200000 limit 0x67  64-bit TSS, available, DPL 0")
    assert ask(s, "idt").splitlines()[1] == "0x00 #DE  0x0008:0xffffffff00201000  64-bit interrupt gate, DPL 0, IST 1"
