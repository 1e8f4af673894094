# Code that changes while it runs: an instruction is what memory holds when it is executed, not what it held before.
# SDM 3A "Self-Modifying Code"
#
# Whoever runs a guest by translating its code must notice every one of these stores: to the very next instruction, into
# a loop, across a page boundary, and through an address that is not the one where the code is executed.

.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/paging.inc"

.set MOV_EAX, 0xb8              # mov eax, imm32
.set RET, 0xc3
.set NOP, 0x90

.set PLAYGROUND, 0x00200000     # below KERNEL_END: a gva is its gpa
.set BOUNDARY, 0x00202000
.set FRAME, 0x00300000
.set EXECUTED, 0x40000000       # two gvas of that frame
.set WRITTEN, 0x40001000

main:
    REMAP_PIC
    call next_instruction
    call in_a_loop
    call string_store
    call generated
    call across_pages
    SET_GATE 14, page_fault
    PAGING_ON
    call through_another_name
    EXIT 0

# The store and its target are neighbours
next_instruction:
    xor ecx, ecx
    mov byte ptr [patched + 1], 2
patched:
    mov al, 1
    movzx eax, al
    EXPECT eax, 2, "the next instruction"

    # Not an operand only: INC ECX (41) becomes DEC ECX (49)
    mov byte ptr [opcode], 0x49
opcode:
    inc ecx
    EXPECT ecx, -1, "the next opcode"
    PRINT "the next instruction was changed, and executed as changed\n"
    ret

# An instruction that adds 1, then 2, then 3 ... up to 100
in_a_loop:
    xor eax, eax
    mov ecx, 100
add_more:
    mov edx, 1                  # ba and four bytes
    add eax, edx
    inc dword ptr [add_more + 1]
    dec ecx
    jnz add_more
    EXPECT eax, 5050, "the sum"
    PRINT "an instruction was changed a hundred times: 5050\n"
    ret

# REP STOSB overwrites what comes after itself
string_store:
    xor eax, eax
    mov al, NOP
    mov edi, doomed
    mov ecx, doomed_end - doomed
    xor ebx, ebx
    rep stosb
doomed:
    inc ebx
    inc ebx
    inc ebx
    inc ebx
doomed_end:
    EXPECT ebx, 0, "instructions that became NOP"
    PRINT "a string store erased the instructions behind it\n"
    ret

# Code made of data, a hundred versions at one address
generated:
    mov byte ptr [PLAYGROUND], MOV_EAX
    mov byte ptr [PLAYGROUND + 5], RET
    mov ebx, 100
    mov edx, PLAYGROUND
    xor esi, esi
next_version:
    mov [PLAYGROUND + 1], ebx
    call edx
    add esi, eax
    dec ebx
    jnz next_version
    EXPECT esi, 5050, "the sum of all versions"
    PRINT "a function was made anew a hundred times: 5050\n"
    ret

# One instruction in two pages: each part is changed without the other
across_pages:
    mov byte ptr [BOUNDARY - 3], MOV_EAX        # the operand begins two bytes before the boundary
    mov dword ptr [BOUNDARY - 2], 0x11112222
    mov byte ptr [BOUNDARY + 2], RET
    mov edx, BOUNDARY - 3
    call edx
    EXPECT eax, 0x11112222, "an instruction in two pages"
    mov word ptr [BOUNDARY], 0x3333
    call edx
    EXPECT eax, 0x33332222, "its part in the second page"
    mov word ptr [BOUNDARY - 2], 0x4444
    call edx
    EXPECT eax, 0x33334444, "its part in the first page"
    mov dword ptr [BOUNDARY - 2], 0x55556666    # one store to both pages
    call edx
    EXPECT eax, 0x55556666, "both parts"
    PRINT "an instruction in two pages was changed in each and in both\n"
    ret

# A frame with two names: executed by one, written by the other, then by its gpa
through_another_name:
    MAP EXECUTED, FRAME | KERNEL
    MAP WRITTEN, FRAME | KERNEL
    mov byte ptr [WRITTEN], MOV_EAX
    mov byte ptr [WRITTEN + 5], RET
    mov ebx, 100
    mov edx, EXECUTED
    xor esi, esi
next_name:
    mov [WRITTEN + 1], ebx
    call edx
    add esi, eax
    mov [FRAME + 1], esi
    call edx
    EXPECT eax, esi, "written by its gpa"
    dec ebx
    jnz next_name
    EXPECT esi, 5050, "written by its other name"
    PRINT "code was written through another mapping a hundred times: 5050\n"

    # The same gva, another frame: nothing was written, only mapped
    mov byte ptr [FRAME + PAGE], MOV_EAX
    mov dword ptr [FRAME + PAGE + 1], 7
    mov byte ptr [FRAME + PAGE + 5], RET
    MAP EXECUTED, FRAME + PAGE + KERNEL
    invlpg byte ptr [EXECUTED]
    mov edx, EXECUTED
    call edx
    EXPECT eax, 7, "another frame"
    PRINT "another frame was mapped: other code at the same address\n"
    ret
