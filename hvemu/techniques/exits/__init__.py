"""Handlers of VM exits, one file per family of exit reasons."""
