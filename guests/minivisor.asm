# The smallest honest hypervisor on VT-x: it gives a guest the processor, takes it back at four kinds of exit, and leaves.
# SDM 3C "Introduction to Virtual Machine Extensions", SDM 3C "Enabling and Entering VMX Operation"
#
# The guest shares the kernel's page tables, but not its memory: a second set of tables, EPT, says which physical pages
# the guest has. CPUID always leaves the guest; VMCALL, HLT and a page that EPT does not map leave it here.

.include "lib/kernel64.inc"

# Memory that the processor and the hypervisor share, in pages of 4 KiB. SDM 3C "Format of the VMCS Region"
.set VMXON_REGION, 0x00200000
.set VMCS, 0x00201000
.set EPT_PML4, 0x00202000
.set EPT_PDPT, 0x00203000
.set EPT_DIRECTORY, 0x00204000
.set GUEST_STACK, 0x00210000
.set HOST_STACK, 0x00220000
.set HOLE, 0x00400000           # the guest touches this gpa, which EPT does not map at first

# Bits of an EPT entry. SDM 3C "EPT Translation Mechanism"
.set EPT_TABLE, 0x7             # read, write, execute
.set EPT_LARGE, 0xb7            # the same for 2 MiB, write-back
.set LARGE_PAGE, 0x200000
.set LARGE_MASK, -0x200000
.set MAPPED_END, 8 * LARGE_PAGE | EPT_LARGE
.set HOLE_ENTRY, EPT_DIRECTORY + 2 * 8
.set EPTP, EPT_PML4 | 0x1e      # write-back, four levels

.set CR4_VMXE, 0x2000
.set VMXE, 13                   # the number of that bit
.set CR0_NE, 0x20
.set FEATURE_CONTROL, 0x3a
.set VMX_BASIC, 0x480
.set HAS_VMX, 5                 # bit of ECX of CPUID leaf 1
.set LOCKED_OUTSIDE_SMX, 5      # bits 0 and 2 of IA32_FEATURE_CONTROL

# Control bits that are wanted; the capability MSRs add what they insist on. SDM 3C "VM-Execution Control Fields"
.set HLT_EXITING, 0x80
.set ACTIVATE_SECONDARY, 0x80000000
.set ENABLE_EPT, 0x2
.set HOST_64, 0x200
.set GUEST_64, 0x200
.set TRUE_PIN, 0x48d            # the MSRs that say which bits may be 0 and 1
.set TRUE_PRIMARY, 0x48e
.set SECONDARY, 0x48b
.set TRUE_EXIT, 0x48f
.set TRUE_ENTRY, 0x490

# Fields of the VMCS. SDM 3D "Field Encoding in VMCS"
.set F_PIN, 0x4000
.set F_PRIMARY, 0x4002
.set F_EXIT, 0x400c
.set F_ENTRY, 0x4012
.set F_SECONDARY, 0x401e
.set F_EPTP, 0x201a
.set F_LINK, 0x2800
.set F_ERROR, 0x4400
.set F_REASON, 0x4402
.set F_LENGTH, 0x440c
.set F_GPA, 0x2400
.set F_GUEST_CR0, 0x6800
.set F_GUEST_CR3, 0x6802
.set F_GUEST_CR4, 0x6804
.set F_GUEST_GDTR, 0x6816
.set F_GUEST_IDTR, 0x6818
.set F_GUEST_RIP, 0x681e
.set F_HOST_CR0, 0x6c00
.set F_HOST_CR3, 0x6c02
.set F_HOST_CR4, 0x6c04
.set F_HOST_GDTR, 0x6c0c
.set F_HOST_IDTR, 0x6c0e

.set REASON_CPUID, 10
.set REASON_HLT, 12
.set REASON_VMCALL, 18
.set REASON_EPT_VIOLATION, 48

.set OUR_LEAF, 0x40000000       # where software asks a hypervisor who it is
.set CALL_ADD, 1                # VMCALL: RAX = RBX + RCX

.set KERNEL_DATA, 0x10
.set TASK, 0x18                 # a selector that is not null; VM exit needs no descriptor
.set CODE64_RIGHTS, 0xa09b
.set DATA_RIGHTS, 0xc093
.set BUSY_TSS_RIGHTS, 0x8b
.set UNUSABLE, 0x10000
.set FLAT, 0xffffffff

.p2align 3
vmxon_pointer: .quad VMXON_REGION
vmcs_pointer: .quad VMCS
descriptor_table:               # what SGDT and SIDT store
    .word 0
    .quad 0

# Every field that is a constant: encoding, value
constants:
    .quad F_EPTP, EPTP
    .quad F_LINK, -1            # no shadow VMCS
    .quad 0x0800, KERNEL_DATA, 0x0802, KERNEL_CODE, 0x0804, KERNEL_DATA     # guest ES, CS, SS,
    .quad 0x0806, KERNEL_DATA, 0x0808, 0, 0x080a, 0                         # ... DS, FS, GS,
    .quad 0x080c, 0, 0x080e, TASK                                           # ... LDTR, TR
    .quad 0x4800, FLAT, 0x4802, FLAT, 0x4804, FLAT, 0x4806, FLAT            # limits in the same order
    .quad 0x4808, 0, 0x480a, 0, 0x480c, 0, 0x480e, 0x67
    .quad 0x4814, DATA_RIGHTS, 0x4816, CODE64_RIGHTS, 0x4818, DATA_RIGHTS, 0x481a, DATA_RIGHTS
    .quad 0x481c, UNUSABLE, 0x481e, UNUSABLE, 0x4820, UNUSABLE, 0x4822, BUSY_TSS_RIGHTS
    .quad 0x4810, 0xffff, 0x4812, 0xfff                                     # limits of GDTR and IDTR
    .quad 0x681a, 0x400, 0x681c, GUEST_STACK, 0x6820, 2                     # DR7, RSP, RFLAGS
    .quad F_GUEST_RIP, guest
    .quad 0x0c00, KERNEL_DATA, 0x0c02, KERNEL_CODE, 0x0c04, KERNEL_DATA     # host ES, CS, SS,
    .quad 0x0c06, KERNEL_DATA, 0x0c08, 0, 0x0c0a, 0, 0x0c0c, TASK           # ... DS, FS, GS, TR
    .quad 0x6c14, HOST_STACK, 0x6c16, vm_exit                               # where VM exit continues
    .quad -1

# Writes RAX to a field of the current VMCS. RDX changes.
.macro WRITE field
    mov edx, \field
    vmwrite rdx, rax
    call must_succeed
.endm

# RAX = a field of the current VMCS. RDX changes.
.macro READ field
    mov edx, \field
    vmread rax, rdx
    call must_succeed
.endm

# A group of controls: what is wanted, and what the capability MSR insists on. RAX, RCX, RDX change.
.macro CONTROLS field, wanted, msr
    mov ecx, \msr
    rdmsr                       # EAX: bits that must be 1; EDX: bits that may be 1
    or eax, \wanted
    and eax, edx
    WRITE \field
.endm

main:
    # 1. Is there VMX, and has the firmware left it on?
    mov eax, 1
    xor ecx, ecx
    cpuid
    bt ecx, HAS_VMX
    jc has_vmx
    PRINT "this processor has no VMX\n"
    EXIT 1
has_vmx:
    mov ecx, FEATURE_CONTROL
    rdmsr
    and eax, LOCKED_OUTSIDE_SMX
    EXPECT rax, LOCKED_OUTSIDE_SMX, "IA32_FEATURE_CONTROL"

    # 2. VMX operation: CR0.NE and CR4.VMXE must be 1, and the region must name the revision
    mov rax, cr0
    or rax, CR0_NE
    mov cr0, rax
    mov rax, cr4
    or rax, CR4_VMXE
    mov cr4, rax
    mov ecx, VMX_BASIC
    rdmsr
    and eax, 0x7fffffff
    mov rdi, VMXON_REGION
    mov [rdi], eax
    mov rdi, VMCS
    mov [rdi], eax
    vmxon [vmxon_pointer]
    call must_succeed
    PRINT "minivisor: in VMX root operation\n"

    # 3. A VMCS, current and clear
    vmclear [vmcs_pointer]
    call must_succeed
    vmptrld [vmcs_pointer]
    call must_succeed

    call build_ept
    call fill_vmcs

    # 4. Into the guest; VM exit continues at vm_exit, so that the next line is reached by failure alone
    vmlaunch
    call must_succeed

# EPT that maps the first 16 MiB to themselves, but for the 2 MiB at HOLE
build_ept:
    mov rdi, EPT_PML4
    xor eax, eax
    mov ecx, 3 * 512
    rep stosq
    mov rdi, EPT_PML4
    mov qword ptr [rdi], EPT_PDPT | EPT_TABLE
    mov rdi, EPT_PDPT
    mov qword ptr [rdi], EPT_DIRECTORY | EPT_TABLE
    mov rdi, EPT_DIRECTORY
    mov eax, EPT_LARGE
next_large_page:
    mov [rdi], rax
    add rdi, 8
    add rax, LARGE_PAGE
    cmp rax, MAPPED_END
    jne next_large_page
    mov rdi, HOLE_ENTRY
    mov qword ptr [rdi], 0
    ret

fill_vmcs:
    CONTROLS F_PIN, 0, TRUE_PIN
    CONTROLS F_PRIMARY, HLT_EXITING | ACTIVATE_SECONDARY, TRUE_PRIMARY
    CONTROLS F_SECONDARY, ENABLE_EPT, SECONDARY
    CONTROLS F_EXIT, HOST_64, TRUE_EXIT
    CONTROLS F_ENTRY, GUEST_64, TRUE_ENTRY
    mov rsi, constants
next_constant:
    mov rdx, [rsi]
    cmp rdx, -1
    je constants_are_written
    mov rax, [rsi + 8]
    vmwrite rdx, rax
    call must_succeed
    add rsi, 16
    jmp next_constant
constants_are_written:
    # Control registers and tables: the guest begins with the host's own
    mov rax, cr0
    WRITE F_GUEST_CR0
    WRITE F_HOST_CR0
    mov rax, cr3
    WRITE F_GUEST_CR3
    WRITE F_HOST_CR3
    mov rax, cr4
    WRITE F_GUEST_CR4
    WRITE F_HOST_CR4
    sgdt [descriptor_table]
    mov rax, [descriptor_table + 2]
    WRITE F_GUEST_GDTR
    WRITE F_HOST_GDTR
    sidt [descriptor_table]
    mov rax, [descriptor_table + 2]
    WRITE F_GUEST_IDTR
    WRITE F_HOST_IDTR
    ret

# Every VM exit comes here, with the guest's general registers: the processor saves and loads only what the VMCS has.
vm_exit:
    push rax
    push rdx
    READ F_REASON
    cmp eax, REASON_CPUID
    je exit_cpuid
    cmp eax, REASON_VMCALL
    je exit_vmcall
    cmp eax, REASON_EPT_VIOLATION
    je exit_ept_violation
    cmp eax, REASON_HLT
    je exit_hlt
    PRINT "minivisor: an exit that nobody expected: "
    PRINT_HEX rax
    PRINT "\n"
    EXIT 1

# CPUID: the processor's own answer, but for one leaf that is ours
exit_cpuid:
    pop rdx
    pop rax
    cmp eax, OUR_LEAF
    je who_we_are
    cpuid
    jmp skip_instruction
who_we_are:
    mov ebx, 0x696e696d         # "mini"
    mov ecx, 0x6f736976         # "viso"
    mov edx, 0x00000072         # "r"
    jmp skip_instruction

# VMCALL: the one service that there is
exit_vmcall:
    pop rdx
    pop rax
    cmp eax, CALL_ADD
    jne skip_instruction
    lea rax, [rbx + rcx]
    jmp skip_instruction

# EPT violation: memory that the guest gets once it asks for it. The instruction is executed again, not skipped.
exit_ept_violation:
    READ F_GPA
    PRINT "minivisor: the guest touches gpa "
    PRINT_HEX rax
    PRINT ", which it gets\n"
    and rax, LARGE_MASK
    mov rdx, rax
    shr rdx, 21
    or rax, EPT_LARGE
    mov [rdx * 8 + EPT_DIRECTORY], rax
    pop rdx
    pop rax
    vmresume
    call must_succeed

# HLT: the guest has finished. VMXOFF ends VMX operation
exit_hlt:
    PRINT "minivisor: the guest has halted\n"
    vmclear [vmcs_pointer]
    call must_succeed
    vmxoff
    call must_succeed
    mov rax, cr4
    btr rax, VMXE
    mov cr4, rax
    PRINT "minivisor: out of VMX operation\n"
    EXIT 0

skip_instruction:
    push rax
    push rdx
    READ F_GUEST_RIP
    push rax
    READ F_LENGTH
    add rax, [rsp]
    WRITE F_GUEST_RIP
    add rsp, 8
    pop rdx
    pop rax
    vmresume
    call must_succeed

# VMfailInvalid sets CF, VMfailValid sets ZF and leaves a number in the VMCS. SDM 3C "Conventions"
must_succeed:
    jc failed_invalid
    jz failed_valid
    ret
failed_invalid:
    PRINT "minivisor: a VMX instruction failed: there is no current VMCS\n"
    EXIT 1
failed_valid:
    mov edx, F_ERROR
    vmread rax, rdx
    PRINT "minivisor: a VMX instruction failed with error "
    PRINT_DEC rax
    PRINT "\n"
    EXIT 1

# The guest: 64-bit code in VMX non-root operation, with the same linear addresses
guest:
    PRINT "guest: running\n"
    mov eax, OUR_LEAF
    xor ecx, ecx
    cpuid
    EXPECT rbx, 0x696e696d, "EBX of our leaf"
    EXPECT rdx, 0x72, "EDX of our leaf"
    PRINT "guest: CPUID says minivisor\n"

    mov eax, CALL_ADD
    mov ebx, 40
    mov ecx, 2
    vmcall
    EXPECT rax, 42, "VMCALL"
    PRINT "guest: VMCALL has added 40 and 2\n"

    mov rax, 0x1122334455667788
    mov rdi, HOLE
    mov [rdi + 0x123450], rax
    EXPECT [rdi + 0x123450], rax, "the memory behind the hole"
    mov rax, [rdi]              # the same 2 MiB: no exit any more
    PRINT "guest: memory came when it was touched\n"
    hlt
    PRINT "guest: running after HLT\n"
    EXIT 1
