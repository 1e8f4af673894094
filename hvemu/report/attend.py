"""Running a guest while a person watches, who may press Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from hvemu.machine import Machine, Result
from hvemu.techniques.vm import Budget


def attend(machine: Machine, budget: Budget) -> Result:
    """Run *machine* to the end of its guest or of *budget*. Ctrl-C stops it between two instructions.

    Raises KeyboardInterrupt then, and not before: inside a callback of the emulator it would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        return machine.run(budget)
    stopped = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped, budget.timeout = True, 0
        machine.vm.engine.interrupt()

    before = signal.signal(signal.SIGINT, stop)
    try:
        result = machine.run(budget)
    finally:
        signal.signal(signal.SIGINT, before)
    if stopped:
        raise KeyboardInterrupt
    return result
