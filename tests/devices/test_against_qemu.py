"""The UART and the interrupt controllers against QEMU's: the same random port accesses, the same answers."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from hvemu.devices.bus import Bus
from hvemu.devices.debug_port import DebugPort
from hvemu.devices.pic import PicPair
from hvemu.devices.serial import Uart
from hvemu.guest.multiboot import wrap

QEMU = shutil.which("qemu-system-i386")
UART, MASTER, SLAVE = 0x3F8, 0x20, 0xA0
IER, IIR, LCR, MCR, LSR, MSR, SCR = range(UART + 1, UART + 8)
INITIALIZE = [(MASTER, 0x11), (MASTER + 1, 8), (MASTER + 1, 4), (MASTER + 1, 1), (MASTER + 1, 0)]
INITIALIZE += [(SLAVE, 0x11), (SLAVE + 1, 0x70), (SLAVE + 1, 2), (SLAVE + 1, 1), (SLAVE + 1, 0)]
# Quiet first: the timer stops, and the UART has nothing enabled. Its IRQ 4 then drives the controllers.
START = [(0x43, 0x30), (MCR, 8), (IER, 0), (IIR, 1), (LCR, 3), *INITIALIZE]
# Where QEMU decides otherwise than the data sheet, the choices keep away: OUT2 does not gate its interrupt line,
# switching its FIFOs makes the transmitter interrupt anew, its receiver timeout takes real time, and looping shows no
# changes in MSR; it sends eight bits whatever the word length.
CHOICES = {
    UART: range(256),
    IER: range(16),
    IIR: (0x01, 0x03),
    MCR: (0x08, 0x09, 0x0B, 0x0F),
    SCR: range(256),
    MASTER: (0x20, 0x60, 0x64, 0xA0, 0xC2, 0xE4, 0x0A, 0x0B, 0x0C, 0x48, 0x68, 0x80, 0x00),
    MASTER + 1: (0x00, 0x10, 0xFF, 0xEF),
    SLAVE: (0x20, 0x0A, 0x0B, 0xC5),
    SLAVE + 1: range(256),
}
LOOPING = CHOICES | {
    MCR: (0x1B, 0x18, 0x1F, 0x19),
    LCR: (0x03, 0x07, 0x1B),
    IER: (0,),
    IIR: (0x00, 0x01, 0x03, 0x05, 0x07),
}
DELTAS = 0x0F


def accesses(seed, choices):
    """Return 2,000 random accesses: (port, byte to write), or (port, None) to read."""
    chance = random.Random(seed)
    ports = [*choices, LSR, MSR]
    steps = []
    for _ in range(2000):
        port = chance.choice(ports)
        write = port in choices and chance.random() < 0.5
        steps.append((port, chance.choice(choices[port]) if write else None))
    return steps


def program(steps):
    """Return 32-bit code that makes the accesses and shows each byte read at port 0xe9."""
    code = b"\xfa"
    for port, byte in steps:
        code += b"\x66\xba" + port.to_bytes(2, "little")
        code += b"\xec\xe6\xe9" if byte is None else bytes((0xB0, byte, 0xEE))
    return code + b"\xb0\x00\xe6\xf4\xf4"


def ask_qemu(steps, directory):
    kernel, shown = directory / "kernel", directory / "shown"
    kernel.write_bytes(wrap(program(steps), 0x100000, 0x100000))
    exit_port = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4")
    console = ("-debugcon", f"file:{shown}", "-serial", "null", "-display", "none", "-monitor", "none")
    subprocess.run([QEMU, "-accel", "tcg", *exit_port, *console, "-kernel", kernel], check=False, timeout=60)
    return shown.read_bytes()


def ask_hvemu(steps):
    shown = bytearray()
    bus, pics = Bus(), PicPair()
    bus.add(MASTER, 2, pics)
    bus.add(SLAVE, 2, pics, offset=PicPair.SLAVE)
    bus.add(UART, 8, Uart(irq=pics.line(4), output=[].append))
    bus.add(0xE9, 1, DebugPort(shown.append))
    for port, byte in steps:
        if byte is None:
            bus.write(0xE9, 1, bus.read(port, 1))
        else:
            bus.write(port, 1, byte)
    return bytes(shown)


@pytest.mark.soak
@pytest.mark.skipif(QEMU is None, reason="qemu-system-i386 is not installed")
@pytest.mark.parametrize("choices", [CHOICES, LOOPING], ids=["line", "loopback"])
@pytest.mark.parametrize("seed", range(4))
def test_every_answer_is_the_same(seed, choices, tmp_path):
    steps = START + accesses(seed, choices)
    reads = [i for i, (_, byte) in enumerate(steps) if byte is None]
    theirs, ours = ask_qemu(steps, tmp_path), ask_hvemu(steps)
    differences = [
        (i, steps[i - 8 : i + 1], a, b)
        for i, a, b in zip(reads, theirs, ours, strict=True)
        if (a | DELTAS != b | DELTAS if choices is LOOPING and steps[i][0] == MSR else a != b)
    ]
    assert differences[:1] == []
