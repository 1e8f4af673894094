"""hvemu: learn, teach and test how hypervisors work.

The names below are what a script needs to run guests and to put its own handlers into a hypervisor::

    from hvemu import Machine, load, technique_for

    result = Machine(load("paging"), technique_for("hardware", None)).run()

Each is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvemu.debug.session import Session
    from hvemu.errors import HvemuError
    from hvemu.events import ExitEvent, How
    from hvemu.guest.image import from_source, load
    from hvemu.machine import PAIRS, Machine, Result, technique_for
    from hvemu.techniques.base import INJECT, RESUME, STOP
    from hvemu.techniques.exits.table import handles
    from hvemu.techniques.hardware import Hardware
    from hvemu.techniques.vm import Budget
    from hvemu.vmx.exit import VmExit
    from hvemu.vmx.reasons import Reason
    from hvemu.x86.registers import Gpr
    from hvemu.x86.vectors import Fault

__all__ = [  # noqa: RUF022 - as sorted() has it
    "Budget",
    "ExitEvent",
    "Fault",
    "Gpr",
    "Hardware",
    "How",
    "HvemuError",
    "INJECT",
    "Machine",
    "PAIRS",
    "RESUME",
    "Reason",
    "Result",
    "STOP",
    "Session",
    "VmExit",
    "from_source",
    "handles",
    "load",
    "technique_for",
]
_HOMES = {
    "debug.session": ("Session",),
    "errors": ("HvemuError",),
    "events": ("ExitEvent", "How"),
    "guest.image": ("from_source", "load"),
    "machine": ("Hardware", "PAIRS", "Machine", "Result", "technique_for"),  # which registers the handlers of exits
    "techniques.base": ("INJECT", "RESUME", "STOP"),
    "techniques.exits.table": ("handles",),
    "techniques.vm": ("Budget",),
    "vmx.exit": ("VmExit",),
    "vmx.reasons": ("Reason",),
    "x86.registers": ("Gpr",),
    "x86.vectors": ("Fault",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"hvemu.{home}"), name)
    raise AttributeError(f"module 'hvemu' has no attribute {name!r}")
