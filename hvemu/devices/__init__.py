"""The devices of the machine: plain objects with registers, an interrupt line and virtual time."""
