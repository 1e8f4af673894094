# The smallest kernel: started by a Multiboot loader in protected mode, it greets and ends.
# SDM 1 "Modes of Operation"
#
# Every character is two port accesses, one to ask the UART whether it can take it and one to hand it over: under a
# hypervisor, each of them is a reason to leave the guest.

.include "lib/kernel32.inc"

main:
    PRINT "hello from 32-bit protected mode\n"
    EXIT 0
