"""Ring compression: the guest's kernel runs at CPL 1 and believes that it runs at CPL 0.

SDM 3A "Privilege Levels" has four rings; the monitor takes the innermost, so the guest's rings 0 and 1 become one.
"""

from __future__ import annotations

from collections.abc import Callable

from hvemu.cpu.view import StateView
from hvemu.techniques.base import Shutdown
from hvemu.x86.registers import Cr0, Rflags, Sreg
from hvemu.x86.segments import Selector
from hvemu.x86.state import CpuState, Segment, TableRegister

KERNEL_RING, MONITOR_RING, USER_RING = 1, 0, 3
_RING_REGISTERS = frozenset({Sreg.CS, Sreg.SS})  # whose RPL is the CPL
NO_VM86 = "deprivilege cannot run virtual-8086 mode: what it may do depends on an IOPL that the monitor needs itself"


class RingView(StateView):
    """The guest's registers as it believes them to be, over the *real* ones.

    What a kernel owns is kept here and nowhere else: CR0, CR3, CR4, EFER, GDTR, IDTR, LDTR, TR, IF and IOPL. After a
    change of what translation or descriptors depend on, *changed* is called with the register's name.
    """

    def __init__(self, real: CpuState, boot: CpuState, changed: Callable[[str], None]) -> None:
        super().__init__(real)
        self._changed = changed
        self._own = {"cr0": boot.cr0, "cr3": boot.cr3, "cr4": boot.cr4, "efer": boot.efer}
        self._gdtr, self._idtr, self._ldtr, self._tr = boot.gdtr, boot.idtr, boot.ldtr, boot.tr
        self.interrupts, self.iopl = bool(Rflags(boot.rflags).if_), Rflags(boot.rflags).iopl

    def _set(self, name: str, value: int) -> None:
        if self._own[name] != value:
            self._own[name] = value
            self._changed(name)

    @property
    def cr0(self) -> int:
        """CR0; the real one has paging on and WP set."""
        return self._own["cr0"]

    @cr0.setter
    def cr0(self, value: int) -> None:
        self._set("cr0", value)

    @property
    def cr4(self) -> int:
        """CR4; the real one has PAE set."""
        return self._own["cr4"]

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._set("cr4", value)

    @property
    def efer(self) -> int:
        """IA32_EFER; the real one has NXE set."""
        return self._own["efer"]

    @efer.setter
    def efer(self, value: int) -> None:
        self._set("efer", value)

    @property
    def cr3(self) -> int:
        """CR3. Loading it counts even with the old value: it is a flush of the TLB."""
        return self._own["cr3"]

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._own["cr3"] = value
        self._changed("cr3")

    @property
    def cpl(self) -> int:
        """0 for the kernel, 3 for its programs."""
        return MONITOR_RING if self.real.cpl == KERNEL_RING else self.real.cpl

    @property
    def takes_interrupts(self) -> bool:
        """Whether the guest would take an interrupt: a program runs with interrupts on, unless it may turn them off."""
        return self.interrupts or (self.cpl == USER_RING and self.iopl < USER_RING)

    @property
    def rflags(self) -> int:
        """RFLAGS with the IF and IOPL that the guest would have; the real IF is always 1, the real IOPL 0."""
        return int(Rflags(self.real.rflags).replace(if_=self.interrupts, iopl=self.iopl))

    @rflags.setter
    def rflags(self, value: int) -> None:
        flags = Rflags(value)
        if flags.vm:
            raise Shutdown(NO_VM86)
        self.interrupts, self.iopl = bool(flags.if_), flags.iopl
        self.real.rflags = int(flags.replace(if_=1, iopl=0))

    def segment(self, index: int) -> Segment:
        """Read a segment register, ring 1 taken for ring 0."""
        real = self.real.segment(index)
        if real.rights.dpl != KERNEL_RING:
            return real
        selector = _moved(index, real.selector, KERNEL_RING, MONITOR_RING)
        return Segment(selector, real.base, real.limit, real.rights.replace(dpl=MONITOR_RING))

    def set_segment(self, index: int, value: Segment) -> None:
        """Write a segment register, ring 0 put into ring 1."""
        if value.rights.dpl == MONITOR_RING and Cr0(self.cr0).pe:
            selector = _moved(index, value.selector, MONITOR_RING, KERNEL_RING)
            value = Segment(selector, value.base, value.limit, value.rights.replace(dpl=KERNEL_RING))
        self.real.set_segment(index, value)

    @property
    def gdtr(self) -> TableRegister:
        """GDTR; the real one is the monitor's."""
        return self._gdtr

    @gdtr.setter
    def gdtr(self, value: TableRegister) -> None:
        self._gdtr = value
        self._changed("gdtr")

    @property
    def ldtr(self) -> Segment:
        """LDTR; the real one leads to the monitor's copy."""
        return self._ldtr

    @ldtr.setter
    def ldtr(self, value: Segment) -> None:
        self._ldtr = value
        self._changed("ldtr")

    @property
    def idtr(self) -> TableRegister:
        """IDTR; the real one is the monitor's."""
        return self._idtr

    @idtr.setter
    def idtr(self, value: TableRegister) -> None:
        self._idtr = value

    @property
    def tr(self) -> Segment:
        """TR; the real one is the monitor's."""
        return self._tr

    @tr.setter
    def tr(self, value: Segment) -> None:
        self._tr = value


def _moved(index: int, selector: int, old: int, new: int) -> int:
    """Return *selector* with ring *new* where its RPL is the CPL *old*; that of conforming code may be another one."""
    if index not in _RING_REGISTERS or Selector(selector).rpl != old:
        return selector
    return int(Selector(selector).replace(rpl=new))
