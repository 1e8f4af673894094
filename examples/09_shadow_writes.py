"""Count what shadow paging does for N writes to a page table, and what EPT does."""

from hvemu import Machine, from_source, technique_for

SOURCE = r"""
.include "lib/kernel32.inc"
.include "lib/paging.inc"

.set FRAME, 0x00300000
.set AVAILABLE, 0x200           # a bit of a PTE that the processor ignores

main:
    PAGING_ON
    MAP 0x40000000, FRAME | KERNEL
    mov ecx, {writes}
again:
    xor dword ptr [edi], AVAILABLE
    {use}
    dec ecx
    jnz again
    EXIT 0
"""


def exits(writes, use, technique):
    """Return the exits of a kernel that writes a PTE so often, and each time does *use*."""
    return Machine(from_source(SOURCE.format(writes=writes, use=use)), technique_for(technique, None)).run().exits


for title, use in (("used after each write", "mov eax, [0x40000000]"), ("not used", "nop")):
    print(f"the page is {title}")
    for technique in ("deprivilege", "hardware"):
        first = exits(1, use, technique)
        for more in (10, 1000):
            print(f"  {technique}: {more:4} more writes, {exits(1 + more, use, technique) - first:4} more exits")
