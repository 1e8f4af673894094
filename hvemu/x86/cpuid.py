"""What the processor says about itself, and the promises that it makes (SDM 2A "CPUID-CPU Identification").

One declared set of features. The answers of CPUID are computed from it, and so is what CR4 and IA32_EFER may hold: a
bit that switches on a feature which CPUID does not offer is reserved. Nothing is offered that the engine cannot do: no
AVX, no XSAVE, no VME, no PCID.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Final

from hvemu.bits import Register, bit, bits
from hvemu.x86.registers import Cr4, Efer
from hvemu.x86.state import CpuMode, CpuState, mode

PHYSICAL_ADDRESS_WIDTH: Final = 40
"""MAXPHYADDR: the engine's page walker takes every higher bit of an entry for a reserved one."""
LINEAR_ADDRESS_WIDTH: Final = 48
VENDOR = b"GenuineIntel"
BRAND = b"hvemu virtual CPU"
LAST_BASIC, FIRST_EXTENDED, LAST_EXTENDED = 7, 0x8000_0000, 0x8000_0008


class Version(Register):
    """EAX of leaf 1."""

    stepping = bits(3, 0)
    model = bits(7, 4)
    family = bits(11, 8)
    type = bits(13, 12)
    extended_model = bits(19, 16)
    extended_family = bits(27, 20)


class Miscellaneous(Register):
    """EBX of leaf 1. *clflush* counts units of 8 bytes."""

    brand_index = bits(7, 0)
    clflush = bits(15, 8)
    logical_processors = bits(23, 16)
    apic_id = bits(31, 24)


class Leaf1Ecx(Register):
    """Features in ECX of leaf 1."""

    sse3 = bit(0)
    pclmulqdq = bit(1)
    dtes64 = bit(2)
    monitor = bit(3)
    ds_cpl = bit(4)
    vmx = bit(5)
    smx = bit(6)
    eist = bit(7)
    tm2 = bit(8)
    ssse3 = bit(9)
    cnxt_id = bit(10)
    sdbg = bit(11)
    fma = bit(12)
    cmpxchg16b = bit(13)
    xtpr = bit(14)
    pdcm = bit(15)
    pcid = bit(17)
    dca = bit(18)
    sse4_1 = bit(19)
    sse4_2 = bit(20)
    x2apic = bit(21)
    movbe = bit(22)
    popcnt = bit(23)
    tsc_deadline = bit(24)
    aesni = bit(25)
    xsave = bit(26)
    osxsave = bit(27)
    avx = bit(28)
    f16c = bit(29)
    rdrand = bit(30)


class Leaf1Edx(Register):
    """Features in EDX of leaf 1."""

    fpu = bit(0)
    vme = bit(1)
    de = bit(2)
    pse = bit(3)
    tsc = bit(4)
    msr = bit(5)
    pae = bit(6)
    mce = bit(7)
    cx8 = bit(8)
    apic = bit(9)
    sep = bit(11)
    mtrr = bit(12)
    pge = bit(13)
    mca = bit(14)
    cmov = bit(15)
    pat = bit(16)
    pse36 = bit(17)
    psn = bit(18)
    clfsh = bit(19)
    ds = bit(21)
    acpi = bit(22)
    mmx = bit(23)
    fxsr = bit(24)
    sse = bit(25)
    sse2 = bit(26)
    ss = bit(27)
    htt = bit(28)
    tm = bit(29)
    pbe = bit(31)


class Leaf7Ebx(Register):
    """Features in EBX of leaf 7, subleaf 0; those of AVX-512 are left out."""

    fsgsbase = bit(0)
    tsc_adjust = bit(1)
    sgx = bit(2)
    bmi1 = bit(3)
    hle = bit(4)
    avx2 = bit(5)
    fdp_excptn_only = bit(6)
    smep = bit(7)
    bmi2 = bit(8)
    erms = bit(9)
    invpcid = bit(10)
    rtm = bit(11)
    rdt_m = bit(12)
    deprecates_fpu_cs_ds = bit(13)
    mpx = bit(14)
    rdt_a = bit(15)
    rdseed = bit(18)
    adx = bit(19)
    smap = bit(20)
    clflushopt = bit(23)
    clwb = bit(24)
    intel_pt = bit(25)
    sha = bit(29)


class Leaf7Ecx(Register):
    """Features in ECX of leaf 7, subleaf 0; those of AVX are left out."""

    prefetchwt1 = bit(0)
    umip = bit(2)
    pku = bit(3)
    ospke = bit(4)
    waitpkg = bit(5)
    cet_ss = bit(7)
    la57 = bit(16)
    rdpid = bit(22)
    movdiri = bit(27)
    movdir64b = bit(28)
    pks = bit(31)


class Leaf7Edx(Register):
    """Features in EDX of leaf 7, subleaf 0; those of AVX-512 and AMX are left out."""

    fsrm = bit(4)
    md_clear = bit(10)
    serialize = bit(14)
    cet_ibt = bit(20)
    ibrs_ibpb = bit(26)
    stibp = bit(27)
    l1d_flush = bit(28)
    arch_capabilities = bit(29)
    core_capabilities = bit(30)
    ssbd = bit(31)


class Extended1Ecx(Register):
    """Features in ECX of leaf 80000001H."""

    lahf_sahf_64 = bit(0)
    lzcnt = bit(5)
    prefetchw = bit(8)


class Extended1Edx(Register):
    """Features in EDX of leaf 80000001H."""

    syscall = bit(11)
    execute_disable = bit(20)
    pages_1g = bit(26)
    rdtscp = bit(27)
    intel_64 = bit(29)


class Extended7Edx(Register):
    """EDX of leaf 80000007H."""

    invariant_tsc = bit(8)


class AddressSizes(Register):
    """EAX of leaf 80000008H, in bits."""

    physical = bits(7, 0)
    linear = bits(15, 8)


Answer = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""
_NOTHING: Answer = (0, 0, 0, 0)
_CACHE_LINE_64_BYTES = 8
_NO_DESCRIPTORS: Answer = (1, 0, 0, 0)  # of caches and TLBs; the low byte of EAX is always 1
_WITH_SUBLEAVES = frozenset({4, 7})
_BRAND_LEAVES = (0x8000_0002, 0x8000_0003, 0x8000_0004)


class Offer:
    """The features of one kind of processor: *vmx* and *apic* are there when asked for."""

    version: ClassVar[Version] = Version(family=6, model=10, extended_model=6, stepping=6)
    """An Ice Lake server, as the engine's model is one."""

    def __init__(self, *, vmx: bool = False, apic: bool = False) -> None:
        self.vmx, self.apic = vmx, apic
        self.leaf1_ecx = Leaf1Ecx(
            sse3=1, pclmulqdq=1, vmx=vmx, ssse3=1, cmpxchg16b=1, sse4_1=1, sse4_2=1, movbe=1, popcnt=1, aesni=1
        )
        self.leaf1_edx = Leaf1Edx(
            fpu=1, de=1, pse=1, tsc=1, msr=1, pae=1, mce=1, cx8=1, apic=apic, sep=1, mtrr=1, pge=1, mca=1, cmov=1,
            pat=1, pse36=1, clfsh=1, mmx=1, fxsr=1, sse=1, sse2=1,
        )  # fmt: skip
        self.leaf7_ebx = Leaf7Ebx(fsgsbase=1, bmi1=1, smep=1, bmi2=1, adx=1, smap=1, clflushopt=1, clwb=1)
        self.leaf7_ecx = Leaf7Ecx(umip=1)
        self.leaf7_edx = Leaf7Edx()
        self.extended1_ecx = Extended1Ecx(lahf_sahf_64=1, lzcnt=1, prefetchw=1)
        self.extended1_edx = Extended1Edx(syscall=1, execute_disable=1, pages_1g=1, rdtscp=1, intel_64=1)
        self.extended7_edx = Extended7Edx(invariant_tsc=1)

    def __repr__(self) -> str:
        return f"Offer(vmx={self.vmx}, apic={self.apic})"

    @cached_property
    def leaves(self) -> dict[tuple[int, int], Answer]:
        """Every answer that is not all zeros, by leaf and subleaf, as in 64-bit mode with the local APIC enabled."""
        b, d, c = _dwords(VENDOR, 3)
        clflush = int(Miscellaneous(clflush=_CACHE_LINE_64_BYTES))
        brand = _dwords(BRAND, 12)
        sizes = int(AddressSizes(physical=PHYSICAL_ADDRESS_WIDTH, linear=LINEAR_ADDRESS_WIDTH))
        answers: dict[int, Answer] = {
            0: (LAST_BASIC, b, c, d),
            1: (int(self.version), clflush, int(self.leaf1_ecx), int(self.leaf1_edx)),
            2: _NO_DESCRIPTORS,
            7: (0, int(self.leaf7_ebx), int(self.leaf7_ecx), int(self.leaf7_edx)),
            0x8000_0000: (LAST_EXTENDED, 0, 0, 0),
            0x8000_0001: (0, 0, int(self.extended1_ecx), int(self.extended1_edx)),
            0x8000_0007: (0, 0, 0, int(self.extended7_edx)),
            0x8000_0008: (sizes, 0, 0, 0),
        }
        for n, leaf in enumerate(_BRAND_LEAVES):
            answers[leaf] = brand[4 * n], brand[4 * n + 1], brand[4 * n + 2], brand[4 * n + 3]
        return {(leaf, 0): answer for leaf, answer in answers.items()}

    @cached_property
    def cr4(self) -> int:
        """The bits of CR4 that may be 1."""
        c, d, b7, c7 = self.leaf1_ecx, self.leaf1_edx, self.leaf7_ebx, self.leaf7_ecx
        return int(
            Cr4(
                vme=d.vme, pvi=d.vme, tsd=d.tsc, de=d.de, pse=d.pse, pae=d.pae, mce=d.mce, pge=d.pge, pce=1,
                osfxsr=d.fxsr, osxmmexcpt=d.sse, umip=c7.umip, la57=c7.la57, vmxe=c.vmx, smxe=c.smx,
                fsgsbase=b7.fsgsbase, pcide=c.pcid, osxsave=c.xsave, smep=b7.smep, smap=b7.smap, pke=c7.pku,
            )
        )  # fmt: skip

    @cached_property
    def efer(self) -> int:
        """The bits of IA32_EFER that software may set; LMA is the processor's."""
        d = self.extended1_edx
        return int(Efer(sce=d.syscall, lme=d.intel_64, nxe=d.execute_disable))


PLAIN = Offer()
"""The processor without VMX and without a local APIC."""
_APIC, _SYSCALL = int(Leaf1Edx(apic=1)), int(Extended1Edx(syscall=1))


def _dwords(text: bytes, count: int) -> list[int]:
    padded = text.ljust(4 * count, b"\0")
    return [int.from_bytes(padded[i : i + 4], "little") for i in range(0, 4 * count, 4)]


def cpuid(leaf: int, subleaf: int, state: CpuState, offer: Offer = PLAIN, *, apic_enabled: bool = True) -> Answer:
    """Return what CPUID puts into EAX, EBX, ECX and EDX for *leaf* in EAX and *subleaf* in ECX.

    A leaf beyond the last one answers as the last basic leaf does, whose subleaves then count. Intel's processors show
    SYSCALL in 64-bit mode only, and APIC only while IA32_APIC_BASE has it on (*apic_enabled*).
    """
    if not (leaf <= LAST_BASIC or FIRST_EXTENDED <= leaf <= LAST_EXTENDED):
        leaf = LAST_BASIC
    answer = offer.leaves.get((leaf, subleaf if leaf in _WITH_SUBLEAVES else 0), _NOTHING)
    if leaf == 1 and not apic_enabled:
        a, b, c, d = answer
        return a, b, c, d & ~_APIC
    if leaf == 0x8000_0001 and mode(state) is not CpuMode.LONG64:
        a, b, c, d = answer
        return a, b, c, d & ~_SYSCALL
    return answer
