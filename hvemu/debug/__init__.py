"""The debugger: a session without input or output, and the commands and the prompt above it."""
