"""What an instruction touches, compared with what another emulator is seen to touch when it runs it."""

from __future__ import annotations

import pytest
from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_MEM_READ,
    UC_HOOK_MEM_WRITE,
    UC_MEM_WRITE,
    UC_MODE_16,
    UC_MODE_32,
    UC_MODE_64,
    Uc,
)
from unicorn import x86_const as ux

from hvemu.cpu.accesses import accesses, loads_ss, outer_accesses
from hvemu.x86.decode import decode
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, PlainState, Segment
from tests.cpu.silicon import program

MODES = {16: UC_MODE_16, 32: UC_MODE_32, 64: UC_MODE_64}
REGISTERS = {
    Gpr.RAX: 5, Gpr.RCX: 2, Gpr.RDX: 0x35, Gpr.RBX: 0x3000, Gpr.RSP: 0x3400, Gpr.RBP: 0x3300, Gpr.RSI: 0x3100,
    Gpr.RDI: 0x3200,
}  # fmt: skip
ALL, LEGACY, WIDE = (16, 32, 64), (16, 32), (32, 64)
# {b}: the register of a base that every mode can address with; {a}: the accumulator, {c} CX, both as wide as the mode
INSTRUCTIONS = {
    ALL: """
        mov al, [{b}]
        mov [{b}], al
        mov ax, [{b} + 3]
        mov [{b} + 3], ax
        mov eax, [{b}]
        mov dword ptr [{b}], 1
        add [{b}], eax
        add eax, [{b}]
        cmp [{b}], eax
        cmp byte ptr [{b}], 1
        test [{b}], al
        test dword ptr [{b}], 1
        inc word ptr [{b}]
        not byte ptr [{b}]
        neg dword ptr [{b}]
        shl dword ptr [{b}], 1
        rol byte ptr [{b}], cl
        shld [{b}], eax, 3
        xchg [{b}], eax
        xchg eax, [{b}]
        xadd [{b}], eax
        cmpxchg [{b}], ecx
        lock add [{b}], eax
        mul byte ptr [{b}]
        imul dword ptr [{b}]
        imul eax, [{b}], 3
        movzx eax, byte ptr [{b}]
        movsx eax, word ptr [{b}]
        cmove eax, [{b}]
        sete [{b}]
        bt dword ptr [{b}], 33
        bts dword ptr [{b}], 33
        bt [{b}], edx
        bts [{b}], edx
        btr word ptr [{b}], dx
        btc [{b}], edx
        bsf eax, [{b}]
        lea eax, [{b}]
        nop
        nop dword ptr [{b}]
        clflush [{b}]
        movsb
        movsw
        movsd
        lodsb
        lodsd
        stosb
        stosw
        scasb
        cmpsw
        rep movsb
        rep stosw
        repe cmpsb
        repne scasb
        es lodsb
        push {a}
        push word ptr [{b}]
        push 0x12
        pop {c}
        pop word ptr [{b}]
        pushf
        popf
        call here
        call {c}
        ret
        ret 4
        leave
        enter 8, 0
        enter 8, 1
        enter 8, 3
        xlatb
        mov ax, ss
        mov [{b}], ds
        sgdt [{b}]
        sidt [{b}]
        smsw [{b}]
        fld dword ptr [{b}]
        fld qword ptr [{b}]
        fst dword ptr [{b}]
        fstp qword ptr [{b}]
        fild word ptr [{b}]
        fild qword ptr [{b}]
        fist word ptr [{b}]
        fistp dword ptr [{b}]
        fadd dword ptr [{b}]
        fcom qword ptr [{b}]
        fldcw [{b}]
        fnstcw [{b}]
        fnstsw [{b}]
        movd mm0, [{b}]
        movq [{b}], mm0
        movss xmm0, [{b}]
        movss [{b}], xmm0
        movups xmm0, [{b}]
        movups [{b}], xmm0
        addps xmm0, [{b}]
        ldmxcsr [{b}]
        stmxcsr [{b}]
        movnti [{b}], eax
        cmpxchg8b [{b}]
        crc32 eax, byte ptr [{b}]
    """,
    LEGACY: """
        pusha
        popa
        push ds
        push es
        les eax, [0x2000]
    """,
    WIDE: """
        popcnt eax, [{b}]
        push dword ptr gs:[esi]
        mov eax, [esi + ecx * 4 + 8]
        mov [edi - 4], ax
        call dword ptr [0x2000]
        jmp dword ptr [0x2000]
        adc dword ptr [esi + 0x7f], 1
        push fs
    """,
    (64,): """
        mov rax, [rbx]
        mov [rbx], rax
        add [rbx], rax
        movsq
        stosq
        rep movsq
        push qword ptr [rbx]
        pop qword ptr [rsp]
        pop qword ptr [rsp + 8]
        cmpxchg16b [rbx]
        bts [rbx], rdx
        mov eax, [rip + 0x40]
        mov r8, [r9 + rbx]
        movbe [rbx], rax
        movsxd rax, dword ptr [rbx]
    """,
    (32,): """
        pop dword ptr [esp]
        pop dword ptr [esp + 4]
        call word ptr [0x2000]
        lds eax, [0x2000]
    """,
}
RAW = {  # what the assembler does not know
    "es lodsb": ".byte 0x26, 0xac", "ret 4": ".byte 0xc2, 4, 0", "movsd": ".byte 0xa5", "lodsd": ".byte 0xad",
    "ret": ".byte 0xc3", "mov eax, [rip + 0x40]": ".byte 0x8b, 5, 0x40, 0, 0, 0",
}  # fmt: skip
RAW16 = RAW | {"movsd": ".byte 0x66, 0xa5", "lodsd": ".byte 0x66, 0xad"}
ONLY = {32: {"push dword ptr gs:[esi]", "call dword ptr [0x2000]", "jmp dword ptr [0x2000]"}}
WORDS = {
    16: {"b": "bx", "a": "ax", "c": "cx"},
    32: {"b": "ebx", "a": "eax", "c": "ecx"},
    64: {"b": "rbx", "a": "rax", "c": "rcx"},
}


def source(mode):
    lines = [
        line.strip().format(**WORDS[mode])
        for modes, text in INSTRUCTIONS.items()
        if mode in modes
        for line in text.strip().splitlines()
        if mode != 64 or line.strip() not in ONLY[32]
    ]
    return "here:\n" + "\n".join((RAW16 if mode == 16 else RAW).get(line, line) for line in lines)


CASES = [
    pytest.param(mode, line.code, id=f"{mode}-{line.source}")
    for mode in ALL
    for line in program(mode, source(mode)).listing
    if line.code
]


def state(mode, stack_bits=None):
    plain = PlainState()
    for gpr, value in REGISTERS.items():
        plain.set_gpr(gpr, value)
    plain.rip, long = 0x1000, mode == 64
    if mode > 16:
        plain.cr0, plain.efer = 0x11, 0x500 if long else 0
        for sreg in Sreg:
            rights = AccessRights(type=11 if sreg is Sreg.CS else 3, s=1, p=1, g=1, db=not long, l=long)
            plain.set_segment(sreg, Segment(8, 0, 0xFFFF_FFFF, rights))
    return plain


def touched(mode, code):
    """Return the bytes that the emulator reads or writes, and those that it writes."""
    uc = Uc(UC_ARCH_X86, MODES[mode])
    uc.mem_map(0, 0x10000)
    uc.mem_write(0x2000, bytes([0, 0x40, 0, 0, 0, 0, 0, 0] * 0x300))  # whatever is popped is an address
    uc.mem_write(0x3300, (0x3380).to_bytes(4, "little"))  # what LEAVE pops need not be an address
    uc.mem_write(0x1000, code)
    for gpr, value in REGISTERS.items():
        name = gpr.name if mode == 64 else f"E{gpr.name[1:]}"
        uc.reg_write(getattr(ux, f"UC_X86_REG_{name}"), value)
    uc.reg_write(ux.UC_X86_REG_CR4, 0x600)
    every, written = set(), set()

    def seen(_uc, kind, gva, size, _value, _data):
        every.update(range(gva, gva + size))
        if kind == UC_MEM_WRITE:
            written.update(range(gva, gva + size))

    uc.hook_add(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, seen)
    uc.emu_start(0x1000, 0, count=1)
    return every, written


@pytest.mark.parametrize(("mode", "code"), CASES)
def test_the_bytes_are_those_that_the_instruction_touches(mode, code):
    found = accesses(state(mode), decode(code, mode))
    every = {gva for access in found for gva in range(access.gva, access.gva + access.size)}
    written = {gva for access in found if access.write for gva in range(access.gva, access.gva + access.size)}
    assert (sorted(every), sorted(written)) == tuple(map(sorted, touched(mode, code)))


@pytest.mark.parametrize("mode", [32, 64])
@pytest.mark.parametrize(("code", "size", "write"), [
    (b"\x0f\xae\x03", 512, True), (b"\x0f\xae\x0b", 512, False), (b"\x0f\xf7\xc1", 8, True),
    (b"\x66\x0f\xf7\xc1", 16, True), (b"\xd9\x33", 28, True), (b"\xd9\x23", 28, False),
    (b"\xdd\x33", 108, True), (b"\xdb\x3b", 10, True), (b"\xdb\x2b", 10, False), (b"\xdf\x23", 10, False),
    (b"\xdf\x33", 10, True), (b"\x66\xd9\x33", 14, True), (b"\x66\xdd\x23", 94, False),
])  # fmt: skip
def test_areas_count_whole_although_not_every_byte_is_used(mode, code, size, write):
    (access,) = accesses(state(mode), decode(code, mode))
    assert (access.gva, access.size, access.write) == (0x3200 if code[-2] == 0xF7 else 0x3000, size, write)


def test_bound_reads_both_bounds():
    assert [(a.gva, a.size, a.write) for a in accesses(state(32), decode(b"\x62\x03", 32))] == [(0x3000, 8, False)]


@pytest.mark.parametrize("code", [b"\xf3\xa4", b"\xf3\xab", b"\xf3\x6e", b"\xf2\xae"])
def test_a_count_of_zero_touches_nothing(code):
    plain = state(32)
    plain.set_gpr(Gpr.RCX, 0)
    assert accesses(plain, decode(code, 32)) == []


def test_strings_go_to_the_extra_segment_and_wrap():
    plain = state(16)
    plain.set_segment(Sreg.ES, Segment(0x1000, 0x10000, 0xFFFF, AccessRights(type=3, s=1, p=1)))
    source_, target = accesses(plain, decode(b"\xa4", 16)), 0x13200
    assert [(a.gva, a.write) for a in sorted(source_, key=lambda a: a.gva)] == [(0x3100, False), (target, True)]
    plain.set_gpr(Gpr.RSP, 1)
    assert [a.gva for a in accesses(plain, decode(b"\x50", 16))] == [0xFFFF]


@pytest.mark.parametrize(
    ("code", "bits", "first", "size"),
    [
        (b"\xcf", 32, 0x340C, 8),
        (b"\xcb", 32, 0x3408, 8),
        (b"\xca\x10\x00", 32, 0x3418, 8),
        (b"\x66\xcf", 32, 0x3406, 4),
    ],
)
def test_a_return_to_an_outer_ring_pops_the_stack_pointer_too(code, bits, first, size):
    (access,) = outer_accesses(state(bits), decode(code, bits))
    assert (access.gva, access.size, access.write) == (first, size, False)


def test_iretq_always_pops_five():
    found = accesses(state(64), decode(b"\x48\xcf", 64))
    assert [(a.gva, a.size) for a in found] == [(0x3400 + 8 * n, 8) for n in range(5)]
    assert outer_accesses(state(64), decode(b"\x48\xcf", 64)) == []


@pytest.mark.parametrize(
    ("code", "is_load"),
    [(b"\x8e\xd0", True), (b"\x17", True), (b"\x8e\xd8", False), (b"\x0f\xb2\x03", False), (b"\x1f", False)],
)
def test_mov_and_pop_load_ss_with_a_shadow_and_lss_does_not(code, is_load):
    assert loads_ss(decode(code, 32)) is is_load
