# The hole in x86 that no ring can close: POPF outside ring 0 neither changes IF nor says that it did not.
# SDM 2B "POPF/POPFD/POPFQ-Pop Stack Into EFLAGS Register"
#
# Popek and Goldberg asked that every instruction that touches the machine's state trap when it is not in the most
# privileged ring. POPF does not: a kernel that a hypervisor has moved to ring 1 believes that it has masked interrupts.
# PUSHF, which shows the IF of the machine instead of the kernel's, gives the hypervisor away.

.include "lib/kernel32.inc"
.include "lib/pic.inc"

.set IF, 0x200
.set NOT_IF, ~IF

agree: .long 0                  # observations that are as the manual says

# Prints the IF that PUSHF shows, and counts it if it is what was ordered
.macro OBSERVE text, ordered
    pushf
    pop eax
    mov ecx, \ordered
    call observe
    .asciz "\text"
.endm

main:
    REMAP_PIC                   # nothing may interrupt us, whatever IF is
    cli
    OBSERVE "CLI", 0

    pushf
    or dword ptr [esp], IF
    popf
    OBSERVE "POPF of IF = 1", IF

    pushf
    and dword ptr [esp], NOT_IF
    popf
    OBSERVE "POPF of IF = 0", 0

    sti
    nop
    OBSERVE "STI", IF
    cli

    cmp dword ptr [agree], 4
    jne not_in_ring0
    PRINT "every order was obeyed: this kernel is in ring 0, or cannot tell\n"
    EXIT 0
not_in_ring0:
    PRINT "not every order was obeyed: this kernel is not in ring 0\n"
    EXIT 0

# EAX = the EFLAGS that were seen, ECX = IF as it was ordered; the text follows the CALL
observe:
    xchg esi, [esp]
    call print_text
    xchg esi, [esp]
    and eax, IF
    cmp eax, ecx
    jne disobeyed
    inc dword ptr [agree]
disobeyed:
    test eax, eax
    jz if_clear
    PRINT ": IF = 1\n"
    ret
if_clear:
    PRINT ": IF = 0\n"
    ret
