"""One logical processor: delivery, task switches, far transfers, and the CPU model on the engine."""
