"""Where the bytes go that a guest prints."""

from __future__ import annotations

from typing import BinaryIO

_NEWLINE = ord("\n")


class Console:
    """Writes every byte to *out* as it comes; with *by_line*, whole lines, for an output that others write to."""

    def __init__(self, out: BinaryIO, *, by_line: bool = False) -> None:
        self._out, self._by_line, self._line = out, by_line, bytearray()

    def put(self, byte: int) -> None:
        """Take one byte from the guest."""
        self._line.append(byte)
        if not self._by_line or byte == _NEWLINE:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written."""
        self._out.write(self._line)
        self._out.flush()
        self._line.clear()
