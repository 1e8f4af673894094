# Paging: what an address means is decided by tables that the kernel may change at any moment.
# SDM 3A "32-Bit Paging", SDM 3A "Interrupt 14-Page-Fault Exception (#PF)"
#
# The kernel maps, remaps, protects and unmaps pages, switches between address spaces, and lets page faults do its work:
# the handler brings in a page when it is first touched, copies a shared one when it is first written, and the faulting
# instruction, executed again, never knows.

.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/paging.inc"

.set RED, 0x00310000            # frames; the first word of each is its own gpa
.set GREEN, 0x00311000
.set BLUE, 0x00312000

.set WINDOW, 0x40000000
.set MIRROR, 0x40001000
.set ROOM, 0x40400000           # this gva is mapped differently in two spaces
.set HEAP, 0x40800000           # pages that exist once they are touched
.set HEAP_END, 0x40804000
.set PARENT, 0x40c00000         # two names of one frame, until one of them is written
.set CHILD, 0x40c01000
.set HIDDEN, 0x41000000         # user says its PTE, supervisor says its PDE
.set HIDDEN_PDE, 0x410          # where that PDE is in the directory
.set BIG, 0x80000000            # 4 MiB in one piece
.set BIG_PDE, 0x800
.set BIG_GPA, 0x00400000

.set ON_DEMAND, 0x400           # bits of an entry that the processor leaves to the kernel (with P = 0, all but P)
.set COPY_ON_WRITE, 0x200
.set NOT_USER, ~PTE_U

other_space: .long 0
faults: .long 0                 # resolved by the handler

main:
    REMAP_PIC
    SET_GATE 14, resolve_page_fault
    SET_GATE 0x80, leave_ring3, USER_GATE
    PAGING_ON
    MAP_USER_PROGRAMS
    mov dword ptr [RED], RED
    mov dword ptr [GREEN], GREEN
    mov dword ptr [BLUE], BLUE
    call map_and_unmap
    call protect
    call two_spaces
    call demand
    call copy_on_write
    call user_and_supervisor
    call large_page
    EXIT 0

map_and_unmap:
    PRINT "map\n"
    MAP WINDOW, RED | KERNEL
    EXPECT [WINDOW], RED, "the window"
    MAP MIRROR, RED | KERNEL
    mov dword ptr [MIRROR + 4], 0x1234
    EXPECT [WINDOW + 4], 0x1234, "written through the mirror"
    PRINT "  two gvas, one frame: what is written through one is read through the other\n"

    MAP WINDOW, BLUE | KERNEL
    invlpg byte ptr [WINDOW]
    EXPECT [WINDOW], BLUE, "the window after INVLPG"
    EXPECT [MIRROR], RED, "the mirror"
    PRINT "  remapped, INVLPG: the other frame\n"

    MAP WINDOW, 0
    invlpg byte ptr [WINDOW]
    TRY mov eax, [WINDOW + 8]
    call print_fault
    EXPECT [fault_error], BY_KERNEL, "read of an unmapped page"
    EXPECT [fault_gva], WINDOW + 8, "CR2"
    TRY mov dword ptr [WINDOW + 12], 1
    call print_fault
    EXPECT [fault_error], BY_WRITE, "write to an unmapped page"
    EXPECT [fault_gva], WINDOW + 12, "CR2"
    ret

protect:
    PRINT "protect\n"
    MAP WINDOW, RED | PTE_P
    EXPECT [WINDOW], RED, "a read-only page"
    TRY mov dword ptr [WINDOW], 1
    call print_fault
    EXPECT [fault_error], PROTECTION | BY_WRITE, "write to a read-only page"
    EXPECT [RED], RED, "the frame"
    MAP WINDOW, RED | KERNEL
    invlpg byte ptr [WINDOW]    # without it the processor may still fault once, by what it remembers
    mov dword ptr [WINDOW], RED
    PRINT "  writable again\n"
    ret

# One gva, two spaces, two frames. MOV to CR3 is the whole switch
two_spaces:
    PRINT "address spaces\n"
    MAP ROOM, RED | KERNEL
    call new_space
    mov [other_space], eax
    MAP ROOM, BLUE | KERNEL, [other_space]
    mov ebp, 3
there_and_back:
    EXPECT [ROOM], RED, "this space"
    mov esi, cr3
    mov eax, [other_space]
    mov cr3, eax
    EXPECT [ROOM], BLUE, "the other space"
    mov [ROOM + 4], ebp
    TRY mov eax, [MIRROR]
    EXPECT [fault_error], BY_KERNEL, "a page that only this space has"
    mov cr3, esi
    EXPECT [BLUE + 4], ebp, "written from the other space"
    dec ebp
    jnz there_and_back
    PRINT "  the same gva is one frame here and another there, three times over\n"
    ret

demand:
    PRINT "demand\n"
    mov ebx, HEAP
reserve:
    mov eax, cr3
    call pte_of
    mov dword ptr [edi], ON_DEMAND
    add ebx, PAGE
    cmp ebx, HEAP_END
    jne reserve

    mov ebx, HEAP
touch:
    EXPECT [ebx], 0, "a new page"
    mov [ebx], ebx
    EXPECT [ebx], ebx, "what was written to it"
    add ebx, PAGE
    cmp ebx, HEAP_END
    jne touch
    EXPECT [faults], 4, "page faults"

    # One instruction may fault more than once: this one reads one page and writes another
    MAP WINDOW, ON_DEMAND
    invlpg byte ptr [WINDOW]
    MAP MIRROR, ON_DEMAND
    invlpg byte ptr [MIRROR]
    mov esi, WINDOW
    mov edi, MIRROR
    movs dword ptr [edi], dword ptr [esi]
    EXPECT [faults], 6, "page faults"
    EXPECT esi, WINDOW + 4, "ESI after one MOVS"
    ret

copy_on_write:
    PRINT "copy on write\n"
    MAP PARENT, GREEN | PTE_P | COPY_ON_WRITE
    MAP CHILD, GREEN | PTE_P | COPY_ON_WRITE
    EXPECT [PARENT], [CHILD], "the shared page"
    mov dword ptr [CHILD], 0xc0de
    EXPECT [CHILD], 0xc0de, "the child's page"
    EXPECT [PARENT], GREEN, "the parent's page"
    PRINT "  the child has its own page, the parent's is as it was\n"
    ret

user_and_supervisor:
    PRINT "ring 3\n"
    MAP WINDOW, RED | KERNEL
    invlpg byte ptr [WINDOW]
    RING3 user_read, WINDOW
    call print_fault
    EXPECT [fault_error], PROTECTION | BY_USER, "ring 3 reads a kernel page"
    MAP WINDOW, RED | USER_READ
    invlpg byte ptr [WINDOW]
    RING3 user_read, WINDOW
    EXPECT [fault_error], NO_FAULT, "ring 3 reads a user page"
    RING3 user_write, WINDOW
    call print_fault
    EXPECT [fault_error], PROTECTION | BY_USER | BY_WRITE, "ring 3 writes a read-only page"
    EXPECT [RED], RED, "the frame"
    MAP HIDDEN, RED | USER
    mov eax, cr3
    and dword ptr [eax + HIDDEN_PDE], NOT_USER
    RING3 user_read, HIDDEN
    call print_fault
    EXPECT [fault_error], PROTECTION | BY_USER, "U/S must be set in both entries"
    EXPECT [HIDDEN], RED, "the kernel may read it"
    MAP MIRROR, ON_DEMAND
    invlpg byte ptr [MIRROR]
    RING3 user_write, MIRROR
    EXPECT [fault_error], NO_FAULT, "ring 3 touches a new page"
    EXPECT [MIRROR], MIRROR, "written by ring 3"
    ret

large_page:
    PRINT "4 MiB page\n"
    mov eax, cr4
    or eax, CR4_PSE
    mov cr4, eax
    mov eax, cr3
    mov dword ptr [eax + BIG_PDE], BIG_GPA | KERNEL | PDE_PS
    mov dword ptr [BIG + 0x123450], 0xb16
    mov dword ptr [BIG + 0x3ffffc], 0xe4d
    MAP WINDOW, BIG_GPA + 0x123000 + KERNEL
    MAP MIRROR, BIG_GPA + 0x3ff000 + KERNEL
    invlpg byte ptr [WINDOW]
    invlpg byte ptr [MIRROR]
    EXPECT [WINDOW + 0x450], 0xb16, "in the middle of the large page"
    EXPECT [MIRROR + 0xffc], 0xe4d, "at its end"
    PRINT "  one PDE maps what takes 1024 PTEs\n"

    # The same PDE points to a page table now
    mov eax, cr3
    mov dword ptr [eax + BIG_PDE], 0
    invlpg byte ptr [BIG]
    MAP BIG, RED | KERNEL
    EXPECT [BIG], RED, "4 KiB where 4 MiB were"
    TRY mov eax, [BIG + 0x123450]
    call print_fault
    EXPECT [fault_error], BY_KERNEL, "the rest is gone"
    ret

# On the stack: error code, EIP, CS, EFLAGS. What this handler cannot resolve goes to the one that TRY and RING3 expect
resolve_page_fault:
    pushad
    mov ebx, cr2
    mov eax, cr3
    call pte_of
    test dword ptr [edi], ON_DEMAND
    jnz bring_in
    test dword ptr [edi], COPY_ON_WRITE
    jnz copy_page
    popad
    jmp page_fault

bring_in:
    call new_frame
    or eax, USER
    mov [edi], eax              # it was not present, and the processor does not remember that: no INVLPG
    call print_cr2_and_error
    PRINT ": a new frame\n"
    jmp resolved

copy_page:
    call new_frame
    push edi
    mov edi, eax
    mov esi, ebx
    and esi, FRAME_MASK
    mov ecx, PAGE / 4
    rep movs dword ptr [edi], dword ptr [esi]
    pop edi
    or eax, USER
    mov [edi], eax
    invlpg [ebx]                # the old frame may be remembered, readable
    call print_cr2_and_error
    PRINT ": a copy\n"

resolved:
    inc dword ptr [faults]
    popad
    add esp, 4
    iretd

# With EBX = CR2, and the handler's stack as it is after PUSHAD and CALL
print_cr2_and_error:
    PRINT "  page fault at "
    PRINT_HEX ebx
    PRINT ", error code "
    mov eax, [esp + 36]
    PRINT_DEC eax
    ret

print_fault:
    PRINT "  page fault at "
    PRINT_HEX [fault_gva]
    PRINT ", error code "
    PRINT_DEC [fault_error]
    PRINT ": refused\n"
    ret
