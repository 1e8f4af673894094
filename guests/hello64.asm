# The smallest 64-bit kernel: long mode, sixteen registers of 64 bits, addresses relative to the instruction.
# SDM 3A "Modes of Operation", SDM 3A "4-Level Paging and 5-Level Paging"
#
# Long mode cannot be without paging: the loader has mapped the first GiB of memory to itself.

.set STACK, 0x00080000
.set COM1, 0x3f8
.set COM1_STATUS, 0x3fd
.set CAN_SEND, 0x20
.set EXIT_PORT, 0xf4

start:
    cli
    cld
    mov rsp, STACK
    lea rsi, [rip + greeting]
    call print

    # A write to the lower half of a register clears the upper half
    mov rax, -1
    mov r15, rax
    mov r15d, r15d
    mov rcx, 0x00000000ffffffff
    cmp r15, rcx
    jne failed
    shl r15, 32
    add r15, rcx
    cmp r15, rax
    jne failed
    lea rsi, [rip + registers]
    call print
    xor eax, eax
    jmp exit
failed:
    lea rsi, [rip + failure]
    call print
    mov al, 1
exit:
    out EXIT_PORT, al
    hlt

print:                          # the text at RSI, up to its zero
    lodsb
    test al, al
    jz printed
    mov bl, al
busy:
    mov dx, COM1_STATUS
    in al, dx
    test al, CAN_SEND
    jz busy
    mov dx, COM1
    mov al, bl
    out dx, al
    jmp print
printed:
    ret

greeting: .asciz "hello from 64-bit long mode\n"
registers: .asciz "r15 has 64 bits, and r15d clears the upper ones\n"
failure: .asciz "FAILED: r15 is not what it was made\n"
