"""Control registers in VMX non-root operation: masks, shadows, and the VM exits that they cause.

A bit of CR0 or CR4 that is 1 in the guest/host mask belongs to the host: the guest reads its shadow, and writing
anything else causes a VM exit (SDM 3C "Guest/Host Masks and Shadows for CR0 and CR4").
"""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.vmx.controls import PrimaryProcessorBased
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.reasons import CrAccess, Reason
from hvemu.vmx.vmcs import Vmcs
from hvemu.x86.registers import Cr0

_PRIMARY = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_PE, _TS = int(Cr0(pe=1)), int(Cr0(ts=1))
_MSW = int(Cr0(pe=1, mp=1, em=1, ts=1))
"""The bits that LMSW writes."""


@dataclass(frozen=True, slots=True)
class Shadowed:
    """The fields behind a control register whose bits guest and host share."""

    guest: Field
    mask: Field
    shadow: Field

    def read(self, vmcs: Vmcs) -> int:
        """Return what MOV from CR (and SMSW) reads."""
        mask = vmcs.values[self.mask]
        return vmcs.values[self.shadow] & mask | vmcs[self.guest] & ~mask

    def exits(self, vmcs: Vmcs, value: int, bits: int = -1) -> bool:
        """Whether writing the *bits* of *value* would change a bit that the host owns."""
        return bool((value ^ vmcs.values[self.shadow]) & vmcs.values[self.mask] & bits)

    def written(self, vmcs: Vmcs, value: int, bits: int = -1) -> int:
        """Return the register after a write of the *bits* of *value* that does not exit: host bits stay."""
        mine = bits & ~vmcs.values[self.mask]
        return vmcs[self.guest] & ~mine | value & mine


CR0 = Shadowed(Field.GUEST_CR0, Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW)
CR4 = Shadowed(Field.GUEST_CR4, Field.CR4_GUEST_HOST_MASK, Field.CR4_READ_SHADOW)
SHADOWED = {0: CR0, 4: CR4}

_CR3_TARGETS = (Field.CR3_TARGET_VALUE_0, Field.CR3_TARGET_VALUE_1, Field.CR3_TARGET_VALUE_2, Field.CR3_TARGET_VALUE_3)
_LOAD_EXITING = {3: PrimaryProcessorBased(cr3_load_exiting=1), 8: PrimaryProcessorBased(cr8_load_exiting=1)}
_STORE_EXITING = {3: PrimaryProcessorBased(cr3_store_exiting=1), 8: PrimaryProcessorBased(cr8_store_exiting=1)}


def _is_cr3_target(vmcs: Vmcs, value: int) -> bool:
    return value in [vmcs.values[f] for f in _CR3_TARGETS[: vmcs.values[Field.CR3_TARGET_COUNT]]]


def mov_to_cr(vmcs: Vmcs, cr: int, value: int, gpr: int, length: int) -> VmExit | None:
    """MOV of *value*, in register *gpr*, to CR0, CR3, CR4 or CR8."""
    if cr in SHADOWED:
        exits = SHADOWED[cr].exits(vmcs, value)
    else:
        exits = bool(vmcs.values[_PRIMARY] & _LOAD_EXITING[cr]) and not (cr == 3 and _is_cr3_target(vmcs, value))
    return _exit(length, cr=cr, kind=CrAccess.Kind.MOV_TO_CR, gpr=gpr) if exits else None


def mov_from_cr(vmcs: Vmcs, cr: int, gpr: int, length: int) -> VmExit | None:
    """MOV from a control register to register *gpr*; CR0 and CR4 never exit: see Shadowed.read."""
    if not vmcs.values[_PRIMARY] & _STORE_EXITING.get(cr, 0):
        return None
    return _exit(length, cr=cr, kind=CrAccess.Kind.MOV_FROM_CR, gpr=gpr)


def clts(vmcs: Vmcs, length: int) -> VmExit | None:
    """CLTS exits when the host owns TS and shows it as 1; it changes nothing when the host shows it as 0."""
    if not vmcs.values[CR0.mask] & vmcs.values[CR0.shadow] & _TS:
        return None
    return _exit(length, kind=CrAccess.Kind.CLTS)


def clts_result(vmcs: Vmcs) -> int:
    """Return CR0 after a CLTS that did not exit."""
    return CR0.written(vmcs, 0, _TS)


def lmsw(vmcs: Vmcs, source: int, length: int, *, gva: int | None = None) -> VmExit | None:
    """LMSW of the 16-bit *source*, read from memory at *gva* or from a register. LMSW never clears PE."""
    if not CR0.exits(vmcs, source, _lmsw_bits(source)):
        return None
    exit_ = _exit(length, kind=CrAccess.Kind.LMSW, lmsw_memory=gva is not None, lmsw_source=source)
    exit_.guest_linear = gva
    return exit_


def lmsw_result(vmcs: Vmcs, source: int) -> int:
    """Return CR0 after an LMSW that did not exit."""
    return CR0.written(vmcs, source, _lmsw_bits(source))


def _lmsw_bits(source: int) -> int:
    return _MSW if source & _PE else _MSW & ~_PE


def _exit(length: int, **qualification: int) -> VmExit:
    return VmExit(Reason.CR_ACCESS, int(CrAccess(**qualification)), length)
