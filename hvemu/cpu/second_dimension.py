"""The second dimension of paging below a guest: EPT for the CPU model's own accesses, and mirrored for the engine's.

The engine walks a table of its own, which is filled from EPT page by page, as a TLB is. It cannot say all that EPT can:
pages without execute permission, and guest page tables in pages that may only be read, stay out of it, and are opened
for one instruction at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hvemu.cpu.memory import PagedMemory
from hvemu.cpu.reach import reach, sets_flags
from hvemu.engine.second_level import SecondLevelCode
from hvemu.engine.traps import Kind, Stop
from hvemu.memory.ept import EptPaging
from hvemu.memory.ept_walk import (
    PAGING_READ,
    PAGING_WRITE,
    EptAccess,
    EptMisconfiguration,
    EptViolation,
    EptWalk,
    walk_ept,
)
from hvemu.memory.nested import NestedPhysical
from hvemu.memory.physical import Physical, Ram
from hvemu.vmx.exit import VmExit
from hvemu.x86.paging import PAGE
from hvemu.x86.state import CpuState

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_LARGE = 0x20_0000
Miss = EptViolation | EptMisconfiguration
"""How an access leaves the guest."""


class SecondDimension:
    """Extended page tables at work: *ept* is None while the guest's physical addresses are the host's.

    *physical* is memory by gpa for the CPU model.
    """

    def __init__(self, cpu: Cpu, host: Ram) -> None:
        self._cpu, self._host = cpu, host
        self.ept: EptPaging | None = None
        self.physical: Physical = host

    def use(self, ept: EptPaging | None) -> None:
        """Translate by *ept* from now on. What was translated by it before may still be known."""
        self.ept = ept
        cpu, engine = self._cpu, self._cpu.engine
        if ept is None:
            self.physical, cpu.memory = self._host, PagedMemory(cpu.state, self._host)
            if engine.machine_level.holds is None:
                engine.machine_level.map(0, self._host.base, self._host.size)
                engine.machine_level.holds = self
        else:
            nested = NestedPhysical(ept, self._host)
            self.physical, cpu.memory = nested, GuestMemory(cpu.state, nested)
            if engine.guest_level.holds != (self, ept):
                engine.guest_level.clear()
                engine.guest_level.holds = (self, ept)
        cpu.physical = self.physical
        engine.use_level(engine.guest_level if ept else engine.machine_level)

    def invalidate(self) -> None:
        """Forget every translation by EPT, as INVEPT does."""
        if isinstance(self.physical, NestedPhysical):
            self.physical.flush()
        self._cpu.engine.guest_level.clear()
        self._cpu.engine.flush_tlb()

    def stopped(self, stop: Stop) -> VmExit | None:
        """Let the access pass at which the engine stopped; return the exit that executing the instruction met, if any.

        Raises EptViolation, EptMisconfiguration, Fault.
        """
        if self.ept is None:
            return self._cpu.mmio.access(self._cpu, stop)
        opened: dict[int, _Opening] = {}
        while stop.kind is Kind.SECOND_LEVEL:
            walked = self._walk(stop)
            store = bool(SecondLevelCode(stop.error_code).wr)
            if walked.rights.execute and (walked.rights.write or not store):
                self._map(walked, writable=store or (bool(walked.rights.write) and not self.ept.accessed_dirty))
                if not opened:
                    return None
            else:
                self._open(opened, walked, writable=store)
            stop = self._step(opened)
        return self._cpu.act(stop)

    # -- the walk -----------------------------------------------------------------------------------------------

    def _walk(self, stop: Stop) -> EptWalk:
        """Walk EPT for the access of *stop*.

        The engine reports every access of its page walker as a store; which of them are, the guest's tables tell.
        """
        assert self.ept is not None
        code = SecondLevelCode(stop.error_code)
        access = EptAccess(read=not code.wr and not code.id, write=code.wr, fetch=code.id)
        try:
            return walk_ept(self.ept, self._host.read, stop.address, access, self._host.write)
        except (EptViolation, EptMisconfiguration) as miss:
            reached = reach(self._cpu, stop.address, fetch=bool(code.id))
            if reached is None or reached.final:
                raise locate(miss, reached.gva if reached else None, final=True) from None
        access = PAGING_WRITE if sets_flags(self._cpu, reached.gva) else PAGING_READ
        try:
            return walk_ept(self.ept, self._host.read, stop.address, access, self._host.write)
        except (EptViolation, EptMisconfiguration) as miss:
            raise locate(miss, reached.gva, final=False) from None

    def _map(self, walked: EptWalk, *, writable: bool) -> None:
        size = min(walked.page_size, _LARGE)
        offset = walked.gpa % size
        second_level = self._cpu.engine.second_level
        try:
            second_level.map(walked.gpa - offset, walked.hpa - offset, size, writable=writable)
        except MemoryError:
            self.invalidate()
            second_level.map(walked.gpa - offset, walked.hpa - offset, size, writable=writable)

    @staticmethod
    def _open(opened: dict[int, _Opening], walked: EptWalk, *, writable: bool) -> None:
        page, opening = walked.gpa // PAGE * PAGE, _Opening(walked.hpa // PAGE * PAGE, writable)
        assert opened.get(page) != opening, f"gpa {page:#x} stops again although it is open"
        opened[page] = opening

    def _step(self, opened: dict[int, _Opening]) -> Stop:
        """Execute one instruction with the *opened* pages, by gpa, in the engine's table."""
        engine = self._cpu.engine
        for page, opening in opened.items():
            engine.second_level.map(page, opening.hpa, PAGE, writable=opening.writable)
        engine.flush_tlb()
        try:
            return engine.step()
        finally:
            for page in opened:
                engine.second_level.unmap(page, PAGE)
            engine.flush_tlb()


class _Opening(NamedTuple):
    hpa: int
    writable: bool


class GuestMemory(PagedMemory):
    """Linear memory over EPT: a miss knows the gva that was being translated or used."""

    def __init__(self, state: CpuState, physical: NestedPhysical) -> None:
        super().__init__(state, physical)
        self._read_entry, self._write_entry = physical.read_entry, physical.write_entry

    def translate(self, gva: int, *, write: bool = False, fetch: bool = False, user: bool = False) -> int:
        """Return the gpa of *gva*, with the side effects of the access on the page tables."""
        try:
            return super().translate(gva, write=write, fetch=fetch, user=user)
        except (EptViolation, EptMisconfiguration) as miss:
            raise locate(miss, gva, final=False) from None

    def read(self, gva: int, size: int, *, user: bool) -> int:
        """Read an integer of *size* bytes."""
        try:
            return super().read(gva, size, user=user)
        except (EptViolation, EptMisconfiguration) as miss:
            raise _used(miss, gva) from None

    def write(self, gva: int, size: int, value: int, *, user: bool) -> None:
        """Write an integer of *size* bytes."""
        try:
            super().write(gva, size, value, user=user)
        except (EptViolation, EptMisconfiguration) as miss:
            raise _used(miss, gva) from None

    def read_bytes(self, gva: int, size: int, *, user: bool) -> bytes:
        """Read *size* bytes."""
        try:
            return super().read_bytes(gva, size, user=user)
        except (EptViolation, EptMisconfiguration) as miss:
            raise _used(miss, gva) from None


def locate(miss: Miss, gva: int | None, *, final: bool) -> Miss:
    """Return *miss* with the gva that it met: whose page it is (*final*), or whose translation led there."""
    miss.gva, miss.final = gva, final
    return miss


def _used(miss: Miss, gva: int) -> Miss:
    """Locate *miss*, unless it was met on the way, at *gva* or at the start of a later page."""
    if miss.gva is not None:
        return miss
    while gva % PAGE != miss.gpa % PAGE:
        gva = (gva // PAGE + 1) * PAGE
    return locate(miss, gva, final=True)
