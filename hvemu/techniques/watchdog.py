"""With the free clock nothing counts instructions, so somebody else must end a run that does not stop by itself."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from hvemu.engine.engine import Engine

PERIOD = 0.002
"""Seconds between two looks at budgets and devices."""


class Watchdog:
    """While entered, ends the current run of *engine* every PERIOD."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._over = engine, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(PERIOD):
            self._engine.interrupt()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
