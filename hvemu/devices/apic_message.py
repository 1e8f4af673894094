"""Interrupt messages: what an I/O APIC, or a local APIC by its interrupt command register, says to local APICs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from hvemu.bits import Register, bits


class DeliveryMode(IntEnum):
    """How an interrupt reaches a processor, in the encoding of SDM 3A "Interrupt Command Register (ICR)"."""

    FIXED, LOWEST_PRIORITY, SMI, RESERVED, NMI, INIT, STARTUP, EXTINT = range(8)


VECTORED = frozenset({DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY})
"""The modes whose vector is the message's own."""
FIRST_VECTOR = 16
"""An APIC delivers no vector below this one (SDM 3A "Valid Interrupt Vectors")."""


class LogicalId(Register):
    """An 8-bit logical APIC ID, or a message destination address, as the cluster model divides it."""

    members = bits(3, 0)
    cluster = bits(7, 4)


class ExtendedLogicalId(Register):
    """A 32-bit logical x2APIC ID."""

    members = bits(15, 0)
    cluster = bits(31, 16)

    @classmethod
    def of(cls, apic_id: int) -> ExtendedLogicalId:
        """Return the logical ID of *apic_id* (SDM 3A "Deriving Logical x2APIC ID from the Local x2APIC ID")."""
        cluster, member = divmod(apic_id, 16)
        return cls(cluster=cluster, members=2**member)


@dataclass(frozen=True, slots=True)
class Message:
    """An interrupt to *destination*, a physical or *logical* ID; a *broadcast* is to every APIC.

    *level*: level-triggered.
    """

    mode: DeliveryMode
    vector: int
    destination: int = 0
    logical: bool = False
    broadcast: bool = False
    level: bool = False


Delivery = Callable[[Message], bool]
"""The bus between APICs: takes a message, and returns whether an APIC accepted it."""
