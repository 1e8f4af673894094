"""What a PC has at its I/O ports, for people."""

from __future__ import annotations

PORTS: tuple[tuple[range, str], ...] = (
    (range(0x20, 0x22), "master interrupt controller"),
    (range(0x40, 0x44), "timer"),
    (range(0x60, 0x61), "keyboard"),
    (range(0x61, 0x62), "system control"),
    (range(0x64, 0x65), "keyboard"),
    (range(0x70, 0x72), "real-time clock"),
    (range(0xA0, 0xA2), "slave interrupt controller"),
    (range(0xE9, 0xEA), "debug console"),
    (range(0xF4, 0xF8), "exit port"),
    (range(0x3F8, 0x3F9), "UART, data"),
    (range(0x3F9, 0x3FD), "UART"),
    (range(0x3FD, 0x3FE), "UART, line status"),
    (range(0x3FE, 0x400), "UART"),
    (range(0x4D0, 0x4D2), "interrupt controllers, edge or level"),
    (range(0xCF8, 0xD00), "PCI configuration"),
)


CONSOLES = (0xE9, 0x3F8)
"""Ports that take text, a byte at a time."""


def port_name(port: int) -> str:
    """Return ` (name)` for *port*, or nothing where a PC has nothing that is known here."""
    return next((f" ({name})" for ports, name in PORTS if port in ports), "")
