# A boot sector: 512 bytes in real mode, as the processor has started since 1978.
# SDM 3B "Real-Address Mode"
#
# An address is a segment times 16 plus an offset: the same byte has many names, and one of them is used to greet.

.set SECTOR, 0x7c00
.set SIGNATURE, 0x7dfe          # the last two bytes of the sector tell the BIOS that it can be booted

.set COM1, 0x3f8
.set COM1_STATUS, 0x3fd
.set CAN_SEND, 0x20
.set EXIT_PORT, 0xf4

start:
    cli
    cld
    xor ax, ax
    mov ss, ax
    mov sp, SECTOR
    mov ax, 0x07c0              # 0x07c0:0 is 0:0x7c00
    mov ds, ax
    mov es, ax
    mov si, greeting - SECTOR
    call print

    # One byte by two names
    mov di, scratch - SECTOR
    mov byte ptr es:[di], 0x5a
    xor ax, ax
    mov ds, ax
    cmp byte ptr [scratch], 0x5a
    jne failed
    mov si, aliases
    call print
    xor al, al
    jmp exit
failed:
    mov si, failure
    call print
    mov al, 1
exit:
    out EXIT_PORT, al
    hlt

print:                          # the text at DS:SI, up to its zero
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

scratch: .byte 0
greeting: .asciz "hello from 16-bit real mode\n"
aliases: .asciz "07c0:0000 and 0000:7c00 are one byte\n"
failure: .asciz "FAILED: two names, two bytes\n"

.org SIGNATURE
    .byte 0x55, 0xaa
