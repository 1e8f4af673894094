"""May this program use an I/O port? (SDM 1 "I/O Privilege Level", "I/O Permission Bit Map")."""

from __future__ import annotations

from hvemu.cpu.linear import Linear
from hvemu.cpu.tables import require, table_gva
from hvemu.x86.registers import Rflags
from hvemu.x86.segments import SystemType
from hvemu.x86.state import CpuMode, CpuState, mode
from hvemu.x86.tss import IO_MAP_BASE, LIMIT32
from hvemu.x86.vectors import Vector

_WITH_BITMAP = frozenset({SystemType.TSS, SystemType.TSS_BUSY})  # a 16-bit TSS has none
_PORTS_PER_BYTE = 8


def check_io(state: CpuState, memory: Linear, port: int, size: int) -> None:
    """Raise Fault(#GP, 0) unless *size* bytes (1, 2, 4) at *port* may be read or written; the bitmap read may #PF.

    Above IOPL, and always in virtual-8086 mode, the bitmap of the TSS decides: every bit of the access must be clear.
    """
    kind = mode(state)
    if kind is CpuMode.REAL or (kind is not CpuMode.VM86 and state.cpl <= Rflags(state.rflags).iopl):
        return
    tr = state.tr
    usable = not tr.rights.unusable and tr.rights.type in _WITH_BITMAP and tr.limit >= LIMIT32
    require(usable, Vector.GP)
    bitmap = memory.read(table_gva(state, tr.base + IO_MAP_BASE), 2, user=False)
    byte, first = bitmap + port // _PORTS_PER_BYTE, port % _PORTS_PER_BYTE
    # Two bytes are read however small the access, so the limit must cover the second one too.
    require(byte + 1 <= tr.limit, Vector.GP)
    allowed = memory.read(table_gva(state, tr.base + byte), 2, user=False)
    require(not allowed // 2**first % 2**size, Vector.GP)
