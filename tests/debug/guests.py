"""Guests under a debugger: those that come with hvemu, each assembled once, and a few of some bytes."""

from __future__ import annotations

from functools import cache

from hvemu.debug.commands import execute
from hvemu.debug.session import Session
from hvemu.guest.image import Image, load
from hvemu.machine import Machine, technique_for

image = cache(load)
ORIGIN = 0x100000
SPIN = bytes.fromhex("90 b8 34 12 00 00 eb fe")  # nop; mov eax, 0x1234; jmp $
HALT = bytes.fromhex("fa f4")  # cli; hlt
DIE = bytes.fromhex("90 0f 0b")  # nop; ud2, and the IDT that a boot loader leaves has no gate
FAIL = bytes.fromhex("b0 07 e6 f4")  # mov al, 7; out 0xf4, al


def machine(guest: str | bytes, technique: str = "hardware", **options) -> Machine:
    """A machine with a guest by name, or with 32-bit code."""
    if isinstance(guest, bytes):
        found = Image("bytes", 32, ((ORIGIN, guest),), ORIGIN, {"start": ORIGIN})
    else:
        found = image(guest)
    return Machine(found, technique_for(technique, None), **options)


def session(guest: str | bytes, technique: str = "hardware", **options) -> Session:
    return Session(machine(guest, technique), **options)


def ask(of: Session, *lines: str) -> str:
    """The answer to the last of *lines*."""
    answer = ""
    for line in lines:
        answer = "\n".join(execute(of, line))
    return answer


def at(guest: str, label: str, technique: str = "hardware") -> Session:
    """A session that stands at *label*."""
    s = session(guest, technique)
    s.until(s.symbols.address(label))
    return s


@cache
def paused(guest: str, label: str, technique: str = "hardware") -> Session:
    """The same for tests that only look: all of them share it."""
    return at(guest, label, technique)
