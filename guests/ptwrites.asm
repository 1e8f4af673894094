# Page tables are memory: every instruction that can write memory can change a translation.
# SDM 3A "32-Bit Paging", SDM 3A "Invalidation of TLBs and Paging-Structure Caches"
#
# A hypervisor that keeps shadow page tables must see every one of these writes, whatever its form, its size and the
# address it goes through, and may believe it no later than the guest's next INVLPG or MOV to CR3.

.include "lib/kernel32.inc"
.include "lib/pic.inc"
.include "lib/paging.inc"

.set FRAMES, 0x00300000         # 256 frames; the first word of each is its own gpa, so that a read says where it landed
.set FRAMES_END, 0x00400000
.set HERE, 0x00310000
.set THERE, 0x00320000          # another byte 2
.set NEAR, 0x00315000           # another byte 1
.set RIGHTS, 0x063              # present, writable, accessed, dirty: the processor has nothing to add to such an entry

.set WINDOW, 0x40000000
.set NEXT_WINDOW, 0x40001000    # the following PTE of the same table
.set THOUSAND, 0x40400000       # a thousand pages
.set VIEW1, 0x40800000          # two more names for the window's page table
.set VIEW2, 0x40c00000

.set DIRECTORY, 0xfffff000      # the page directory, seen through its own last entry
.set RECURSIVE_PDE, 0xffc       # where that entry is in the directory
.set OWN_PDE, 0xfffffffc         # that entry, seen through itself
.set WINDOW_PTE, 0xffd00000     # 0xffc00000 + WINDOW / 1024: the window's PTE, seen the same way
.set ISLAND, 0x50000000         # a page that is mapped without using any gpa below
.set ISLAND_PDE, 0xfffff500
.set ISLAND_PTE, 0xffd40000

window_pte: .long 0
flush: .long 0                  # flush_page or flush_all
there_entry: .long THERE | RIGHTS

main:
    REMAP_PIC
    SET_GATE 14, page_fault
    PAGING_ON
    mov eax, FRAMES
tag_frames:
    mov [eax], eax
    add eax, PAGE
    cmp eax, FRAMES_END
    jne tag_frames
    MAP NEXT_WINDOW, HERE | RIGHTS
    MAP WINDOW, HERE | RIGHTS
    mov [window_pte], edi

    mov dword ptr [flush], flush_page
    call every_way_to_write
    PRINT "every way to write a PTE, then INVLPG: seen\n"
    mov dword ptr [flush], flush_all
    call every_way_to_write
    PRINT "every way to write a PTE, then MOV to CR3: seen\n"
    call several_entries_at_once
    PRINT "one instruction, two PTEs: both seen\n"
    call present_bit
    PRINT "a PTE that becomes present needs no INVLPG\n"
    call thousand_writes
    PRINT "1000 PTE writes with 1000 INVLPG: seen\n"
    call thousand_writes_one_flush
    PRINT "1000 PTE writes with one MOV to CR3: seen\n"
    call two_views
    PRINT "one page table through two mappings: seen\n"
    call recursive
    PRINT "a page directory that maps itself: seen\n"
    EXIT 0

flush_page:
    invlpg byte ptr [WINDOW]
    invlpg byte ptr [NEXT_WINDOW]
    ret

flush_all:
    push eax
    mov eax, cr3
    mov cr3, eax
    pop eax
    ret

# The window shows HERE; the instruction, with EDI at the PTE, must bring it to the other frame
.macro WRITES frame, insn:vararg
    mov edi, [window_pte]
    mov dword ptr [edi], HERE | RIGHTS
    call [flush]
    EXPECT [WINDOW], HERE, "before \insn"
    \insn
    call [flush]
    EXPECT [WINDOW], \frame, "\insn"
.endm

every_way_to_write:
    # stores of each size; the small ones change a part of the frame number
    mov eax, THERE | RIGHTS
    WRITES THERE, mov dword ptr [edi], eax
    WRITES THERE, mov word ptr [edi + 2], 0x0032
    WRITES NEAR, mov word ptr [edi], 0x5063
    WRITES THERE, mov byte ptr [edi + 2], 0x32
    WRITES NEAR, mov byte ptr [edi + 1], 0x50
    push eax
    WRITES THERE, pop dword ptr [edi]

    # string instructions
    WRITES THERE, stosd
    mov esi, there_entry
    WRITES THERE, movs dword ptr [edi], dword ptr [esi]
    mov esi, there_entry
    mov ecx, 4
    WRITES THERE, rep movsb

    # exchanges; the compare that fails must not change anything
    WRITES THERE, xchg [edi], eax
    EXPECT eax, HERE | RIGHTS, "xchg: the old PTE"
    mov ecx, THERE | RIGHTS
    WRITES THERE, lock cmpxchg [edi], ecx
    mov eax, THERE
    WRITES HERE, lock cmpxchg [edi], ecx
    EXPECT eax, HERE | RIGHTS, "cmpxchg: the PTE that did not match"
    mov ecx, PAGE
    WRITES 0x00311000, lock xadd [edi], ecx
    mov eax, ecx
    EXPECT eax, HERE | RIGHTS, "xadd: the old PTE"

    # single bits; the last form addresses a bit of the entry from the entry before it
    WRITES 0x00314000, bts dword ptr [edi], 14
    WRITES 0x00300000, btr dword ptr [edi], 16
    WRITES 0x00330000, lock btc dword ptr [edi], 17
    mov ecx, 32 + 14
    WRITES 0x00314000, bts dword ptr [edi - 4], ecx

    # arithmetic, which reads before it writes
    WRITES 0x00300000, and dword ptr [edi], 0xfffeffff
    WRITES 0x00314000, lock or dword ptr [edi], 0x4000
    WRITES THERE, xor dword ptr [edi], 0x30000
    WRITES 0x00311000, add dword ptr [edi], 0x1000
    WRITES 0x0030f000, sub dword ptr [edi], 0x1000
    WRITES THERE, inc byte ptr [edi + 2]
    WRITES 0x00300000, dec word ptr [edi + 2]
    ret

.macro BOTH_SHOW first, second, text
    call flush_page
    EXPECT [WINDOW], \first, "\text: first page"
    EXPECT [NEXT_WINDOW], \second, "\text: second page"
.endm

several_entries_at_once:
    mov edi, [window_pte]
    mov eax, THERE | RIGHTS
    mov ecx, 2
    rep stosd
    BOTH_SHOW THERE, THERE, "rep stosd"

    # EDX:EAX is what the two entries are, ECX:EBX what they become
    mov edi, [window_pte]
    mov edx, eax
    mov ebx, HERE | RIGHTS
    mov ecx, NEAR | RIGHTS
    lock cmpxchg8b [edi]
    BOTH_SHOW HERE, NEAR, "cmpxchg8b"

    # The upper half of one entry and the lower half of the next: 0x0032.... and ....3063
    mov dword ptr [edi + 2], 0x30630032
    BOTH_SHOW THERE, 0x00313000, "unaligned mov"
    ret

# "Not present" is never cached: only taking rights away needs INVLPG
present_bit:
    mov edi, [window_pte]
    mov byte ptr [edi], 0x62
    call flush_page
    TRY mov eax, [WINDOW]
    EXPECT [fault_error], BY_KERNEL, "not present: error code"
    EXPECT [fault_gva], WINDOW, "not present: CR2"
    mov byte ptr [edi], 0x63
    EXPECT [WINDOW], THERE, "present again"
    ret

# Page number ESI of the thousand goes to frame number (ESI + EBP) modulo 256. EAX = the frame, EBX = the gva
thousand_target:
    lea eax, [esi + ebp]
    and eax, 0xff
    shl eax, 12
    add eax, FRAMES
    mov ebx, esi
    shl ebx, 12
    add ebx, THOUSAND
    ret

thousand_writes:
    MAP THOUSAND, 0             # for the page table
    xor ebp, ebp
    xor esi, esi
write_and_look:
    call thousand_target
    lea ecx, [eax + RIGHTS]
    mov [edi + esi * 4], ecx
    invlpg [ebx]
    EXPECT [ebx], eax, "the page just mapped"
    inc esi
    cmp esi, 1000
    jne write_and_look
    ret

thousand_writes_one_flush:
    mov ebp, 0x55               # every page moves to another frame
    xor esi, esi
write_only:
    call thousand_target
    lea ecx, [eax + RIGHTS]
    mov [edi + esi * 4], ecx
    inc esi
    cmp esi, 1000
    jne write_only
    call flush_all
look_only:
    dec esi
    call thousand_target
    EXPECT [ebx], eax, "a page after MOV to CR3"
    test esi, esi
    jnz look_only
    ret

two_views:
    mov ebp, [window_pte]
    and ebp, FRAME_MASK
    lea ecx, [ebp + RIGHTS]
    MAP VIEW1, 0
    mov [edi], ecx
    MAP VIEW2, 0
    mov [edi], ecx
    mov dword ptr [VIEW1], HERE | RIGHTS
    call flush_page
    EXPECT [WINDOW], HERE, "written through the first view"
    mov dword ptr [VIEW2], THERE | RIGHTS
    call flush_page
    EXPECT [WINDOW], THERE, "written through the second view"
    EXPECT [VIEW1], THERE | RIGHTS, "read through the first view"

    # The first view looks elsewhere now: a write there is no PTE write any more
    MAP VIEW1, NEAR | RIGHTS
    invlpg byte ptr [VIEW1]
    mov dword ptr [VIEW1], HERE | RIGHTS
    call flush_page
    EXPECT [WINDOW], THERE, "the first view is gone"
    EXPECT [VIEW2], THERE | RIGHTS, "the second view is not"
    mov dword ptr [VIEW1], NEAR # the tag again
    ret

recursive:
    mov eax, cr3
    lea ecx, [eax + RIGHTS]
    mov [eax + RECURSIVE_PDE], ecx
    EXPECT [WINDOW_PTE], THERE | RIGHTS, "the window's PTE through the directory"
    mov dword ptr [WINDOW_PTE], HERE | RIGHTS
    call flush_page
    EXPECT [WINDOW], HERE, "written through the directory"

    # A page table appears in the directory, and at once among the tables that the directory shows
    call new_frame
    or eax, RIGHTS
    mov [ISLAND_PDE], eax
    mov dword ptr [ISLAND_PTE], THERE | RIGHTS
    EXPECT [ISLAND], THERE, "an island"

    # Another page table in its place: the island moves, and so does the view of its PTE
    call new_frame
    mov dword ptr [eax], NEAR | RIGHTS
    or eax, RIGHTS
    mov [ISLAND_PDE], eax
    invlpg byte ptr [ISLAND_PTE]
    invlpg byte ptr [ISLAND]
    EXPECT [ISLAND], NEAR, "the other page table"
    EXPECT [ISLAND_PTE], NEAR | RIGHTS, "the other page table's entry"

    # The directory takes itself away
    mov dword ptr [OWN_PDE], 0
    call flush_all
    TRY mov eax, [DIRECTORY]
    EXPECT [fault_error], BY_KERNEL, "the directory is gone: error code"
    EXPECT [fault_gva], DIRECTORY, "the directory is gone: CR2"
    EXPECT [ISLAND], NEAR, "the island is still there"
    ret
