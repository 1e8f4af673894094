"""Accesses to guest-physical addresses where there is no RAM.

The instruction runs on the engine, once, on a scratch page that stands where the access goes: any instruction works,
and what it stored is found on the page. No device is there yet, so loads see all ones, and stores are lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvemu.engine.second_level import PAGE, SecondLevelCode
from hvemu.engine.traps import Kind, Stop
from hvemu.vmx.exit import VmExit
from hvemu.x86.vectors import Fault, Vector

if TYPE_CHECKING:
    from hvemu.cpu.cpu import Cpu

_NOBODY = b"\xff" * PAGE


class Mmio:
    """The physical address space beyond the *ram_size* bytes of RAM; *unclaimed* counts the accesses.

    *scratch_hpa* is a frame of the host's.
    """

    def __init__(self, ram_size: int, scratch_hpa: int) -> None:
        self._ram_size, self._scratch_hpa, self.unclaimed = ram_size, scratch_hpa, 0

    def access(self, cpu: Cpu, stop: Stop) -> VmExit | None:
        """Perform the access at which the engine stopped. Raises #UD for an instruction that begins there: all ones are
        none.
        """
        pages: list[int] = []
        fetched = False
        while stop.kind is Kind.SECOND_LEVEL and stop.address >= self._ram_size:
            if SecondLevelCode(stop.error_code).id:
                if not cpu.engine.fetch():
                    raise Fault(Vector.UD)
                fetched = True  # the instruction begins in RAM, and ends in all ones
            page = stop.address // PAGE * PAGE
            assert page not in pages, f"{stop} on a page that is mapped"
            self.unclaimed += 1
            pages.append(page)
            stop = self._step(cpu, pages)
            if fetched:
                cpu.engine.flush_code()  # translated from the scratch page, which is not code for long
        return cpu.act(stop)

    def _step(self, cpu: Cpu, pages: list[int]) -> Stop:
        engine, hpa = cpu.engine, self._scratch_hpa
        engine.ram[hpa : hpa + PAGE] = _NOBODY
        for page in pages:
            engine.second_level.map(page, hpa, PAGE)
        engine.flush_tlb()
        try:
            return engine.step()
        finally:
            for page in pages:
                engine.second_level.unmap(page, PAGE)
            engine.flush_tlb()
