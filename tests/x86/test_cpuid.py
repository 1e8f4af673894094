from __future__ import annotations

import pytest

from hvemu.bits import Register
from hvemu.engine.engine import Engine
from hvemu.engine.traps import Kind
from hvemu.x86 import cpuid as module
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH, PLAIN, Offer, cpuid
from hvemu.x86.registers import Sreg
from hvemu.x86.state import AccessRights, PlainState, Segment
from tests.x86 import engines
from tests.x86.engines import DIRECTORY, PDPT, poke

LONG = PlainState(cr0=0x8000_0011, cr4=0x20, efer=0x500)
LONG.set_segment(Sreg.CS, Segment(rights=AccessRights(type=11, s=1, p=1, l=1)))
COMPATIBILITY = PlainState(cr0=0x8000_0011, cr4=0x20, efer=0x500)
REAL = PlainState()
MODES = [REAL, COMPATIBILITY, LONG]
OFFERS = [Offer(vmx=vmx, apic=apic) for vmx in (False, True) for apic in (False, True)]
EAX, EBX, ECX, EDX = range(4)


def bits(*numbers: int) -> int:
    return sum(1 << n for n in numbers)


# -- the answers, as SDM 2A "CPUID-CPU Identification" numbers their bits ---------------------------------------------

# fpu de pse tsc msr pae mce cx8 sep mtrr pge mca cmov pat pse36 clfsh mmx fxsr sse sse2
LEAF1_EDX = bits(0, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26)
# sse3 pclmulqdq ssse3 cmpxchg16b sse4.1 sse4.2 movbe popcnt aesni
LEAF1_ECX = bits(0, 1, 9, 13, 19, 20, 22, 23, 25)
# fsgsbase bmi1 smep bmi2 adx smap clflushopt clwb
LEAF7_EBX = bits(0, 3, 7, 8, 19, 20, 23, 24)


@pytest.mark.parametrize("offer", OFFERS, ids=repr)
@pytest.mark.parametrize("state", MODES)
def test_the_feature_words(offer: Offer, state: PlainState) -> None:
    _, _, ecx, edx = cpuid(1, 0, state, offer)
    assert ecx == LEAF1_ECX | (bits(5) if offer.vmx else 0)
    assert edx == LEAF1_EDX | (bits(9) if offer.apic else 0)
    assert cpuid(7, 0, state, offer) == (0, LEAF7_EBX, bits(2), 0)
    long64 = state is LONG
    assert cpuid(0x8000_0001, 0, state, offer) == (0, 0, bits(0, 5, 8), bits(20, 26, 27, 29) | (bits(11) * long64))
    assert cpuid(0x8000_0007, 0, state, offer) == (0, 0, 0, bits(8))


def test_the_apic_is_shown_only_while_it_is_enabled() -> None:
    offer = Offer(apic=True)
    for leaf in (0, 1, 7, 0x8000_0001):
        on, off = (cpuid(leaf, 0, LONG, offer, apic_enabled=enabled) for enabled in (True, False))
        assert (on[EDX] ^ off[EDX], on[:3]) == (bits(9) if leaf == 1 else 0, off[:3])
    assert cpuid(1, 0, LONG, PLAIN, apic_enabled=False) == cpuid(1, 0, LONG, PLAIN)


def text(leaf: int, *registers: int) -> bytes:
    answer = cpuid(leaf, 0, LONG)
    return b"".join(answer[r].to_bytes(4, "little") for r in registers)


def test_the_vendor_is_the_one_that_software_looks_for_before_vmx() -> None:
    assert text(0, EBX, EDX, ECX) == b"GenuineIntel"


def test_the_brand_string_is_honest_and_48_bytes_with_a_zero() -> None:
    brand = b"".join(text(leaf, EAX, EBX, ECX, EDX) for leaf in (0x8000_0002, 0x8000_0003, 0x8000_0004))
    assert brand == b"hvemu virtual CPU".ljust(48, b"\0")


def test_family_model_stepping() -> None:
    eax, ebx, _, _ = cpuid(1, 0, LONG)
    assert (eax, ebx) == (0x000606A6, 0x0000_0800)  # 6, 6AH, 6; a line of CLFLUSH has 8 * 8 bytes, APIC ID 0


def test_address_sizes() -> None:
    assert cpuid(0x8000_0008, 0, LONG) == (0x3028, 0, 0, 0)  # 48, 40


# -- which leaf answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subleaf", [0, 1, 7, 0xFFFF_FFFF])
@pytest.mark.parametrize("leaf", [8, 0xB, 0xD, 0x17, 0x4000_0000, 0x7FFF_FFFF, 0x8000_0009, 0xC000_0000, 0xFFFF_FFFF])
def test_a_leaf_that_is_beyond_the_last_answers_as_the_last_basic_one(leaf: int, subleaf: int) -> None:
    assert cpuid(leaf, subleaf, LONG) == ((0, LEAF7_EBX, bits(2), 0) if subleaf == 0 else (0, 0, 0, 0))


@pytest.mark.parametrize("leaf", [0, 1, 2, 0x8000_0000, 0x8000_0001, 0x8000_0002, 0x8000_0007, 0x8000_0008])
@pytest.mark.parametrize("subleaf", [1, 5, 0xFFFF_FFFF])
def test_leaves_without_subleaves_ignore_ecx(leaf: int, subleaf: int) -> None:
    assert cpuid(leaf, subleaf, LONG) == cpuid(leaf, 0, LONG) != (0, 0, 0, 0)


@pytest.mark.parametrize("leaf", [3, 4, 5, 6, 0x8000_0005, 0x8000_0006])
@pytest.mark.parametrize("subleaf", [0, 1])
def test_leaves_of_what_is_not_there_are_zero(leaf: int, subleaf: int) -> None:
    assert cpuid(leaf, subleaf, LONG) == (0, 0, 0, 0)


def test_the_first_leaves_name_the_last_ones() -> None:
    assert (cpuid(0, 0, REAL)[EAX], cpuid(0x8000_0000, 0, REAL)) == (7, (0x8000_0008, 0, 0, 0))
    assert cpuid(2, 0, REAL) == (1, 0, 0, 0)  # the low byte is always 01H, and no descriptor follows


def test_answers_are_dwords() -> None:
    for offer in OFFERS:
        assert all(0 <= word < 1 << 32 for answer in offer.leaves.values() for word in answer)


# -- what the offer allows in CR4 and EFER ---------------------------------------------------------------------------


@pytest.mark.parametrize("offer", OFFERS, ids=repr)
def test_cr4_and_efer_hold_the_bits_of_offered_features(offer: Offer) -> None:
    # TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT UMIP FSGSBASE SMEP SMAP, and VMXE
    assert offer.cr4 == bits(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 20, 21) | (bits(13) if offer.vmx else 0)
    assert offer.efer == bits(0, 8, 11)


def test_vmx_knows_the_same_bits() -> None:
    from hvemu.vmx import capabilities

    assert capabilities.MSRS[0x489] == capabilities.CR4_FIXED1 == Offer(vmx=True).cr4


# -- what is promised must run -----------------------------------------------------------------------------------------

RETIRED = (Kind.LIMIT, 0)
# feature: code, how it ends, RAX afterwards (before: 0x50; RCX 3; RDX 0). "-" is any value.
RUN: dict[str, tuple[str, tuple[Kind, int], object]] = {
    "fpu": ("dbe3", RETIRED, 0x50),  # fninit
    "tsc": ("0f31", (Kind.RDTSC, 0), 0x50),
    "msr": ("0f32", (Kind.MSR, 0), 0x50),
    "cx8": ("0fc70c24", RETIRED, "-"),  # cmpxchg8b [rsp]
    "sep": ("0f34", (Kind.SYSENTER, 0), 0x50),
    "cmov": ("480f45c1", RETIRED, 3),  # cmovnz rax, rcx
    "clfsh": ("0fae3c24", RETIRED, 0x50),
    "mmx": ("0f6ec1", RETIRED, 0x50),  # movd mm0, ecx
    "fxsr": ("0fae0424", RETIRED, 0x50),
    "sse": ("0f57c0", RETIRED, 0x50),  # xorps
    "sse2": ("660f58c0", RETIRED, 0x50),  # addpd
    "sse3": ("660fd0c0", RETIRED, 0x50),  # addsubpd
    "pclmulqdq": ("660f3a44c000", RETIRED, 0x50),
    "ssse3": ("660f3800c0", RETIRED, 0x50),  # pshufb
    "cmpxchg16b": ("480fc70c24", RETIRED, "-"),
    "sse4_1": ("660f3817c0", RETIRED, 0x50),  # ptest
    "sse4_2": ("f2480f38f1c1", RETIRED, "-"),  # crc32 rax, rcx
    "movbe": ("480f38f00424", RETIRED, 0x1122334455667788),  # movbe rax, [rsp]
    "popcnt": ("f3480fb8c0", RETIRED, 2),
    "aesni": ("660f38dcc0", RETIRED, 0x50),  # aesenc
    "fsgsbase": ("f3480faec0", RETIRED, 0),  # rdfsbase rax
    "bmi1": ("f3480fbcc0", RETIRED, 4),  # tzcnt rax, rax
    "bmi2": ("c4e2fbf6c1", RETIRED, 0),  # mulx rax, rax, rcx: RDX is 0
    "adx": ("66480f38f6c1", RETIRED, 0x53),  # adcx rax, rcx
    "smap": ("0f01cb", RETIRED, 0x50),  # stac
    "clflushopt": ("660fae3c24", RETIRED, 0x50),
    "clwb": ("660fae3424", RETIRED, 0x50),
    "lahf_sahf_64": ("9f", RETIRED, 0x0250),
    "lzcnt": ("f3480fbdc0", RETIRED, 57),
    "prefetchw": ("0f0d0c24", RETIRED, 0x50),
    "syscall": ("0f05", (Kind.SYSCALL, 0), 0x50),
    "rdtscp": ("0f01f9", (Kind.RDTSC, 0), 0x50),
    "intel_64": ("4889c8", RETIRED, 3),  # mov rax, rcx
}
# Offered, and seen in registers, page tables or time, not in an instruction of their own.
NOT_INSTRUCTIONS = {
    "de", "pse", "pae", "mce", "mtrr", "pge", "mca", "pat", "pse36", "smep", "umip", "execute_disable", "pages_1g",
    "invariant_tsc",
}  # fmt: skip
WORDS = "leaf1_ecx leaf1_edx leaf7_ebx leaf7_ecx leaf7_edx extended1_ecx extended1_edx extended7_edx".split()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engines.long(cr4=1 << 16 | 1 << 20 | 1 << 21)


def run(engine: Engine, code: str) -> tuple[Kind, int]:
    for register, value in ((0, 0x50), (1, 3), (2, 0), (3, 0), (4, engines.STACK)):
        engine.state.set_gpr(register, value)
    poke(engine, engines.STACK, 0x8877665544332211)
    engine.state.rflags = 2
    engines.place(engine, bytes.fromhex(code))
    stop = engine.step()
    return stop.kind, stop.detail


def test_the_table_has_every_offered_feature() -> None:
    words: list[Register] = [getattr(PLAIN, word) for word in WORDS]
    offered = {name for word in words for name in word.fields if getattr(word, name)}
    assert offered == RUN.keys() | NOT_INSTRUCTIONS


@pytest.mark.parametrize("feature", RUN)
def test_what_is_offered_runs(engine: Engine, feature: str) -> None:
    code, end, rax = RUN[feature]
    assert run(engine, code) == end
    assert rax in ("-", engine.state.gpr(0))


UNDEFINED = {
    "avx2": "c5fd58c0",  # vaddpd ymm0, ymm0, ymm0
    "invpcid": "660f38820424",
    "sha": "0f38c9c0",
    "monitor": "0f01c8",
    "pku": "0f01ee",  # rdpkru
    "xsave": "0fae2424",
    "xsetbv": "0f01d1",
    "vmx": "0f01c1",  # vmcall
    "rdpid": "f30fc7f8",
    "rtm": "0f01d6",  # xtest
}


@pytest.mark.parametrize("feature", UNDEFINED)
def test_what_is_not_offered_is_undefined(engine: Engine, feature: str) -> None:
    assert run(engine, UNDEFINED[feature]) == (Kind.EXCEPTION, 6)


LOAD = "8b042500002000"  # mov eax, [0x200000]


@pytest.mark.parametrize("number", range(36, 52))
def test_address_bits_from_maxphyaddr_on_are_reserved(engine: Engine, number: int) -> None:
    poke(engine, DIRECTORY + 8, 1 << number | 0x20_0083)
    engine.flush_tlb()
    kind, _ = run(engine, LOAD)
    poke(engine, DIRECTORY + 8, 0x20_0083)
    engine.flush_tlb()
    assert kind == (Kind.SECOND_LEVEL if number < PHYSICAL_ADDRESS_WIDTH else Kind.EXCEPTION)


def test_pages_of_1_gib_and_pages_without_execution(engine: Engine) -> None:
    for entry, end in ((0x83, RETIRED), (1 << 63 | 0x83, (Kind.EXCEPTION, 14))):
        poke(engine, PDPT, entry)
        engine.flush_tlb()
        assert run(engine, "90") == end
    poke(engine, PDPT, DIRECTORY | 3)
    engine.flush_tlb()


def test_pse_36_reaches_above_4_gib() -> None:
    engine = engines.protected()
    poke(engine, 0x2000, 0x83, 4)
    poke(engine, 0x2004, 0x83 | 1 << 22 | 0x81 << 13, 4)  # bits 20:13 are bits 39:32 of the frame
    state = engine.state
    state.cr4, state.cr3 = 0x10, 0x2000
    state.cr0 = 0x8000_0011
    engines.place(engine, bytes.fromhex("a100004000"))  # mov eax, [0x400000]
    stop = engine.step()
    assert (stop.kind, stop.address) == (Kind.SECOND_LEVEL, 0x81_0040_0000)


def test_the_module_says_what_it_is_made_of() -> None:
    assert (module.LINEAR_ADDRESS_WIDTH, PHYSICAL_ADDRESS_WIDTH) == (48, 40)
