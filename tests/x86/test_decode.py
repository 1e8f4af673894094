from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.x86.decode import LONGEST, Truncated, decode, disassemble
from hvemu.x86.instruction import Far, Imm, Instruction, Mem, Operand, Reg, RegKind
from hvemu.x86.prefixes import SEGMENTS
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.vectors import Fault, Vector

UD, GP = Fault(Vector.UD), Fault(Vector.GP, 0)
ANY = "*"


def shown(operand: Operand) -> str:
    """Return an operand in the notation of the tables: rax/4, rax+h/1 (AH), cr0/8, ds:[rbx+rsi*1]/2, 0x80, 8:10."""
    match operand:
        case Reg(RegKind.GPR, index, size, high):
            return f"{Gpr(index).name.lower()}{'+h' * high}/{size}"
        case Reg(RegKind.SREG, index, size):
            assert size == 2
            return Sreg(index).name.lower()
        case Reg(kind, index, size):
            return f"{kind}{index}/{size}"
        case Imm(value, _):
            return f"{value:#x}"
        case Far(selector, offset, _):
            return f"{selector:#x}:{offset:#x}"
    assert isinstance(operand, Mem)
    terms = [Gpr(operand.base).name.lower()] if operand.base is not None else []
    terms += [f"{Gpr(operand.index).name.lower()}*{operand.scale}"] if operand.index is not None else []
    terms += ["rip"] * operand.rip_relative + [f"{operand.displacement:#x}"] * bool(operand.displacement)
    return f"{operand.segment.name.lower()}:[{'+'.join(terms)}]/{operand.size}"


def whole(code: str, bits: int) -> Instruction:
    """Decode *code*, which must be one instruction and all of it."""
    raw = bytes.fromhex(code)
    instruction = decode(raw.ljust(LONGEST, b"\x90"), bits)
    assert (instruction.length, instruction.code) == (len(raw), raw)
    return instruction


def rows(table: str) -> list[tuple[str, ...]]:
    """Return the cells of a table: bits, bytes, mnemonic and operand size, operands. `16/32` is two rows."""
    found = []
    for line in table.strip().splitlines():
        bits, code, mnemonic, size, *operands = line.split(maxsplit=4)
        found += [(int(b), code, mnemonic, size, *(operands or [""])) for b in bits.split("/")]
    return found


# bits, bytes, mnemonic, operand size (* where it means nothing), operands. By hand from SDM 2A to 2D.
TABLE = """
16/32    0f20c0            mov       4  rax/4, cr0/4
64       0f20c0            mov       8  rax/8, cr0/8
16/32    660f20c3          mov       4  rbx/4, cr0/4
64       660f20c3          mov       8  rbx/8, cr0/8
16/32    0f2218            mov       4  cr3/4, rax/4
64       0f22d8            mov       8  cr3/8, rax/8
64       440f22c0          mov       8  cr8/8, rax/8
64       410f20c4          mov       8  r12/8, cr0/8
16/32    0f21f8            mov       4  rax/4, dr7/4
64       0f23f1            mov       8  dr6/8, rcx/8
16       0f01f3            lmsw      *  rbx/2
32       0f01f3            lmsw      *  rbx/2
64       0f0130            lmsw      *  ds:[rax]/2
16       0f01e0            smsw      2  rax/2
32       0f01e0            smsw      4  rax/4
64       0f01e0            smsw      4  rax/4
64       480f01e0          smsw      8  rax/8
32       660f01e0          smsw      2  rax/2
32       0f0120            smsw      *  ds:[rax]/2
16/32/64 0f06              clts      *
16       0f0117            lgdt      2  ds:[rbx]/6
16       660f0117          lgdt      4  ds:[rbx]/6
32       0f0113            lgdt      4  ds:[rbx]/6
32       660f0113          lgdt      2  ds:[rbx]/6
64       0f0113            lgdt      8  ds:[rbx]/10
64       660f0113          lgdt      8  ds:[rbx]/10
64       0f011d10000000    lidt      8  ds:[rip+0x10]/10
32       0f011d10000000    lidt      4  ds:[0x10]/6
32       2e0f0100          sgdt      4  cs:[rax]/6
64       0f010c24          sidt      8  ss:[rsp]/10
16/32    0f00d3            lldt      *  rbx/2
16/32/64 0f00d9            ltr       *  rcx/2
32/64    0f0010            lldt      *  ds:[rax]/2
16       0f00c0            sldt      2  rax/2
32       0f00c0            sldt      4  rax/4
32/64    0f0000            sldt      *  ds:[rax]/2
64       480f00c8          str       8  rax/8
16       660f00c8          str       4  rax/4
32/64    0f0138            invlpg    *  ds:[rax]/1
64       450f0138          invlpg    *  ds:[r8]/1
16/32/64 cd80              int       *  0x80
16/32/64 cc                int3      *
16/32/64 f1                int1      *
16/32    ce                into      *
16/32/64 0f0b              ud2       *
16       6207              bound     2  rax/2, ds:[rbx]/4
32       6203              bound     4  rax/4, ds:[rbx]/8
16       cf                iret      2
16       66cf              iret      4
32       cf                iret      4
32       66cf              iret      2
64       cf                iret      4
64       48cf              iret      8
64       66cf              iret      2
16       cb                retf      2
32       cb                retf      4
64       cb                retf      4
64       48cb              retf      8
32       66cb              retf      2
16/32/64 ca1000            retf      *  0x10
16       ca00ff            retf      2  0xff00
16       c3                ret       2
32       c3                ret       4
64       c3                ret       8
64       66c3              ret       8
32       c21000            ret       4  0x10
16       eaf0debc9a        ljmp      2  0x9abc:0xdef0
16       66eaf0debc9a7856  ljmp      4  0x5678:0x9abcdef0
32       eaf0debc9a7856    ljmp      4  0x5678:0x9abcdef0
32       66eaf0debc9a      ljmp      2  0x9abc:0xdef0
16       9af0debc9a        lcall     2  0x9abc:0xdef0
32       9af0debc9a7856    lcall     4  0x5678:0x9abcdef0
16       ff2f              ljmp      2  ds:[rbx]/4
16       66ff2f            ljmp      4  ds:[rbx]/6
32       ff2b              ljmp      4  ds:[rbx]/6
32       66ff2b            ljmp      2  ds:[rbx]/4
64       ff2b              ljmp      4  ds:[rbx]/6
64       48ff2b            ljmp      8  ds:[rbx]/10
32       ff1b              lcall     4  ds:[rbx]/6
64       41ff1b            lcall     4  ds:[r11]/6
16       ff27              jmp       2  ds:[rbx]/2
32       ff13              call      4  ds:[rbx]/4
64       ff13              call      8  ds:[rbx]/8
64       66ff23            jmp       8  ds:[rbx]/8
64       41ffe2            jmp       8  r10/8
16       e8fcff            call      2  -0x4
32       e8fcffffff        call      4  -0x4
64       e8fcffffff        call      8  -0x4
64       66e8fcffffff      call      8  -0x4
16       66e8fcffffff      call      4  -0x4
32       66e8fcff          call      2  -0x4
16/32/64 ebfe              jmp       *  -0x2
16/32/64 7480              je        *  -0x80
32/64    0f85efcdab89      jne       *  -0x76543211
16/32/64 e27f              loop      *  0x7f
16       9c                pushf     2
32       9c                pushf     4
64       9c                pushf     8
64       669c              pushf     2
64       489d              popf      8
32       669d              popf      2
16       669d              popf      4
16/32/64 f4                hlt       *
16/32/64 fa                cli       *
16/32/64 fb                sti       *
16/32/64 0f32              rdmsr     *
16/32/64 0f30              wrmsr     *
16/32/64 0fa2              cpuid     *
16/32/64 0f31              rdtsc     *
16/32/64 0f01f9            rdtscp    *
16/32/64 0f33              rdpmc     *
16/32/64 0f09              wbinvd    *
16/32/64 0f08              invd      *
16/32/64 f390              pause     *
16/32/64 0f01c8            monitor   *
16/32/64 0f01c9            mwait     *
16/32/64 0f01d1            xsetbv    *
64       0f01f8            swapgs    *
16/32/64 0f01c1            vmcall    *
16/32/64 0f01c2            vmlaunch  *
16/32/64 0f01c3            vmresume  *
16/32/64 0f01c4            vmxoff    *
16/32/64 0f01d4            vmfunc    *
16       0fc737            vmptrld   *  ds:[rbx]/8
16       660fc737          vmclear   *  ds:[rbx]/8
16       f30fc737          vmxon     *  ds:[rbx]/8
16       0fc73f            vmptrst   *  ds:[rbx]/8
32/64    0fc733            vmptrld   *  ds:[rbx]/8
32/64    660fc733          vmclear   *  ds:[rbx]/8
32/64    f30fc733          vmxon     *  ds:[rbx]/8
32/64    0fc73b            vmptrst   *  ds:[rbx]/8
16/32    0f78d8            vmread    4  rax/4, rbx/4
64       0f78d8            vmread    8  rax/8, rbx/8
16       0f780f            vmread    4  ds:[rbx]/4, rcx/4
64       0f7809            vmread    8  ds:[rcx]/8, rcx/8
16/32    0f79d8            vmwrite   4  rbx/4, rax/4
64       440f790b          vmwrite   8  r9/8, ds:[rbx]/8
16       660f38800f        invept    4  rcx/4, ds:[rbx]/16
32       660f38800b        invept    4  rcx/4, ds:[rbx]/16
64       660f38800b        invept    8  rcx/8, ds:[rbx]/16
16       67660f388003      invept    4  rax/4, ds:[rbx]/16
16       660f38814f10      invvpid   4  rcx/4, ds:[rbx+0x10]/16
64       660f38814b10      invvpid   8  rcx/8, ds:[rbx+0x10]/16
64       66440f388203      invpcid   8  r8/8, ds:[rbx]/16
16       a5                movs      2  es:[rdi]/2, ds:[rsi]/2
32       a4                movs      1  es:[rdi]/1, ds:[rsi]/1
64       48a5              movs      8  es:[rdi]/8, ds:[rsi]/8
64       6648a5            movs      8  es:[rdi]/8, ds:[rsi]/8
32       2ea5              movs      4  es:[rdi]/4, cs:[rsi]/4
32       26a5              movs      4  es:[rdi]/4, es:[rsi]/4
64       2ea5              movs      4  es:[rdi]/4, ds:[rsi]/4
64       65a5              movs      4  es:[rdi]/4, gs:[rsi]/4
16       36a7              cmps      2  ss:[rsi]/2, es:[rdi]/2
64       a6                cmps      1  ds:[rsi]/1, es:[rdi]/1
32       64af              scas      4  rax/4, es:[rdi]/4
64       ae                scas      1  rax/1, es:[rdi]/1
16       66ad              lods      4  rax/4, ds:[rsi]/4
64       64ac              lods      1  rax/1, fs:[rsi]/1
32       66ab              stos      2  es:[rdi]/2, rax/2
64       64aa              stos      1  es:[rdi]/1, rax/1
16/32/64 ec                in        1  rax/1, rdx/2
16       ed                in        2  rax/2, rdx/2
32/64    ed                in        4  rax/4, rdx/2
64       48ed              in        4  rax/4, rdx/2
64       6648ed            in        4  rax/4, rdx/2
32       66ed              in        2  rax/2, rdx/2
16/32/64 e480              in        1  rax/1, 0x80
32       e580              in        4  rax/4, 0x80
16       66e7ff            out       4  0xff, rax/4
16/32/64 ee                out       1  rdx/2, rax/1
64       66ef              out       2  rdx/2, rax/2
16/32/64 6c                ins       1  es:[rdi]/1, rdx/2
32       666d              ins       2  es:[rdi]/2, rdx/2
64       486d              ins       4  es:[rdi]/4, rdx/2
32       646f              outs      4  rdx/2, fs:[rsi]/4
16       6e                outs      1  rdx/2, ds:[rsi]/1
32/64    8703              xchg      4  ds:[rbx]/4, rax/4
32       8623              xchg      1  ds:[rbx]/1, rax+h/1
64       408623            xchg      1  ds:[rbx]/1, rsp/1
32       f00fb10b          cmpxchg   4  ds:[rbx]/4, rcx/4
64       f0480fb10b        cmpxchg   8  ds:[rbx]/8, rcx/8
32/64    f00fc70b          cmpxchg8b *  ds:[rbx]/8
64       f0480fc70b        cmpxchg16b * ds:[rbx]/16
16       0fab0f            bts       2  ds:[rbx]/2, rcx/2
32       f00fba2b07        bts       4  ds:[rbx]/4, 0x7
32       2103              and       4  ds:[rbx]/4, rax/4
32       8323f0            and       4  ds:[rbx]/4, 0xfffffff0
64       488323f0          and       8  ds:[rbx]/8, 0xfffffffffffffff0
32       8023f0            and       1  ds:[rbx]/1, 0xf0
32       812300000080      and       4  ds:[rbx]/4, 0x80000000
64       48812300000080    and       8  ds:[rbx]/8, 0xffffffff80000000
32       c70378563412      mov       4  ds:[rbx]/4, 0x12345678
64       48b8efcdab8967452301 mov     8  rax/8, 0x123456789abcdef
16       8ed8              mov       *  ds, rax/2
32       8ed8              mov       *  ds, rax/2
32/64    8e13              mov       *  ss, ds:[rbx]/2
16       8cd8              mov       2  rax/2, ds
32       8cd8              mov       4  rax/4, ds
32       668cd8            mov       2  rax/2, ds
64       488cd8            mov       8  rax/8, ds
32/64    8c1b              mov       *  ds:[rbx]/2, ds
16       c507              lds       2  rax/2, ds:[rbx]/4
32       c403              les       4  rax/4, ds:[rbx]/6
32       66c403            les       2  rax/2, ds:[rbx]/4
64       0fb403            lfs       4  rax/4, ds:[rbx]/6
64       480fb503          lgs       8  rax/8, ds:[rbx]/10
16       660fb227          lss       4  rsp/4, ds:[rbx]/6
16       06                push      2  es
32       0e                push      4  cs
32       6616              push      2  ss
16       661f              pop       4  ds
64       0fa0              push      8  fs
64       660fa9            pop       2  gs
32       0fa1              pop       4  fs
16/32/64 0f05              syscall   *
64       0f07              sysret    4
64       480f07            sysret    8
16/32/64 0f34              sysenter  *
32/64    0f35              sysexit   4
64       480f35            sysexit   8
16       60                pusha     2
32       60                pusha     4
32       6661              popa      2
64       50                push      8  rax/8
64       6650              push      2  rax/2
64       6a80              push      8  0xffffffffffffff80
32       6a80              push      4  0xffffff80
64       c9                leave     8
16/32/64 660fd6c1          movq      *  xmm1/16, xmm0/16
"""


@pytest.mark.parametrize(("bits", "code", "mnemonic", "size", "operands"), rows(TABLE))
def test_the_table_of_instructions(bits: int, code: str, mnemonic: str, size: str, operands: str) -> None:
    instruction = whole(code, bits)
    assert instruction.mnemonic == mnemonic
    assert ", ".join(map(shown, instruction.operands)) == operands
    assert size in (ANY, str(instruction.operand_size))


# -- what is no instruction -------------------------------------------------------------------------------------------

UNDEFINED = """
64       06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 6203 8203f0 9af0debc9a7856 eaf0debc9a7856 c403 c503 ce d401 d501 d6
16/32    62c0 c4c0 c5c0 0f01f8 f30faec0 f30faed8
16/32/64 0f20c8 0f22e8 0f20f0 0f22f8 8ec8 8ef0 8ef8 8cf0 8cf8 0fb2c0 0fb4c0 0fb5c0 ffe8 ffd8 fff8 fed0 8dc0 8fc8 c708
16/32/64 0f00f0 0f00f8 0f01e8 0fc7c8 0fff00 0fb9c0 0f3880c0 0f388003 f30f388003 f2660fc733 0fc703 660fc73b f30fc73b
16/32/64 660f78d8 f20f78d8 f30f79d8 0f0f03 0fa6 0fa7 0f04 0f0a 0f0c 0f24c0 0f26c0
64       440f20c8 440f22e8 440f21c0 440f23f8 62f17c4810c1 c5f877 8fe97880c0
"""


@pytest.mark.parametrize(
    ("bits", "code"),
    [
        (int(b), c)
        for line in UNDEFINED.strip().splitlines()
        for b in line.split()[0].split("/")
        for c in line.split()[1:]
    ],
)
def test_undefined_bytes(bits: int, code: str) -> None:
    with pytest.raises(Fault) as raised:
        decode(bytes.fromhex(code).ljust(LONGEST, b"\x03"), bits)
    assert raised.value == UD


# SDM 2A "LOCK-Assert LOCK# Signal Prefix": ADD, ADC, AND, BTC, BTR, BTS, CMPXCHG, CMPXCHG8B, CMPXCHG16B, DEC, INC, NEG,
# NOT, OR, SBB, SUB, XOR, XADD, XCHG, "and only to those forms where the destination operand is a memory operand".
ALU = {op + w for op in range(0, 0x38, 8) for w in (0, 1)} | {0x86, 0x87}  # but not 38 and 39: CMP
GROUPS = {0x80: range(7), 0x81: range(7), 0x83: range(7), 0xFE: (0, 1), 0xFF: (0, 1), 0xF6: (2, 3), 0xF7: (2, 3)}
ALU_0F = {0xAB, 0xB3, 0xBB, 0xB0, 0xB1, 0xC0, 0xC1}
GROUPS_0F = {0xBA: (5, 6, 7), 0xC7: (1,)}


def lockable(opcode: bytes, reg: int, bits: int) -> bool:
    alu, groups = (ALU_0F, GROUPS_0F) if opcode[0] == 0x0F else (ALU, GROUPS)
    if opcode == b"\x82":  # another encoding of 80, outside 64-bit mode
        return bits != 64 and reg in GROUPS[0x80]
    return opcode[-1] in alu or reg in groups.get(opcode[-1], ())


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_lock_is_for_what_reads_and_writes_memory(bits: int) -> None:
    prefixes = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x0F, *range(0x40, 0x50)}
    for opcode in [bytes([n]) for n in range(256) if n not in prefixes] + [bytes([0x0F, n]) for n in range(256)]:
        for mod, reg in itertools.product((0, 3), range(8)):
            code = (b"\xf0" + opcode + bytes([mod << 6 | reg << 3 | 3])).ljust(LONGEST, b"\x00")
            found = outcome(code, bits)
            if mod == 0 and lockable(opcode, reg, bits):
                assert found.lock, code.hex()
            else:
                assert found == UD, code.hex()


# -- prefixes ---------------------------------------------------------------------------------------------------------


def redundant(raw: bytes, bits: int, has_memory: bool) -> list[bytes]:
    """Return prefixes that change nothing when they are put before *raw*."""
    own = raw[: next(i for i, byte in enumerate(raw) if byte not in (*SEGMENTS, 0x66, 0x67, 0xF0, 0xF2, 0xF3))]
    extra = [own * 3] if own else []
    if not has_memory or bits == 64:
        extra += [b"\x2e", b"\x3e\x26\x36\x2e"]  # nothing to override, or an override that means nothing
    if bits == 64:
        extra += [b"\x40", b"\x4f\x41"] if own else [b"\x4f\x2e"]  # REX not right before the opcode
    return [more for more in extra if len(more + raw) <= LONGEST]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_redundant_prefixes_change_nothing_but_the_length(bits: int) -> None:
    fields = ("mnemonic", "operands", "operand_size", "address_size", "rep", "lock")
    for code in of_mode(bits):
        plain = whole(code, bits)
        for more in redundant(plain.code, bits, plain.memory is not None):
            longer = whole(more.hex() + code, bits)
            assert [getattr(longer, f) for f in fields] == [getattr(plain, f) for f in fields], more.hex() + code


STRINGS = {"ins": "6c", "outs": "6e", "movs": "a4", "cmps": "a6", "stos": "aa", "lods": "ac", "scas": "ae"}


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("name", STRINGS)
def test_rep(name: str, bits: int) -> None:
    opcode = int(STRINGS[name], 16)
    compares = name in ("cmps", "scas")
    for wide, operand in itertools.product((0, 1), ("", "66")):
        tail = f"{operand}{opcode + wide:02x}"
        for prefix, expected in (
            ("", None), ("f3", "repe" if compares else "rep"), ("f2", "repne" if compares else "rep"),
            ("f2f3", "repe" if compares else "rep"), ("f3f2", "repne" if compares else "rep"),
        ):  # fmt: skip
            instruction = whole(prefix + tail, bits)
            assert (instruction.mnemonic, instruction.rep) == (name, expected)
            assert instruction.text.split()[0] == (expected or instruction.text.split()[0])


@pytest.mark.parametrize(
    "code", ["90", "ec", "e680", "0fa2", "f4", "0f20c0", "0f2203", "cd80", "cf", "9c", "8ed8", "0f3203", "c3", "0fbcc1"]
)
@pytest.mark.parametrize("prefix", ["f2", "f3"])
def test_rep_means_nothing_elsewhere(code: str, prefix: str) -> None:
    raw = bytes.fromhex(prefix + code).ljust(LONGEST, b"\x03")
    plain = decode(raw[1:].ljust(LONGEST, b"\x03"), 32)
    if prefix + code in ("f390", "f30fbcc1"):  # PAUSE and TZCNT
        return
    found = decode(raw, 32)
    assert (found.mnemonic, found.operands, found.rep, found.length) == (
        plain.mnemonic,
        plain.operands,
        None,
        plain.length + 1,
    )


@pytest.mark.parametrize(("bits", "sizes"), [(16, (2, 4)), (32, (4, 2)), (64, (8, 4))])
def test_the_address_size_prefix(bits: int, sizes: tuple[int, int]) -> None:
    for code in ("8b03", "a4", "ec", "0f0113", "e300", "cf"):
        for prefixed in (0, 1):
            raw = (b"\x67" * prefixed + bytes.fromhex(code)).ljust(LONGEST, b"\x00")
            assert decode(raw, bits).address_size == sizes[prefixed]


def test_rex_outside_64_bit_mode_is_inc_and_dec() -> None:
    for n, bits in itertools.product(range(0x40, 0x50), (16, 32)):
        instruction = whole(f"{n:02x}", bits)
        assert instruction.mnemonic == ("inc" if n < 0x48 else "dec")
        assert shown(instruction.operands[0]) == f"{Gpr(n & 7).name.lower()}/{bits // 8}"


def test_rex_makes_the_new_byte_registers() -> None:
    assert [shown(whole(c, 64).operands[0]) for c in ("88e0", "88c4", "4088c4", "4488c4", "4188c4")] == [
        "rax/1", "rax+h/1", "rsp/1", "rsp/1", "r12/1",
    ]  # fmt: skip


# -- too long, too short ----------------------------------------------------------------------------------------------


def outcome(code: bytes, bits: int) -> object:
    """Return the Instruction, the Fault, or Truncated. Nothing else may be raised."""
    try:
        return decode(code, bits)
    except Fault as fault:
        return fault
    except Truncated:
        return Truncated


def of_mode(bits: int) -> list[str]:
    """Return the bytes of every row of the table in one mode."""
    return [code for mode, code, *_ in rows(TABLE) if mode == bits]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_fifteen_bytes_are_the_most(bits: int) -> None:
    for raw in map(bytes.fromhex, of_mode(bits)):
        longest = b"\x3e" * (LONGEST - len(raw)) + raw
        assert decode(longest, bits).length == LONGEST
        for more in (b"\x3e" + longest, b"\x3e" + longest + bytes(20), b"\x3e" * 40 + raw):
            with pytest.raises(Fault) as raised:
                decode(more, bits)
            assert raised.value == GP


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_every_beginning_of_an_instruction_is_truncated(bits: int) -> None:
    for code in of_mode(bits):
        raw = bytes.fromhex(code)
        for n in range(len(raw)):
            with pytest.raises(Truncated):
                decode(raw[:n], bits)
        assert decode(raw, bits) == whole(code, bits)


@settings(derandomize=True, deadline=None)
@given(code=st.binary(max_size=20), bits=st.sampled_from([16, 32, 64]))
def test_any_bytes_are_an_instruction_a_fault_or_too_short(code: bytes, bits: int) -> None:
    found = outcome(code, bits)
    if isinstance(found, Instruction):
        assert 1 <= found.length <= LONGEST
        assert found.code == code[: found.length]
        assert decode(found.code, bits) == found
        with pytest.raises(Truncated):
            decode(found.code[:-1], bits)
    else:
        assert found == UD or (found == GP and len(code) >= LONGEST) or (found is Truncated and len(code) < LONGEST)


# -- whole stretches of code ------------------------------------------------------------------------------------------


def test_disassembly_covers_all_bytes_and_names_targets() -> None:
    code = bytes.fromhex("b8010000000f0b06ebf6e8000000000f")
    found = disassemble(code, 0x1000, 64)
    assert [i.text for i in found] == ["mov eax, 1", "ud2", "db 0x06", "jmp 0x1000", "call 0x100f", "db 0x0f"]
    assert b"".join(i.code for i in found) == code


def test_without_an_address_a_branch_shows_its_distance() -> None:
    assert [whole(c, 32).text for c in ("ebfe", "7402", "e800010000")] == ["jmp $+0x0", "je $+0x4", "call $+0x105"]


@settings(derandomize=True, deadline=None)
@given(code=st.binary(max_size=40), bits=st.sampled_from([16, 32, 64]))
def test_disassembly_loses_no_byte(code: bytes, bits: int) -> None:
    assert b"".join(i.code for i in disassemble(code, 0x7FFF_FFF0, bits)) == code
