from __future__ import annotations

from tests.debug.guests import SPIN, ask, paused, session


def test_registers_show_the_truth_only_where_the_guest_is_deceived():
    answer = ask(paused("paging", "map_and_unmap"), "registers cr").splitlines()
    # VMX operation fixes NE and VMXE to 1 (SDM 3C "Restrictions on VMX Operation"); the guest set neither.
    assert answer[:2] == ["cr0    0x80010011  PE ET WP PG", "       truth: 0x80010031  PE ET NE WP PG"]
    assert answer[-3:] == ["cr4    0x0", "       truth: 0x2000  VMXE", "cr8    0x0"]
    assert "truth" not in ask(paused("paging", "map_and_unmap", "bare"), "registers")


def test_ring_compression_shows_in_the_truth_about_cs_and_cpl():
    s = paused("paging", "map_and_unmap", "deprivilege")
    assert ask(s, "registers cpl") == "cpl    0\n       truth: 1"
    believed, true = ask(s, "registers cs").splitlines()
    assert believed.endswith("base 0x0 limit 0xffffffff  32-bit code, execute/read, accessed, DPL 0")
    assert "0x0009" in true
    assert true.endswith("DPL 1")


def test_flags_are_named():
    s = session(SPIN, "bare")
    s.truth.rflags = 0x3246  # IOPL 3, IF, ZF, PF, and bit 1, which is always 1
    assert ask(s, "registers rflags") == "rflags 0x3246  PF ZF IF IOPL=0x3"


def test_general_registers_are_as_wide_as_the_mode():
    assert ask(session("hello32"), "registers eax") == "eax 0x2badb002"
    assert ask(session("hello64"), "registers r15") == "r15 0x0000000000000000"
    assert ask(session("hello64"), "registers mode") == "mode   64-bit mode, 64-bit code"
    assert ask(session("hello16"), "registers mode") == "mode   real-address mode, 16-bit code"
