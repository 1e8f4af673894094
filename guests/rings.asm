# Rings: a program in ring 3 cannot do harm, and has exactly the doors that the kernel opened.
# SDM 3A "Privilege Levels", SDM 3A "Call Gates"
#
# The kernel starts a program in ring 3. It comes back through an interrupt gate (INT 0x80) and through a call gate, each
# time on the stack that the TSS names, and it tries all that is forbidden: every attempt ends in #GP, in the kernel.

.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/gdt.inc"

.set USER_STACK, 0x00070000
.set CALL_GATE, 0x33            # RPL 3
.set RPL, 3

.set SAY, 1                     # system calls, in EAX: print the text at EBX; add ECX and EDX; leave
.set ADD, 2
.set LEAVE, 3

gdt_of_guest:
    STANDARD_DESCRIPTORS
call_gate:                      # to KERNEL_CODE:called, open to ring 3, with two doublewords of parameters
    .word 0, KERNEL_CODE
    .byte 2, 0xec
    .word 0
gdt_of_guest_end:

refused: .long 0                # attempts that ended in #GP

main:
    REMAP_PIC
    mov eax, called
    mov [call_gate], ax
    shr eax, 16
    mov [call_gate + 6], ax
    LOAD_GDT
    SET_GATE 13, general_protection
    SET_GATE 0x80, system_call, USER_GATE
    PRINT "kernel: starting a program in ring 3\n"
    mov eax, USER_DATA
    mov ds, eax
    mov es, eax
    push USER_DATA              # SS and ESP, EFLAGS, CS and EIP: a return to where nobody came from
    push USER_STACK
    push 0x002                  # IOPL = 0: no port, no CLI, no STI
    push USER_CODE_SELECTOR
    push program
    iretd

# -- ring 3 ----------------------------------------------------------------------------------------------------------

.macro SAY_TEXT text
    mov eax, SAY
    mov ebx, text\@
    int 0x80
    jmp said\@
text\@: .asciz "\text"
said\@:
.endm

# Tries one instruction that must end in #GP with this error code. EDI and ESI tell the kernel what to expect, EBP where
# to go on, EBX what to print
.macro FORBIDDEN text, error, insn:vararg
    mov ebx, text\@
    mov edi, \error
    mov esi, try\@
    mov ebp, tried\@
try\@:
    \insn
    mov al, 0xff                # nothing stopped it
    mov ebx, [0xffffffff]
text\@: .asciz "\text"
tried\@:
.endm

program:
    SAY_TEXT "program: system calls work\n"
    mov eax, ADD
    mov ecx, 40
    mov edx, 2
    int 0x80
    cmp eax, 42
    jne program_failed
    SAY_TEXT "program: the kernel has added 40 and 2\n"

    push 0x1111                 # the processor copies both to the kernel's stack
    push 0x2222
    lcall CALL_GATE:0           # the offset does not matter: the gate has its own
    cmp eax, 0x3333
    jne program_failed
    cmp esp, USER_STACK         # RETF 8 has released them here, too
    jne program_failed
    SAY_TEXT "program: back from the call gate\n"

    mov ecx, KERNEL_DATA
    FORBIDDEN "HLT", 0, hlt
    FORBIDDEN "CLI", 0, cli
    FORBIDDEN "STI", 0, sti
    FORBIDDEN "MOV from CR0", 0, mov eax, cr0
    FORBIDDEN "MOV to CR3", 0, mov cr3, eax
    FORBIDDEN "LGDT", 0, lgdt [gdtr_of_guest]
    FORBIDDEN "LTR", 0, ltr cx
    FORBIDDEN "CLTS", 0, clts
    FORBIDDEN "INVLPG", 0, invlpg byte ptr [program]
    FORBIDDEN "RDMSR", 0, rdmsr
    FORBIDDEN "IN", 0, in al, PIC1
    FORBIDDEN "OUT", 0, out EXIT_PORT, al
    FORBIDDEN "the kernel's data segment", KERNEL_DATA, mov ds, ecx
    FORBIDDEN "the kernel's stack segment", KERNEL_DATA, mov ss, ecx
    FORBIDDEN "a jump into the kernel", KERNEL_CODE, ljmp KERNEL_CODE:program
    FORBIDDEN "a gate of the kernel's own", 13 * 8 + 2, int 13
    FORBIDDEN "a gate that is not there", 0x81 * 8 + 2, int 0x81

    mov eax, LEAVE
    int 0x80

program_failed:
    SAY_TEXT "FAILED: the program got a wrong answer\n"
    mov eax, 0                  # no system call: the kernel ends with failure
    int 0x80

# -- ring 0 ----------------------------------------------------------------------------------------------------------

# The frame that an entry from ring 3 leaves at the top of the kernel's stack, seen from EBP after PUSHAD
.set EAX_SLOT, 28
.set FRAME, 32                  # EIP, CS, EFLAGS, ESP, SS
.set FRAME_SIZE, 20

system_call:
    pushad
    mov ebp, esp
    mov esi, KERNEL_DATA
    mov ds, esi
    mov es, esi
    lea esi, [ebp + FRAME + FRAME_SIZE]
    EXPECT esi, [TSS_ESP0], "the stack that the TSS names"
    EXPECT [ebp + FRAME + 4], USER_CODE_SELECTOR, "CS of the program"
    EXPECT [ebp + FRAME + 12], USER_STACK, "ESP of the program"
    EXPECT [ebp + FRAME + 16], USER_DATA, "SS of the program"
    cmp eax, SAY
    je say
    cmp eax, ADD
    je add_two
    cmp eax, LEAVE
    je leave_program
    EXIT 1

say:
    mov esi, ebx
    call print_text
    jmp back_to_ring3

add_two:
    add ecx, edx
    mov [ebp + EAX_SLOT], ecx
back_to_ring3:
    mov esi, USER_DATA
    mov ds, esi
    mov es, esi
    popad
    iretd

leave_program:
    EXPECT [refused], 17, "attempts refused"
    PRINT "kernel: the program has left\n"
    EXIT 0

# Through the call gate: EIP, CS, both parameters, and ESP and SS of the caller, who finds EAX changed
called:
    mov eax, KERNEL_DATA
    mov ds, eax
    PRINT "kernel: entered through the call gate\n"
    lea eax, [esp + 24]
    EXPECT eax, [TSS_ESP0], "the stack that the TSS names"
    mov eax, [esp + 4]
    EXPECT eax, USER_CODE_SELECTOR, "CS of the caller"
    mov eax, [esp + 8]
    EXPECT eax, 0x2222, "the second parameter"
    add eax, [esp + 12]
    push USER_DATA
    pop ds
    retf 8

general_protection:             # below the frame: the error code
    push ecx
    mov ecx, KERNEL_DATA
    mov ds, ecx
    mov es, ecx
    inc dword ptr [refused]
    PRINT "kernel: refused "
    push esi
    mov esi, ebx
    call print_text
    pop esi
    mov eax, [esp + 4]
    PRINT ", error code "
    PRINT_HEX eax
    PRINT "\n"
    EXPECT eax, edi, "the error code"
    mov eax, [esp + 8]
    EXPECT eax, esi, "EIP of the forbidden instruction"
    mov [esp + 8], ebp          # go on after the attempt
    mov ecx, USER_DATA
    mov ds, ecx
    mov es, ecx
    pop ecx
    add esp, 4
    iretd
