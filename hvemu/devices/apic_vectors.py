"""Which vectors wait and which are in service, and what that means for the processor's priority.

SDM 3A "Task and Processor Priorities", "Interrupt Acceptance for Fixed Interrupts".
"""

from __future__ import annotations

from dataclasses import dataclass

from hvemu.devices.apic_registers import Tpr

VECTOR_BITS = tuple(2**n for n in range(256))
REGISTER_BYTES = 4


def highest(vectors: int) -> int | None:
    """Return the highest vector in a set of them, or None."""
    return vectors.bit_length() - 1 if vectors else None


@dataclass(slots=True)
class Vectors:
    """IRR, ISR and TMR, each a set of 256 bits, bit *n* for vector *n*."""

    irr: int = 0
    isr: int = 0
    tmr: int = 0

    def request(self, vector: int, *, level: bool) -> None:
        """Accept an interrupt: it waits in IRR, and TMR tells how it was triggered."""
        mask = VECTOR_BITS[vector]
        self.irr |= mask
        self.tmr = self.tmr | mask if level else self.tmr & ~mask

    def priority(self, tpr: int) -> int:
        """Return PPR for the task priority *tpr*."""
        serving = Tpr(highest(self.isr) or 0)
        if Tpr(tpr).priority_class >= serving.priority_class:
            return tpr
        return Tpr(priority_class=serving.priority_class)

    def deliverable(self, tpr: int) -> int | None:
        """Return the vector that the processor would be given, or None while none outranks its priority."""
        vector = highest(self.irr)
        if vector is None or Tpr(vector).priority_class <= Tpr(self.priority(tpr)).priority_class:
            return None
        return vector

    def take(self, tpr: int) -> int | None:
        """Move the deliverable vector from IRR to ISR, and return it."""
        vector = self.deliverable(tpr)
        if vector is not None:
            self.irr &= ~VECTOR_BITS[vector]
            self.isr |= VECTOR_BITS[vector]
        return vector

    def end(self) -> int | None:
        """End the service of the highest vector, and return it."""
        vector = highest(self.isr)
        if vector is not None:
            self.isr &= ~VECTOR_BITS[vector]
        return vector

    def is_level(self, vector: int) -> bool:
        """Whether the last interrupt of *vector* was level-triggered."""
        return bool(self.tmr & VECTOR_BITS[vector])


def register(vectors: int, n: int) -> int:
    """Return the *n*-th 32-bit register of a set of vectors."""
    first = n * REGISTER_BYTES
    return int.from_bytes(vectors.to_bytes(32, "little")[first : first + REGISTER_BYTES], "little")
