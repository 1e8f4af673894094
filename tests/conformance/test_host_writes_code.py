"""Code that the machine itself writes, by an emulated instruction, is executed as it is now."""

from __future__ import annotations

import pytest

from hvemu.guest.image import from_source
from hvemu.machine import PAIRS, Machine, technique_for
from hvemu.techniques.vm import Budget

SOURCE = """
.include "lib/kernel32.inc"
main:
    mov ebp, 3
again:
    mov edi, patched + 1        # the operand of the MOV below, which has run before
    mov edx, COM1 + 7           # a register that keeps what is written to it
    mov eax, ebp
    out dx, al
    insb
    jmp patched
patched:
    mov al, 99
    movzx eax, al
    EXPECT eax, ebp, "the operand"
    dec ebp
    jnz again
    EXIT 0
"""


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_an_instruction_that_ins_has_written_runs_as_written(pair):
    result = Machine(from_source(SOURCE), technique_for(*pair)).run(Budget(max_instructions=100_000))
    assert (result.ending.code, result.console) == (0, b"")
