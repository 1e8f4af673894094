"""Small kernels of raw bytes: 32-bit code at a fixed place, with an IDT, and data beside it."""

from __future__ import annotations

from hvemu.guest.image import Image
from hvemu.machine import Machine, technique_for
from hvemu.x86.segments import Gate

RAM = 4 << 20
CODE, IDT, HANDLERS, DATA = 0x10_0000, 0x9000, 0xA000, 0x12_0000
EXIT_0, EXIT_1 = "b000e6f4", "b001e6f4"  # mov al, n; out 0xf4, al
LIDT = "0f011d" + (IDT - 8).to_bytes(4, "little").hex()


def kernel(code, handlers=None, data=None):
    """The image of *code* (hex), which begins by loading an IDT of *handlers* (vector: hex); *data* is bytes by gpa."""
    idt, segments = bytearray(0x800), {}
    for vector, body in (handlers or {}).items():
        idt[8 * vector : 8 * vector + 8] = Gate.make(8, HANDLERS + 64 * vector, type=14, p=1).to_bytes(8, "little")
        segments[HANDLERS + 64 * vector] = bytes.fromhex(body)
    segments[IDT - 8] = (0x7FF).to_bytes(2, "little") + IDT.to_bytes(4, "little")
    segments[IDT] = bytes(idt)
    segments[CODE] = bytes.fromhex(LIDT + code)
    return Image("kernel", 32, (*segments.items(), *(data or {}).items()), CODE)


def machine(image, technique="hardware", **options):
    """A machine with little memory for *image*; *technique* by name, or made already."""
    made = technique_for(technique, None) if isinstance(technique, str) else technique
    return Machine(image, made, ram=RAM, **options)
