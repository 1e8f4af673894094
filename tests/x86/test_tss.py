from __future__ import annotations

from hvemu.x86 import tss
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.tss import TSS16, TSS32, TSS64_IST, TSS64_RSP, TssLayout

# SDM 3A "Task-State Segment (TSS)", the figure of the 32-bit TSS from the bottom up, a doubleword each.
FIGURE32 = (
    "link ESP0 SS0 ESP1 SS1 ESP2 SS2 CR3 EIP EFLAGS EAX ECX EDX EBX ESP EBP ESI EDI ES CS SS DS FS GS LDT T/IOMAP"
).split()
# SDM 3A "16-Bit Task-State Segment (TSS)", a word each.
FIGURE16 = "link SP0 SS0 SP1 SS1 SP2 SS2 IP FLAGS AX CX DX BX SP BP SI DI ES CS SS DS LDT".split()
# SDM 3A "64-Bit Task State Segment", a doubleword each.
FIGURE64 = (
    "- RSP0 RSP0h RSP1 RSP1h RSP2 RSP2h - - IST1 IST1h IST2 IST2h IST3 IST3h IST4 IST4h IST5 IST5h IST6 IST6h"
    " IST7 IST7h - - IOMAP"
).split()


def described(layout: TssLayout, prefix: str) -> dict[str, int]:
    """Return the offset of every field of *layout* under the name that the figures use."""
    fields = {"link": tss.LINK, f"{prefix}IP": layout.ip, f"{prefix}FLAGS": layout.flags, "LDT": layout.ldt}
    for level, (sp, ss) in enumerate(layout.stacks):
        fields |= {f"{prefix}SP{level}": sp, f"SS{level}": ss}
    fields |= {prefix + Gpr(gpr).name[1:]: at for gpr, at in layout.gprs.items()}
    return fields | {Sreg(sreg).name: at for sreg, at in layout.segments.items()}


def test_the_32_bit_tss_is_the_figure() -> None:
    expected = {name: 4 * i for i, name in enumerate(FIGURE32)}
    io_map = expected.pop("T/IOMAP")
    assert described(TSS32, "E") | {"CR3": TSS32.cr3} == expected
    assert (TSS32.trap, tss.IO_MAP_BASE, TSS32.minimum_limit, TSS32.width) == (io_map, io_map + 2, 0x67, 4)


def test_the_16_bit_tss_is_the_figure() -> None:
    assert described(TSS16, "") == {name: 2 * i for i, name in enumerate(FIGURE16)}
    assert (TSS16.cr3, TSS16.trap, TSS16.width) == (None, None, 2)
    assert TSS16.minimum_limit == 2 * len(FIGURE16) - 1 == 0x2B  # SDM 3A "TSS Descriptor"


def test_the_64_bit_tss_is_the_figure() -> None:
    assert [4 * FIGURE64.index(f"RSP{n}") for n in range(3)] == [*TSS64_RSP]
    assert [None, *(4 * FIGURE64.index(f"IST{n}") for n in range(1, 8))] == [*TSS64_IST]
    assert 4 * FIGURE64.index("IOMAP") + 2 == tss.IO_MAP_BASE
    assert 4 * len(FIGURE64) - 1 == tss.LIMIT32 == 0x67
