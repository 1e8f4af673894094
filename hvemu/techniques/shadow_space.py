"""The linear address space that a deprivileged guest really runs in: shadow page tables, and the monitor's own pages.

The monitor needs a place in it for what the processor reads there: descriptor tables and a TSS. It takes one that the
guest does not use, and moves when the guest begins to.
"""

from __future__ import annotations

from hvemu.cpu.deliver import Event
from hvemu.cpu.linear import Linear
from hvemu.engine.traps import Kind, Stop
from hvemu.memory.physical import Ram
from hvemu.memory.shadow import Cause, Shadow, ShadowFault
from hvemu.memory.shadow_tree import PAGE, ShadowEntry, leaf
from hvemu.memory.walk import Access, Meaning, explain
from hvemu.techniques.base import Shutdown
from hvemu.techniques.ring import RingView
from hvemu.techniques.shadow_descriptors import PAGES, ShadowTable
from hvemu.techniques.vm import Vm
from hvemu.vmx.exit import VmExit
from hvemu.x86.cpuid import PHYSICAL_ADDRESS_WIDTH
from hvemu.x86.decode import Truncated
from hvemu.x86.paging import Paging
from hvemu.x86.registers import Cr0, Cr4, Efer, Rflags
from hvemu.x86.segments import DESCRIPTOR, Descriptor, ErrorCode, Selector
from hvemu.x86.state import AccessRights, Segment, TableRegister
from hvemu.x86.tss import IO_MAP_BASE, LIMIT32
from hvemu.x86.vectors import Fault, PageFaultCode, Vector

PLACES = tuple(range(0xFF80_0000, 0xC000_0000, -0x40_0000))
"""Where the monitor may be, in gvas: 4 MiB each, the first choice first."""
_LDT_AT, _IDT_AT, _TSS_AT = PAGES * PAGE, 2 * PAGES * PAGE, (2 * PAGES + 1) * PAGE
_PAGES = 2 * PAGES + 2
_IDT_LIMIT, _TSS_SELECTOR = 0x7FF, 0xFFF8
_BUSY_TSS = AccessRights(type=11, p=1)
_CR0 = Cr0(pe=1, et=1, ne=1, wp=1, pg=1)
_GUEST_CR0 = int(Cr0(mp=1, em=1, ts=1, am=1))
_GUEST_CR4 = int(Cr4(tsd=1, de=1, pce=1, osfxsr=1, osxmmexcpt=1, umip=1, fsgsbase=1, smep=1, smap=1))
_TYPE_BYTE, _ACCESSED = 5, 1
_TRIES = 16  # pages that one instruction may touch, and then some


class TracedRam:
    """The guest's RAM for what the monitor does in the guest's name: stores into page tables and the GDT count."""

    def __init__(self, ram: Ram, space: ShadowSpace) -> None:
        self._ram, self._space = ram, space

    def read(self, gpa: int, size: int) -> int:
        """Read an integer of *size* bytes."""
        return self._ram.read(gpa, size)

    def read_bytes(self, gpa: int, size: int) -> bytes:
        """Read *size* bytes."""
        return self._ram.read_bytes(gpa, size)

    def write(self, gpa: int, size: int, value: int) -> None:
        """Write an integer of *size* bytes."""
        self._ram.write(gpa, size, value)
        self._space.written(gpa, size)

    def write_bytes(self, gpa: int, data: bytes) -> None:
        """Write *data*."""
        self._ram.write_bytes(gpa, data)
        self._space.written(gpa, len(data))


class ShadowSpace:
    """Shadow page tables and shadow descriptor tables of the guest that *view* shows."""

    def __init__(self, vm: Vm, view: RingView) -> None:
        self._engine, self._cpu, self._ram, self._view = vm.engine, vm.cpu, vm.ram, view
        self._host = Ram(vm.engine.ram)
        self._scratch = vm.frames.allocate()
        self._own = [vm.frames.allocate() for _ in range(_PAGES)]
        for hpa in self._own:
            self._host.write_bytes(hpa, bytes(PAGE))
        self._host.write(self._own[_TSS_AT // PAGE] + IO_MAP_BASE, 2, LIMIT32 + 1)  # no port is allowed
        self._gdt = ShadowTable(self._host, self._own[:PAGES])
        self._ldt = ShadowTable(self._host, self._own[PAGES : 2 * PAGES])
        self.shadow = Shadow(vm.ram, self._host, vm.frames, self._to_host)
        self._watched: set[int] = set()
        self._place, self._way = PLACES[0], set[int]()
        self._start()

    def _to_host(self, gpa: int) -> int | None:
        return self._ram.base + gpa if gpa < self._ram.size else None

    def _start(self) -> None:
        """Turn on the paging that the guest does not know of."""
        state = self._cpu.state
        state.cr0 = int(Cr0(pe=1, et=1))
        state.efer = int(Efer(nxe=1))
        state.cr4 = self._real_cr4()
        root = self.shadow.activate(self._paging())
        self._pin()
        state.cr3 = root
        state.cr0 = self._real_cr0()
        self.tables_changed()

    # -- what the guest changes ---------------------------------------------------------------------------------

    def _paging(self) -> Paging:
        return Paging.of(self._view, PHYSICAL_ADDRESS_WIDTH)

    def _real_cr0(self) -> int:
        return int(_CR0) | self._view.cr0 & _GUEST_CR0

    def _real_cr4(self) -> int:
        return int(Cr4(self._view.cr4 & _GUEST_CR4).replace(pae=1))

    def paging_changed(self) -> None:
        """Follow the guest's CR0, CR3, CR4 and EFER. Raises Shutdown for modes that cannot be deprivileged."""
        view, state = self._view, self._cpu.state
        if Efer(view.efer).lma:
            raise Shutdown("deprivilege cannot run long mode: 64-bit segments have no limits or rings to hide in")
        if not Cr0(view.cr0).pe:
            raise Shutdown("deprivilege cannot run real mode: it has no rings")
        for register, value in (("cr0", self._real_cr0()), ("cr4", self._real_cr4())):
            if getattr(state, register) != value:
                setattr(state, register, value)
                self._cpu.arm()
        state.cr3 = self.shadow.activate(self._paging())
        if self._occupied():
            self._move()
        self.tables_changed()

    def invalidate_page(self, gva: int) -> None:
        """INVLPG, after which the guest may rely on a descriptor table at *gva* in its new place too."""
        if self.shadow.invlpg(gva):
            self._engine.flush_tlb()
        if any(table.base // PAGE <= gva // PAGE <= (table.base + table.limit) // PAGE for table in self._tables()):
            self.tables_changed()

    def _tables(self) -> tuple[TableRegister | Segment, ...]:
        return self._view.gdtr, self._view.ldtr

    def tables_changed(self) -> None:
        """Make the shadow descriptor tables anew, from where GDTR and LDTR and the guest's paging have them now."""
        view, state = self._view, self._cpu.state
        pages: set[int] = set()
        self._gdt.refresh(self._table(view.gdtr.base, view.gdtr.limit, pages))
        ldtr = view.ldtr
        if not ldtr.rights.unusable:
            self._ldt.refresh(self._table(ldtr.base, ldtr.limit, pages))
            ldtr = Segment(ldtr.selector, self._place + _LDT_AT, min(ldtr.limit, PAGES * PAGE - 1), ldtr.rights)
        self._watched = pages
        if self.shadow.traces.watch(pages | self._way_pages()):
            self._engine.flush_tlb()
        state.ldtr = ldtr
        state.gdtr = TableRegister(self._place, view.gdtr.limit)

    def _way_pages(self) -> set[int]:
        """Return the pages (hpa) of the guest's entries that say whether it uses the monitor's place."""
        places = (self._to_host(gpa) for gpa in self._way)
        return {hpa // PAGE * PAGE for hpa in places if hpa is not None}

    def _table(self, base: int, limit: int, pages: set[int]) -> bytes:
        """Return the bytes of a descriptor table; what is not mapped is 0. Adds the *pages* (hpa) where it lies."""
        data, end = b"", base + min(limit, PAGES * PAGE - 1) + 1
        while base < end:
            part = min(end - base, PAGE - base % PAGE)
            gpa = self._translate(base)
            hpa = None if gpa is None else self._to_host(gpa)
            if gpa is None or hpa is None:
                data += bytes(part)
            else:
                pages.add(hpa // PAGE * PAGE)
                data += self._ram.read_bytes(gpa, part)
            base += part
        return data

    def _translate(self, gva: int) -> int | None:
        """Return where the guest's tables map *gva*, without any effect on them."""
        steps = explain(self._paging(), self._ram.read, gva)
        if not steps:
            return gva
        last = steps[-1]
        return last.entry.gpa + gva % last.span if last.meaning is Meaning.PAGE else None

    def written(self, gpa: int, size: int) -> None:
        """Follow up a store into the guest's RAM that the processor did not make by itself."""
        if self.shadow.written(gpa, size):
            self._engine.flush_tlb()
        hpa = self._to_host(gpa)
        if any(gpa <= entry < gpa + size for entry in self._way) and self._occupied():
            self._move()
            self.tables_changed()
        elif hpa is not None and hpa // PAGE * PAGE in self._watched:
            self.tables_changed()

    def reveal(self, code: ErrorCode, linear: Linear) -> bool:
        """Set the accessed bit of the segment that *code* names, and let the processor see it; return whether it did.

        The processor found it not present after all its other checks.
        """
        selector = Selector(int(code) & ~int(ErrorCode(ext=1, idt=1)))
        if selector.null or code.idt:
            return False
        table, base = (self._ldt, self._view.ldtr.base) if selector.ti else (self._gdt, self._view.gdtr.base)
        descriptor = Descriptor(int.from_bytes(table.guest[selector.offset : selector.offset + DESCRIPTOR], "little"))
        kind = descriptor.code_or_data
        if not descriptor.p or kind is None or kind.accessed:
            return False
        linear.write(base + selector.offset + _TYPE_BYTE, 1, int(descriptor.rights) & 0xFF | _ACCESSED, user=False)
        return True

    # -- the monitor's own pages ----------------------------------------------------------------------------------

    def _pin(self) -> None:
        for n, hpa in enumerate(self._own):
            self.shadow.pin(self._place + n * PAGE, hpa)
        state = self._cpu.state
        state.idtr = TableRegister(self._place + _IDT_AT, _IDT_LIMIT)
        state.tr = Segment(_TSS_SELECTOR, self._place + _TSS_AT, LIMIT32, _BUSY_TSS)

    def _occupied(self) -> bool:
        """Whether the guest's tables map anything where the monitor is. Remembers which entries say so."""
        paging, self._way = self._paging(), set()
        occupied = False
        for gva in (self._place, self._place + _HALF):
            steps = explain(paging, self._ram.read, gva)
            self._way |= {step.entry_gpa for step in steps}
            free = not steps or (steps[-1].meaning is Meaning.NOT_PRESENT and steps[-1].span >= _HALF)
            occupied |= not free
        return occupied

    def _move(self) -> None:
        """Go where the guest maps nothing. Raises Shutdown when there is no such place."""
        for n in range(_PAGES):
            self.shadow.unpin(self._place + n * PAGE)
        for place in PLACES:
            self._place = place
            if not self._occupied():
                self._pin()
                self._engine.flush_tlb()
                return
        raise Shutdown("the guest uses every linear address at which the monitor could be")

    # -- page faults ----------------------------------------------------------------------------------------------

    def page_fault(self, exit_: VmExit) -> VmExit | None:
        """Find out what the page fault *exit_* was, and mend it. Raises the Fault that is the guest's own.

        Return an exit that emulating the instruction led to, if any.
        """
        gva = exit_.qualification
        exit_.detail = f"gva {gva:#x}"
        fault = self._resolve(gva, exit_.error_code)
        exit_.what = _NAMES[fault.cause]
        if fault.retry:
            return None
        if fault.cause is Cause.CONFLICT:
            self._move()
            self.tables_changed()
            return None
        return self._step_through(gva, exit_.error_code, fault)

    def _resolve(self, gva: int, error_code: int) -> ShadowFault:
        code = PageFaultCode(error_code)
        access = Access(write=code.wr, fetch=code.id, user=code.us, ac=Rflags(self._view.rflags).ac)
        fault = self.shadow.fault(gva, access)
        if fault.flush:
            self._engine.flush_tlb()
        return fault

    def _step_through(self, gva: int, error_code: int, fault: ShadowFault) -> VmExit | None:
        """Let the instruction at RIP run once with the page at *gva* open, and follow up what it stored."""
        opened: dict[int, bytes] = {}  # gpa of a page: its bytes before
        leaves: dict[int, tuple[ShadowEntry, ShadowEntry]] = {}  # gva of a page: its leaf, open and as it was
        try:
            for _ in range(_TRIES):
                if not fault.retry:
                    self._open(gva, PageFaultCode(error_code).us, fault, opened, leaves)
                stop = self._engine.step()
                if not _is_page_fault(stop):
                    break
                gva, error_code = stop.address, stop.error_code
                fault = self._resolve(gva, error_code)
            else:
                raise AssertionError(f"{stop} again and again at gva {gva:#x}")
        finally:
            self._close(leaves)
        for gpa, before in opened.items():
            self._follow_up(gpa, before)
        return self._ended(stop)

    def _ended(self, stop: Stop) -> VmExit | None:
        """Return the exit that a single instruction ended with; one that is no instruction is #UD."""
        cpu = self._cpu
        try:
            return cpu.act(stop)
        except Truncated:  # it was fetched where there is no RAM
            return cpu.deliver(Event.exception(Fault(Vector.UD), cpu.state.rip))
        except Fault as fault:
            return cpu.deliver(Event.exception(fault, cpu.state.rip))

    def _open(
        self, gva: int, user: int, fault: ShadowFault, opened: dict[int, bytes],
        leaves: dict[int, tuple[ShadowEntry, ShadowEntry]],
    ) -> None:  # fmt: skip
        """Map the page at *gva* for one instruction; where there is no RAM, a page of ones."""
        gpa, hpa = fault.gpa // PAGE * PAGE, self._to_host(fault.gpa)
        if hpa is None:
            hpa = self._scratch
            self._host.write_bytes(hpa, b"\xff" * PAGE)
        else:
            hpa = hpa // PAGE * PAGE
            opened[gpa] = self._ram.read_bytes(gpa, PAGE)
        tree = self.shadow.tree
        page = tree.fold(gva)
        old = tree.leaf(page)
        new = old.replace(w=1) if old.p and old.hpa == hpa else leaf(hpa, w=True, u=bool(user), nx=False)
        tree.set_leaf(page, new)
        leaves[page] = new, old
        self._engine.flush_tlb()

    def _close(self, leaves: dict[int, tuple[ShadowEntry, ShadowEntry]]) -> None:
        """Put the leaves back as they were, unless they are gone meanwhile."""
        tree = self.shadow.tree
        for page, (opened, old) in leaves.items():
            if tree.leaf(page) == opened:
                tree.set_leaf(page, old)
        self._engine.flush_tlb()

    def _follow_up(self, gpa: int, before: bytes) -> None:
        after = self._ram.read_bytes(gpa, PAGE)
        if before == after:
            return
        first, last = _difference(before, after)
        self.written(gpa + first, last - first)


_HALF = 0x20_0000
_NAMES = {
    Cause.HIDDEN: "HIDDEN_PAGE",
    Cause.WP_OFF: "WRITE_WITH_WP_OFF",
    Cause.TRACED_WRITE: "TRACED_WRITE",
    Cause.MMIO: "NO_RAM",
    Cause.UNMAPPABLE: "UNMAPPABLE_PAGE",
    Cause.CONFLICT: "MONITOR_MOVES",
}


def _is_page_fault(stop: Stop) -> bool:
    return stop.kind is Kind.EXCEPTION and stop.detail == Vector.PF


def _difference(before: bytes, after: bytes) -> tuple[int, int]:
    """Return (first, last + 1) of the 8-byte pieces in which two pages differ."""
    first, last = 0, len(before)
    size = len(before) // 2
    while size >= DESCRIPTOR:
        if before[first : first + size] == after[first : first + size]:
            first += size
        if before[last - size : last] == after[last - size : last]:
            last -= size
        size //= 2
    return first, last
