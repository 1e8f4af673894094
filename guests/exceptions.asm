# Exceptions: what the processor says when an instruction cannot be executed, and what when even saying so fails.
# SDM 3A "Exception and Interrupt Reference"
#
# Each line is one exception, caused on purpose: its vector, its error code if it has one, and which EIP was saved. A
# fault saves the EIP of its instruction, so that it can be executed again; a trap saves the next one. The last exception
# cannot be delivered: it becomes a double fault, and a task gate brings in a task with a stack of its own.

.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/gdt.inc"
.include "lib/paging.inc"

.set ABSENT_SEGMENT, 0x30       # the selectors that the guest adds
.set SHORT_TSS, 0x38
.set DOUBLE_FAULT_TSS, 0x40

.set TASK_GATE, 0x85
.set ABSENT_GATE, 0x0e
.set NO_GATE_VECTOR, 0x40
.set ABSENT_GATE_VECTOR, 0x41
.set SHORT_TSS_VECTOR, 0x42

.set NO_ERROR, 0xffffffff       # for exceptions that push no error code
.set UNMAPPED, 0x50000000
.set SMALL_STACK, 0x00088000    # for the double fault

gdt_of_guest:
    STANDARD_DESCRIPTORS
    .quad 0x00cf12000000ffff    # data, not present
short_tss_descriptor:
    .quad 0x0000890000000066    # a TSS with a limit one byte too small
double_fault_descriptor:
    .quad 0x0000890000000067
gdt_of_guest_end:

.p2align 2
double_fault_tss:               # what the new task starts with
    .fill 28, 1, 0
double_fault_cr3:
    .long 0
    .long double_fault, 0x2     # EIP, EFLAGS
    .long 0, 0, 0, 0            # EAX, ECX, EDX, EBX
    .long SMALL_STACK, 0, 0, 0  # ESP, EBP, ESI, EDI
    .long KERNEL_DATA, KERNEL_CODE, KERNEL_DATA, KERNEL_DATA, KERNEL_DATA, KERNEL_DATA
    .long 0, 0x00680000         # no LDT, no I/O bitmap

name: .long 0                   # of the exception that is expected,
vector: .long 0                 # ... its vector,
error: .long 0                  # ... its error code,
saved_eip: .long 0              # ... the EIP that it saves,
resume: .long 0                 # ... and where to go on after it
low: .long 10                   # bounds for BOUND
high: .long 20

# An entry for each vector: without an error code, NO_ERROR is pushed in its place
.macro ENTRY number
entry_\number:
    push NO_ERROR
    push \number
    jmp caught
.endm

.macro ENTRY_WITH_ERROR number
entry_\number:
    push \number
    jmp caught
.endm

ENTRY 0
ENTRY 3
ENTRY 4
ENTRY 5
ENTRY 6
ENTRY_WITH_ERROR 10
ENTRY_WITH_ERROR 11
ENTRY_WITH_ERROR 12
ENTRY_WITH_ERROR 13
ENTRY_WITH_ERROR 14

# Executes one instruction that must cause this exception
.macro EXPECT_EXCEPTION text, number, code, saved, insn:vararg
    mov dword ptr [name], name\@
    mov dword ptr [vector], \number
    mov dword ptr [error], \code
    mov dword ptr [saved_eip], \saved\@
    mov dword ptr [resume], next\@
this\@:
    \insn
next\@:
    call must_have_been_caught
    jmp done\@
name\@: .asciz "\text"
done\@:
.endm

.macro FAULT text, number, code, insn:vararg
    EXPECT_EXCEPTION "\text", \number, \code, this, \insn
.endm

.macro TRAP text, number, insn:vararg
    EXPECT_EXCEPTION "\text", \number, NO_ERROR, next, \insn
.endm

main:
    REMAP_PIC
    SET_BASE short_tss_descriptor, tss
    SET_BASE double_fault_descriptor, double_fault_tss
    LOAD_GDT
    SET_GATE 0, entry_0
    SET_GATE 3, entry_3
    SET_GATE 4, entry_4
    SET_GATE 5, entry_5
    SET_GATE 6, entry_6
    SET_GATE 10, entry_10
    SET_GATE 11, entry_11
    SET_GATE 12, entry_12
    SET_GATE 13, entry_13
    SET_GATE 14, entry_14
    SET_GATE ABSENT_GATE_VECTOR, entry_0, ABSENT_GATE
    mov dword ptr [IDT + SHORT_TSS_VECTOR * 8], SHORT_TSS << 16
    mov dword ptr [IDT + SHORT_TSS_VECTOR * 8 + 4], TASK_GATE << 8

    # The instruction itself is at fault
    xor ecx, ecx
    FAULT "#DE division by zero", 0, NO_ERROR, div ecx
    mov eax, 0x80000000
    cdq
    mov ecx, -1
    FAULT "#DE quotient too large", 0, NO_ERROR, idiv ecx
    TRAP "#BP INT3", 3, int3
    mov eax, 0x7fffffff
    inc eax                     # sets OF
    TRAP "#OF INTO", 4, into
    mov ecx, 21
    FAULT "#BR index out of bounds", 5, NO_ERROR, bound ecx, [low]
    FAULT "#UD undefined instruction", 6, NO_ERROR, ud2
    FAULT "#UD LOCK without a memory operand", 6, NO_ERROR, .byte 0xf0, 0x90

    # A descriptor is: its selector is the error code, and bit 1 says that it is an entry of the IDT
    mov ecx, ABSENT_SEGMENT
    FAULT "#NP segment not present", 11, ABSENT_SEGMENT, mov ds, ecx
    FAULT "#NP gate not present", 11, ABSENT_GATE_VECTOR * 8 + 2, int ABSENT_GATE_VECTOR
    FAULT "#SS stack segment not present", 12, ABSENT_SEGMENT, mov ss, ecx
    mov ecx, TSS_SELECTOR
    FAULT "#GP a TSS is no data segment", 13, TSS_SELECTOR, mov ds, ecx
    xor ecx, ecx
    FAULT "#GP the null selector is no stack", 13, 0, mov ss, ecx
    FAULT "#GP no gate", 13, NO_GATE_VECTOR * 8 + 2, int NO_GATE_VECTOR
    FAULT "#TS task-state segment too short", 10, SHORT_TSS, int SHORT_TSS_VECTOR

    # A page is
    PAGING_ON
    FAULT "#PF page not present", 14, BY_KERNEL, mov eax, [UNMAPPED]
    mov eax, cr2
    EXPECT eax, UNMAPPED, "CR2"
    FAULT "#PF write to such a page", 14, BY_WRITE, mov dword ptr [UNMAPPED + 8], 1
    mov eax, cr2
    EXPECT eax, UNMAPPED + 8, "CR2"

    # The handler of #DE is gone. The processor wants to report #NP instead, but two such exceptions at a time are one
    # double fault. Were there no way to deliver this one either, the processor would shut down
    mov eax, cr3
    mov [double_fault_cr3], eax
    mov dword ptr [IDT + 8 * 8], DOUBLE_FAULT_TSS << 16
    mov dword ptr [IDT + 8 * 8 + 4], TASK_GATE << 8
    mov byte ptr [IDT + 5], ABSENT_GATE
    mov esi, 0x5afe             # the old task keeps its registers
    xor ecx, ecx
    div ecx
    PRINT "FAILED: nothing happened\n"
    EXIT 1

# On the stack: vector, error code, EIP, CS, EFLAGS
caught:
    pushad
    mov esi, [name]
    call print_text
    PRINT ": vector "
    mov eax, [esp + 32]
    PRINT_DEC eax
    EXPECT eax, [vector], "the vector"
    mov eax, [esp + 36]
    cmp eax, NO_ERROR
    je no_error_code
    PRINT ", error code "
    PRINT_HEX eax
no_error_code:
    EXPECT eax, [error], "the error code"
    PRINT ", EIP of "
    mov eax, [esp + 40]
    EXPECT eax, [saved_eip], "EIP"
    cmp eax, [resume]
    je a_trap
    PRINT "the instruction\n"
    jmp caught_and_printed
a_trap:
    PRINT "the next one\n"
caught_and_printed:
    mov eax, [resume]
    mov [esp + 40], eax
    mov dword ptr [name], 0
    popad
    add esp, 8
    iretd

must_have_been_caught:
    EXPECT [name], 0, "an instruction that should have caused an exception"
    ret

# Another task: its registers come from its TSS, and those of the task that failed are in the other TSS
.set TSS_ESI, 64
.set TSS_CS, 76

double_fault:
    pop eax
    PRINT "#DF the handler of #DE is gone: vector 8, error code "
    PRINT_HEX eax
    EXPECT eax, 0, "the error code"
    mov eax, esp
    EXPECT eax, SMALL_STACK, "the stack of this task"
    mov eax, [double_fault_tss]
    and eax, 0xffff
    EXPECT eax, TSS_SELECTOR, "the link to the task that failed"
    EXPECT [tss + TSS_ESI], 0x5afe, "ESI of the task that failed"
    PRINT ", in a task of its own\n"
    EXIT 0
