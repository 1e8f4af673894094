# CPUID: the processor introduces itself, and a hypervisor may put words into its mouth.
# SDM 2A "CPUID-CPU Identification"
#
# Nothing here depends on which processor it is. The guest asks whether the answers fit together: with each other, with
# what the architecture promises, and with what happens when a feature that was promised is used.

.include "lib/kernel32.inc"

.set ID, 0x00200000             # the bit of EFLAGS that can be changed where CPUID exists
.set BEYOND, 0x10               # how far above the last leaf to ask
.set EXTENDED, 0x80000000

.set HAS_FPU, 0x00000001        # of leaf 1, EDX
.set HAS_PSE, 0x00000008
.set HAS_TSC, 0x00000010
.set HAS_CX8, 0x00000100
.set HAS_CMOV, 0x00008000

max_leaf: .long 0
features: .long 0
answer: .long 0, 0, 0, 0
again: .long 0, 0, 0, 0
counter: .long 0xffffffff, 0x00000001

# Asks for a leaf, and keeps the four registers of the answer
.macro ASK leaf, where
    mov eax, \leaf
    mov edi, \where
    call ask
.endm

# Goes on only if the processor has the feature
.macro PROMISED feature, text
    mov eax, [features]
    and eax, \feature
    EXPECT eax, \feature, "\text"
.endm

main:
    pushf
    pop eax
    mov ecx, eax
    xor eax, ID
    push eax
    popf
    pushf
    pop eax
    xor eax, ecx
    and eax, ID
    EXPECT eax, ID, "the ID flag can be changed"
    PRINT "EFLAGS.ID can be changed: there is a CPUID instruction\n"

    ASK 0, answer
    mov eax, [answer]
    mov [max_leaf], eax
    cmp eax, 1
    setae al
    movzx eax, al
    EXPECT eax, 1, "at least leaf 1"
    call vendor_is_text
    PRINT "leaf 0: the vendor is twelve characters of text\n"

    ASK 0, again
    call same_answers
    PRINT "asked twice: the same answer\n"

    # Above the last leaf, the processor answers as for the last one
    ASK [max_leaf], answer
    mov eax, [max_leaf]
    add eax, BEYOND
    ASK eax, again
    call same_answers
    PRINT "a leaf above the last: the answer of the last\n"

    ASK EXTENDED, answer
    mov eax, [answer]
    and eax, EXTENDED
    EXPECT eax, EXTENDED, "the last extended leaf"
    PRINT "leaf 80000000: there are extended leaves\n"

    call only_four_registers
    PRINT "CPUID changes EAX, EBX, ECX and EDX only\n"
    call keep_promises
    EXIT 0

# EAX, EBX, ECX, EDX of leaf EAX, subleaf 0, go to EDI
ask:
    xor ecx, ecx
    cpuid
    mov [edi], eax
    mov [edi + 4], ebx
    mov [edi + 8], ecx
    mov [edi + 12], edx
    ret

same_answers:
    EXPECT [again], [answer], "EAX"
    EXPECT [again + 4], [answer + 4], "EBX"
    EXPECT [again + 8], [answer + 8], "ECX"
    EXPECT [again + 12], [answer + 12], "EDX"
    ret

vendor_is_text:
    mov esi, answer + 4
    mov ecx, 12
next_character:
    lodsb
    cmp al, ' '
    jb no_text
    cmp al, '~'
    ja no_text
    dec ecx
    jnz next_character
    ret
no_text:
    movzx eax, al
    EXPECT eax, 'a', "a character of the vendor"

only_four_registers:
    mov esi, 0x11111111
    mov edi, 0x22222222
    mov ebp, esp
    stc
    mov eax, 1
    cpuid
    setc al
    movzx eax, al
    EXPECT eax, 1, "CF"
    EXPECT esi, 0x11111111, "ESI"
    EXPECT edi, 0x22222222, "EDI"
    mov eax, esp
    EXPECT eax, ebp, "ESP"
    ret

# What leaf 1 promises must work
keep_promises:
    ASK 1, answer
    mov eax, [answer + 12]
    mov [features], eax

    PROMISED HAS_FPU, "FPU"
    fninit
    fld1
    fld1
    faddp st(1), st(0)
    push 0
    fistp dword ptr [esp]
    pop eax
    EXPECT eax, 2, "1 + 1"
    PRINT "FPU promised: it adds 1 and 1\n"

    PROMISED HAS_TSC, "TSC"
    rdtsc
    mov esi, eax
    mov edi, edx
    rdtsc
    sub eax, esi
    sbb edx, edi
    EXPECT edx, 0, "time that has passed, upper half"    # a borrow would be time that runs backwards
    PRINT "TSC promised: it does not run backwards\n"

    PROMISED HAS_CX8, "CX8"
    mov eax, 0xffffffff
    mov edx, 1
    mov ebx, 0
    mov ecx, 2
    cmpxchg8b qword ptr [counter]
    sete al
    movzx eax, al
    EXPECT eax, 1, "CMPXCHG8B"
    EXPECT [counter], 0, "lower half"
    EXPECT [counter + 4], 2, "upper half"
    PRINT "CX8 promised: CMPXCHG8B carries from one half to the other\n"

    PROMISED HAS_CMOV, "CMOV"
    mov eax, 1
    mov ecx, 2
    cmp eax, ecx
    cmovb eax, ecx
    EXPECT eax, 2, "CMOVB"
    PRINT "CMOV promised: it moves on condition\n"

    PROMISED HAS_PSE, "PSE"
    mov eax, cr4
    or eax, 0x10
    mov cr4, eax
    mov eax, cr4
    and eax, 0x10
    EXPECT eax, 0x10, "CR4.PSE"
    PRINT "PSE promised: CR4 takes the bit\n"
    ret
