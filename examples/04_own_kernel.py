"""Assemble a kernel from a string and run it."""

from hvemu import Machine, from_source, technique_for

# lib/kernel32.inc begins the kernel: descriptor tables, a stack, and macros. It goes on at main
SOURCE = r"""
.include "lib/kernel32.inc"

main:
    mov eax, 1
    mov ecx, 10
product:
    mul ecx
    dec ecx
    jnz product
    PRINT "10! = "
    PRINT_DEC eax
    PRINT "\n"
    EXPECT eax, 3628800, "the product"
    EXIT 0
"""

result = Machine(from_source(SOURCE), technique_for("bare", None)).run()
print(result.console.decode(), end="")
print("success" if result.ending.success else "failure")
