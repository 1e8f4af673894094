"""What is reported while a guest runs, and to whom.

Nothing here is needed to run a guest: a sink only watches. Times are cycles of virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class ExitEvent:
    """One VM exit, after it was handled.

    *number* counts from 1; *cycle* and *instructions* are the virtual time and the instructions retired when it came;
    *rip* and *cpl* are the guest's at that moment; *what* is its name for a person; *detail* what the handler found.
    """

    number: int
    cycle: int
    instructions: int
    rip: int
    cpl: int
    what: str
    detail: str


class How(Enum):
    """How a run ended."""

    EXITED = "exited"
    HALTED = "halted"
    STOPPED = "stopped"
    DIED = "died"
    INSTRUCTIONS = "max-instructions"
    EXITS = "max-exits"
    TIMEOUT = "timeout"


BUDGETS = frozenset({How.INSTRUCTIONS, How.EXITS, How.TIMEOUT})


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a run. *code* is what the guest wrote to the exit port, if it did; *why* is one line for a person."""

    how: How
    code: int | None = None
    why: str = ""

    @property
    def success(self) -> bool:
        """Whether the guest itself said that all went well."""
        return self.how is How.EXITED and self.code == 0

    @property
    def status(self) -> int:
        """Exit status of a command that ran the guest: 0 success, 1 failure, 3 a budget ran out, 4 the guest died."""
        if self.how in BUDGETS:
            return 3
        if self.how is How.DIED:
            return 4
        return 0 if self.success else 1


Event = ExitEvent | Ending
Sink = Callable[[Event], None]
