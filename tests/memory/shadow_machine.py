"""A guest on a shadow, and all that judges it: a processor that walks trees, and a twin that has no shadow.

Nothing here uses the shadow's own idea of its trees: they are read from host memory, bit by bit.
"""

from __future__ import annotations

from hvemu.memory.frames import Frames
from hvemu.memory.physical import Ram
from hvemu.memory.shadow import Cause, Shadow
from hvemu.memory.walk import Access, Meaning, explain, walk
from hvemu.x86.paging import Paging, PagingMode
from hvemu.x86.vectors import Fault

PAGE = 0x1000
P, W, U, A, D, PS, XD = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
ADDRESS = 0xF_FFFF_FFFF_F000
TABLES, GUEST = 0x1_0000, 0x8_0000  # hpa of the shadow's frames and of guest RAM
EMPTY = memoryview(bytes(PAGE)).cast("Q")
PIN = 0x9000  # hpa of the monitor's own page


class Processor:
    """Translates as a processor with CR0.WP = EFER.NXE = 1 does, and keeps whatever it may keep until it is flushed.

    Several translations of one page may be cached at a time, as an instruction and a data TLB do. Any of them is used.
    """

    def __init__(self, buffer: bytearray) -> None:
        self.words = memoryview(buffer).cast("Q")
        self.tlb: dict[int, list[tuple[int, bool, bool, bool]]] = {}
        self.structures: dict[int, int] = {}  # 2 MiB region -> last table

    def word(self, hpa: int) -> int:
        return self.words[hpa // 8]

    def load(self, root: int, paging: Paging) -> None:
        """MOV to CR3, CR0, CR4."""
        self.smep, self.smap = paging.smep, paging.smap
        self.long = paging.mode is PagingMode.LEVEL4
        self.root, self.pdptes = root, [self.word(root + 8 * n) for n in range(4)]
        if not self.long:
            assert root < 1 << 32
            assert not root % 32
            assert all(e & 0xFFF0_0000_0000_01E6 == 0 for e in self.pdptes if e & P)
        self.flush()

    def flush(self) -> None:
        self.tlb.clear()
        self.structures.clear()

    def last_table(self, gva: int) -> int | None:
        if (cached := self.structures.get(gva >> 21)) is not None:
            return cached
        if self.long:
            table, shifts = self.root, (39, 30, 21)
        else:
            entry = self.pdptes[gva >> 30]
            if not entry & P:
                return None
            table, shifts = entry & ADDRESS, (21,)
        for shift in shifts:
            entry = self.word(table + (gva >> shift & 511) * 8)
            if not entry & P:
                return None
            assert entry & (P | W | U | A | PS | XD) == P | W | U | A, f"{entry:#x} at {shift}"
            table = entry & ADDRESS
        self.structures[gva >> 21] = table
        return table

    def translate(self, gva: int, access: Access) -> int | None:
        """Return the hpa, or None for a page fault, after which nothing is cached for *gva*."""
        if self.long and gva >> 47 not in (0, 0x1FFFF):
            return None  # the processor raises #GP
        gva &= (1 << 48) - 1 if self.long else (1 << 32) - 1
        page = gva >> 12
        for hpa, w, u, nx in self.tlb.get(page, []):
            if self.allows(access, w, u, nx):
                return hpa | gva & 0xFFF
        table = self.last_table(gva)
        entry = 0 if table is None else self.word(table + (page & 511) * 8)
        if entry & P:
            assert entry & A, "the processor would have to write to the tree"
            assert entry & 0x7FF0_0000_0000_0198 == 0, f"{entry:#x}"
            rights = bool(entry & W), bool(entry & U), bool(entry & XD)
            if self.allows(access, *rights):
                assert entry & D or not access.write, "the processor would have to write to the tree"
                self.tlb.setdefault(page, []).append((entry & ADDRESS, *rights))
                return entry & ADDRESS | gva & 0xFFF
        self.tlb.pop(page, None)  # SDM 3A "Invalidation of TLBs and Paging-Structure Caches"
        self.structures.pop(gva >> 21, None)
        return None

    def allows(self, access: Access, w: bool, u: bool, nx: bool) -> bool:
        if access.user and not u:
            return False
        if access.fetch:
            return not nx and (access.user or not u or not self.smep)
        if not access.user and u and self.smap and (access.implicit_supervisor or not access.ac):
            return False
        return w or not access.write


class Machine:
    """A guest with *ram* bytes, its shadow with *frames* frames, and the twin's memory."""

    def __init__(self, *, ram: int = 24 * PAGE, frames: int = 48, pins: tuple[int, ...] = (), **options) -> None:
        self.ram, self.pins = ram, pins
        self.buffer = bytearray(GUEST + ram)
        self.guest, self.twin = Ram(self.buffer, GUEST), Ram(bytearray(ram))
        self.frames = Frames(TABLES, frames * PAGE)
        self.shadow = Shadow(self.guest, Ram(self.buffer), self.frames, self.to_host, **options)
        for gva in pins:
            self.shadow.pin(gva, PIN)
        self.processor = Processor(self.buffer)
        self.checked = b""

    def to_host(self, gpa: int) -> int | None:
        return GUEST + gpa if gpa < self.ram else None

    def poke(self, gpa: int, value: int, size: int = 8) -> None:
        """Fill memory before the run."""
        self.guest.write(gpa, size, value)
        self.twin.write(gpa, size, value)

    def activate(self, paging: Paging) -> None:
        self.processor.load(self.shadow.activate(paging), paging)

    def told(self, flush: bool) -> None:
        if flush:
            self.processor.flush()

    def dma(self, gpa: int, value: int, size: int) -> None:
        self.poke(gpa, value, size)
        self.told(self.shadow.written(gpa, size))

    def access(self, gva: int, access: Access, size: int = 1, value: int = 0) -> tuple[int | Fault, Cause | None]:
        """Do *access* on both sides and compare; return where it went, or its fault, and what the shadow met first."""
        expected = self.without_shadow(gva, access, size, value)
        try:
            end, cause = self.with_shadow(gva, access, size, value)
        except Fault as fault:
            end, cause = fault, None
        assert expected == end, f"{expected} without a shadow, with one {end} ({cause}), gva {gva:#x}"
        assert self.same(), f"memory differs after gva {gva:#x}, {cause}"
        return end, cause

    def without_shadow(self, gva: int, access: Access, size: int, value: int) -> int | Fault:
        try:
            gpa = walk(self.shadow.paging, self.twin.read, gva, access, self.twin.write).gpa
        except Fault as fault:
            return fault
        if access.write:
            self.twin.write(gpa, size, value)
        return gpa

    def with_shadow(self, gva: int, access: Access, size: int, value: int) -> tuple[int | Fault, Cause | None]:
        cause = None
        if (hpa := self.processor.translate(gva, access)) is None:
            found = self.shadow.fault(gva, access)
            cause = found.cause
            self.told(found.flush)
            if not found.retry:
                return self.emulate(found.gpa, access, size, value), cause
            hpa = self.processor.translate(gva, access)
            assert hpa is not None, f"{found} and yet the access does not pass"
        gpa = hpa - GUEST
        if access.write:
            self.guest.write(gpa, size, value)
        return gpa, cause

    def emulate(self, gpa: int, access: Access, size: int, value: int) -> int:
        if access.write:
            self.guest.write(gpa, size, value)
            self.told(self.shadow.written(gpa, size))
        return gpa

    def same(self) -> bool:
        return self.guest.read_bytes(0, self.ram) == self.twin.read_bytes(0, self.ram)

    # -- the trees, as they lie in memory

    def leaves(self, root: int, levels: int) -> tuple[dict[int, int], set[int]]:
        """Return {gva: leaf} and the hpa of every table."""
        found: dict[int, int] = {}
        tables: set[int] = set()
        self._collect(root, levels - 1, 0, found, tables)
        return found, tables

    def _collect(self, table: int, level: int, base: int, found: dict[int, int], tables: set[int]) -> None:
        assert table not in tables, "a table is used twice"
        tables.add(table)
        entries = self.processor.words[table // 8 : table // 8 + 512]
        if entries == EMPTY:
            return
        for n in [n for n, entry in enumerate(entries.tolist()) if entry]:
            assert entries[n] & P
            gva = base + (n << 12 + 9 * level)
            if level:
                self._collect(entries[n] & ADDRESS, level - 1, gva, found, tables)
            else:
                found[gva] = entries[n]

    def check(self) -> None:
        """No leaf promises more than the guest's tables do, reaches outside the guest, or writes to a guest table."""
        if self.buffer == self.checked:
            return
        self.checked = bytes(self.buffer)
        used: set[int] = set()
        guest_tables: set[int] = set()
        writers: dict[int, set] = {}
        for paging, tree in self.shadow._trees.items():
            leaves, tables = self.leaves(tree.root, 4 if paging.mode is PagingMode.LEVEL4 else 3)
            assert not tables & used
            used |= tables
            for gva in self.pins:
                assert leaves.pop(gva) & (P | W | U | XD | ADDRESS) == P | XD | PIN
            for gva, entry in leaves.items():
                guest_tables |= self.check_leaf(paging, gva, entry)
                if entry & W:
                    writers.setdefault(entry & ADDRESS, set()).add((tree, gva))
        assert not writers.keys() & guest_tables
        assert not writers.keys() & set(self.shadow.traces)
        assert guest_tables <= set(self.shadow.traces)
        assert {hpa: set(leaves) for hpa, leaves in self.shadow.traces._writers.items()} == writers
        assert self.frames.total - self.frames.free_count == len(used), "frames leak"

    def check_leaf(self, paging: Paging, gva: int, entry: int) -> set[int]:
        """Judge one leaf by the guest's tables; return the hpa of their pages."""
        if paging.mode is PagingMode.LEVEL4 and gva >> 47:
            gva |= 0xFFFF << 48
        assert GUEST <= entry & ADDRESS < GUEST + self.ram
        steps = explain(paging, self.guest.read, gva)
        if not steps:
            assert entry & ADDRESS == gva + GUEST
            return set()
        last = steps[-1]
        assert last.meaning is Meaning.PAGE
        assert last.entry.gpa + gva % last.span + GUEST == entry & ADDRESS
        pae_pdpte = [W | U if paging.mode is PagingMode.PAE and step.level == 3 else 0 for step in steps]
        rights = [int(step.entry) | extra for step, extra in zip(steps, pae_pdpte, strict=True)]
        user, read_write = all(r & U for r in rights), all(r & W for r in rights)
        xd = any(r & XD for r in rights)
        assert user or not entry & U
        assert entry & XD or not xd
        assert all(step.entry & A for step in steps if paging.mode is not PagingMode.PAE or step.level < 3)
        if entry & W:
            assert last.entry & D
            assert read_write or not (paging.wp or entry & U)
            if user and not read_write:
                assert not paging.smap
                assert entry & XD or not paging.smep
        return {(GUEST + step.entry_gpa) & ADDRESS for step in steps}
