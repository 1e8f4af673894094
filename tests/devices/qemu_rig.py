"""QEMU as an oracle: a kernel that makes accesses to ports and memory, and shows what it read at port 0xe9.

A step is ("in", port, size), ("out", port, size, value), ("load", gpa, size), ("store", gpa, size, value),
("dump", gpa, count) or ("take",): let interrupts in, and show their vectors.
"""

from __future__ import annotations

import shutil
import subprocess

from hvemu.guest.multiboot import wrap

QEMU = shutil.which("qemu-system-x86_64")
RAM_MIB = 128
LOAD = 0x100000
STUB = 16
IDT = LOAD + 256 * STUB
CODE = IDT + 256 * 8 + 16
SHOW = b"\xe6\xe9"
CODE_SELECTOR = 0x08
ANY_VECTOR, NO_MORE = 1, 0
READS = {"in", "load"}


def dword(value):
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def stub(vector):
    """A handler: it shows its vector, and returns."""
    return (b"\xb0" + bytes([ANY_VECTOR]) + SHOW + b"\xb0" + bytes([vector]) + SHOW + b"\xcf").ljust(STUB, b"\x90")


def gate(vector):
    """A 32-bit interrupt gate to the stub of *vector*."""
    offset = LOAD + vector * STUB
    low, high = (offset & 0xFFFF).to_bytes(2, "little"), (offset >> 16).to_bytes(2, "little")
    return low + CODE_SELECTOR.to_bytes(2, "little") + b"\x00\x8e" + high


def show(size):
    """Show the low *size* bytes of EAX, the lowest first."""
    return b"\xc1\xe8\x08".join([SHOW] * size)


def encode(step):
    """Return 32-bit code for *step*."""
    kind, *rest = step
    if kind == "take":
        return b"\xfb\x90\x90\xfa\xb0" + bytes([NO_MORE]) + SHOW
    if kind == "dump":
        return b"\xbe" + dword(rest[0]) + b"\xb9" + dword(rest[1]) + b"\x66\xba\xe9\x00\xf3\x6e"
    where, size = rest[:2]
    prefix, wide = (b"\x66" if size == 2 else b""), size > 1
    value = b"\xb8" + dword(rest[2]) if len(rest) > 2 else b""
    if kind in {"in", "out"}:
        return b"\xba" + dword(where) + value + prefix + bytes([0xEC + wide + 2 * (kind == "out")]) + shown(kind, size)
    return value + prefix + bytes([0xA0 + wide + 2 * (kind == "store")]) + dword(where) + shown(kind, size)


def shown(kind, size):
    return show(size) if kind in READS else b""


def kernel(steps):
    """Return a Multiboot kernel that makes *steps* with interrupts disabled, and ends QEMU."""
    handlers = b"".join(map(stub, range(256)))
    table = b"".join(map(gate, range(256))) + (256 * 8 - 1).to_bytes(2, "little") + dword(IDT) + bytes(10)
    code = b"\xfa\xfc\x0f\x01\x1d" + dword(IDT + 256 * 8) + b"".join(map(encode, steps)) + b"\xb0\x00\xe6\xf4\xf4"
    return wrap(handlers + table + code, LOAD, CODE)


def answers(steps, shown_bytes):
    """Return what each step showed: a number, bytes, or a list of vectors; None where it shows nothing."""
    data, found = iter(shown_bytes), []
    for kind, *rest in steps:
        if kind == "take":
            vectors = []
            while next(data) == ANY_VECTOR:
                vectors.append(next(data))
            found.append(vectors)
        elif kind == "dump":
            found.append(bytes(next(data) for _ in range(rest[1])))
        else:
            size = rest[1] if kind in READS else 0
            found.append(int.from_bytes([next(data) for _ in range(size)], "little") if size else None)
    return found


def ask_qemu(steps, directory, *options):
    """Return what each of *steps* shows under QEMU, after its firmware."""
    image, output = directory / "kernel", directory / "shown"
    image.write_bytes(kernel(steps))
    devices = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-nodefaults", "-vga", "none")
    console = ("-debugcon", f"file:{output}", "-serial", "null", "-display", "none", "-monitor", "none")
    command = [QEMU, "-accel", "tcg", "-m", str(RAM_MIB), *devices, *console, "-kernel", image, *options]
    subprocess.run(command, check=False, timeout=120)
    return answers(steps, output.read_bytes())
