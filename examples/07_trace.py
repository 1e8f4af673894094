"""Trace a run into a list: a sink is called with every event, as it happens."""

from hvemu import Machine, load, technique_for

events = []
machine = Machine(load("popf"), technique_for("deprivilege", None), sink=events.append)
machine.run()

ports = {"IN", "OUT"}
interesting = [event for event in events if event.what not in ports]
print(f"{len(events)} exits, {len(interesting)} of them not for a port:")
for event in interesting:
    print(f"{event.number:4}  after {event.instructions:4} instructions, CPL {event.cpl}: {event.what} {event.detail}")
