"""Stop a guest at a label and walk its page tables, the way the processor does."""

from hvemu import Machine, Session, load, technique_for

session = Session(Machine(load("paging"), technique_for("hardware", "ept")))
session.until(session.symbols.address("protect"))  # the guest has mapped some pages by now

for gva in (0x40000008, 0x40001008, 0x00101000):
    print(f"gva {gva:#x}")
    for step in session.memory.steps(gva):
        print(f"    {step}")

print(session.memory.linear(0x40001000, 8).hex(" "), "are the bytes at gva 0x40001000")
