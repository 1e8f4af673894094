# CR0.WP: does a read-only page bind the kernel too?
# SDM 3A "Page-Level Protection and Virtualization", SDM 3A "Determination of Access Rights"
#
# With WP = 0 the kernel may write every present page, whatever the R/W bits say: that is how the 386 was.
# With WP = 1 it takes the same page fault as a user, so that copy-on-write works inside system calls too.
# Ring 3 is bound always. R/W counts in the PDE as in the PTE: both must allow the write.

.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/paging.inc"

.set KERNEL_PAGE, 0x40000000    # a read-only page of the kernel
.set USER_PAGE, 0x40001000      # a read-only page that ring 3 may read
.set OPEN_PAGE, 0x40002000      # a writable page: nothing ever faults here
.set CLOSED_PAGE, 0x40400000    # writable says its PTE, read-only says its PDE
.set CLOSED_PDE, 0x101 * 4     # its offset in the directory
.set FRAMES, 0x00310000         # where these four pages are
.set TOGGLES, 100
.set NOT_WP, ~CR0_WP
.set NOT_WRITABLE, ~PTE_W

.macro SET_WP
    mov eax, cr0
    or eax, CR0_WP
    mov cr0, eax
.endm

.macro CLEAR_WP
    mov eax, cr0
    and eax, NOT_WP
    mov cr0, eax
.endm

# The kernel writes: the fault, or its absence, must be right, and so must the frame
.macro KERNEL_WRITES page, frame, error
    mov dword ptr [FRAMES + \frame], 0
    TRY mov dword ptr [\page], 0x600d
    EXPECT [fault_error], \error, "kernel writes \page: error code"
.if (\error) == NO_FAULT
    EXPECT [FRAMES + \frame], 0x600d, "kernel writes \page: what arrived"
.else
    EXPECT [fault_gva], \page, "kernel writes \page: CR2"
    EXPECT [FRAMES + \frame], 0, "kernel writes \page: what arrived"
.endif
.endm

.macro USER_TRIES program, page, error
    RING3 \program, \page
    EXPECT [fault_error], \error, "\program \page: error code"
.endm

main:
    REMAP_PIC
    SET_GATE 14, page_fault
    SET_GATE 0x80, leave_ring3, USER_GATE
    PAGING_ON
    MAP_USER_PROGRAMS
    MAP KERNEL_PAGE, FRAMES | PTE_P
    MAP USER_PAGE, FRAMES + 0x1000 + USER_READ
    MAP OPEN_PAGE, FRAMES + 0x2000 + USER
    MAP CLOSED_PAGE, FRAMES + 0x3000 + USER
    mov eax, cr3
    and dword ptr [eax + CLOSED_PDE], NOT_WRITABLE

    SET_WP
    call kernel_is_bound
    call ring3_is_bound
    PRINT "WP=1: the kernel's write to a read-only page faults with error 3\n"

    CLEAR_WP
    call kernel_is_free
    call ring3_is_bound
    PRINT "WP=0: the kernel writes the same pages, ring 3 still faults with error 7\n"

    # No INVLPG, no MOV CR3: rights are checked against CR0.WP as it is at each access
    mov ecx, TOGGLES
toggle:
    SET_WP
    call kernel_is_bound
    CLEAR_WP
    call kernel_is_free
    dec ecx
    jnz toggle
    PRINT "toggled "
    PRINT_DEC TOGGLES
    PRINT " times: each MOV to CR0 counts at once\n"

    # A read leaves a translation behind. It must not let a later write slip through
    SET_WP
    mov eax, [USER_PAGE]
    KERNEL_WRITES USER_PAGE, 0x1000, PROTECTION | BY_WRITE
    CLEAR_WP
    KERNEL_WRITES USER_PAGE, 0x1000, NO_FAULT
    USER_TRIES user_read, USER_PAGE, NO_FAULT
    USER_TRIES user_write, USER_PAGE, PROTECTION | BY_WRITE | BY_USER
    SET_WP
    KERNEL_WRITES USER_PAGE, 0x1000, PROTECTION | BY_WRITE
    PRINT "in turn: kernel reads, kernel writes, ring 3 reads, ring 3 writes\n"
    EXIT 0

kernel_is_bound:
    KERNEL_WRITES KERNEL_PAGE, 0, PROTECTION | BY_WRITE
    KERNEL_WRITES USER_PAGE, 0x1000, PROTECTION | BY_WRITE
    KERNEL_WRITES CLOSED_PAGE, 0x3000, PROTECTION | BY_WRITE
    KERNEL_WRITES OPEN_PAGE, 0x2000, NO_FAULT
    ret

kernel_is_free:
    KERNEL_WRITES KERNEL_PAGE, 0, NO_FAULT
    KERNEL_WRITES USER_PAGE, 0x1000, NO_FAULT
    KERNEL_WRITES CLOSED_PAGE, 0x3000, NO_FAULT
    KERNEL_WRITES OPEN_PAGE, 0x2000, NO_FAULT
    ret

ring3_is_bound:
    USER_TRIES user_read, USER_PAGE, NO_FAULT
    USER_TRIES user_read, CLOSED_PAGE, NO_FAULT
    USER_TRIES user_write, OPEN_PAGE, NO_FAULT
    USER_TRIES user_write, USER_PAGE, PROTECTION | BY_WRITE | BY_USER
    USER_TRIES user_write, CLOSED_PAGE, PROTECTION | BY_WRITE | BY_USER
    USER_TRIES user_read, KERNEL_PAGE, PROTECTION | BY_USER
    USER_TRIES user_write, KERNEL_PAGE, PROTECTION | BY_WRITE | BY_USER
    ret
