"""The MP configuration table (Intel MultiProcessor Specification 1.4), for software from before ACPI."""

from __future__ import annotations

import struct

from hvemu.devices.acpi_tables import IOAPIC_GPA, ISA_TO_PIN, LAPIC_GPA, Placed, checksum
from hvemu.devices.apic_registers import VERSION
from hvemu.devices.ioapic import VERSION_NUMBER

POINTER_GPA, TABLE_GPA = 0xF1000, 0xF1010
OEM, PRODUCT = b"HVEMU   ", b"PC          "
PROCESSOR, BUS, IOAPIC, INTERRUPT, LOCAL_INTERRUPT = range(5)
"""Types of entries, in the order in which they come."""
VECTORED, NMI, _SMI, EXTINT = range(4)
ENABLED, BOOT_PROCESSOR = 1, 2
PCI_BUS, ISA_BUS = 0, 1
EVERY_LOCAL_APIC = 0xFF
ISA_IRQS = (0, 1, 3, 4, 6, 7, 8, 9, 12, 13, 14, 15)


def entries(signature: int, features: int) -> list[bytes]:
    """Return the entries of the table. *signature* and *features* are EAX and EDX of CPUID leaf 1."""
    local_version = VERSION.version
    processor = struct.pack("<BBBBII8x", PROCESSOR, 0, local_version, ENABLED + BOOT_PROCESSOR, signature, features)
    buses = [struct.pack("<BB6s", BUS, n, name) for n, name in ((PCI_BUS, b"PCI   "), (ISA_BUS, b"ISA   "))]
    ioapic = struct.pack("<BBBBI", IOAPIC, 0, VERSION_NUMBER, ENABLED, IOAPIC_GPA)
    interrupts = [
        struct.pack("<BBHBBBB", INTERRUPT, VECTORED, 0, ISA_BUS, irq, 0, ISA_TO_PIN.get(irq, irq)) for irq in ISA_IRQS
    ]
    local = [
        struct.pack("<BBHBBBB", LOCAL_INTERRUPT, EXTINT, 0, ISA_BUS, 0, 0, 0),
        struct.pack("<BBHBBBB", LOCAL_INTERRUPT, NMI, 0, ISA_BUS, 0, EVERY_LOCAL_APIC, 1),
    ]
    return [processor, *buses, ioapic, *interrupts, *local]


def configuration(signature: int, features: int) -> bytes:
    """Return the configuration table."""
    listed = entries(signature, features)
    body = b"".join(listed)
    start = struct.pack("<4sHB", b"PCMP", 44 + len(body), 4)
    rest = struct.pack("<8s12sIHHIxxxx", OEM, PRODUCT, 0, 0, len(listed), LAPIC_GPA) + body
    return start + bytes([checksum(start + rest)]) + rest


def pointer() -> bytes:
    """Return the floating pointer structure."""
    start, rest = struct.pack("<4sIBB", b"_MP_", TABLE_GPA, 1, 4), bytes(5)
    return start + bytes([checksum(start + rest)]) + rest


def tables(signature: int, features: int) -> Placed:
    """Return the pointer and the table, in the BIOS area."""
    return [(POINTER_GPA, pointer()), (TABLE_GPA, configuration(signature, features))]
