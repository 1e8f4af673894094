# 64-bit paging: four levels of tables, three sizes of pages, and a bit that forbids execution.
# SDM 3A "4-Level Paging and 5-Level Paging", SDM 3A "Interrupt 14-Page-Fault Exception (#PF)"
#
# The kernel leaves the loader's tables for its own, with a mapping in the upper half of the address space. A gva has 48
# bits that count, and all the bits above must equal the highest of them: anything else is no address at all.

.include "lib/kernel64.inc"

.set PTE_P, 0x001               # present
.set PTE_W, 0x002               # writable
.set WRITABLE, 1                # the number of that bit
.set PTE_A, 0x020               # accessed: set by the processor
.set PTE_D, 0x040               # dirty: set by the processor, in the entry that maps the page
.set PTE_PS, 0x080              # maps a page where a table could be: 2 MiB in a PDE, 1 GiB in a PDPTE
.set ON_DEMAND, 0x400           # a bit that the processor leaves to the kernel
.set PTE_NX, 0x8000000000000000 # no instruction may be fetched, where EFER.NXE is set
.set KERNEL, PTE_P | PTE_W
.set ENTRY_FLAGS, 0xfff
.set FRAME_MASK, -0x1000         # of an entry without PTE_NX: the gpa of the table

.set PAGE, 0x1000
.set LARGE_PAGE, 0x200000
.set SMALL, 12                  # the lowest gva bit that selects an entry of a page table,
.set LARGE, 21                  # ... of a page directory,
.set HUGE, 30                   # ... of a page-directory-pointer table,
.set ROOT, 39                   # ... of the PML4

.set FREE_FRAMES, 0x00200000    # new frames are taken from here upwards
.set RED, 0x00310000            # frames; the first word of each is its own gpa
.set BLUE, 0x00312000
.set BIG_GPA, 0x00400000
.set MISALIGNED, 0x00002000     # bits 29:13 of an entry that maps 1 GiB are reserved

.set WINDOW, 0xffff800040000000
.set MIRROR, 0xffff800040001000
.set ROOM, 0xffff900000000000   # this gva is mapped differently in two spaces
.set HEAP, 0x00007fffffffc000   # the last pages of the lower half: they exist once they are touched
.set HEAP_END, 0x0000800000000000
.set BIG, 0xffff800080000000
.set HUGE_WINDOW, 0xffffffff80000000

.set CR0_WP, 0x00010000
.set EFER, 0xc0000080
.set EFER_NXE, 0x800
.set EXTENDED_FEATURES, 0x80000001
.set HAS_NX, 20                 # bits of EDX
.set HAS_HUGE_PAGES, 26

.set GENERAL_PROTECTION, 13
.set PAGE_FAULT, 14
.set NO_FAULT, -1
.set NOT_PRESENT, 0             # error codes of page faults
.set PROTECTION, 1              # the page is present; its rights forbid the access
.set BY_WRITE, 2
.set RESERVED, 8                # a bit is set that must be clear
.set BY_FETCH, 16

next_frame: .quad FREE_FRAMES
kernel_directory: .quad 0       # the one page directory that all spaces share
other_space: .quad 0
faults: .quad 0                 # resolved by the handler
fault_vector: .quad 0
fault_error: .quad 0
fault_gva: .quad 0
resume_at: .quad 0              # where TRY goes on; 0 while no fault is expected
resume_rsp: .quad 0

# Executes one instruction. The vector of the exception that it causes, or NO_FAULT, is then in fault_vector
.macro TRY insn:vararg
    mov qword ptr [fault_vector], NO_FAULT
    mov [resume_rsp], rsp
    mov qword ptr [resume_at], tried\@
    \insn
tried\@:
    mov qword ptr [resume_at], 0
.endm

.macro EXPECT_PAGE_FAULT error, gva, what
    EXPECT [fault_vector], PAGE_FAULT, "\what"
    call print_fault
    EXPECT [fault_error], \error, "\what"
    EXPECT [fault_gva], \gva, "CR2"
.endm

.macro SHOW_FLAGS what
    PRINT "  \what:"
    call print_flags
.endm

# Writes the entry for a gva, of the table that its size of page demands; RBX = the gva, RDI = the gpa of the entry.
# INVLPG is left to the caller
.macro MAP gva, entry, size=SMALL, space=cr3
    mov rax, \space
    mov rbx, \gva
    mov edx, \size
    call entry_of
    mov rax, \entry
    mov [rdi], rax
.endm

main:
    SET_GATE GENERAL_PROTECTION, general_protection
    SET_GATE PAGE_FAULT, page_fault
    call new_kernel_directory
    call new_space
    mov cr3, rax
    mov rax, cr0
    or eax, CR0_WP
    mov cr0, rax
    mov rbx, RED
    mov [rbx], rbx
    mov rbx, BLUE
    mov [rbx], rbx
    call map_and_unmap
    call protect
    call execute
    call accessed_and_dirty
    call two_spaces
    call demand
    call large_page
    call huge_page
    call canonical
    EXIT 0

map_and_unmap:
    PRINT "map\n"
    MAP WINDOW, RED | KERNEL
    EXPECT [rbx], RED, "the window"
    MAP MIRROR, RED | KERNEL
    mov qword ptr [rbx + 8], 0x1234
    mov rbx, WINDOW
    EXPECT [rbx + 8], 0x1234, "written through the mirror"
    PRINT "  two gvas, one frame: what is written through one is read through the other\n"

    MAP WINDOW, BLUE | KERNEL
    invlpg [rbx]
    EXPECT [rbx], BLUE, "the window after INVLPG"
    PRINT "  remapped, INVLPG: the other frame\n"

    MAP WINDOW, 0
    invlpg [rbx]
    TRY mov rax, [rbx + 16]
    EXPECT_PAGE_FAULT NOT_PRESENT, WINDOW + 16, "read of an unmapped page"
    TRY mov qword ptr [rbx + 24], 1
    EXPECT_PAGE_FAULT BY_WRITE, WINDOW + 24, "write to an unmapped page"
    ret

protect:
    PRINT "protect\n"
    MAP WINDOW, RED | PTE_P
    EXPECT [rbx], RED, "a read-only page"
    TRY mov qword ptr [rbx], 1
    EXPECT_PAGE_FAULT PROTECTION | BY_WRITE, WINDOW, "write to a read-only page"
    mov rbx, RED
    EXPECT [rbx], RED, "the frame"
    MAP WINDOW, RED | KERNEL
    invlpg [rbx]
    mov qword ptr [rbx], RED
    PRINT "  writable again\n"

    # A table above decides too: what its entry forbids, no entry below can allow
    mov edx, LARGE
    call entry_of_current
    btr qword ptr [rdi], WRITABLE
    invlpg [rbx]
    TRY mov qword ptr [rbx], 1
    EXPECT_PAGE_FAULT PROTECTION | BY_WRITE, WINDOW, "write below a read-only PDE"
    bts qword ptr [rdi], WRITABLE
    invlpg [rbx]
    ret

# Bit 63 of an entry is reserved until EFER.NXE is set; then it forbids to fetch instructions, and nothing else
execute:
    PRINT "execute\n"
    mov eax, EXTENDED_FEATURES
    cpuid
    bt edx, HAS_NX
    jc has_nx
    PRINT "  this processor has no NX\n"
    ret
has_nx:
    mov rsi, answer
    mov edi, BLUE + 8
    mov ecx, answer_end - answer
    rep movsb
    MAP WINDOW, BLUE | KERNEL | PTE_NX
    invlpg [rbx]
    TRY mov rax, [rbx]
    EXPECT_PAGE_FAULT PROTECTION | RESERVED, WINDOW, "bit 63 without EFER.NXE"
    mov ecx, EFER
    rdmsr
    or eax, EFER_NXE
    wrmsr
    EXPECT [rbx], BLUE, "read of a page that is not for execution"
    lea rdx, [rbx + 8]
    TRY call rdx
    EXPECT_PAGE_FAULT PROTECTION | BY_FETCH, WINDOW + 8, "fetch from such a page"
    MAP WINDOW, BLUE | KERNEL
    invlpg [rbx]
    lea rdx, [rbx + 8]
    TRY call rdx
    EXPECT [fault_vector], NO_FAULT, "fetch from a page for execution"
    EXPECT rax, 42, "the answer"
    PRINT "  executable again\n"
    ret
answer:                         # is copied to the page
    mov eax, 42
    ret
answer_end:

accessed_and_dirty:
    PRINT "accessed and dirty\n"
    MAP WINDOW, RED | KERNEL
    invlpg [rbx]
    SHOW_FLAGS "a new PTE"
    mov rax, [rbx]
    SHOW_FLAGS "after a read"
    EXPECT rax, KERNEL | PTE_A, "the PTE after a read"
    mov [rbx + 8], rbx
    SHOW_FLAGS "after a write"
    EXPECT rax, KERNEL | PTE_A | PTE_D, "the PTE after a write"
    mov edx, LARGE
    call entry_of_current
    SHOW_FLAGS "the PDE above"
    EXPECT rax, KERNEL | PTE_A, "the PDE: a table is never dirty"

    # A new entry that the processor has not looked at yet, for without INVLPG it would go on using the old one
    MAP WINDOW, RED | KERNEL
    invlpg [rbx]
    SHOW_FLAGS "the PTE, cleared"
    mov rax, [rbx]
    SHOW_FLAGS "after a read"
    EXPECT rax, KERNEL | PTE_A, "the PTE that was cleared, after a read"
    ret

# One gva, two spaces, two frames. MOV to CR3 is the whole switch
two_spaces:
    PRINT "address spaces\n"
    MAP ROOM, RED | KERNEL
    call new_space
    mov [other_space], rax
    MAP ROOM, BLUE | KERNEL, SMALL, [other_space]
    mov ebp, 3
there_and_back:
    EXPECT [rbx], RED, "this space"
    mov rsi, cr3
    mov rax, [other_space]
    mov cr3, rax
    EXPECT [rbx], BLUE, "the other space"
    mov [rbx + 8], rbp
    mov rdx, MIRROR
    TRY mov rax, [rdx]
    EXPECT [fault_vector], PAGE_FAULT, "a page that only the first space has"
    mov cr3, rsi
    mov rdx, BLUE
    EXPECT [rdx + 8], rbp, "written from the other space"
    dec ebp
    jnz there_and_back
    PRINT "  the same gva is one frame here and another there, three times over\n"
    ret

demand:
    PRINT "demand\n"
    mov rbx, HEAP
reserve:
    mov edx, SMALL
    call entry_of_current
    mov qword ptr [rdi], ON_DEMAND
    add rbx, PAGE
    mov rax, HEAP_END
    cmp rbx, rax
    jne reserve
    mov rbx, HEAP
touch:
    EXPECT [rbx], 0, "a new page"
    mov [rbx], rbx
    EXPECT [rbx], rbx, "what was written to it"
    add rbx, PAGE
    mov rax, HEAP_END
    cmp rbx, rax
    jne touch
    EXPECT [faults], 4, "page faults"
    ret

large_page:
    PRINT "2 MiB page\n"
    MAP BIG, BIG_GPA | KERNEL | PTE_PS, LARGE
    mov qword ptr [rbx + 0x123450], 0xb16
    mov qword ptr [rbx + 0x1ffff8], 0xe4d
    mov rax, [rdi]
    and eax, ENTRY_FLAGS
    EXPECT rax, KERNEL | PTE_PS | PTE_A | PTE_D, "the PDE: it maps the page, so it is dirty"
    MAP WINDOW, BIG_GPA + 0x123000 + KERNEL
    invlpg [rbx]
    EXPECT [rbx + 0x450], 0xb16, "in the middle of the large page"
    MAP WINDOW, BIG_GPA + 0x1ff000 + KERNEL
    invlpg [rbx]
    EXPECT [rbx + 0xff8], 0xe4d, "at its end"
    PRINT "  one PDE maps what takes 512 PTEs\n"

    # The same PDE points to a page table now
    MAP BIG, 0, LARGE
    invlpg [rbx]
    MAP BIG, RED | KERNEL
    EXPECT [rbx], RED, "4 KiB where 2 MiB were"
    TRY mov rax, [rbx + 0x123450]
    EXPECT_PAGE_FAULT NOT_PRESENT, BIG + 0x123450, "the rest is gone"
    ret

huge_page:
    PRINT "1 GiB page\n"
    mov eax, EXTENDED_FEATURES
    cpuid
    bt edx, HAS_HUGE_PAGES
    jc has_huge_pages
    PRINT "  this processor has none\n"
    ret
has_huge_pages:
    MAP HUGE_WINDOW, KERNEL | PTE_PS, HUGE
    EXPECT [rbx + RED], RED, "a frame seen through the huge page"
    EXPECT [rbx + BIG_GPA + 0x123450], 0xb16, "another one"
    PRINT "  one PDPTE maps all memory that the kernel uses\n"
    MAP HUGE_WINDOW, MISALIGNED | KERNEL | PTE_PS, HUGE
    invlpg [rbx]
    TRY mov rax, [rbx]
    EXPECT_PAGE_FAULT PROTECTION | RESERVED, HUGE_WINDOW, "a huge page that is not aligned"
    MAP HUGE_WINDOW, 0, HUGE
    invlpg [rbx]
    ret

canonical:
    PRINT "canonical addresses\n"
    mov rbx, HEAP_END           # one byte beyond the lower half
    TRY mov rax, [rbx]
    call print_fault
    EXPECT [fault_vector], GENERAL_PROTECTION, "bit 47 set, the rest clear"
    EXPECT [fault_error], 0, "the error code"
    TRY mov rax, [rbx - 7]
    EXPECT [fault_vector], GENERAL_PROTECTION, "only the last byte is beyond"
    mov rbx, 0xffff7fffffffffff # one byte below the upper half
    TRY mov byte ptr [rbx], 1
    call print_fault
    EXPECT [fault_vector], GENERAL_PROTECTION, "bit 47 clear, the rest set"
    mov rbx, 0xffff800000000000
    TRY mov rax, [rbx]
    EXPECT_PAGE_FAULT NOT_PRESENT, 0xffff800000000000, "canonical, but nothing is there"
    ret

# rax = the gpa of a new frame, filled with zeros: as a table, one that maps nothing
new_frame:
    push rcx
    push rdi
    mov rdi, [next_frame]
    add qword ptr [next_frame], PAGE
    push rdi
    xor eax, eax
    mov ecx, PAGE / 8
    rep stosq
    pop rax
    pop rdi
    pop rcx
    ret

# The first 4 MiB, mapped to themselves by two large pages: a gpa below is also its gva
new_kernel_directory:
    call new_frame
    mov [kernel_directory], rax
    mov qword ptr [rax], KERNEL | PTE_PS
    mov qword ptr [rax + 8], LARGE_PAGE | KERNEL | PTE_PS
    ret

# rax = the gpa of a new PML4 that maps the kernel, and nothing else
new_space:
    push rcx
    call new_frame
    mov rcx, rax
    call new_frame
    push rax
    or rax, KERNEL
    mov [rcx], rax
    mov rax, [kernel_directory]
    or rax, KERNEL
    xchg rcx, [rsp]
    mov [rcx], rax
    pop rax
    pop rcx
    ret

entry_of_current:
    mov rax, cr3

# rdi = the gpa of the entry for gva rbx in space rax, of the kind of table that edx says; missing tables are added
entry_of:
    push rax
    push rcx
    mov rdi, rax
    mov ecx, ROOT
next_level:
    mov rax, rbx
    shr rax, cl
    and eax, 0x1ff
    lea rdi, [rdi + rax * 8]
    cmp ecx, edx
    je entry_found
    test dword ptr [rdi], PTE_P
    jnz table_exists
    call new_frame
    or rax, KERNEL
    mov [rdi], rax
table_exists:
    mov rdi, [rdi]
    and rdi, FRAME_MASK
    sub ecx, 9
    jmp next_level
entry_found:
    pop rcx
    pop rax
    ret

# Prints what the processor has set in the entry at rdi; rax = its flags
print_flags:
    mov rax, [rdi]
    and eax, ENTRY_FLAGS
    test eax, PTE_A | PTE_D
    jnz some_flags
    PRINT " neither"
some_flags:
    test eax, PTE_A
    jz not_accessed
    PRINT " accessed"
not_accessed:
    test eax, PTE_D
    jz not_dirty
    PRINT " dirty"
not_dirty:
    PRINT "\n"
    ret

print_fault:
    cmp qword ptr [fault_vector], GENERAL_PROTECTION
    je print_general_protection
    PRINT "  page fault at "
    PRINT_HEX [fault_gva]
    PRINT ", error code "
    PRINT_DEC [fault_error]
    PRINT ": refused\n"
    ret
print_general_protection:
    PRINT "  "
    PRINT_HEX rbx
    PRINT " is no address: general protection\n"
    ret

# On the stack: error code, RIP, CS, RFLAGS, RSP, SS
general_protection:
    push rax
    mov qword ptr [fault_vector], GENERAL_PROTECTION
    jmp go_on_after_try

page_fault:
    push rax
    push rbx
    push rdx
    push rdi
    mov rbx, cr2
    mov edx, SMALL
    call entry_of_current
    test dword ptr [rdi], ON_DEMAND
    jnz bring_in
    mov [fault_gva], rbx
    mov qword ptr [fault_vector], PAGE_FAULT
    pop rdi
    pop rdx
    pop rbx
go_on_after_try:
    mov rax, [rsp + 8]
    mov [fault_error], rax
    mov rax, [resume_at]
    test rax, rax
    jz unexpected_fault
    mov [rsp + 16], rax         # RIP
    mov rax, [resume_rsp]
    mov [rsp + 40], rax
    pop rax
    add rsp, 8
    iretq

bring_in:
    call new_frame
    or rax, KERNEL
    mov [rdi], rax              # it was not present, and the processor does not remember that: no INVLPG
    PRINT "  page fault at "
    PRINT_HEX rbx
    PRINT ": a new frame\n"
    inc qword ptr [faults]
    pop rdi
    pop rdx
    pop rbx
    pop rax
    add rsp, 8
    iretq

unexpected_fault:
    PRINT "unexpected fault: vector "
    PRINT_DEC [fault_vector]
    PRINT ", error code "
    PRINT_HEX [fault_error]
    PRINT ", CR2 "
    PRINT_HEX [fault_gva]
    PRINT ", RIP "
    mov rax, [rsp + 16]
    PRINT_HEX rax
    PRINT "\n"
    EXIT 1
