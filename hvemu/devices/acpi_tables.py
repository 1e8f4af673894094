"""The ACPI tables of the board (ACPI 1.0 and its later tables MADT and HPET), where the BIOS of a PC puts its own."""

from __future__ import annotations

import struct

from hvemu.bits import Register, bit
from hvemu.devices.acpi_pm import ACPI_DISABLE, ACPI_ENABLE, SOFT_OFF
from hvemu.devices.hpet import CAPABILITIES
from hvemu.devices.rtc import CENTURY

Placed = list[tuple[int, bytes]]
"""Bytes, and the gpa where they go."""
RSDP_GPA = 0xF0000
FACS_GPA = 0xF0040
TABLES_GPA = 0xF0080
ALIGNMENT = 16
OEM, OEM_TABLE, CREATOR = b"HVEMU ", b"HVEMUPC ", b"HVEM"
LAPIC_GPA, IOAPIC_GPA, HPET_GPA = 0xFEE00000, 0xFEC00000, 0xFED00000
PM1_EVENT, PM1_CONTROL, PM_TIMER, SMI_COMMAND = 0x600, 0x604, 0x608, 0xB2
SCI = 9
ISA_TO_PIN = {0: 2}
"""The ISA interrupts that arrive at an I/O APIC pin of another number."""
ACTIVE_HIGH_LEVEL = 0b1101
"""MPS INTI flags."""
ALL_PROCESSORS = 0xFF


class FadtFlags(Register):
    """Fixed feature flags of the FADT."""

    wbinvd = bit(0)
    c1 = bit(2)
    no_power_button = bit(4)
    no_sleep_button = bit(5)
    clock_wakes_s4 = bit(7)
    platform_clock = bit(15)


def checksum(data: bytes) -> int:
    """Return the byte that makes the sum of *data* and itself 0."""
    return -sum(data) % 256


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Return a system description table."""
    start = struct.pack("<4sIB", signature, 36 + len(body), revision)
    rest = struct.pack("<6s8sI4sI", OEM, OEM_TABLE, 1, CREATOR, 1) + body
    return start + bytes([checksum(start + rest)]) + rest


def rsdp(rsdt_gpa: int) -> bytes:
    """Return the root system description pointer."""
    start, rest = b"RSD PTR ", struct.pack("<6sBI", OEM, 0, rsdt_gpa)
    return start + bytes([checksum(start + rest)]) + rest


def facs() -> bytes:
    """Return the firmware ACPI control structure, which has no checksum."""
    return struct.pack("<4sI", b"FACS", 64).ljust(64, b"\0")


def dsdt() -> bytes:
    """Return a DSDT that says one thing, in AML: how to go to S5, by the package _S5."""
    name, package = b"\x08_S5_", bytes([4, SOFT_OFF, SOFT_OFF, 0, 0])
    return _table(b"DSDT", 1, name + b"\x12" + bytes([1 + len(package)]) + package)


def fadt(dsdt_gpa: int) -> bytes:
    """Return the fixed ACPI description table. There are no general-purpose events."""
    flags = FadtFlags(wbinvd=1, c1=1, no_power_button=1, no_sleep_button=1, clock_wakes_s4=1, platform_clock=1)
    multiple_apic, no_latency = 1, 0x0FFF
    body = struct.pack("<IIBxH", FACS_GPA, dsdt_gpa, multiple_apic, SCI)
    body += struct.pack("<IBBxx", SMI_COMMAND, ACPI_ENABLE, ACPI_DISABLE)
    body += struct.pack("<8I", PM1_EVENT, 0, PM1_CONTROL, 0, 0, PM_TIMER, 0, 0)
    body += struct.pack("<4B4x", 4, 2, 0, 4)  # lengths of the blocks in bytes
    body += struct.pack("<HH8xB3xI", no_latency, no_latency, CENTURY, flags)
    return _table(b"FACP", 1, body)


def madt() -> bytes:
    """Return the multiple APIC description table: one processor, one I/O APIC, and 8259As besides."""
    body = struct.pack("<II", LAPIC_GPA, 1)
    body += struct.pack("<BBBBI", 0, 8, 0, 0, 1)
    body += struct.pack("<BBBxII", 1, 12, 0, IOAPIC_GPA, 0)
    overrides = [(irq, pin, 0) for irq, pin in ISA_TO_PIN.items()] + [(SCI, SCI, ACTIVE_HIGH_LEVEL)]
    for irq, pin, flags in overrides:
        body += struct.pack("<BBBBIH", 2, 10, 0, irq, pin, flags)
    body += struct.pack("<BBBHB", 4, 6, ALL_PROCESSORS, 0, 1)  # NMI comes at LINT1
    return _table(b"APIC", 1, body)


def hpet() -> bytes:
    """Return the description of the high precision event timer."""
    return _table(b"HPET", 1, struct.pack("<IIQB3x", CAPABILITIES.low, 0, HPET_GPA, 0))


def tables() -> Placed:
    """Return all tables and where they go: the pointer in the BIOS area, on a 16-byte boundary."""
    placed: Placed = []
    gpa = TABLES_GPA
    dsdt_gpa = gpa
    for table in (dsdt(), fadt(dsdt_gpa), madt(), hpet()):
        placed.append((gpa, table))
        gpa += -(-len(table) // ALIGNMENT) * ALIGNMENT
    described = [where for where, _ in placed if where != dsdt_gpa]
    rsdt = _table(b"RSDT", 1, struct.pack(f"<{len(described)}I", *described))
    return [(RSDP_GPA, rsdp(gpa)), (FACS_GPA, facs()), *placed, (gpa, rsdt)]
