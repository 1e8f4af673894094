# Two processes that never give up the processor, and the timer that takes it from them.
# SDM 3A "Stack Switching", SDM 3A "Task-State Segment (TSS)"
#
# Both run the same program at the same gva, each in its own space: one writes "ping", the other "pong". Between two
# lines a process spins in ring 3 until it is its turn, so nothing would ever happen but for the timer, which switches
# space and kernel stack behind its back. The order of the lines is the order of the turns, however long a tick is.

.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/paging.inc"

.set TIMER_VECTOR, IRQ_BASE
.set ROUNDS, 5

# What a process sees
.set CODE, 0x08000000           # the program: the same frame in both spaces, read-only
.set TURN, 0x08001000           # 0 or 1: likewise
.set DATA, 0x08002000           # its own frame, and its stack
.set ME, DATA                   # 0 or 1
.set COUNT, DATA + 4            # lines written
.set NAME, DATA + 8             # text
.set STACK_TOP, DATA + 0x1000

.set SAY, 1                     # system calls, in EAX. SAY: text at EBX, number ECX; the turn passes
.set LEAVE, 2

# What the kernel knows about a process: 16 bytes each
.set TASK_ESP, 0                # of its kernel stack, while it is not running
.set TASK_STACK, 4              # where that stack begins, for TSS.ESP0
.set TASK_SPACE, 8              # CR3
.set TASK_ALIVE, 12

.p2align 5
ping: .fill 16, 1, 0
pong: .fill 16, 1, 0
current: .long 0
switches: .long 0               # made by the timer
turn: .long 0                   # the gpa of the frame at TURN
code: .long 0                   # ... and at CODE
ping_name: .asciz "ping"
pong_name: .asciz "pong"

main:
    REMAP_PIC
    SET_GATE 14, page_fault
    SET_GATE TIMER_VECTOR, timer_interrupt
    SET_GATE 0x80, system_call, USER_GATE
    PAGING_ON

    call new_frame
    mov [turn], eax
    call new_frame
    mov [code], eax
    mov esi, user_program
    mov edi, eax
    mov ecx, user_program_end - user_program
    rep movsb
    xor edx, edx
    mov esi, ping_name
    mov ebp, ping
    call make_task
    inc edx
    mov esi, pong_name
    mov ebp, pong
    call make_task

    START_TIMER 1000
    MASK_IRQS 0xfe
    mov ebx, ping
    jmp run

# The program. It is copied to CODE: all its jumps are relative
user_program:
    call wait_for_turn
    inc dword ptr [COUNT]
    mov eax, SAY
    mov ebx, NAME
    mov ecx, [COUNT]
    int 0x80
    cmp ecx, ROUNDS
    jne user_program
    mov eax, LEAVE
    int 0x80

wait_for_turn:
    mov eax, [ME]
spin:
    cmp eax, [TURN]
    jne spin
    ret
user_program_end:

# Makes process number EDX, named ESI, in the structure EBP
make_task:
    call new_space
    mov [ebp + TASK_SPACE], eax
    mov dword ptr [ebp + TASK_ALIVE], 1
    mov ecx, [code]
    or ecx, USER_READ
    MAP CODE, ecx, [ebp + TASK_SPACE]
    mov ecx, [turn]
    or ecx, USER_READ
    MAP TURN, ecx, [ebp + TASK_SPACE]
    call new_frame
    mov [eax], edx              # ME
    lea edi, [eax + 8]          # NAME
    movs dword ptr [edi], dword ptr [esi]
    lea ecx, [eax + USER]
    MAP DATA, ecx, [ebp + TASK_SPACE]

    # Its kernel stack looks as if it had been interrupted before its first instruction
    call new_frame
    add eax, PAGE
    mov [ebp + TASK_STACK], eax
    mov ecx, USER_DATA
    mov [eax - 4], ecx
    mov dword ptr [eax - 8], STACK_TOP
    mov dword ptr [eax - 12], 0x202         # EFLAGS: IF
    mov ecx, USER_CODE_SELECTOR
    mov [eax - 16], ecx
    mov dword ptr [eax - 20], CODE          # EIP; below it the eight registers, all zero
    mov dword ptr [eax - 56], back_to_user  # where switch returns to
    sub eax, 56
    mov [ebp + TASK_ESP], eax
    ret

# Interrupts come from ring 3 only: the kernel keeps IF = 0, and its gates keep it so
timer_interrupt:
    pushad
    call enter_kernel
    inc dword ptr [switches]
    OUT_BYTE PIC1, EOI
    call switch
back_to_user:
    mov ecx, USER_DATA
    mov ds, ecx
    mov es, ecx
    popad
    iretd

system_call:
    pushad
    call enter_kernel
    cmp eax, SAY
    jne leave_process
    mov esi, ebx
    call print_text
    PRINT " "
    PRINT_DEC ecx
    PRINT "\n"
    mov ebx, [turn]
    xor dword ptr [ebx], 1
    jmp back_to_user

leave_process:
    mov ebx, [current]
    mov dword ptr [ebx + TASK_ALIVE], 0
    xor ebx, 16
    cmp dword ptr [ebx + TASK_ALIVE], 0
    jne run
    jmp both_have_left

# The processor found this stack in the TSS: it must be the one of the process that runs
enter_kernel:
    push eax
    push ebx
    mov eax, KERNEL_DATA
    mov ds, eax
    mov es, eax
    mov ebx, [current]
    lea eax, [esp + 64]         # above EBX, EAX, the return address, eight registers, EIP, CS, EFLAGS, ESP, SS
    EXPECT eax, [ebx + TASK_STACK], "the kernel stack of the process"
    pop ebx
    pop eax
    ret

# Returns as the other process, if there is one: on its stack, to where it called from
switch:
    mov ebx, [current]
    mov [ebx + TASK_ESP], esp
    xor ebx, 16                 # the two structures differ in this address bit
    cmp dword ptr [ebx + TASK_ALIVE], 0
    jne run
    ret

# Goes on as process EBX
run:
    mov [current], ebx
    mov eax, [ebx + TASK_SPACE]
    mov cr3, eax
    mov eax, [ebx + TASK_STACK]
    mov [TSS_ESP0], eax
    mov esp, [ebx + TASK_ESP]
    ret

# The same gva in both spaces: two counters, two names
both_have_left:
    MASK_IRQS 0xff
    mov ebx, ping
    call look_into
    EXPECT [ME], 0, "the data of ping"
    mov ebx, pong
    call look_into
    EXPECT [ME], 1, "the data of pong"

    # Every line but the first waits for a switch; LEAVE brings the last one about, the timer the others
    mov eax, [switches]
    cmp eax, ROUNDS * 2 - 2
    setae al
    movzx eax, al
    EXPECT eax, 1, "switches by the timer"
    PRINT "both processes have left\n"
    EXIT 0

look_into:
    mov eax, [ebx + TASK_SPACE]
    mov cr3, eax
    EXPECT [COUNT], ROUNDS, "lines counted by the process"
    ret
