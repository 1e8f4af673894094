"""What the monitor does for the guest when an instruction trapped because the guest's kernel is not in ring 0.

Everything acts on the monitor's view of the guest, under the guest's own rules; a Fault is the guest's to handle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvemu.cpu import control
from hvemu.cpu.far import far_call, far_jump
from hvemu.cpu.load import load_ldtr, load_segment, load_tr
from hvemu.cpu.msr_file import MsrFile
from hvemu.cpu.operand import checked_gva, operand_gva
from hvemu.cpu.port_io import describe, port_io
from hvemu.cpu.ret import far_return, interrupt_return
from hvemu.cpu.stack import Stack
from hvemu.cpu.syscall import sysenter, sysexit
from hvemu.cpu.tables import require
from hvemu.x86.instruction import Far, Imm, Instruction, Mem, Reg, RegKind
from hvemu.x86.msrs import TSC, TSC_AUX
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import replace_low, truncate
from hvemu.x86.state import TableRegister
from hvemu.x86.vectors import Vector

if TYPE_CHECKING:
    from hvemu.techniques.deprivilege import Deprivilege

Emulation = Callable[["Deprivilege", Instruction], None]
PRIVILEGED: dict[str, Emulation] = {}
"""Instructions of a kernel, by mnemonic."""
ANYWHERE: dict[str, Emulation] = {}
"""Instructions that may trap in a program too, although the guest's own rules allow them."""
_DWORD = 0xFFFF_FFFF


def _emulates(*mnemonics: str, table: dict[str, Emulation] = PRIVILEGED) -> Callable[[Emulation], Emulation]:
    def register(function: Emulation) -> Emulation:
        table.update(dict.fromkeys(mnemonics, function))
        return function

    return register


def find(instruction: Instruction, cpl: int) -> Emulation | None:
    """Return how to emulate *instruction*, or None: then its fault is the guest's own, in ring *cpl* of the guest."""
    name = instruction.mnemonic
    if name in _OVERLOADED and not _is_special(instruction):
        return None
    return ANYWHERE.get(name) or (PRIVILEGED.get(name) if cpl == 0 else None)


_OVERLOADED = frozenset({"mov", "pop"})


def _is_special(instruction: Instruction) -> bool:
    """Whether a MOV or POP loads a segment register, or has to do with control or debug registers."""
    kinds = [operand.kind for operand in instruction.operands if isinstance(operand, Reg)]
    target = instruction.operands[0]
    loads = isinstance(target, Reg) and target.kind is RegKind.SREG
    return loads or RegKind.CR in kinds or RegKind.DR in kinds


# -- operands ---------------------------------------------------------------------------------------------------------


def _read(vm: Deprivilege, instruction: Instruction, size: int) -> int:
    """Return the last operand, a register or *size* bytes of memory."""
    operand = instruction.operands[-1]
    if isinstance(operand, Reg):
        return truncate(vm.view.gpr(operand.index), size)
    gva = checked_gva(vm.view, instruction, size, write=False)
    return vm.linear.read(gva, size, user=vm.view.cpl == _USER)


_USER = 3


def _sreg(instruction: Instruction) -> Sreg:
    operand = instruction.operands[0]
    assert isinstance(operand, Reg), instruction
    return Sreg(operand.index)


def _port(vm: Deprivilege, instruction: Instruction) -> str:
    access = describe(vm.view, instruction)
    return f"port {access.port:#x}, {access.size} bytes"


# -- interrupts -------------------------------------------------------------------------------------------------------


@_emulates("cli", table=ANYWHERE)
def _cli(vm: Deprivilege, instruction: Instruction) -> None:
    """Allowed where the guest's IOPL allows it. Raises Fault(#GP, 0)."""
    require(vm.view.cpl <= vm.view.iopl, Vector.GP)
    vm.view.interrupts = False
    vm.advance(instruction.length)


@_emulates("sti", table=ANYWHERE)
def _sti(vm: Deprivilege, instruction: Instruction) -> None:
    """Enable interrupts after the next instruction, if they were off. Raises Fault(#GP, 0)."""
    require(vm.view.cpl <= vm.view.iopl, Vector.GP)
    shadow = not vm.view.interrupts
    vm.view.interrupts = True
    vm.advance(instruction.length)
    vm.view.blocking_by_sti_or_mov_ss = shadow


@_emulates("hlt")
def _hlt(vm: Deprivilege, instruction: Instruction) -> None:
    """Sleep. A kernel that halts waits for an interrupt, so it has them enabled, perhaps by a POPF that nobody saw."""
    vm.view.interrupts = vm.asleep = True
    vm.advance(instruction.length)


# -- system registers -------------------------------------------------------------------------------------------------


@_emulates("mov", table=ANYWHERE)
def _mov(vm: Deprivilege, instruction: Instruction) -> None:
    """MOV to a segment register by a program; the rest is the kernel's."""
    target, source = instruction.operands
    kinds = {operand.kind: operand.index for operand in (target, source) if isinstance(operand, Reg)}
    to_system = isinstance(target, Reg) and target.kind in (RegKind.CR, RegKind.DR)
    if isinstance(target, Reg) and target.kind is RegKind.SREG:
        load_segment(vm.view, vm.linear, target.index, _read(vm, instruction, 2))
        _end_load(vm, instruction, target.index)
        return
    require(vm.view.cpl == 0, Vector.GP)
    kind = RegKind.CR if RegKind.CR in kinds else RegKind.DR
    vm.exit.what = f"MOV_{'TO' if to_system else 'FROM'}_{kind.name}{kinds[kind]}"
    (_to_system if to_system else _from_system)(vm, kind, kinds[kind], kinds[RegKind.GPR])
    vm.advance(instruction.length)


def _to_system(vm: Deprivilege, kind: RegKind, number: int, gpr: int) -> None:
    value = truncate(vm.view.gpr(gpr), 4)
    vm.exit.detail = f"{value:#x}"
    if kind is RegKind.CR:
        control.write_cr(vm.view, number, value, vm.physical.read)
    else:
        control.write_dr(vm.view, number, value)
        vm.cpu.arm()


def _from_system(vm: Deprivilege, kind: RegKind, number: int, gpr: int) -> None:
    value = control.read_cr(vm.view, number) if kind is RegKind.CR else control.read_dr(vm.view, number)
    vm.view.set_gpr(gpr, truncate(value, 4))


@_emulates("lmsw")
def _lmsw(vm: Deprivilege, instruction: Instruction) -> None:
    control.lmsw(vm.view, _read(vm, instruction, 2), vm.physical.read)
    vm.advance(instruction.length)


@_emulates("clts")
def _clts(vm: Deprivilege, instruction: Instruction) -> None:
    control.clts(vm.view)
    vm.advance(instruction.length)


@_emulates("lgdt", "lidt")
def _load_table(vm: Deprivilege, instruction: Instruction) -> None:
    """A 16-bit operand size loads 24 bits of base.

    SDM 2A "LGDT/LIDT-Load Global/Interrupt Descriptor Table Register"
    """
    gva = checked_gva(vm.view, instruction, 6, write=False)
    limit, base = vm.linear.read(gva, 2, user=False), vm.linear.read(gva + 2, 4, user=False)
    value = TableRegister(base if instruction.operand_size != 2 else truncate(base, 3), limit)
    setattr(vm.view, "gdtr" if instruction.mnemonic == "lgdt" else "idtr", value)
    vm.exit.detail = f"base {value.base:#x} limit {limit:#x}"
    vm.advance(instruction.length)


@_emulates("lldt", "ltr")
def _load_system_segment(vm: Deprivilege, instruction: Instruction) -> None:
    load = load_ldtr if instruction.mnemonic == "lldt" else load_tr
    load(vm.view, vm.linear, _read(vm, instruction, 2))
    vm.advance(instruction.length)


@_emulates("sgdt", "sidt")
def _store_table(vm: Deprivilege, instruction: Instruction) -> None:
    """With CR4.UMIP the processor gives the monitor the chance to tell the guest what it wants to hear."""
    gva = checked_gva(vm.view, instruction, 6, write=True)
    table = vm.view.gdtr if instruction.mnemonic == "sgdt" else vm.view.idtr
    vm.linear.write(gva, 2, table.limit, user=False)
    vm.linear.write(gva + 2, 4, table.base, user=False)
    vm.advance(instruction.length)


@_emulates("sldt", "str", "smsw")
def _store_word(vm: Deprivilege, instruction: Instruction) -> None:
    """See _store_table."""
    view = vm.view
    value = {"sldt": view.ldtr.selector, "str": view.tr.selector, "smsw": view.cr0}[instruction.mnemonic]
    operand = instruction.operands[0]
    if isinstance(operand, Reg):
        view.set_gpr(operand.index, replace_low(view.gpr(operand.index), truncate(value, operand.size), operand.size))
    else:
        vm.linear.write(checked_gva(view, instruction, 2, write=True), 2, truncate(value, 2), user=False)
    vm.advance(instruction.length)


@_emulates("invlpg")
def _invlpg(vm: Deprivilege, instruction: Instruction) -> None:
    gva = operand_gva(vm.view, instruction)
    vm.exit.detail = f"gva {gva:#x}"
    vm.invalidate_page(gva)
    vm.advance(instruction.length)


@_emulates("rdmsr")
def _rdmsr(vm: Deprivilege, instruction: Instruction) -> None:
    index = vm.view.gpr(Gpr.RCX) & _DWORD
    value = _file(vm, index).read(index)
    vm.view.set_gpr(Gpr.RAX, value & _DWORD)
    vm.view.set_gpr(Gpr.RDX, value >> 32)
    vm.advance(instruction.length)


@_emulates("wrmsr")
def _wrmsr(vm: Deprivilege, instruction: Instruction) -> None:
    index = vm.view.gpr(Gpr.RCX) & _DWORD
    value = (vm.view.gpr(Gpr.RDX) & _DWORD) << 32 | vm.view.gpr(Gpr.RAX) & _DWORD
    _file(vm, index).write(index, value)
    vm.advance(instruction.length)


def _file(vm: Deprivilege, index: int) -> MsrFile:
    """Return where MSR *index* lives: those that RDTSC and RDTSCP read in any ring are the processor's own."""
    return vm.cpu.msrs if index in (TSC, TSC_AUX) else vm.msrs


@_emulates("rdtsc", "rdtscp")
def _rdtsc(vm: Deprivilege, instruction: Instruction) -> None:
    """CR4.TSD binds the kernel too, in ring 1."""
    tsc = vm.cpu.msrs.tsc
    vm.view.set_gpr(Gpr.RAX, tsc & _DWORD)
    vm.view.set_gpr(Gpr.RDX, tsc >> 32)
    if instruction.mnemonic == "rdtscp":
        vm.view.set_gpr(Gpr.RCX, vm.cpu.msrs.read(TSC_AUX) & _DWORD)
    vm.advance(instruction.length)


@_emulates("invd", "wbinvd")
def _nothing(vm: Deprivilege, instruction: Instruction) -> None:
    vm.advance(instruction.length)


# -- port I/O ---------------------------------------------------------------------------------------------------------


@_emulates("in", "out", "ins", "outs", table=ANYWHERE)
def _io(vm: Deprivilege, instruction: Instruction) -> None:
    """The guest's own IOPL and TSS decide; its devices are objects of the monitor."""
    vm.exit.what, vm.exit.detail = instruction.mnemonic.upper(), _port(vm, instruction)
    vm.advance(port_io(vm.view, vm.linear, instruction, vm.board))


# -- segments and far transfers ---------------------------------------------------------------------------------------


def _end_load(vm: Deprivilege, instruction: Instruction, sreg: int) -> None:
    vm.exit.what = f"LOAD_{Sreg(sreg).name}"
    vm.advance(instruction.length)
    vm.view.blocking_by_sti_or_mov_ss = sreg == Sreg.SS


@_emulates("pop", table=ANYWHERE)
def _pop(vm: Deprivilege, instruction: Instruction) -> None:
    """POP of a segment register. SS is the one that a kernel in ring 1 cannot load with its own selectors."""
    sreg = _sreg(instruction)
    stack = Stack.current(vm.view, vm.linear)
    (value,) = stack.pop(1, instruction.operand_size)
    load_segment(vm.view, vm.linear, sreg, truncate(value, 2))
    stack.commit()
    _end_load(vm, instruction, sreg)


@_emulates("lds", "les", "lfs", "lgs", "lss", table=ANYWHERE)
def _load_far_pointer(vm: Deprivilege, instruction: Instruction) -> None:
    target = instruction.operands[0]
    assert isinstance(target, Reg), instruction
    sreg = Sreg[instruction.mnemonic[1:].upper()]
    offset, selector = _far_pointer(vm, instruction)
    load_segment(vm.view, vm.linear, sreg, selector)
    old = vm.view.gpr(target.index)
    vm.view.set_gpr(target.index, replace_low(old, offset, instruction.operand_size))
    _end_load(vm, instruction, sreg)


def _far_pointer(vm: Deprivilege, instruction: Instruction) -> tuple[int, int]:
    """Return (offset, selector) from memory."""
    size, user = instruction.operand_size, vm.view.cpl == _USER
    gva = checked_gva(vm.view, instruction, size + 2, write=False)
    return vm.linear.read(gva, size, user=user), vm.linear.read(gva + size, 2, user=user)


@_emulates("ljmp", "lcall", table=ANYWHERE)
def _far(vm: Deprivilege, instruction: Instruction) -> None:
    """Through a gate or to a task: the processor found the monitor's copy of the descriptor not present."""
    operand, size = instruction.operands[0], instruction.operand_size
    if isinstance(operand, Far):
        offset, selector = operand.offset, operand.selector
    else:
        assert isinstance(operand, Mem), instruction
        offset, selector = _far_pointer(vm, instruction)
    transfer = far_jump if instruction.mnemonic == "ljmp" else far_call
    vm.exit.detail = f"selector {selector:#x}"
    next_rip = vm.cpu.after(instruction.length)
    vm.transfer(lambda: transfer(vm.view, vm.linear, selector, offset, size=size, next_rip=next_rip))


@_emulates("retf", table=ANYWHERE)
def _retf(vm: Deprivilege, instruction: Instruction) -> None:
    operand = instruction.operands[0] if instruction.operands else Imm(0, 2)
    assert isinstance(operand, Imm), instruction
    vm.transfer(lambda: far_return(vm.view, vm.linear, size=instruction.operand_size, release=operand.value))


@_emulates("iret", table=ANYWHERE)
def _iret(vm: Deprivilege, instruction: Instruction) -> None:
    next_rip = vm.cpu.after(instruction.length)
    vm.transfer(lambda: interrupt_return(vm.view, vm.linear, size=instruction.operand_size, next_rip=next_rip))


@_emulates("sysenter", table=ANYWHERE)
def _sysenter(vm: Deprivilege, _instruction: Instruction) -> None:
    vm.transfer(lambda: sysenter(vm.view, vm.msrs.read))


@_emulates("sysexit")
def _sysexit(vm: Deprivilege, _instruction: Instruction) -> None:
    vm.transfer(lambda: sysexit(vm.view, vm.msrs.read))
