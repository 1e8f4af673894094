"""What the processor does with each instruction at which the engine stops, when nobody intercepts it.

Privilege has been checked by the engine, but for I/O; RIP is on the instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvemu.cpu import control
from hvemu.cpu.operand import checked_gva
from hvemu.cpu.port_io import port_io
from hvemu.cpu.syscall import syscall, sysenter
from hvemu.engine.traps import Kind, Stop
from hvemu.vmx.exit import VmExit
from hvemu.x86.cpuid import cpuid
from hvemu.x86.instruction import Instruction, Mem, Reg
from hvemu.x86.registers import Dr7, Gpr, Rflags
from hvemu.x86.segments import replace_low, truncate
from hvemu.x86.state import CpuState
from hvemu.x86.vectors import Fault, Vector

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

Emulation = Callable[["Cpu", Stop], VmExit | None]
_DWORD, _USER = 0xFFFF_FFFF, 3


def set_pair(cpu: Cpu, value: int) -> None:
    """Put a 64-bit *value* into EDX:EAX."""
    cpu.state.set_gpr(Gpr.RAX, value & _DWORD)
    cpu.state.set_gpr(Gpr.RDX, value >> 32)


def pair(cpu: Cpu) -> int:
    """Return the 64-bit value in EDX:EAX."""
    return (cpu.state.gpr(Gpr.RDX) & _DWORD) << 32 | cpu.state.gpr(Gpr.RAX) & _DWORD


def _cpuid(cpu: Cpu, _stop: Stop) -> None:
    regs = cpu.state.regs
    regs[0], regs[3], regs[1], regs[2] = cpuid(regs[0] & _DWORD, regs[1] & _DWORD, cpu.state, cpu.rules.offer)
    cpu.retire(cpu.instruction().length)


def _rdtsc(cpu: Cpu, _stop: Stop) -> None:
    """RDTSC and RDTSCP (SDM 2B "RDTSCP-Read Time-Stamp Counter and Processor ID")."""
    instruction = cpu.instruction()
    set_pair(cpu, cpu.msrs.tsc)
    if instruction.mnemonic == "rdtscp":
        cpu.state.set_gpr(Gpr.RCX, cpu.msrs.read(_TSC_AUX) & _DWORD)
    cpu.retire(instruction.length)


_TSC_AUX = 0xC000_0103


def _rdpmc(_cpu: Cpu, _stop: Stop) -> None:
    """There are no performance counters, so every number is one too many."""
    raise Fault(Vector.GP, 0)


def _msr(cpu: Cpu, stop: Stop) -> None:
    index = cpu.state.gpr(Gpr.RCX) & _DWORD
    if stop.detail:
        cpu.msrs.write(index, pair(cpu))
    else:
        set_pair(cpu, cpu.msrs.read(index))
    cpu.retire(cpu.instruction().length)


def _nothing(cpu: Cpu, _stop: Stop) -> None:
    """INVD, WBINVD, PAUSE: there are no caches, and nobody to wait for."""
    cpu.retire(cpu.instruction().length)


def _undefined(_cpu: Cpu, _stop: Stop) -> None:
    """MONITOR and MWAIT: CPUID does not offer them."""
    raise Fault(Vector.UD)


def _hlt(cpu: Cpu, _stop: Stop) -> None:
    cpu.halted = cpu.attention = True
    cpu.retire(cpu.instruction().length)


def _natively(cpu: Cpu, _stop: Stop) -> VmExit | None:
    """Stopped for an interception that lets it pass."""
    return cpu.run_natively()


def _store_system_register(cpu: Cpu, _stop: Stop) -> VmExit | None:
    """SGDT, SIDT, SLDT, STR (SDM 3A "Control Registers", UMIP)."""
    control.check_umip(cpu.state)
    return cpu.run_natively()


def _cr_read(cpu: Cpu, stop: Stop) -> None:
    """MOV from CR, or SMSW, which UMIP forbids to programs."""
    instruction, value = cpu.instruction(), _CONTROL_REGISTERS[stop.detail](cpu.view)
    operand = instruction.operands[0]
    if instruction.mnemonic == "smsw":
        control.check_umip(cpu.state)
    if isinstance(operand, Reg):
        size = operand.size if instruction.mnemonic == "smsw" else instruction.operand_size
        old = cpu.state.gpr(operand.index)
        cpu.state.set_gpr(operand.index, replace_low(old, truncate(value, size), size))
    else:
        gva = checked_gva(cpu.state, instruction, 2, write=True)
        cpu.memory.write(gva, 2, truncate(value, 2), user=cpu.state.cpl == _USER)
    cpu.retire(instruction.length)


_CONTROL_REGISTERS: dict[int, Callable[[CpuState], int]] = {
    0: lambda state: state.cr0,
    2: lambda state: state.cr2,
    3: lambda state: state.cr3,
    4: lambda state: state.cr4,
    8: lambda state: state.cr8,
}


def _iret(cpu: Cpu, _stop: Stop) -> VmExit | None:
    """Unblock NMIs, even if this IRET faults (SDM 3A "Handling Multiple NMIs")."""
    cpu.block_nmi(False)
    return cpu.run_natively()


def _cr_write(cpu: Cpu, stop: Stop) -> None:
    """MOV to CR, LMSW, CLTS."""
    instruction, state, read, rules = cpu.instruction(), cpu.state, cpu.physical.read, cpu.rules
    if instruction.mnemonic == "clts":
        control.clts(state, rules)
    elif instruction.mnemonic == "lmsw":
        control.lmsw(state, source(cpu, instruction), read, rules)
    else:
        control.write_cr(state, stop.detail, source(cpu, instruction), read, rules)
    cpu.arm()
    cpu.retire(instruction.length)


def source(cpu: Cpu, instruction: Instruction) -> int:
    """Return the value of the last operand: a register, or for LMSW 2 bytes of memory."""
    operand = instruction.operands[-1]
    if isinstance(operand, Reg):
        return truncate(cpu.state.gpr(operand.index), instruction.operand_size)
    assert isinstance(operand, Mem), instruction
    gva = checked_gva(cpu.state, instruction, operand.size, write=False)
    return cpu.memory.read(gva, operand.size, user=cpu.state.cpl == _USER)


def _dr(cpu: Cpu, stop: Stop) -> None:
    """MOV to or from DR. The #DB of a register that DR7.GD guards is a fault, so its handler finds RF set."""
    instruction, state = cpu.instruction(), cpu.state
    register, guarded = stop.detail, Dr7(state.dr7).gd
    try:
        if stop.kind is Kind.DR_WRITE:
            control.write_dr(state, register, source(cpu, instruction))
        else:
            set_operand(cpu, instruction, control.read_dr(state, register))
    except Fault:
        if guarded:
            state.rflags = int(Rflags(state.rflags).replace(rf=1))
        raise
    cpu.arm()
    cpu.retire(instruction.length)


def set_operand(cpu: Cpu, instruction: Instruction, value: int) -> None:
    """Put *value* into the register that is the first operand of a MOV."""
    operand = instruction.operands[0]
    assert isinstance(operand, Reg), instruction
    cpu.state.set_gpr(operand.index, replace_low(cpu.state.gpr(operand.index), value, operand.size))


def _io(cpu: Cpu, _stop: Stop) -> None:
    """IN, OUT, INS, OUTS; a REP form does one iteration."""
    cpu.attention = True
    cpu.retire(port_io(cpu.state, cpu.memory, cpu.instruction(), cpu.ports))


def _syscall(cpu: Cpu, _stop: Stop) -> None:
    """SYSCALL, whose trap depends on the TF that it leaves, as that of INT n does."""
    syscall(cpu.state, cpu.msrs.read, cpu.after(cpu.instruction().length))
    cpu.retired(stepping=bool(Rflags(cpu.state.rflags).tf))


def _sysenter(cpu: Cpu, _stop: Stop) -> None:
    """SYSENTER, which leaves TF alone."""
    sysenter(cpu.state, cpu.msrs.read)
    cpu.retired(stepping=bool(Rflags(cpu.state.rflags).tf))


EMULATE: dict[Kind, Emulation] = {
    Kind.CR_READ: _cr_read,
    Kind.CR_WRITE: _cr_write,
    Kind.DR_READ: _dr,
    Kind.DR_WRITE: _dr,
    Kind.RDTSC: _rdtsc,
    Kind.RDPMC: _rdpmc,
    Kind.CPUID: _cpuid,
    Kind.INVD: _nothing,
    Kind.WBINVD: _nothing,
    Kind.PAUSE: _nothing,
    Kind.MONITOR: _undefined,
    Kind.MWAIT: _undefined,
    Kind.HLT: _hlt,
    Kind.MSR: _msr,
    Kind.IO: _io,
    Kind.SYSCALL: _syscall,
    Kind.SYSENTER: _sysenter,
    Kind.IRET: _iret,
    **dict.fromkeys((Kind.IDTR_READ, Kind.GDTR_READ, Kind.LDTR_READ, Kind.TR_READ), _store_system_register),
    **dict.fromkeys(
        (Kind.IDTR_WRITE, Kind.GDTR_WRITE, Kind.LDTR_WRITE, Kind.TR_WRITE, Kind.PUSHF, Kind.POPF, Kind.INVLPG),
        _natively,
    ),
}
