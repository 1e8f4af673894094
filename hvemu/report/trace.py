"""One line of text for each VM exit. The same run gives the same lines."""

from __future__ import annotations

from typing import BinaryIO

from hvemu.events import Event, ExitEvent


def trace_line(event: ExitEvent) -> str:
    """Return the line of *event*: number, cycle, RIP, name, detail."""
    return f"{event.number:>6} {event.cycle:>12} {event.rip:#010x} {event.what:<20} {event.detail}".rstrip()


class Tracer:
    """A sink that writes these lines to *out*; when others write there too, *shared*, each at once."""

    def __init__(self, out: BinaryIO, *, shared: bool = False) -> None:
        self._out, self._shared = out, shared

    def __call__(self, event: Event) -> None:
        """Write the line of an exit."""
        if isinstance(event, ExitEvent):
            self._out.write(f"{trace_line(event)}\n".encode())
            if self._shared:
                self._out.flush()
