"""IN, OUT, INS and OUTS, one at a time; of a repeated one, a single iteration.

SDM 2A "IN-Input From Port", "INS/INSB/INSW/INSD-Input from Port to String",
SDM 2B "OUT-Output to Port", "OUTS/OUTSB/OUTSW/OUTSD-Output String to Port"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hvemu.cpu.io_permission import check_io
from hvemu.cpu.linear import Linear
from hvemu.cpu.operand import checked_gva, operand_gva
from hvemu.x86.instruction import Imm, Instruction
from hvemu.x86.registers import Gpr, Rflags, Sreg
from hvemu.x86.segments import replace_low, truncate
from hvemu.x86.state import CpuState

_INPUT = frozenset({"in", "ins"})


class Ports(Protocol):
    """The I/O address space. Values are little-endian; sizes are 1, 2 or 4 bytes."""

    def read(self, port: int, size: int, /) -> int:
        """Read *size* bytes at *port*."""
        ...

    def write(self, port: int, size: int, value: int, /) -> None:
        """Write *size* bytes at *port*."""
        ...


@dataclass(frozen=True, slots=True)
class IoAccess:
    """What an I/O instruction is about to do.

    *size* is in bytes; *input* is the direction; *immediate* says that the port is in the instruction, not in DX. Of a
    string instruction *gva* is where its operand lies, unchecked, in *segment*; else both are None.
    """

    port: int
    size: int
    input: bool
    string: bool
    rep: bool
    immediate: bool
    gva: int | None
    segment: Sreg | None


def describe(state: CpuState, instruction: Instruction) -> IoAccess:
    """Return what *instruction*, one of the four at RIP, is about to do. Changes nothing, raises no Fault."""
    is_input, string = instruction.mnemonic in _INPUT, instruction.memory is not None
    port = instruction.operands[1 if is_input else 0]
    return IoAccess(
        port=port.value if isinstance(port, Imm) else truncate(state.gpr(Gpr.RDX), 2),
        size=instruction.operand_size,
        input=is_input,
        string=string,
        rep=instruction.rep is not None,
        immediate=isinstance(port, Imm),
        gva=operand_gva(state, instruction) if string else None,
        segment=instruction.segment if string else None,
    )


def port_io(state: CpuState, memory: Linear, instruction: Instruction, ports: Ports) -> int:
    """Do what *instruction*, which is at RIP, does; of a repeated one a single iteration.

    Return by how many bytes RIP is to advance: the length, or 0 while the count is not exhausted. The caller ends the
    instruction or iteration (RIP, RF, shadow, single step) and comes back, so that interrupts find their place between
    iterations. Raises #GP, #SS, #AC, #PF before a port or a register has changed.
    """
    access, width = describe(state, instruction), instruction.address_size
    count = truncate(state.gpr(Gpr.RCX), width)
    if access.rep and not count:
        return instruction.length
    check_io(state, memory, access.port, access.size)
    (_move_string if access.string else _move_accumulator)(state, memory, instruction, ports, access)
    if not access.rep:
        return instruction.length
    state.set_gpr(Gpr.RCX, replace_low(state.gpr(Gpr.RCX), count - 1, width))
    return instruction.length if count == 1 else 0


def _move_accumulator(
    state: CpuState, _memory: Linear, _instruction: Instruction, ports: Ports, access: IoAccess
) -> None:
    rax = state.gpr(Gpr.RAX)
    if access.input:
        state.set_gpr(Gpr.RAX, replace_low(rax, ports.read(access.port, access.size), access.size))
    else:
        ports.write(access.port, access.size, truncate(rax, access.size))


def _move_string(state: CpuState, memory: Linear, instruction: Instruction, ports: Ports, access: IoAccess) -> None:
    """Move one item and advance the pointer, by DF up or down."""
    gva, user = checked_gva(state, instruction, access.size, write=access.input), state.cpl == 3
    if access.input:
        memory.probe_write(gva, access.size, user=user)  # what a device has been read for must not be lost
        memory.write(gva, access.size, ports.read(access.port, access.size), user=user)
    else:
        ports.write(access.port, access.size, memory.read(gva, access.size, user=user))
    pointer = Gpr.RDI if access.input else Gpr.RSI
    step = -access.size if Rflags(state.rflags).df else access.size
    old = state.gpr(pointer)
    state.set_gpr(pointer, replace_low(old, old + step, instruction.address_size))
