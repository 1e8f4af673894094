"""A machine: memory, processor, devices and a technique put together, with a guest in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from hvemu.cpu.clock import NANOSECONDS_PER_CYCLE, Clock, CountedClock, FreeClock
from hvemu.cpu.control import Rules
from hvemu.cpu.cpu import Cpu
from hvemu.cpu.mmio import Mmio
from hvemu.cpu.msr_file import MsrFile
from hvemu.devices.board import Board
from hvemu.engine.engine import Engine
from hvemu.errors import InputError
from hvemu.events import Ending, Sink
from hvemu.guest.boot import boot
from hvemu.guest.image import DEFAULT_RAM, Image
from hvemu.memory.frames import FRAME, Frames
from hvemu.memory.physical import Ram
from hvemu.techniques import loop
from hvemu.techniques.bare import Bare
from hvemu.techniques.base import Technique
from hvemu.techniques.deprivilege import Deprivilege
from hvemu.techniques.exits import control_registers, events, io, memory, processor
from hvemu.techniques.hardware import Hardware
from hvemu.techniques.vm import Budget, Vm
from hvemu.techniques.watchdog import Watchdog
from hvemu.vmx.capabilities import MSRS
from hvemu.vmx.exit import VmExit
from hvemu.x86.cpuid import Offer

FAMILIES = (control_registers, events, io, memory, processor)
"""Importing them registers the handlers of every exit."""
HYPERVISOR = 16 << 20
"""Bytes of host memory besides the guest's RAM: for the hypervisor's own tables."""
MAX_RAM = 3 << 30
PAIRS: dict[tuple[str, str], Callable[[], Technique]] = {
    ("bare", "none"): Bare,
    ("deprivilege", "shadow"): Deprivilege,
    ("hardware", "ept"): Hardware,
}
"""Every legal pair of technique and memory."""
DEFAULT_PAIR = ("hardware", "ept")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to. *host_seconds* is the only part that differs from run to run."""

    ending: Ending
    console: bytes
    instructions: int
    exits: int
    by_reason: dict[str, int]
    cycles: int
    host_seconds: float


def technique_for(technique: str, memory: str | None) -> Technique:
    """Return a new technique of this pair; without *memory*, of the technique's usual one. Raises InputError."""
    choices = [pair for pair in PAIRS if pair[0] == technique]
    if not choices:
        raise InputError(f"--technique {technique}: not one of {', '.join(sorted({t for t, _ in PAIRS}))}")
    if memory is None:
        return PAIRS[choices[-1]]()
    if (technique, memory) not in PAIRS:
        legal = ", ".join(f"{t}+{m}" for t, m in PAIRS)
        raise InputError(f"{technique}+{memory} is not a legal pair of technique and memory; legal pairs are {legal}")
    return PAIRS[technique, memory]()


class Machine:
    """*image* in a machine with *ram* bytes for the guest, ready to run under *technique*.

    *counted* False lets the guest run without counting instructions: faster, and different in every run. *on_output*
    sees each byte that the guest prints, *sink* each event; *on_note* is told what a person should know meanwhile, as
    why VM entry failed for a hypervisor in the guest. Raises InputError.
    """

    def __init__(
        self,
        image: Image,
        technique: Technique,
        *,
        ram: int = DEFAULT_RAM,
        counted: bool = True,
        on_output: Callable[[int], None] | None = None,
        sink: Sink | None = None,
        on_note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        if ram % FRAME or not 0 < ram <= MAX_RAM:
            raise InputError(f"--ram {ram}: not a multiple of 4 KiB up to {MAX_RAM >> 30} GiB")
        started = boot(image, ram=ram)
        engine = Engine(ram + HYPERVISOR, counted=counted)
        below = 0 if technique.memory == "none" else HYPERVISOR
        memory = Ram(engine.ram, below, ram, engine.code_changed)
        frames = Frames(0 if below else ram, HYPERVISOR)
        clock: Clock = CountedClock(engine) if counted else FreeClock()
        board = Board(lambda: clock.now * NANOSECONDS_PER_CYCLE, on_output)
        vmx = technique.name == "bare"  # the other techniques do without, or need it for themselves
        cpu = Cpu(
            engine,
            physical=memory,
            ports=board,
            mmio=Mmio(ram, frames.allocate()),
            msrs=MsrFile(
                engine.state, engine, lambda: clock.now, offer=Offer(vmx=vmx), constants=MSRS if vmx else None
            ),
            clock=clock,
            interrupts=board.pic,
        )
        cpu.msrs.start_as_firmware_does()
        if vmx:
            cpu.rules = Rules(Offer(vmx=True))
        self.image, self.technique = image, technique
        self.vm = Vm(
            engine=engine,
            cpu=cpu,
            board=board,
            clock=clock,
            technique=technique,
            ram=memory,
            frames=frames,
            sink=sink,
            note=on_note,
        )
        for gpa, data in started.memory:
            memory.write_bytes(gpa, data)
        technique.install(self.vm, started.state)

    def run(self, budget: Budget | None = None) -> Result:
        """Run the guest to its end, or until *budget* runs out."""
        begun = time.perf_counter()
        self.vm.started = time.monotonic()
        with self._watched(budget):
            ending = loop.run(self.vm, budget or Budget())
        self.vm.books.host_seconds += time.perf_counter() - begun
        return self.result(ending)

    def next_exit(self, budget: Budget | None = None) -> VmExit | Ending:
        """Run the guest to its next VM exit and leave that unhandled, for `handle`."""
        with self._watched(budget):
            return loop.next_exit(self.vm, budget or Budget(timeout=None))

    def _watched(self, budget: Budget | None) -> AbstractContextManager[object]:
        """Return what ends the engine's runs from time to time, where they do not count instructions."""
        if self.vm.engine.counted:
            return nullcontext()
        if budget is not None and budget.max_instructions is not None:
            raise InputError("--max-instructions: the free clock counts no instructions; leave out --clock free")
        return Watchdog(self.vm.engine)

    def handle(self, exit_: VmExit) -> Ending | None:
        """Let the hypervisor handle *exit_*; return the end of the run, if this is it."""
        return loop.handle(self.vm, exit_)

    def result(self, ending: Ending) -> Result:
        """Return what the run has come to so far."""
        vm, books = self.vm, self.vm.books
        return Result(
            ending=ending,
            console=bytes(vm.board.console),
            instructions=vm.instructions,
            exits=books.exits,
            by_reason=dict(sorted(books.by_reason.items())),
            cycles=vm.clock.now,
            host_seconds=books.host_seconds,
        )

    def __repr__(self) -> str:
        return f"Machine({self.image.name} under {self.technique.name}+{self.technique.memory})"
