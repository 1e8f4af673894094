"""Which handler takes which exit: one function per basic exit reason, registered by a decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hvemu.techniques.base import Outcome
from hvemu.vmx.reasons import Reason

if TYPE_CHECKING:
    from hvemu.techniques.hardware import Hardware

Q = TypeVar("Q", bound=int)
Handler = Callable[["Hardware", int], Outcome]
HANDLERS: dict[Reason, Handler] = {}
"""The handlers of the hypervisor that comes with hvemu."""


def handles(
    reason: Reason, qualification: type[Q], *, table: dict[Reason, Handler] = HANDLERS
) -> Callable[[Callable[[Hardware, Q], Outcome]], Callable[[Hardware, Q], Outcome]]:
    """Make the decorated function the handler of *reason* in *table*; it receives the *qualification* as its type."""

    def register(handler: Callable[[Hardware, Q], Outcome]) -> Callable[[Hardware, Q], Outcome]:
        table[reason] = lambda vm, raw: handler(vm, qualification(raw))
        return handler

    return register
