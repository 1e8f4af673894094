"""The engine's own page walk, asked by running one real instruction, and what the walker says of the same access.

Physical layout: the top table at 0x1000, the tables of the path under test 4 MiB apart, so that PS set in any of them
maps RAM; every 8 bytes of the pages that it can lead to are a marker (an instruction that does nothing, and which
differs between pages), HLT, and the descriptor bytes that make it a data segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hvemu.engine.engine import Engine
from hvemu.engine.traps import Kind
from hvemu.memory.walk import Access, Meaning, explain, walk
from hvemu.x86.paging import Paging, PagingMode, Pdpte1G, mask
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.state import AccessRights, Segment, TableRegister
from hvemu.x86.vectors import Fault, Vector

MIB = 1 << 20
RAM, MAXPHYADDR = 32 * MIB, 40
MARKERS = bytes((0x90, 0xF5, 0xF8, 0xF9, 0xFC, 0x99, 0x98))  # NOP, CMC, CLC, STC, CLD, CDQ, CWDE
CODE = {"read": b"\x8a\x07", "write": b"\x88\x07", "fetch": b"\xff\xe7", "implicit": b"\x8e\xe0"}
"""MOV AL,[rDI]; MOV [rDI],AL; JMP rDI; MOV FS,AX, which reads a descriptor. The same bytes in 32 and 64 bits."""
CODE_PAGE = {0: 0x5000, 3: 0x6000}
TOP, CODE_TABLES = 0x1000, 0x10000
SELECTOR, STORED = 0x0B, 0xA5
P, RW, US, PWT, PCD, A, D, PS, NX = (1 << n for n in (0, 1, 2, 3, 4, 5, 6, 7, 63))
PG, PE, ET, WP = 1 << 31, 1, 0x10, 1 << 16
PSE, PAE, LA57, SMEP, SMAP = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21
LMA, LME, NXE, AC = 1 << 10, 1 << 8, 1 << 11, 1 << 18


@dataclass(frozen=True)
class Shape:
    """A paging mode and a page size. *shifts*: lowest index bit of each level, *indices* those of the gva under test.

    *entries*: the permissive entries without their A, D bits, top first.
    """

    name: str
    mode: PagingMode
    shifts: tuple[int, ...]
    indices: tuple[int, ...]
    entries: tuple[int, ...]
    cr4: int = 0

    @property
    def long(self) -> bool:
        return self.mode in (PagingMode.LEVEL4, PagingMode.LEVEL5)

    @property
    def size(self) -> int:
        return 4 if self.mode is PagingMode.BITS32 else 8

    @cached_property
    def gva(self) -> int:
        gva = sum(n << shift for n, shift in zip(self.indices, self.shifts, strict=True)) | 0xAB8
        return gva | -1 << self.shifts[0] + 9 & (1 << 64) - 1 if self.long else gva

    @cached_property
    def path(self) -> tuple[int, ...]:
        """The gpa of every entry under test."""
        tables = (TOP, *(n * 4 * MIB for n in range(1, len(self.entries))))
        return tuple(t + n * self.size for t, n in zip(tables, self.indices, strict=False))

    def __str__(self) -> str:
        return self.name


FULL = P | RW | US
LEAF4K, LEAF2M, LEAF4M, LEAF1G = 0x160_0000 | FULL, 0x180_0000 | FULL | PS, 0x180_0000 | FULL | PS, FULL | PS
T1, T2, T3, T4 = (n * 4 * MIB | FULL for n in (1, 2, 3, 4))
_32, _PAE = (PagingMode.BITS32, (22, 12), (0x3FE, 0x123)), (PagingMode.PAE, (30, 21, 12), (2, 0xA, 0x123))
_L4 = (PagingMode.LEVEL4, (39, 30, 21, 12), (0x1FE, 0x5A, 0xA, 0x123))
_L5 = (PagingMode.LEVEL5, (48, 39, 30, 21, 12), (0x1FE, 0x77, 0x5A, 0xA, 0x123))
SHAPES = (
    Shape("32-bit 4K", *_32, (T1, LEAF4K), PSE),
    Shape("32-bit 4M", *_32, (LEAF4M,), PSE),
    Shape("32-bit without PSE", *_32, (T1 | PS, LEAF4K)),
    Shape("PAE 4K", *_PAE, (T1 & ~FULL | P, T2, LEAF4K)),
    Shape("PAE 2M", *_PAE, (T1 & ~FULL | P, LEAF2M)),
    Shape("4-level 4K", *_L4, (T1, T2, T3, LEAF4K)),
    Shape("4-level 2M", *_L4, (T1, T2, LEAF2M)),
    Shape("4-level 1G", *_L4, (T1, LEAF1G)),
    Shape("5-level 4K", *_L5, (T1, T2, T3, T4, LEAF4K)),
    Shape("5-level 2M", *_L5, (T1, T2, T3, LEAF2M)),
)


class Oracle:
    """One engine with *shape* set up in it; `settle` chooses the processor's settings, `check` compares one access."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.engine = shape, Engine(RAM)
        engine, self.state = self.engine, self.engine.state
        engine.second_level.map(0, 0, RAM)
        for page in self._targets():
            marker = MARKERS[page // 0x1000 % len(MARKERS)]
            engine.ram[page : page + 0x1000] = bytes((marker, 0xF4, 0, 0, 0, 0xF3, 0, 0)) * 512
        for table in (TOP, *range(4 * MIB, 20 * MIB, 4 * MIB)):
            engine.ram[table : table + 0x1000] = bytes(0x1000)
        self.words = memoryview(engine.ram).cast("I" if shape.size == 4 else "Q")
        self.slots = [gpa // shape.size for gpa in shape.path]
        self._map_code()
        self._enter()

    def _targets(self) -> set[int]:
        """Return the pages that the gva can lead to, whatever the size of the page that maps it."""
        gva, frames = self.shape.gva, (0, *(entry & -0x1000 for entry in self.shape.entries))
        pages = {frame + gva % (1 << shift) & -0x1000 for frame in frames for shift in self.shape.shifts}
        return {page for page in pages if page < RAM}

    def _map_code(self) -> None:
        """Map the code pages through tables of their own, in entries whose A and D bits are set."""
        table, size = TOP, self.shape.size
        for n in range(len(self.shape.shifts) - 1):
            below = CODE_TABLES + n * 0x1000
            self.engine.ram[below : below + 0x1000] = bytes(0x1000)
            rights = P if self.shape.mode is PagingMode.PAE and n == 0 else FULL | A
            self.words[table // size] = below | rights
            table = below
        for cpl, page in CODE_PAGE.items():
            self.words[table // size + page // 0x1000] = page | P | RW | A | D | (US if cpl else 0)
            for n, code in enumerate(CODE.values()):
                self.engine.ram[page + 16 * n : page + 16 * n + 2] = code

    def _enter(self) -> None:
        shape, state = self.shape, self.state
        self.cr4 = shape.cr4 | (0 if shape.mode is PagingMode.BITS32 else PAE)
        self.cr4 |= LA57 if shape.mode is PagingMode.LEVEL5 else 0
        self.engine.write_cr(0, PE | ET)
        self.engine.write_cr(4, self.cr4)
        self.engine.write_cr(3, TOP)
        state.efer = LMA | LME if shape.long else 0
        self.engine.write_cr(0, PG | PE | ET)
        state.gdtr = TableRegister(shape.gva - 8, 0xF)
        state.regs[Gpr.RDI] = shape.gva

    def settle(self, *, wp: bool, nxe: bool, smep: bool, smap: bool, ac: bool, cpl: int) -> None:
        """Bring the processor into the given state."""
        state, engine, long = self.state, self.engine, self.shape.long
        engine.write_cr(0, PG | PE | ET | (WP if wp else 0))
        engine.write_cr(4, self.cr4 | (SMEP if smep else 0) | (SMAP if smap else 0))
        state.efer = (LMA | LME if long else 0) | (NXE if nxe else 0)
        code = AccessRights(type=11, s=1, p=1, db=not long, l=long, g=1, dpl=cpl)
        data = AccessRights(type=3, s=1, p=1, db=1, g=1, dpl=cpl)
        for sreg in (Sreg.ES, Sreg.DS, Sreg.SS):
            state.set_segment(sreg, Segment(0x20 | cpl, 0, 0xFFFF_FFFF, data))
        state.set_segment(Sreg.CS, Segment(0x10 | cpl, 0, 0xFFFF_FFFF, code))
        state.rflags = 2 | (AC if ac else 0)
        self.cpl, self.ac, self.paging = cpl, ac, Paging.of(state, MAXPHYADDR)

    def check(self, kind: str, entries: tuple[int, ...]) -> str:
        """Do the access *kind* with these *entries* both ways, which must agree; return the outcome."""
        words, slots = self.words, self.slots
        for slot, entry in zip(slots, entries, strict=True):
            words[slot] = entry
        expected, changed, gpa = self._walker(kind)
        found, landed = self._engine(kind, gpa)
        after = [words[slot] for slot in slots]
        want = [changed.get(at, old) for at, old in zip(self.shape.path, entries, strict=True)]
        assert (found, after, landed) == (expected, want, True), (
            f"{kind} at CPL {self.cpl} AC={self.ac} {self.paging}: {[*map(hex, entries)]}\n"
            f"walker {expected} {[*map(hex, want)]} gpa {gpa}\nengine {found} {[*map(hex, after)]} landed={landed}"
        )
        return "success" if found is None else str(found).split()[0]

    def read(self, gpa: int, size: int) -> int:
        """Read an entry."""
        return self.words[gpa // size]

    def _walker(self, kind: str) -> tuple[Fault | None, dict[int, int], int | None]:
        """Return (fault, entries changed, gpa)."""
        gva, changed = self.shape.gva, {}
        # The translator lets EFLAGS.AC count for implicit accesses below CPL 3 (docs/deviations.md): explicit, to it.
        implicit = kind == "implicit" and not (self.cpl == 0 and self.ac)
        access = Access(
            write=kind == "write", fetch=kind == "fetch", user=self.cpl == 3 and kind != "implicit",
            implicit_supervisor=implicit, ac=self.ac,
        )  # fmt: skip
        try:
            found = walk(self.paging, self.read, gva, access, lambda at, _size, value: changed.update({at: value}))
        except Fault as fault:
            assert not changed
            return fault, self._marked_on_the_way(), None
        return None, changed, found.gpa

    def _marked_on_the_way(self) -> dict[int, int]:
        """Return the entries that the translator changes although the access faults; the walker changes none.

        It sets A before it looks at the next level, and in a 1 GiB entry before it checks the rights and the bits
        below the frame (docs/deviations.md).
        """
        steps = explain(self.paging, self.read, self.shape.gva)
        last, passed = steps[-1], [s for s in steps if s.meaning is Meaning.TABLE]
        if last.entry & P and type(last.entry) is Pdpte1G and not last.reserved & ~mask(Pdpte1G.reserved):
            passed.append(last)
        return {s.entry_gpa: s.entry | s.entry.ACCESSED for s in passed}

    def _engine(self, kind: str, gpa: int | None) -> tuple[Fault | None, bool]:
        """Return (fault, whether an access that succeeded went to *gpa*)."""
        state, engine = self.state, self.engine
        code = CODE_PAGE[self.cpl] + 16 * [*CODE].index(kind)
        state.rip, state.regs[Gpr.RAX] = code, SELECTOR if kind == "implicit" else STORED
        engine.flush_tlb()
        stop = engine.run(2 if kind == "fetch" else 1)
        if stop.kind is Kind.EXCEPTION:
            assert state.rip == (self.shape.gva if kind == "fetch" else code)
            pf = stop.detail == Vector.PF
            return Fault(Vector(stop.detail), stop.error_code, cr2=stop.address if pf else None), True
        assert stop.kind is Kind.LIMIT, stop
        if gpa is None:
            return None, False
        return None, self._landed(kind, gpa)

    def _landed(self, kind: str, gpa: int) -> bool:
        ram, marker = self.engine.ram, MARKERS[gpa // 0x1000 % len(MARKERS)]
        if kind == "read":
            return self.state.regs[Gpr.RAX] == marker
        if kind == "write":
            written, ram[gpa] = ram[gpa], marker
            return written == STORED
        return kind == "implicit" or self.state.rip == self.shape.gva + 1
