"""A virtual machine as its hypervisor holds it: processor, memory, devices, and the books that are kept."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hvemu.cpu.clock import NANOSECONDS_PER_CYCLE, Clock
from hvemu.cpu.cpu import Cpu
from hvemu.devices.board import Board
from hvemu.engine.engine import Engine
from hvemu.events import Sink
from hvemu.memory.frames import Frames
from hvemu.memory.physical import Ram
from hvemu.techniques.base import Technique

SLICE = 1_000_000
"""Instructions after which the loop looks around, however quiet the guest is: budgets and Ctrl-C wait no longer."""
TIMEOUT = 300.0
"""Seconds of host time that a run may take when nobody says otherwise."""


@dataclass(slots=True)
class Budget:
    """What a run may use: instructions, exits, seconds of host time. None: no bound."""

    max_instructions: int | None = None
    max_exits: int | None = None
    timeout: float | None = TIMEOUT


@dataclass(slots=True)
class Books:
    """What a run has cost so far. *by_reason* counts exits by their name."""

    exits: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    host_seconds: float = 0.0


class Vm:
    """One guest under one technique.

    *host* is all host-physical memory, of which the guest's RAM is the *ram_size* bytes from *ram_hpa*; *frames* hands
    out the rest to the hypervisor. *ram* is the guest's RAM by gpa. *note* takes what a person should know meanwhile.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        cpu: Cpu,
        board: Board,
        clock: Clock,
        technique: Technique,
        ram: Ram,
        frames: Frames,
        sink: Sink | None = None,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.engine, self.cpu, self.board, self.clock = engine, cpu, board, clock
        self.technique, self.ram, self.frames, self.sink = technique, ram, frames, sink
        self.note = note
        self.books = Books()
        self.deadline: int | None = None
        self.started = time.monotonic()

    @property
    def instructions(self) -> int:
        """Instructions that the guest retired; 0 with the free clock."""
        return self.engine.instructions if self.engine.counted else 0

    def next_deadline(self) -> int | None:
        """Return the cycle at which a device acts next by itself, or None."""
        if self.board.changed:
            self.board.changed = False
            nanoseconds = self.board.next_deadline()
            self.deadline = None if nanoseconds is None else -(-nanoseconds // NANOSECONDS_PER_CYCLE)
        return self.deadline
