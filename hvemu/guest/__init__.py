"""From a file to bytes in memory and the first state of the registers."""
