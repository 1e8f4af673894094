# The timer: how time enters a kernel.
# SDM 3A "Maskable Hardware Interrupts", SDM 2A "HLT-Halt"
#
# Channel 0 of the 8254 raises IRQ 0 of the first 8259A, a thousand times a second. The kernel has nothing to do but to
# wait: it halts, and each interrupt wakes it. What is printed depends on the number of interrupts alone, never on how
# many instructions fit between two of them.

.include "lib/kernel32.inc"
.include "lib/pic.inc"

.set TICKS, 5
.set IRQ0, 0x01
.set TIMER_VECTOR, IRQ_BASE

ticks: .long 0
last_tick: .long 0              # the handler masks the timer when it has counted this one

main:
    REMAP_PIC
    SET_GATE TIMER_VECTOR, timer_interrupt
    START_TIMER 1000

    mov dword ptr [last_tick], TICKS
    MASK_IRQS 0xfe
    call idle
    EXPECT [ticks], TICKS, "ticks"
    PRINT "halted until tick "
    PRINT_DEC [ticks]
    PRINT "\n"

    # IRQ 0 is masked now. The 8259A remembers the request all the same, and no tick arrives
    sti
    call wait_for_request
    cli
    EXPECT [ticks], TICKS, "ticks while masked"
    PRINT "masked: requested, not delivered\n"

    # IF = 0 holds it back as well, in the processor instead of in the 8259A
    inc dword ptr [last_tick]
    MASK_IRQS 0xfe
    call wait_for_request
    EXPECT [ticks], TICKS, "ticks while IF = 0"
    PRINT "unmasked with IF = 0: not delivered\n"

    call idle
    EXPECT [ticks], TICKS + 1, "ticks"
    PRINT "IF = 1: delivered at once\n"
    EXIT 0

# STI lets interrupts in only after the next instruction: none can arrive between it and HLT and leave us asleep
idle:
    cli
    mov eax, [ticks]
    cmp eax, [last_tick]
    je awake
    sti
    hlt
    jmp idle
awake:
    ret

# The interrupts requested of the first 8259A, until IRQ 0 is among them
wait_for_request:
    OUT_BYTE PIC1, READ_IRR
not_yet:
    in al, PIC1
    test al, IRQ0
    jz not_yet
    ret

timer_interrupt:
    push eax
    inc dword ptr [ticks]
    PRINT "tick "
    PRINT_DEC [ticks]
    PRINT "\n"
    mov eax, [ticks]
    cmp eax, [last_tick]
    jne more_ticks
    MASK_IRQS 0xff
more_ticks:
    # In service until we say "end of interrupt": the 8259A would send no other IRQ 0 before
    OUT_BYTE PIC1, READ_ISR
    in al, PIC1
    and eax, IRQ0
    EXPECT eax, IRQ0, "in service before EOI"
    OUT_BYTE PIC1, EOI
    in al, PIC1
    and eax, IRQ0
    EXPECT eax, 0, "in service after EOI"
    pop eax
    iretd
