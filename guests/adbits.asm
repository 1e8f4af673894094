# Accessed and dirty: what the processor writes into the guest's own page tables, and when.
# SDM 3A "Accessed and Dirty Flags"
#
# A is set in every entry that a translation uses, D only in the entry that maps the page, and only by a write that is
# allowed. The processor never clears them: the guest does, and must then use INVLPG. A hypervisor whose processor walks
# shadow tables has to bring both bits back into the tables that the guest reads.

.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/paging.inc"

.set FRAMES, 0x00310000
.set PAGE0, 0x40000000          # two writable pages
.set PAGE1, 0x40001000
.set ALIAS, 0x40002000          # the frame of PAGE0 under a second name
.set CODE_PAGE, 0x40003000      # holds one RET
.set READ_ONLY, 0x40004000      # ring 3 may read it
.set ABSENT, 0x40005000         # a frame number, but P = 0
.set TWIN, 0x40400000           # PAGE0 again, by the same page table under the next PDE
.set TWIN_PDE, 0x404            # where that PDE is in the directory
.set BIG, 0x40800000            # 4 MiB in one piece
.set BIG_PDE, 0x408
.set BIG_GPA, 0x00400000
.set RET, 0xc3

.set A_AND_D, PTE_A | PTE_D
.set NOT_A_NOT_D, ~0x060
.set NOT_D, ~0x040
.set NOT_WP, ~CR0_WP

# Clears A and D in both entries for gva, tells the processor, and then watches what one access does to them
.macro FORGET gva
    mov ebx, \gva
    call forget
.endm

.macro SEE text, gva, pde, pte
    mov ebx, \gva
    call entries_of
    mov eax, [esi]
    and eax, A_AND_D
    EXPECT eax, \pde, "\text: A and D of the PDE"
    PRINT "PDE "
    call print_flags
    mov eax, [edi]
    and eax, A_AND_D
    EXPECT eax, \pte, "\text: A and D of the PTE"
    PRINT "  PTE "
    call print_flags
    PRINT "  \text\n"
.endm

.macro SEE_BIG text, pde
    mov eax, cr3
    mov eax, [eax + BIG_PDE]
    and eax, A_AND_D
    EXPECT eax, \pde, "\text: A and D of the PDE"
    PRINT "PDE "
    call print_flags
    PRINT "          \text\n"
.endm

main:
    REMAP_PIC
    SET_GATE 14, page_fault
    SET_GATE 0x80, leave_ring3, USER_GATE
    mov eax, cr4
    or eax, CR4_PSE
    mov cr4, eax
    PAGING_ON
    MAP_USER_PROGRAMS
    mov byte ptr [FRAMES + 0x2000], RET
    MAP PAGE0, FRAMES + KERNEL
    MAP PAGE1, FRAMES + 0x1000 + KERNEL
    MAP ALIAS, FRAMES + KERNEL
    MAP CODE_PAGE, FRAMES + 0x2000 + KERNEL
    MAP READ_ONLY, FRAMES + 0x3000 + USER_READ
    MAP ABSENT, FRAMES + 0x4000

    SEE "untouched", PAGE0, 0, 0
    mov eax, [PAGE0]
    SEE "after a read", PAGE0, PTE_A, PTE_A
    mov dword ptr [PAGE0], 1
    SEE "then a write", PAGE0, PTE_A, A_AND_D
    SEE "the neighbour", PAGE1, PTE_A, 0

    FORGET PAGE0
    SEE "cleared by the guest", PAGE0, 0, 0
    mov eax, [PAGE0]
    SEE "after a read", PAGE0, PTE_A, PTE_A
    FORGET PAGE0
    mov dword ptr [PAGE0], 2
    SEE "after a write", PAGE0, PTE_A, A_AND_D
    FORGET PAGE0
    or dword ptr [PAGE0], 0
    SEE "after a read-modify-write that changes nothing", PAGE0, PTE_A, A_AND_D

    # Only D cleared: a read leaves it so, a write brings it back
    and dword ptr [edi], NOT_D
    invlpg byte ptr [PAGE0]
    mov eax, [PAGE0]
    SEE "D cleared, then a read", PAGE0, PTE_A, PTE_A
    mov dword ptr [PAGE0], 3
    SEE "D cleared, then a write", PAGE0, PTE_A, A_AND_D

    # Only the A of the PDE cleared
    and dword ptr [esi], NOT_A_NOT_D
    invlpg byte ptr [PAGE0]
    mov eax, [PAGE0]
    SEE "A of the PDE cleared, then a read", PAGE0, PTE_A, A_AND_D

    call copy
    call names
    call fetch
    call forbidden
    call large
    EXIT 0

# REP MOVS reads one page and writes another
copy:
    FORGET PAGE0
    FORGET PAGE1
    mov esi, PAGE0
    mov edi, PAGE1
    mov ecx, 16
    rep movsb
    SEE "source of a copy", PAGE0, PTE_A, PTE_A
    SEE "its destination", PAGE1, PTE_A, A_AND_D
    ret

# The bits belong to entries, not to frames: another name of the frame is not concerned
names:
    FORGET PAGE0
    mov dword ptr [ALIAS], 4
    SEE "a frame written through another PTE", PAGE0, PTE_A, 0
    SEE "that other PTE", ALIAS, PTE_A, A_AND_D

    # One page table under two PDEs: the PTE is shared, the way to it is not
    mov eax, cr3
    mov ecx, [eax + 0x400]
    and ecx, NOT_A_NOT_D
    mov [eax + TWIN_PDE], ecx
    FORGET PAGE0
    mov dword ptr [TWIN], 5
    SEE "a page table used through its other PDE", PAGE0, 0, A_AND_D
    SEE "that other PDE", TWIN, PTE_A, A_AND_D
    ret

fetch:
    FORGET CODE_PAGE
    mov eax, CODE_PAGE
    call eax
    SEE "after an instruction fetch", CODE_PAGE, PTE_A, PTE_A
    ret

# An access that faults writes nothing: D stays clear
forbidden:
    FORGET READ_ONLY
    RING3 user_read, READ_ONLY
    EXPECT [fault_error], NO_FAULT, "ring 3 reads"
    SEE "read by ring 3", READ_ONLY, PTE_A, PTE_A
    RING3 user_write, READ_ONLY
    EXPECT [fault_error], PROTECTION | BY_WRITE | BY_USER, "ring 3 writes"
    SEE "write by ring 3 refused", READ_ONLY, PTE_A, PTE_A
    TRY mov dword ptr [READ_ONLY], 6
    EXPECT [fault_error], PROTECTION | BY_WRITE, "the kernel writes"
    SEE "write by the kernel refused", READ_ONLY, PTE_A, PTE_A
    mov eax, cr0
    and eax, NOT_WP
    mov cr0, eax
    mov dword ptr [READ_ONLY], 7
    mov eax, cr0
    or eax, CR0_WP
    mov cr0, eax
    SEE "write by the kernel with CR0.WP = 0", READ_ONLY, PTE_A, A_AND_D

    TRY mov eax, [ABSENT]
    EXPECT [fault_error], BY_KERNEL, "a page that is not present"
    SEE "not present: all other bits are the guest's", ABSENT, PTE_A, 0
    ret

# A PDE that maps 4 MiB is the last entry of its walk: it has the D
large:
    mov eax, cr3
    mov dword ptr [eax + BIG_PDE], BIG_GPA | KERNEL | PDE_PS
    SEE_BIG "4 MiB untouched", 0
    mov eax, [BIG + 0x123456]
    SEE_BIG "4 MiB after a read", PTE_A
    mov dword ptr [BIG + 0x3ffffc], 8
    SEE_BIG "4 MiB after a write", A_AND_D
    mov eax, cr3
    and dword ptr [eax + BIG_PDE], NOT_A_NOT_D
    invlpg byte ptr [BIG]
    SEE_BIG "4 MiB cleared by the guest", 0
    mov dword ptr [BIG], 9
    SEE_BIG "4 MiB after another write", A_AND_D
    ret

# ESI = the gpa of the PDE for gva EBX, EDI = that of the PTE
entries_of:
    mov eax, cr3
    mov esi, ebx
    shr esi, 22
    lea esi, [eax + esi * 4]
    jmp pte_of

forget:
    call entries_of
    and dword ptr [esi], NOT_A_NOT_D
    and dword ptr [edi], NOT_A_NOT_D
    invlpg [ebx]
    ret

# EAX = an entry
print_flags:
    test eax, PTE_A
    jz not_accessed
    PRINT "A"
    jmp and_dirty
not_accessed:
    PRINT "-"
and_dirty:
    test eax, PTE_D
    jz not_dirty
    PRINT "D"
    ret
not_dirty:
    PRINT "-"
    ret
