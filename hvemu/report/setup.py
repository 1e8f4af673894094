"""How a guest is to be run: what a person chose, with defaults for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hvemu.errors import InputError
from hvemu.events import Sink
from hvemu.guest.image import DEFAULT_RAM, load
from hvemu.guest.manifest import Pair, load_manifest
from hvemu.machine import DEFAULT_PAIR, PAIRS, Machine, technique_for
from hvemu.techniques.vm import TIMEOUT, Budget

NEEDS_MODE = {"deprivilege": (32, "rings protect a hypervisor only from 32-bit code with segments")}
"""Techniques that cannot run every guest: the mode in which it must start, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that can be chosen for a run but the guest.

    *technique* None is `hardware`, or where guests.toml rules that out the first that it allows; *memory* None is the
    technique's usual one. *ram* is in bytes, *timeout* in seconds of host time. Budgets that are
    None are the guest's own from guests.toml; without those, only TIMEOUT ends a guest that does not.
    """

    technique: str | None = None
    memory: str | None = None
    mode: int | None = None
    ram: int = DEFAULT_RAM
    append: str = ""
    initrd: str | None = None
    counted: bool = True
    max_instructions: int | None = None
    max_exits: int | None = None
    timeout: float | None = None

    def under(self, pair: Pair) -> Setup:
        """Return the same with another technique and memory."""
        return replace(self, technique=pair[0], memory=pair[1])

    def machine(
        self,
        guest: str,
        *,
        on_output: Callable[[int], None] | None = None,
        sink: Sink | None = None,
        on_note: Callable[[str], None] = lambda _text: None,
    ) -> Machine:
        """Return a machine with *guest* in it, as `load` finds it. Raises InputError."""
        name = self.technique or self._usual(guest)
        technique = technique_for(name, self.memory)
        image = load(guest, mode=self.mode, ram=self.ram, cmdline=self.append, initrd=self.initrd)
        require_mode(image.name, image.mode, name)
        return Machine(
            image, technique, ram=self.ram, counted=self.counted, on_output=on_output, sink=sink, on_note=on_note
        )

    @staticmethod
    def _usual(guest: str) -> str:
        known = load_manifest().get(guest)
        return known.pairs[0][0] if known and DEFAULT_PAIR not in known.pairs else DEFAULT_PAIR[0]

    def budget(self, guest: str) -> Budget:
        """Return what *guest* may use; of instructions, which the free clock does not count, only what was chosen."""
        known = load_manifest().get(guest)
        limits = known.limits if known else {}
        instructions = limits.get("instructions") if self.counted else None
        return Budget(
            max_instructions=instructions if self.max_instructions is None else self.max_instructions,
            max_exits=limits.get("exits") if self.max_exits is None else self.max_exits,
            timeout=TIMEOUT if self.timeout is None else self.timeout,
        )


def require_mode(name: str, mode: int, technique: str) -> None:
    """Raise InputError when a guest that starts in *mode*-bit code cannot run under *technique*."""
    needed, why = NEEDS_MODE.get(technique, (mode, ""))
    if mode != needed:
        raise InputError(f"{technique}: {name} starts in {mode}-bit mode, and {why}")


def legal_pairs(mode: int) -> tuple[Pair, ...]:
    """Return every pair under which a guest that starts in *mode*-bit code can run, the bare machine first."""
    return tuple(pair for pair in PAIRS if NEEDS_MODE.get(pair[0], (mode, ""))[0] == mode)
