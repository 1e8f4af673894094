"""What decides about a VM entry besides the VMCS: the kind of processor, and what is around it.

HVEMU is the processor that is modelled. ANY stands for a processor of which nothing is known but the manual: it judges
no bit that some processor may offer, and only the fixed bits that every processor has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvemu.vmx.capabilities import (
    BASIC,
    CR0_FIXED0,
    CR0_FIXED1,
    CR4_FIXED0,
    CR4_FIXED1,
    ENTRY,
    EPT_VPID,
    EXIT,
    MISC,
    PIN,
    PRIMARY,
    SECONDARY,
    Basic,
    Capability,
    EptVpid,
    Misc,
)
from hvemu.x86.cpuid import LINEAR_ADDRESS_WIDTH, PHYSICAL_ADDRESS_WIDTH, Leaf7Ebx, Offer
from hvemu.x86.registers import Efer

_OFFER = Offer(vmx=True)
_LAM = 3 << 61
"""Bits of CR3 that linear-address masking uses."""


@dataclass(frozen=True, slots=True)
class Processor:
    """One kind of processor.

    The groups of controls are as their capability MSRs report them; *efer*, *debugctl* and *vm_functions* are the bits
    that may be 1; widths are in bits. *lam*: CR3 may hold the bits of linear-address masking. *refuses_nmi_after_sti*:
    the choice that the manual leaves to the processor.
    """

    pin: Capability = PIN
    primary: Capability = PRIMARY
    secondary: Capability = SECONDARY
    exits: Capability = EXIT
    entry: Capability = ENTRY
    cr0_fixed0: int = CR0_FIXED0
    cr0_fixed1: int = CR0_FIXED1
    cr4_fixed0: int = CR4_FIXED0
    cr4_fixed1: int = CR4_FIXED1
    basic: Basic = BASIC
    misc: Misc = MISC
    ept_vpid: EptVpid = EPT_VPID
    features: Leaf7Ebx = _OFFER.leaf7_ebx
    vm_functions: int = 0
    efer: int = _OFFER.efer | Efer(lma=1)
    debugctl: int = 0
    bus_lock_detection: bool = False
    lam: bool = False
    refuses_nmi_after_sti: bool = True
    physical_address_width: int = PHYSICAL_ADDRESS_WIDTH
    linear_address_width: int = LINEAR_ADDRESS_WIDTH

    def is_physical(self, hpa: int) -> bool:
        """Whether no bit beyond the physical-address width is set."""
        return not hpa >> self.physical_address_width

    def is_aligned(self, hpa: int, alignment: int) -> bool:
        """Whether *hpa* is a multiple of *alignment*, in bytes, and a physical address."""
        return not hpa & (alignment - 1) and self.is_physical(hpa)

    def is_cr3(self, value: int) -> bool:
        """Whether *value* sets no bit of CR3 that is reserved."""
        return self.is_physical(value & ~_LAM if self.lam else value)

    def is_canonical(self, gva: int) -> bool:
        """Whether all bits from the highest of a linear address on are equal."""
        top = gva >> (self.linear_address_width - 1)
        return top in {0, (1 << (65 - self.linear_address_width)) - 1}

    def is_extended(self, rip: int) -> bool:
        """Whether all bits above the highest of a linear address are equal; that one itself may differ."""
        top = rip >> self.linear_address_width
        return top in {0, (1 << (64 - self.linear_address_width)) - 1}


HVEMU = Processor()
_DWORD = (1 << 32) - 1
_DEBUGCTL = 0xFFC7  # LBR, BTF, BUS_LOCK_DETECT, TR to RTM_DEBUG
_EFER = int(Efer(sce=1, lme=1, lma=1, nxe=1))
# VME to SMXE, FSGSBASE to OSXSAVE, KL to UINTR, LASS, LAM_SUP, FRED: every bit that the manual names.
_CR4 = 0x1_1BFF_7FFF


def _any(known: Capability) -> Capability:
    """Every bit may be 1; those of the default1 class must be, but for the ones that processors are known to relax."""
    return Capability(_DWORD, known.default1, known.relaxed)


ANY = Processor(
    _any(PIN), _any(PRIMARY), _any(SECONDARY), _any(EXIT), _any(ENTRY),
    cr4_fixed1=_CR4,
    basic=Basic(BASIC, hardware_exception_without_error_code=1),
    misc=Misc(MISC, activity_hlt=1, activity_shutdown=1, activity_wait_for_sipi=1, injects_length_zero=1),
    ept_vpid=EptVpid((1 << 64) - 1),
    features=Leaf7Ebx(_DWORD),
    vm_functions=1,
    efer=_EFER,
    debugctl=_DEBUGCTL,
    bus_lock_detection=True,
    lam=True,
    refuses_nmi_after_sti=False,
    physical_address_width=52,
)  # fmt: skip

Read = Callable[[int, int], bytes]
"""From an hpa and a number of bytes to those bytes."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a few clauses look at outside the VMCS; what is None is not known, and its clauses are not judged.

    *read* reads host-physical memory; *ia32e* is IA32_EFER.LMA before the entry; *vmcs_hpa* is where the VMCS lies.
    """

    read: Read | None = None
    ia32e: bool | None = None
    vmcs_hpa: int | None = None


UNKNOWN = Surroundings()
