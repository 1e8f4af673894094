"""Put a handler of your own into the hypervisor: a CPUID that lies about who made the processor."""

from hvemu import Gpr, Hardware, Machine, Reason, from_source, handles

SOURCE = r"""
.include "lib/kernel32.inc"

vendor: .fill 13, 1, 0

main:
    xor eax, eax
    cpuid
    mov [vendor], ebx
    mov [vendor + 4], edx
    mov [vendor + 8], ecx
    PRINT "this processor was made by "
    mov esi, vendor
    call print_text
    PRINT "\n"
    EXIT 0
"""
honest = Hardware().handlers[Reason.CPUID]
mine = {}


@handles(Reason.CPUID, int, table=mine)
def lie(vm, qualification):
    """Answer as the processor would; then, for leaf 0, change the vendor."""
    leaf = vm.state.gpr(Gpr.RAX)
    outcome = honest(vm, qualification)
    if leaf == 0:
        for gpr, text in ((Gpr.RBX, b"Your"), (Gpr.RDX, b" own"), (Gpr.RCX, b" lab")):
            vm.state.set_gpr(gpr, int.from_bytes(text, "little"))
    return outcome


for hypervisor in (Hardware(), Hardware(handlers=mine)):
    print(Machine(from_source(SOURCE), hypervisor).run().console.decode(), end="")
