"""Watch what a guest does with model-specific registers, and let everything else be as it is."""

from collections import Counter

from hvemu import Gpr, Hardware, Machine, Reason, from_source

SOURCE = r"""
.include "lib/kernel32.inc"

.set IA32_SYSENTER_CS, 0x174
.set IA32_SYSENTER_ESP, 0x175
.set IA32_PAT, 0x277

main:
    mov ecx, IA32_PAT
    rdmsr
    mov ecx, IA32_SYSENTER_CS
    mov eax, KERNEL_CODE
    xor edx, edx
    wrmsr
    inc ecx                     # IA32_SYSENTER_ESP, next to it
    mov eax, STACK
    wrmsr
    rdmsr
    EXIT 0
"""
accesses = Counter()


def counting(reason):
    """Return a handler that counts, and then does what the hypervisor's own one does."""
    handle = Hardware().handlers[reason]

    def count(vm, qualification):
        accesses[reason.name, vm.state.gpr(Gpr.RCX)] += 1
        return handle(vm, qualification)

    return count


own = {reason: counting(reason) for reason in (Reason.RDMSR, Reason.WRMSR)}
Machine(from_source(SOURCE), Hardware(handlers=own)).run()
for (name, msr), times in sorted(accesses.items()):
    print(f"{name} {msr:#x}: {times}")
