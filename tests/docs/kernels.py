"""One kernel that executes many instructions, each behind a label, and the exits that each of them makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hvemu.events import ExitEvent
from hvemu.guest.image import from_source
from hvemu.machine import Machine
from hvemu.techniques.base import Technique
from hvemu.techniques.vm import Budget

KERNEL = """
.include "lib/kernel32.inc"
.include "lib/pic.inc"

resume: .long 0

back:
    iretd
skip_with_code:
    add esp, 4
skip:
    push dword ptr [resume]
    pop dword ptr [esp]
    iretd
main:
    SET_GATE 0x80, back
    SET_GATE 3, back
    SET_GATE 6, skip
    SET_GATE 13, skip_with_code
    MASK_IRQS 0xff
    sub esp, 32
    mov dword ptr [esp], 0
    {}
    EXIT 0
"""
ONE = """
    cli
    mov dword ptr [resume], offset after{n}
    cpuid                       # tells a hypervisor that it begins
    {setup}
here{n}:
    {instruction}
after{n}:
"""
SETUPS = {
    "mov cr3, eax": "mov eax, cr3",
    "mov ds, eax": "mov eax, KERNEL_DATA",
    "mov ss, eax": "mov eax, KERNEL_DATA",
    "mov cr0, eax": "mov eax, cr0\nxor eax, 0x20",
    "mov cr4, eax": "mov eax, 0x10",
    "rdmsr": "mov ecx, 0x277",
    "wrmsr": "mov ecx, 0x174\nmov eax, KERNEL_CODE\nxor edx, edx",
    "ltr ax": "mov byte ptr [tss_descriptor + 5], 0x89\nmov eax, TSS_SELECTOR",
    "lldt ax": "xor eax, eax",
    "lgdt [esp]": "sgdt [esp]\nmov dword ptr [esp + 2], offset gdt\nmov word ptr [esp], 0x2f",
    "lidt [esp]": "mov dword ptr [esp + 2], IDT\nmov word ptr [esp], 0x7ff",
    "popf": "pushf",
    "iretd": "pushf\npush KERNEL_CODE\npush offset after{n}",
    "retf": "push KERNEL_CODE\npush offset after{n}",
    "lmsw ax": "mov eax, 1",
    "mov dr7, eax": "mov eax, 0x400",
}
"""What must be so before an instruction can do what it is for."""


def exits_of(instructions: Sequence[str], technique: Technique) -> dict[str, list[ExitEvent]]:
    """Return the exits at each of *instructions* of 32-bit code, which a kernel executes one after the other."""
    parts = [
        ONE.format(n=n, setup=SETUPS.get(text, "nop").replace("{n}", str(n)), instruction=text)
        for n, text in enumerate(instructions)
    ]
    image = from_source(KERNEL.format("".join(parts)))
    events: list[ExitEvent] = []
    machine = Machine(image, technique, sink=events.append)
    result = machine.run(Budget(max_instructions=100_000))
    assert result.ending.success or result.ending.how.value == "halted", result.ending
    return {
        text: [event for event in events if event.rip == image.symbols[f"here{n}"]]
        for n, text in enumerate(instructions)
    }


def table(text: str, *heads: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the table in the page *text* whose columns are *heads*."""
    lines = iter(text.splitlines())
    wanted = f"| {' | '.join(heads)} |"
    assert wanted in text, wanted
    while next(lines) != wanted:
        pass
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]
