"""The assembler. Expected bytes are the manual's encodings, worked out by hand."""

from __future__ import annotations

import time

import pytest

from hvemu.guest import asm
from hvemu.guest.asm import AssemblyError, assemble, render_listing
from hvemu.guest.corrections import Corrected
from hvemu.guest.manifest import guests_dir
from hvemu.guest.source import MOST_STATEMENTS, Statement

ORIGINS = {16: 0x7C00, 32: 0x100000, 64: 0x100000}


def build(source, mode=32, **named):
    return assemble(source, mode=mode, origin=ORIGINS[mode], name="t.asm", **named)


def refusal(source, mode=32, **named):
    with pytest.raises(AssemblyError) as error:
        build(source, mode, **named)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    return str(error.value)


CORRECTED = [
    (32, "ljmp 8:0x2000", "ea 00200000 0800"),
    (32, "ljmp 8, 0x2000", "ea 00200000 0800"),
    (32, "jmp 8:0x2000", "ea 00200000 0800"),
    (32, "lcall 8:0x2000", "9a 00200000 0800"),
    (32, "lgdt [0x1234]", "0f 01 15 34120000"),
    (32, "lidt fword ptr [eax+8]", "0f 01 58 08"),
    (32, "sgdt [ebx]", "0f 01 03"),
    (32, "sidt [ebx+ecx*4]", "0f 01 0c 8b"),
    (32, "iret", "cf"),
    (32, "iretd", "cf"),
    (32, "pushf", "9c"),
    (32, "popf", "9d"),
    (32, "push ds", "1e"),
    (32, "pop es", "07"),
    (32, "push cs", "0e"),
    (32, "PUSH DS", "1e"),
    (32, "mov es:[di], al", "26 67 88 05"),
    (32, "jmp fword ptr [0x1000]", "ff 2d 00100000"),
    (32, "ret", "c3"),
    (16, "ret", "c3"),
    (16, "retf", "cb"),
    (16, "iret", "cf"),
    (16, "push 0x1234", "68 3412"),
    (16, "lcall [bx]", "ff 1f"),
    (16, "call bx", "ff d3"),
    (16, "ljmp 0:0x7c00", "ea 007c 0000"),
    (16, "lgdt [0x7c10]", "0f 01 16 107c"),
    (16, "data32 lgdt [0x7c10]", "66 0f 01 16 107c"),
    (16, "data32 ljmp 8:0x100000", "66 ea 00001000 0800"),
    (64, "iretq", "48 cf"),
    (64, "sysretq", "48 0f 07"),
    (64, "sysret", "0f 07"),
    (64, "lgdt [rax]", "0f 01 10"),
    (64, "pushf", "9c"),
]
PASSED = [
    (32, "mov eax, offset here", "b8 00001000"),
    (32, "mov eax, [here + 4]", "a1 04001000"),
    (32, "mov ds, ax", "66 8e d8"),
    (32, "str ax", "66 0f 00 c8"),
    (32, "xchg eax, [esp]", "87 04 24"),
    (32, "rep stosd", "f3 ab"),
    (32, "setnz al", "0f 95 c0"),
    (32, "sal eax, 2", "c1 e0 02"),
    (32, "imul eax, 5", "6b c0 05"),
    (32, "lock xadd [eax], ecx", "f0 0f c1 08"),
    (32, "mov eax, dword ptr gs:[4]", "65 a1 04000000"),
    (32, "mov eax, ~1 & 0xff", "b8 fe000000"),
    (32, "mov al, 'A'", "b0 41"),
    (32, "mov cr3, eax", "0f 22 d8"),
    (32, "lea eax, [ebx + esi*4 - 3]", "8d 44 b3 fd"),
    (32, "vmptrld [eax]", "0f c7 30"),
    (32, "data16 iret", "66 cf"),
    (32, "push here", "68 00001000"),
    (32, "out 244, al", "e6 f4"),
    (32, "shr eax, 16", "c1 e8 10"),
    (32, "lea esi, [ebp + TWO + FOUR]", "8d 75 06"),
]


@pytest.mark.parametrize(("mode", "statement", "code"), CORRECTED + PASSED)
def test_an_instruction_has_the_manuals_encoding(mode, statement, code):
    together = "\n".join(
        ["TWO = 1", "TWO = TWO + 1", "FOUR = 4", "here:", *(s for m, s, _ in CORRECTED + PASSED if m == mode)]
    )  # one run of the assembler
    line = next(line for line in build(together, mode).listing if line.source == statement)
    assert line.code.hex() == code.replace(" ", "")


@pytest.mark.parametrize(
    ("mode", "statement", "code"),
    [(16, "call here", "e8fdff"), (32, "jz here", "74fe"), (32, "call here", "e8fbffffff")],
)
def test_a_branch_counts_from_the_next_instruction(mode, statement, code):
    assert build(f"here: {statement}", mode).code.hex() == code


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("mov al, 300", "its immediate is 0x2c, not 0x12c"),
        (".word 0x12345", "1 values of 2 bytes became 0 bytes"),
        ("mov eax, [ecx + b - a]\na: nop\nb:", "its displacement is 0x100006, not 0x1"),
        ("mov eax, 99999999999999999999", "assembled as nothing"),
        ("rep", "assembled as db 0xf3"),
        ("movl $5, %eax", "assembled as nothing"),
    ],
)
def test_a_silent_mistake_is_refused(source, problem):
    assert refusal(source).startswith("t.asm:1: ")
    assert problem in refusal(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nop\nbogus eax", "t.asm:2: invalid mnemonic: bogus eax"),
        ("nop\nmov eax, ebxx", "t.asm:2: there is no label or constant ebxx: mov eax, ebxx"),
        (".set X, Y\nmov eax, X", "t.asm:1: there is no label or constant Y: .set X, Y"),
        ("nop\n%define X 1", "t.asm:2: `%define` belongs to NASM; here it is .set: %define X 1"),
        ("x equ 1", "t.asm:1: `equ` belongs to NASM; here it is .set NAME, value: x equ 1"),
        ("db 1", "t.asm:1: `db` belongs to NASM; here it is .byte: db 1"),
        (".section .text", "t.asm:1: the directive .section is not known here: .section .text"),
        ("a:\nnop\na:", "t.asm:3: the label a is there already, at t.asm:1: a:"),
        (".if 1\nnop", "t.asm:1: no .endif follows: .if 1"),
        (".endm", "t.asm:1: .endm without its beginning: .endm"),
        (".if later\n.endif\nlater:", "t.asm:1: `later` has no value here: .if later"),
        ("%%%", "t.asm:1: neither a label nor a directive nor an instruction: %%%"),
        ('.ascii "x', 't.asm:1: the string does not end: .ascii "x'),
        ("nop\neip: nop", "t.asm:2: eip is a register and cannot be a label: eip:"),
        (".set X", "t.asm:1: .set takes a name and a value: .set X"),
        (".fill 0x7fffffff", "t.asm:1: from 0 to 0x1000000 bytes, not 0x7fffffff: .fill 0x7fffffff"),
        ("", "t.asm: the source assembles to nothing"),
        ("data32 nop", "t.asm:1: data32 changes nothing in 32-bit code: data32 nop"),
    ],
)
def test_an_error_names_file_line_and_problem(source, message):
    assert refusal(source) == message


def test_64_bit_code_has_no_direct_far_jump():
    assert refusal("ljmp 8:0x2000", 64) == "t.asm:1: 64-bit code has no direct far transfer: ljmp 8:0x2000"


def test_what_makes_keystone_loop_is_ended(monkeypatch):
    monkeypatch.setattr(asm, "TIMEOUT", 1.0)
    statements = [Statement(("t.asm",), 1, "nop"), Statement(("t.asm",), 2, "%define X 1")]
    start = time.monotonic()
    with pytest.raises(AssemblyError, match=r"t\.asm:2: the assembler crashes or loops on this: %define X 1"):
        asm._encode(statements, [Corrected(s.text) for s in statements], 32, 0)
    assert time.monotonic() - start < 10


def test_a_source_is_encoded_once(monkeypatch):
    first = build("nop\nnop\nud2")
    monkeypatch.setattr(asm, "_keystone", None)
    assert build("nop\nnop\nud2") is first


# -- the language ----------------------------------------------------------------------------------------------------


def test_a_file_is_included_where_it_is_named(tmp_path):
    (tmp_path / "two.inc").write_text("# comment\ntwo: .byte 2\n")
    program = build('one: .byte 1\n.include "two.inc"\nthree: .byte 3\n', include_dirs=(tmp_path,))
    assert program.code == b"\1\2\3"
    assert program.symbols == {"one": 0x100000, "two": 0x100001, "three": 0x100002}
    assert [(line.file, line.number) for line in program.listing if line.code] == [
        ("t.asm", 1),
        (str(tmp_path / "two.inc"), 2),
        ("t.asm", 3),
    ]


def test_an_error_in_an_included_file_names_that_file(tmp_path):
    (tmp_path / "bad.inc").write_text("nop\nbogus\n")
    message = refusal('.include "bad.inc"', include_dirs=(tmp_path,))
    assert message == f"{tmp_path / 'bad.inc'}:2: invalid mnemonic: bogus"


def test_files_that_include_each_other_are_refused(tmp_path):
    (tmp_path / "a.inc").write_text('.include "b.inc"\n')
    (tmp_path / "b.inc").write_text('nop\n.include "a.inc"\n')
    message = refusal('.include "a.inc"', include_dirs=(tmp_path,))
    assert message == f'{tmp_path / "b.inc"}:2: the file includes itself: .include "a.inc"'


def test_a_missing_include_is_named():
    assert refusal('.include "no.inc"') == 't.asm:1: there is no such file to include: .include "no.inc"'


def test_an_error_in_a_macro_names_its_use():
    message = refusal(".macro M x\n  mov eax, \\x\n.endm\nnop\nM 5\nM nothing")
    assert message == "t.asm:2: there is no label or constant nothing: mov eax, nothing (in M, used at t.asm:6)"


def test_a_macro_that_uses_itself_is_refused():
    message = refusal(".macro M\nnop\nM\n.endm\nM")
    assert f"more than {MOST_STATEMENTS} statements" in message


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (".macro M x, y=7\n.byte \\x, \\y\n.endm\nM 1\nM 2, 3", b"\1\7\2\3"),
        ('.macro M text\n.ascii "\\text!"\n.endm\nM "a, b"', b"a, b!"),
        (".macro M list:vararg\n.byte \\list\n.endm\nM 1, 2, 3", b"\1\2\3"),
        (".macro M a, b\n.byte \\b\n.endm\nM [eax, 1], 2", b"\2"),
        (".macro M\nl\\@: .byte l\\@ - start\n.endm\nstart:\nM\nM", b"\0\1"),
        (".rept 2\n.rept 2\n.byte 5\n.endr\n.endr", b"\5\5\5\5"),
        (".set N, 2\n.if N == 2\n.byte 1\n.if 0\n.byte 9\n.else\n.byte 2\n.endif\n.else\n.byte 3\n.endif", b"\1\2"),
        ("X = 4\n.byte X\nX = 5\n.byte X", b"\4\5"),
        ("1: jmp 1b\njmp 1f\n1: nop", b"\xeb\xfe\xeb\x00\x90"),
        (".byte 1 # one\n.byte 2 // two\n/* three\nlines */ .byte 3; .byte 4", b"\1\2\3\4"),
        ('.ascii "#;/*"', b"#;/*"),
        (".byte 1\n.org 0x100004\n.byte 2", b"\1\0\0\0\2"),
        (".byte (1 << 4) | 3, ~0 & 0x7f, 'a'", b"\x13\x7fa"),
        (".code16\nmov ax, 1\n.code32\nmov eax, 1", b"\xb8\1\0\xb8\1\0\0\0"),
    ],
)  # fmt: skip
def test_the_language(source, code):
    assert build(source).code == code


def test_lines_are_counted_after_a_long_comment():
    assert refusal("/* one\ntwo */\nbogus") == "t.asm:3: invalid mnemonic: bogus"


# -- the result ------------------------------------------------------------------------------------------------------


def test_the_listing_has_address_bytes_and_source():
    program = build('start:\n  ljmp 8:start\n  .ascii "0123456789"\n')
    assert [*render_listing(program)] == [
        "; t.asm",
        "00100000                              1  start:",
        "00100000  ea 00 00 10 00 08 00        2      ljmp 8:start",
        '00100007  30 31 32 33 34 35 36 37     3      .ascii "0123456789"',
        "0010000f  38 39",
    ]


def test_the_listing_covers_every_byte():
    source = guests_dir() / "paging.asm"
    program = assemble(
        source.read_text(encoding="utf-8"), mode=32, origin=0x100000, name="paging.asm", include_dirs=(guests_dir(),)
    )
    assert b"".join(line.code for line in program.listing) == program.code
    address = program.origin
    for line in program.listing:
        assert line.address == address
        address += len(line.code)
