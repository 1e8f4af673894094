"""Guest memory for someone who only watches: no accessed bit is set, no device is read, nothing leaves the guest."""

from __future__ import annotations

from collections.abc import Iterator

from hvemu.errors import InputError
from hvemu.memory.ept_walk import LOOK, EptMisconfiguration, EptStep, EptViolation, walk_ept
from hvemu.memory.nested import NestedPhysical
from hvemu.memory.walk import Meaning, Step, explain
from hvemu.techniques.vm import Vm
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.paging import PAGE, Paging, PagingMode


class NotMappedError(InputError):
    """The guest's page tables lead nowhere from the gva that a person asked for."""


class GuestMemory:
    """The memory of *vm*'s guest, by gva as its page tables have it now and by gpa. Outside RAM all bytes are 0xff."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    @property
    def paging(self) -> Paging:
        """How the guest translates now."""
        return Paging.of(self._vm.technique.view, PHYSICAL_ADDRESS_WIDTH)

    def steps(self, gva: int) -> tuple[Step, ...]:
        """Return the entries of the guest's page tables on the way to *gva*, as far as they lead. None: no paging.

        Raises NotMappedError for a gva that is not canonical.
        """
        paging = self.paging
        if not paging.canonical(gva):
            raise NotMappedError(f"gva {gva:#x} is not canonical")
        return explain(paging, self._read, gva)

    def translate(self, gva: int) -> int:
        """Return the gpa of *gva*, whatever the rights. Raises NotMappedError, naming the entry that ends the walk."""
        gva &= self.paging.geometry.linear
        if self.paging.mode is PagingMode.NONE:
            return gva
        last = self.steps(gva)[-1]
        if last.meaning is not Meaning.PAGE:
            raise NotMappedError(f"gva {gva:#x} is not mapped: {last}")
        return last.entry.gpa + gva % last.span

    def linear(self, gva: int, size: int) -> bytes:
        """Read up to *size* bytes at *gva*: fewer where a later page is not mapped. Raises NotMappedError for none."""
        data = b""
        for start, part in _pages(gva, size):
            try:
                gpa = self.translate(start)
            except NotMappedError:
                if not data:
                    raise
                break
            data += self.physical(gpa, part)
        return data

    def physical(self, gpa: int, size: int) -> bytes:
        """Read *size* bytes at *gpa*."""
        return b"".join(self._page(start, part) for start, part in _pages(gpa, size))

    def ept(self, gpa: int) -> tuple[tuple[EptStep, ...], int | None] | None:
        """Return the EPT entries on the way from *gpa*, and the hpa, or None where they lead nowhere.

        None instead of both: this technique has no EPT.
        """
        nested = self._vm.technique.physical
        if not isinstance(nested, NestedPhysical):
            return None
        try:
            walked = walk_ept(nested.ept, nested.host.read, gpa, LOOK)
        except (EptViolation, EptMisconfiguration) as miss:
            return miss.steps, None
        return walked.steps, walked.hpa

    def _page(self, gpa: int, size: int) -> bytes:
        """Read *size* bytes of one page: as EPT translates it, or the RAM that the hypervisor would map there."""
        nested, second = self._vm.technique.physical, self.ept(gpa)
        if isinstance(nested, NestedPhysical):
            if second is None or second[1] is None:
                return self._vm.ram.read_bytes(gpa, size)
            return nested.host.read_bytes(second[1], size)
        return nested.read_bytes(gpa, size)

    def _read(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.physical(gpa, size), "little")


def _pages(address: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (address, bytes) of the pieces of *size* bytes, cut at page boundaries."""
    end = address + size
    while address < end:
        part = min(end, address - address % PAGE + PAGE) - address
        yield address, part
        address += part
