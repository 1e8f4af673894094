"""What the engine can stop at, and how a stop is reported."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """Why the engine stopped. RIP is on the instruction unless the comment says otherwise."""

    LIMIT = 0  # the instruction limit is reached; nothing happened
    CR_READ = 1  # detail: register number (SMSW: 0)
    CR_WRITE = 2  # detail: register number (LMSW, CLTS: 0)
    DR_READ = 3
    DR_WRITE = 4
    EXCEPTION = 5  # detail: vector; error_code and address (CR2 of a #PF) are set
    SOFTWARE_INT = 6  # detail: vector; RIP is after the instruction
    WINDOW = 7  # the window is open: IF=1 and no shadow
    SECOND_LEVEL = 8  # second-level fault; address is the physical address, error_code the SecondLevelCode
    IDTR_READ = 10
    GDTR_READ = 11
    LDTR_READ = 12
    TR_READ = 13
    IDTR_WRITE = 14
    GDTR_WRITE = 15
    LDTR_WRITE = 16
    TR_WRITE = 17
    RDTSC = 18
    RDPMC = 19
    PUSHF = 20
    POPF = 21
    CPUID = 22
    IRET = 23
    INVD = 24
    PAUSE = 25
    HLT = 26
    INVLPG = 27
    MSR = 28  # detail: 1 for WRMSR
    WBINVD = 29
    MONITOR = 30
    MWAIT = 31
    IO = 32  # IN, OUT, INS, OUTS
    SYSCALL = 33
    SYSENTER = 34


class Stop(NamedTuple):
    """One stop of the engine.

    *detail* is what `Kind` says; *error_code* that of an exception or a second-level fault; *address* the gva of a #PF
    or the physical address of a second-level fault.
    """

    kind: Kind
    detail: int = 0
    error_code: int = 0
    address: int = 0

    def __repr__(self) -> str:
        return f"Stop({self.kind.name} {self.detail:#x} error_code={self.error_code:#x} address={self.address:#x})"


GIF = 1
"""Bit of hflags2: while it is clear, the interrupt that pends for ever is held back."""
# AMD64 Architecture Programmer's Manual 2, "SVM Intercept Codes": the only place that knows them.
VMEXIT = 0x100
_EXCEPTION, _NESTED_FAULT, VINTR = 0x40, 0x400, 0x64
_BY_CODE: dict[int, Kind] = {
    0x66: Kind.IDTR_READ, 0x67: Kind.GDTR_READ, 0x68: Kind.LDTR_READ, 0x69: Kind.TR_READ,
    0x6A: Kind.IDTR_WRITE, 0x6B: Kind.GDTR_WRITE, 0x6C: Kind.LDTR_WRITE, 0x6D: Kind.TR_WRITE,
    0x6E: Kind.RDTSC, 0x6F: Kind.RDPMC, 0x70: Kind.PUSHF, 0x71: Kind.POPF, 0x72: Kind.CPUID, 0x74: Kind.IRET,
    0x76: Kind.INVD, 0x77: Kind.PAUSE, 0x78: Kind.HLT, 0x79: Kind.INVLPG, 0x89: Kind.WBINVD, 0x8A: Kind.MONITOR,
    0x8B: Kind.MWAIT, VINTR: Kind.WINDOW, _NESTED_FAULT: Kind.SECOND_LEVEL, 0x7C: Kind.MSR,
}  # fmt: skip
BIT: dict[Kind, int] = {kind: 1 << (code - 0x60) for code, kind in _BY_CODE.items() if code < _NESTED_FAULT}
"""The bit of the intercept word that arms a stop."""


def decode_table() -> dict[int, tuple[Kind, int]]:
    """Return the map from the emulator's interrupt number to (kind, detail); below VMEXIT it is the vector of INT n."""
    table = {VMEXIT + code: (kind, 0) for code, kind in _BY_CODE.items()}
    table.update({vector: (Kind.SOFTWARE_INT, vector) for vector in range(VMEXIT)})
    for first, kind, count in (
        (0x00, Kind.CR_READ, 16), (0x10, Kind.CR_WRITE, 16), (0x20, Kind.DR_READ, 16), (0x30, Kind.DR_WRITE, 16),
        (_EXCEPTION, Kind.EXCEPTION, 32),
    ):  # fmt: skip
        table.update({VMEXIT + first + n: (kind, n) for n in range(count)})
    return table


ALWAYS = (
    Kind.WINDOW, Kind.RDTSC, Kind.RDPMC, Kind.CPUID, Kind.INVD, Kind.PAUSE, Kind.HLT, Kind.MSR, Kind.WBINVD,
    Kind.MONITOR, Kind.MWAIT, Kind.INVLPG,
)  # fmt: skip
"""Stops that are always armed: without them the emulator would act on its own, and wrongly or unseen."""
