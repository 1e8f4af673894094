"""VMX operation of one processor: VMXON pointer, current VMCS, and the instructions that manage them.

SDM 3C "VMX Instruction Reference", SDM 3C "Software Use of Virtual-Machine Control Structures". Privilege, mode and
operands are the caller's; these functions begin where an instruction has its operand. They raise VmFail.
"""

from __future__ import annotations

from hvemu.memory.physical import Physical
from hvemu.vmx.capabilities import EPT_VPID, REGION_SIZE, REVISION_ID
from hvemu.vmx.checks import CheckArea
from hvemu.vmx.clauses import failures
from hvemu.vmx.controls import EptPointer
from hvemu.vmx.fail import VmFail
from hvemu.vmx.fields import Field
from hvemu.vmx.template import minimal_vmcs
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.segments import is_canonical, truncate

NO_VMCS = (1 << 64) - 1
"""The current-VMCS pointer while there is no current VMCS."""
_INVEPT_TYPES = {1: EPT_VPID.invept_single, 2: EPT_VPID.invept_all}
_INVVPID_TYPES = {
    0: EPT_VPID.invvpid_address,
    1: EPT_VPID.invvpid_single,
    2: EPT_VPID.invvpid_all,
    3: EPT_VPID.invvpid_retaining_globals,
}
_ALL_CONTEXTS, _ADDRESS = 2, 0
_VPID = 1 << 16


class VmxOperation:
    """What a logical processor remembers while VMX is on.

    *memory* is where VMCS regions lie, by physical address. *vmxon* is the VMXON pointer, None outside VMX operation;
    *current* the current-VMCS pointer. A VMCS that was loaded is kept on chip until VMCLEAR writes it back.
    """

    def __init__(self, memory: Physical) -> None:
        self._memory = memory
        self.vmxon: int | None = None
        self.current = NO_VMCS
        self._active: dict[int, Vmcs] = {}

    @property
    def on(self) -> bool:
        """Whether the processor is in VMX operation."""
        return self.vmxon is not None

    @property
    def vmcs(self) -> Vmcs:
        """The current VMCS. Raises VmFail(None) when there is none."""
        if self.current == NO_VMCS:
            raise VmFail(None, "there is no current VMCS: VMPTRLD makes one current")
        return self._active[self.current]

    def enter(self, pointer: int) -> None:
        """VMXON with the region at *pointer*."""
        if self.on:
            raise VmFail(15)
        _check_pointer(pointer, None, "VMXON")
        self._check_revision(pointer, None, "VMXON")
        self.vmxon, self.current = pointer, NO_VMCS

    def leave(self) -> None:
        """VMXOFF. What is on chip goes back to memory, where the manual leaves it undefined."""
        for pointer in [*self._active]:
            self._write_back(pointer)
        self.vmxon, self.current = None, NO_VMCS

    def clear(self, pointer: int) -> None:
        """VMCLEAR: the VMCS at *pointer* is in memory, its launch state is clear, and it is not current."""
        _check_pointer(pointer, 2, "VMCLEAR")
        if pointer == self.vmxon:
            raise VmFail(3, f"{pointer:#x} is the VMXON pointer")
        if pointer in self._active:
            self._active[pointer].launched = False
            self._write_back(pointer)
        else:
            self._memory.write(pointer + _LAUNCH_STATE, _LAUNCH_STATE_SIZE, 0)
        if pointer == self.current:
            self.current = NO_VMCS

    def load(self, pointer: int) -> None:
        """VMPTRLD: make the VMCS at *pointer* current."""
        _check_pointer(pointer, 9, "VMPTRLD")
        if pointer == self.vmxon:
            raise VmFail(10, f"{pointer:#x} is the VMXON pointer")
        self._check_revision(pointer, 11, "VMPTRLD")
        if pointer not in self._active:
            self._active[pointer] = Vmcs.from_region(self._memory.read_bytes(pointer, REGION_SIZE))
        self.current = pointer

    def _write_back(self, pointer: int) -> None:
        vmcs = self._active.pop(pointer)
        if vmcs.state is not None:
            vmcs.detach()
        self._memory.write_bytes(pointer, vmcs.to_region())

    def _check_revision(self, pointer: int, error: int | None, name: str) -> None:
        found = self._memory.read(pointer, 4)
        if found != REVISION_ID:
            why = f"{name}: the revision identifier at {pointer:#x} is {found:#x}; IA32_VMX_BASIC says {REVISION_ID:#x}"
            raise VmFail(error, why)


_LAUNCH_STATE, _LAUNCH_STATE_SIZE = 8, 8  # in the region: see vmx/vmcs.py


def _check_pointer(pointer: int, error: int | None, name: str) -> None:
    if pointer % REGION_SIZE or pointer >> PHYSICAL_ADDRESS_WIDTH:
        why = f"{name}: {pointer:#x} is not a 4 KiB aligned {PHYSICAL_ADDRESS_WIDTH}-bit address"
        raise VmFail(error, why)


def check_invept(kind: int, descriptor: int) -> None:
    """INVEPT of type *kind* (1: one EPTP, 2: all) with the 128-bit *descriptor*. Raises VmFail(28)."""
    if not _INVEPT_TYPES.get(kind):
        raise VmFail(28, f"INVEPT: type {kind} is not offered: 1 is single-context, 2 is all-context")
    if kind != _ALL_CONTEXTS and not _is_legal(EptPointer(truncate(descriptor, 8))):
        raise VmFail(28, "INVEPT: VM entry would refuse the EPTP in the descriptor")


def _is_legal(eptp: EptPointer) -> bool:
    """Whether VM entry would accept *eptp*: the clauses on the EPTP hold."""
    vmcs = minimal_vmcs()
    vmcs[Field.EPT_POINTER] = int(eptp)
    return not any(Field.EPT_POINTER in row.reads for row in failures(vmcs, CheckArea.CONTROLS))


def check_invvpid(kind: int, descriptor: int) -> None:
    """INVVPID of type *kind* with the 128-bit *descriptor*. Raises VmFail(28)."""
    if not _INVVPID_TYPES.get(kind):
        raise VmFail(28, f"INVVPID: type {kind} is not offered: 0 to 3 are")
    vpid, reserved, gva = descriptor % _VPID, descriptor >> 16 & 0xFFFF_FFFF_FFFF, descriptor >> 64
    if reserved:
        raise VmFail(28, f"INVVPID: bits 63:16 of the descriptor are {reserved:#x}, not 0")
    if kind != _ALL_CONTEXTS and not vpid:
        raise VmFail(28, "INVVPID: VPID 0 is the host's own")
    if kind == _ADDRESS and not is_canonical(gva):
        raise VmFail(28, f"INVVPID: the address {gva:#x} is not canonical")


def succeed(rflags: int) -> int:
    """Return RFLAGS after VMsucceed (SDM 3C "Conventions")."""
    return rflags & ~_STATUS


def fail(rflags: int, vmcs: Vmcs | None, failure: VmFail) -> int:
    """Return RFLAGS after VMfailInvalid, or after VMfailValid, whose number goes into the current *vmcs*."""
    if failure.number is None or vmcs is None:
        return rflags & ~_STATUS | _CF
    vmcs.values[Field.VM_INSTRUCTION_ERROR] = failure.number
    return rflags & ~_STATUS | _ZF


_CF, _ZF = 0x001, 0x040
_STATUS = 0x8D5  # CF PF AF ZF SF OF
