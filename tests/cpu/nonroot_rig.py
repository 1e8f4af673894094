"""A processor in VMX non-root operation on a real engine: guest memory behind EPT, a VMCS, and code to run."""

from __future__ import annotations

import struct
from functools import lru_cache

from hvemu.cpu.clock import CountedClock
from hvemu.cpu.cpu import Cpu
from hvemu.cpu.mmio import Mmio
from hvemu.cpu.msr_file import MsrFile
from hvemu.cpu.nonroot import NonRoot
from hvemu.engine.engine import Engine
from hvemu.memory.ept_tables import EptTables
from hvemu.memory.frames import Frames
from hvemu.memory.physical import Ram
from hvemu.vmx.controls import EptPointer
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.guest_state import GUEST_FIELDS
from hvemu.vmx.template import minimal_host, own_fixed_bits
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import Gate
from hvemu.x86.state import AccessRights, PlainState, Segment, TableRegister, load_state
from tests.cpu import machines

MIB = 1 << 20
GUEST_HPA, RAM, BITMAPS = 2 * MIB, 2 * MIB, 0xF_0000
"""Where the guest's memory lies in the host's, its size, and the bitmaps of the controls (hpa)."""
CODE, STACK, DATA, TABLES, HANDLERS = 0x5_0000, 0x1_8000, 0x6_0000, 0x8_0000, 0x9_0000
PIN, PRIMARY = Field.PIN_BASED_VM_EXECUTION_CONTROLS, Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
SECONDARY, EXIT, ENTRY = (
    Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, Field.VM_EXIT_CONTROLS, Field.VM_ENTRY_CONTROLS,
)  # fmt: skip
JUMP_HERE = b"\xeb\xfe"
REAL = AccessRights(type=3, s=1, p=1)


class Interrupts:
    """An interrupt controller with a list of vectors."""

    def __init__(self):
        self.vectors = []

    def pending(self):
        return bool(self.vectors)

    def acknowledge(self):
        return self.vectors.pop(0)


class Ports:
    """Ports that record writes and answer 0x11223344."""

    def __init__(self):
        self.written = []

    def read(self, port, size):
        return 0x11223344 % (1 << 8 * size)

    def write(self, port, size, value):
        self.written.append((port, size, value))


@lru_cache
def engine():
    one = Engine(GUEST_HPA + RAM)
    return one, one.snapshot()


class Rig:
    """A guest in *bits*-bit code at *cpl*; 16 is real-address mode, 64 has an identity map of 4 KiB pages.

    The IDT leads vector v to HANDLERS + 16 * v, where a jump to itself waits. EPT maps all of the guest's memory, in
    pages of the *largest* size.
    """

    def __init__(self, bits, cpl=0, *, map_all=True, accessed_dirty=False, largest=0x20_0000):
        self.engine, fresh = engine()
        self.engine.restore(fresh)
        self.engine.ram[:] = bytes(len(self.engine.ram))
        self.engine.flush_code()
        self.engine.instructions = 0
        self.host, self.ram = Ram(self.engine.ram), Ram(self.engine.ram, GUEST_HPA, RAM)
        self.frames = Frames(0x1000, BITMAPS)
        self.interrupts, self.ports = Interrupts(), Ports()
        self.clock = CountedClock(self.engine)
        self.cpu = Cpu(
            self.engine, physical=self.host, ports=self.ports, mmio=Mmio(RAM, self.frames.allocate()),
            msrs=MsrFile(self.engine.state, self.engine, lambda: self.clock.now), clock=self.clock,
            interrupts=self.interrupts,
        )  # fmt: skip
        self.state, self.bits = self.cpu.state, bits
        self.ept = EptTables(self.host, self.frames, largest=largest)
        if map_all:
            self.ept.map(0, GUEST_HPA, RAM)
        self.vmcs = minimal_host()
        self.vmcs[Field.EPT_POINTER] = int(
            EptPointer(memory_type=6, walk_length=3, enable_accessed_dirty=accessed_dirty, frame=self.ept.root >> 12)
        )
        self.set(ENTRY, ia32e_mode_guest=bits == 64)
        self._fill(self._boot(bits, cpl))
        self.nonroot = NonRoot(self.cpu, self.vmcs, self.host)
        self.nonroot.invalidate()  # the engine of the rigs before this one may know the EPT of another
        self.inside = False

    def _boot(self, bits, cpl):
        machine = machines.long(cpl) if bits == 64 else machines.protected(cpl)
        state, memory = machine.state, machine.memory.data
        for vector in range(256):
            gate = Gate.make(8, HANDLERS + 16 * vector, type=14, p=1, dpl=3 if vector in (3, 4, 0x80) else 0)
            size = 16 if bits == 64 else 8
            memory[machines.IDT + size * vector : machines.IDT + size * (vector + 1)] = gate.to_bytes(size, "little")
            memory[HANDLERS + 16 * vector : HANDLERS + 16 * vector + 2] = JUMP_HERE
        self.ram.write_bytes(0, bytes(memory))
        if bits == 64:
            self._tables()
            state.cr3 = TABLES
        if bits == 16:
            self._real_mode(state)
        state.rip = CODE if bits != 16 else 0
        state.set_gpr(Gpr.RSP, STACK if bits != 16 else 0x8000)
        state.rflags = 2
        return state

    def _tables(self):
        """Identity tables: PML4, PDPT, PD, and one PT per 2 MiB at TABLES + 0x3000."""
        for table, entry in ((0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000)):
            self.word(TABLES + table, TABLES + entry | 7)
        for n in range(512):
            self.word(TABLES + 0x3000 + 8 * n, n << 12 | 7)

    def _real_mode(self, state):
        """Segments at 0, but CS at CODE; the vector table at 0 leads to 0:HANDLERS' low part."""
        state.cr0, state.idtr = 0x10, TableRegister(0, 0x3FF)
        for sreg in Sreg:
            state.set_segment(sreg, Segment(0, 0, 0xFFFF, REAL))
        state.set_segment(Sreg.CS, Segment(CODE >> 4, CODE, 0xFFFF, REAL))
        for vector in range(256):
            self.ram.write_bytes(4 * vector, struct.pack("<HH", 16 * vector, HANDLERS >> 4))

    def _fill(self, state):
        """Fill the guest-state area, and the processor with the registers that have no field."""
        for field, home in GUEST_FIELDS.items():
            if field is not ENTRY:
                self.vmcs[field] = home.get(state, self.vmcs[field])
        own_fixed_bits(self.vmcs)
        load_state(self.state, state)

    # -- what tests write ---------------------------------------------------------------------------------------

    def set(self, field, **bits):
        """Set bits of a control field by name."""
        register = {PIN: "PinBased", PRIMARY: "PrimaryProcessorBased", SECONDARY: "SecondaryProcessorBased",
                    EXIT: "Exit", ENTRY: "Entry"}[field]  # fmt: skip
        from hvemu.vmx import controls

        self.vmcs[field] = int(getattr(controls, register)(self.vmcs[field]).replace(**bits))
        return self

    def word(self, gpa, value, size=8):
        self.ram.write(gpa, size, value)

    def gpr(self, **values):
        for name, value in values.items():
            self.state.set_gpr(Gpr[name.upper()], value)
            if name == "rsp":
                self.vmcs[Field.GUEST_RSP] = value
        return self

    def put(self, code, gpa=CODE):
        self.ram.write_bytes(gpa, code)
        self.engine.code_changed(GUEST_HPA + gpa, len(code))
        return self

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, code=None, limit=1):
        """Put *code* (hex, at RIP's place) and run until a VM exit or until *limit* instructions have retired."""
        if code is not None:
            self.put(bytes.fromhex(code))
        exit_ = self.enter()
        before = self.engine.instructions
        turns = 0
        while exit_ is None and self.engine.instructions - before < limit and not self.cpu.halted:
            exit_ = self.cpu.run(limit - (self.engine.instructions - before))
            turns += 1
            assert turns < 1000, "no progress"
        if exit_ is not None:
            self.inside = False
            self.nonroot.leave(exit_)
        return exit_

    def enter(self):
        """Perform VM entry, if this is not non-root operation; return the VM exit that the injection met."""
        if self.inside:
            return None
        self.inside = True
        return self.nonroot.enter()

    def leave(self):
        """Go to root operation, as by an exit that nobody asked for, so that controls count when they are written."""
        self.inside = False
        return self

    def registers(self):
        """A copy of all registers."""
        copy = PlainState()
        load_state(copy, self.state)
        return copy


def fields(exit_):
    """The fields of a VmExit without what is for people, as far as they are not 0 or None."""
    if exit_ is None:
        return None
    names = [f for f in VmExit.__slots__ if f not in ("what", "detail")]
    return {name: getattr(exit_, name) for name in names if getattr(exit_, name) not in (0, None, False)} | {
        "reason": exit_.reason
    }
