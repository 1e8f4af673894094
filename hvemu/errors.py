"""The exceptions that a person meets.

::

    Exception
    +-- HvemuError                 exit code and one line: what, where, what to do
    |   +-- InputError        (2)  a file, an option or a pair is wrong
    |   +-- BudgetError       (3)  instructions, exits or seconds ran out
    |   +-- GuestDiedError    (4)  triple fault, VM-entry failure, hostile state
    |   +-- EngineError       (2)  the installed Unicorn is not the one that was verified
    +-- GuestVisible               what software in the guest sees; never shown to a person
        +-- x86.vectors.Fault      an exception, delivered through the guest's IDT
        +-- memory.ept_walk.EptViolation, EptMisconfiguration   an access that EPT refuses: a VM exit
        +-- vmx.VmFail             a VMX instruction that failed

A bug of hvemu itself is an AssertionError.
"""

from __future__ import annotations


class HvemuError(Exception):
    """An error for a person: one line, and the exit status of the command."""

    exit_code = 2


class InputError(HvemuError):
    """The person's input is wrong: a file, an option, a pair."""


class EngineError(HvemuError):
    """The engine cannot be used on this host."""


class BudgetError(HvemuError):
    """A budget (instructions, exits, seconds) ran out."""

    exit_code = 3


class GuestDiedError(HvemuError):
    """The guest cannot go on: triple fault or VM-entry failure."""

    exit_code = 4


class GuestVisible(Exception):  # noqa: N818 - not an error of ours: the architecture's own event
    """Something that guest software observes. Raised below the run loop, caught once by the CPU model."""
