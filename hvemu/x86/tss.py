"""Task-state segments: where each field lies (SDM 3A "Task-State Segment (TSS)", "16-Bit Task-State Segment (TSS)")."""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.x86.registers import Gpr, Sreg


@dataclass(frozen=True, slots=True)
class TssLayout:
    """Offsets in bytes of the fields of one kind of TSS that can hold a task.

    *width* is the size of a register slot; *minimum_limit* the smallest legal limit; *stacks* holds (SP, SS) offsets by
    privilege level; *gprs* and *segments* map registers to offsets. None: this kind has no such field.
    """

    width: int
    minimum_limit: int
    stacks: tuple[tuple[int, int], ...]
    ip: int
    flags: int
    gprs: dict[Gpr, int]
    segments: dict[Sreg, int]
    ldt: int
    cr3: int | None
    trap: int | None


LINK = 0  # selector of the previous task, in both layouts
IO_MAP_BASE = 0x66  # of the 32-bit and the 64-bit TSS
LIMIT32 = 0x67  # the smallest limit of a 32-bit or 64-bit TSS

_GPRS = (Gpr.RAX, Gpr.RCX, Gpr.RDX, Gpr.RBX, Gpr.RSP, Gpr.RBP, Gpr.RSI, Gpr.RDI)

TSS32 = TssLayout(
    width=4,
    minimum_limit=LIMIT32,
    stacks=((0x04, 0x08), (0x0C, 0x10), (0x14, 0x18)),
    ip=0x20,
    flags=0x24,
    gprs={gpr: 0x28 + 4 * i for i, gpr in enumerate(_GPRS)},
    segments={sreg: 0x48 + 4 * sreg for sreg in Sreg},
    ldt=0x60,
    cr3=0x1C,
    trap=0x64,
)
TSS16 = TssLayout(
    width=2,
    minimum_limit=0x2B,
    stacks=((0x02, 0x04), (0x06, 0x08), (0x0A, 0x0C)),
    ip=0x0E,
    flags=0x10,
    gprs={gpr: 0x12 + 2 * i for i, gpr in enumerate(_GPRS)},
    segments={sreg: 0x22 + 2 * sreg for sreg in (Sreg.ES, Sreg.CS, Sreg.SS, Sreg.DS)},
    ldt=0x2A,
    cr3=None,
    trap=None,
)

# SDM 3A "64-Bit Task State Segment": stack pointers by privilege level, and IST1 to IST7 (index 0 is no IST).
TSS64_RSP = (0x04, 0x0C, 0x14)
TSS64_IST = (None, *range(0x24, 0x24 + 7 * 8, 8))
