"""Hostile guests: seeded random code in random machines. Run in a process of its own, which must survive.

Usage: python -m tests.engine.fuzz FIRST COUNT. Prints each seed before it is run, so that the last line names the one
that ended the process; an engine lives for ENGINE_LIFE seeds, and what an earlier seed left behind may matter.
"""

from __future__ import annotations

import random
import re
import sys

from hvemu.engine.traps import Kind, Stop
from hvemu.x86.decode import Truncated, decode
from hvemu.x86.registers import Sreg
from hvemu.x86.state import AccessRights, Segment, TableRegister
from hvemu.x86.vectors import Fault
from tests.engine.rig import CODE, DATA, ET, GDT, NX, NXE, PAE, PD, PDPT, PE, PML4, PS, RAM, RW, SMEP, US, P, Rig

ENGINE_LIFE = 250
RUN, RUNS = 200, 12
OPTIONAL = [Kind(n) for n in range(Kind.IDTR_READ, Kind.TR_WRITE + 1)] + [Kind.PUSHF, Kind.POPF, Kind.IRET, Kind.INVLPG]
TABLE = 0x8_3000
# Opcodes that reach deep: string and port I/O, segments, far transfers, system instructions, FPU, SSE, XSAVE
DEEP = [
    bytes.fromhex(code)
    for code in """
        f3a4 f2ae f3ab a5 6c 6e f36d ec ef e410 8ed8 8ed0 8ee0 1f 17 0fa1 cf 48cf cb ca0400 9c 9d fa fb f4 cc ce cd06
        cd80 f1 0f0b 0f00d0 0f00d8 0f0113 0f011b 0f0103 0f013b 0f01f8 0f20c0 0f22c0 0f22d8 0f22e0 0f23f8 0f23c0 0f21f0
        0f05 0f07 480f07 0f34 0f35 0f30 0f32 0f31 0fa2 0f02c0 0f03c0 0f00e0 dbe3 d903 dd23 dd33 0fae03 0fae0b 0fae23
        0fae2b 0fae33 0fc70b 480fc70b 0fc733 c810001f c9 6203 d400 0fb9 0fff 0f38f003 0fa5c0 660f3a60c100 0fc6c100
        0f5803 660ff7c1 e2fe ebfe 8703 f00103 0fab03 8903 8b03 ff13 ff1b ff2b ff33 0f01c1 0f01d8 0f01df 0faa 0f01cb
        0f01ca 0f01d0 0f01d1 0f01ee 0f01ef c6f800 c7f800000000 f30fc7f8
    """.split()
]
PREFIXES = [b"\x66", b"\x67", b"\xf2", b"\xf3", b"\xf0", b"\x2e", b"\x36", b"\x64", b"\x65", b"\x48", b"\x41", b"\x4f"]
# LOCK BT, BTS, BTR, BTC with a register: the emulator gives up (docs/deviations.md)
KILLS = re.compile(rb"\xf0([\x26\x2e\x36\x3e\x40-\x4f\x64-\x67\xf0\xf2\xf3]*\x0f[\xa3\xab\xb3\xbb\xba][\xc0-\xff])")
ADDRESSES = [0, 0xFFF, 0x1000, CODE, CODE + 0xFFD, DATA, DATA + 0xFFE, RAM - 4, RAM, 0xFFFF_FFFC, (1 << 47) - 2,
             1 << 47, (1 << 64) - 4, 0x5_0000, GDT, PML4, PD + 8, 0xFFFF_8000_0000_0000]  # fmt: skip


class Fuzz:
    """One seed: a machine, and what happens in it."""

    def __init__(self, r: Rig, seed: int) -> None:
        self.random, self.r, self.state = random.Random(seed), r, r.state

    def machine(self) -> None:
        """Build a machine whose control registers are legal, as those above the engine see to, and nothing else is."""
        pick, r = self.random, self.r
        bits = pick.choice((16, 32, 32, 64, 64))
        r.reset(bits, 0 if bits == 16 else pick.choice((0, 0, 3, 1)))
        self.tables()
        if bits == 64:
            extra = pick.choice((0, SMEP, 1 << 21, 1 << 22, 1 << 17, 1 << 16, 0x600, 1 << 18))
            r.long_mode(PML4, efer=pick.choice((0, NXE, 1)), cr4=extra)
            if pick.random() < 0.2:
                self.state.set_segment(Sreg.CS, Segment(8, 0, 0xFFFF_FFFF, self.rights(code=True).replace(l=0)))
        elif bits == 32 and pick.random() < 0.6:
            self.state.efer, self.state.cr4 = pick.choice((0, NXE)), pick.choice((0, 0x10, PAE, PAE | SMEP, 0x610))
            self.state.cr3 = pick.choice((PD, PDPT, PML4)) & 0xFFFF_FFFF
            self.state.cr0 = 1 << 31 | pick.choice((0, 1 << 16)) | ET | PE | pick.choice((0, 2, 8, 1 << 18))
        self.registers()
        self.arm()

    def tables(self) -> None:
        """Write page tables that mostly map RAM to itself, with entries that do not."""
        pick, r = self.random, self.r
        if pick.random() < 0.5:
            return
        r.word(PD, TABLE | US | RW | P)
        for page in range(512):
            r.word(TABLE + 8 * page, page << 12 | US | RW | P)
        for _ in range(pick.randrange(12)):
            entry = pick.choice((PML4, PDPT, PD, TABLE)) + 8 * pick.choice((0, 0, 1, CODE >> 12, pick.randrange(512)))
            old, page = r.peek(entry), pick.randrange(RAM) & ~0xFFF
            r.word(entry, pick.choice((0, pick.getrandbits(64), page | P | RW | US, PML4 | 7, NX | 7, old | PS,
                                       old & ~pick.choice((P, RW, US)))))  # fmt: skip

    def rights(self, *, code: bool) -> AccessRights:
        pick = self.random
        return AccessRights(
            type=pick.choice((9, 11, 15) if code else (1, 3, 5, 7)), s=1, dpl=self.state.cpl, p=1,
            db=pick.choice((0, 1, 1)), g=pick.choice((0, 1)),
        )  # fmt: skip

    def registers(self) -> None:
        pick, state = self.random, self.state
        for gpr in range(16):
            state.set_gpr(gpr, pick.choice((pick.choice(ADDRESSES), pick.randrange(RAM), pick.getrandbits(64), gpr)))
        state.rflags = 2 | pick.getrandbits(22) & pick.choice((0xCD5, 0x4ED5, 0x7FED5, 0x200, 0x100))
        for sreg in Sreg:
            if pick.random() < 0.15 and sreg is not Sreg.CS:
                base = pick.choice((0, 0x10, pick.getrandbits(32)))
                state.set_segment(
                    sreg, Segment(pick.getrandbits(16), base, pick.getrandbits(32), self.rights(code=False))
                )
        for n in range(pick.randrange(40)):
            self.r.word(
                GDT + 8 * n, pick.choice((pick.getrandbits(64), self.r.peek(GDT + 8), 0x0000_8900_0000_0067 | n << 28))
            )
        state.gdtr = TableRegister(GDT, pick.choice((0xFF, 0x7, 0xFFFF)))
        state.idtr = TableRegister(pick.choice((0, DATA)), 0xFFF)
        if pick.random() < 0.2:
            state.blocking_by_sti_or_mov_ss = True

    def arm(self) -> None:
        pick, engine = self.random, self.r.engine
        engine.arm(pick.sample(OPTIONAL, pick.randrange(len(OPTIONAL))))
        writes = 0xFFFF if pick.random() < 0.8 else 0
        engine.arm_registers(cr_read=pick.getrandbits(9), cr_write=writes, dr_read=0, dr_write=writes)
        engine.open_window(pick.random() < 0.3)
        for index in (0x174, 0x175, 0x176, 0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0102):
            engine.write_msr(index, pick.choice((0, 8, 0x0010_0008 << 32, CODE, pick.getrandbits(64))))

    def code(self) -> bytes:
        pick, parts = self.random, []
        for _ in range(pick.randrange(1, 40)):
            part = pick.choice(DEEP) if pick.random() < 0.5 else pick.randbytes(pick.randrange(1, 7))
            parts.append(b"".join(pick.choices(PREFIXES, k=pick.choice((0, 0, 0, 1, 2)))) + part)
        return KILLS.sub(lambda found: b"\x90" + found[1], b"".join(parts))

    def go(self) -> None:
        """Run, and go on somehow after each stop."""
        pick, r = self.random, self.r
        r.put(self.code())
        if pick.random() < 0.2:
            r.put(self.code(), CODE + 0x1000 - pick.randrange(1, 30))
        self.state.rip = r.start + pick.choice((0, 0, 0, 0xFF0, 0xFFF))
        for _ in range(RUNS):
            self.answer(self.once())

    def once(self) -> Stop:
        pick, engine = self.random, self.r.engine
        how = pick.random()
        if how < 0.1:
            return engine.step_through(pick.choice((0, CODE, DATA, TABLE, PML4)) & ~0xFFF, pick.randrange(RAM) & ~0xFFF)
        return engine.step() if how < 0.25 or not engine.counted else engine.run(RUN)

    def answer(self, stop: Stop) -> None:
        """Check that *stop* is one; move on as those above the engine would, or in some other way."""
        pick, state, engine = self.random, self.state, self.r.engine
        assert isinstance(stop, Stop)
        assert stop.kind in Kind
        code = engine.fetch()
        try:
            length = decode(code, state.code_bits).length
        except (Fault, Truncated):
            length = 1
        if stop.kind is not Kind.LIMIT and stop.kind is not Kind.SOFTWARE_INT:
            state.retire(state.rip + length & state.linear_mask)
        action = pick.random()
        if action < 0.1:
            state.rip = self.r.start + pick.randrange(0x40)
        elif action < 0.15:
            engine.second_level.unmap(pick.randrange(RAM) & ~0xFFF, 0x1000)
            engine.flush_tlb()
        elif action < 0.2:
            engine.second_level.map(0, 0, RAM)
            engine.flush_tlb()
        elif action < 0.25:
            engine.restore(engine.snapshot())
        elif action < 0.3:
            self.registers()


def main(first: int, count: int) -> None:
    """Run *count* seeds from *first*."""
    r: Rig | None = None
    for seed in range(first, first + count):
        if r is None or seed % ENGINE_LIFE == 0:
            r = Rig(counted=seed // ENGINE_LIFE % 4 != 3)
        sys.stdout.write(f"{seed}\n")
        sys.stdout.flush()
        fuzz = Fuzz(r, seed)
        fuzz.machine()
        fuzz.go()
    sys.stdout.write("survived\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
