"""Interrupt and exception vectors, and what the manual says about each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from hvemu.bits import Register, bit
from hvemu.errors import GuestVisible


class Vector(IntEnum):
    """Architectural vectors (SDM 3A "Exception and Interrupt Vectors")."""

    DE, DB, NMI, BP, OF, BR, UD, NM, DF = range(9)
    TS, NP, SS, GP, PF = range(10, 15)
    MF, AC, MC, XM, VE, CP = range(16, 22)


class Kind(Enum):
    """Exception class (SDM 3A "Exception Classifications")."""

    FAULT = "fault"
    TRAP = "trap"
    ABORT = "abort"
    INTERRUPT = "interrupt"


class Severity(Enum):
    """Class of an exception for the double-fault rule (SDM 3A "Interrupt 8-Double Fault Exception (#DF)")."""

    BENIGN = "benign"
    CONTRIBUTORY = "contributory"
    PAGE_FAULT = "page fault"
    DOUBLE_FAULT = "double fault"


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """One row of the vector table: class, whether an error code is pushed, severity, the manual's name."""

    kind: Kind
    error_code: bool
    severity: Severity
    title: str


_B, _C = Severity.BENIGN, Severity.CONTRIBUTORY
_F, _T = Kind.FAULT, Kind.TRAP
FACTS: dict[Vector, VectorFacts] = {
    Vector.DE: VectorFacts(_F, False, _C, "Divide Error"),
    Vector.DB: VectorFacts(_T, False, _B, "Debug"),
    Vector.NMI: VectorFacts(Kind.INTERRUPT, False, _B, "NMI Interrupt"),
    Vector.BP: VectorFacts(_T, False, _B, "Breakpoint"),
    Vector.OF: VectorFacts(_T, False, _B, "Overflow"),
    Vector.BR: VectorFacts(_F, False, _B, "BOUND Range Exceeded"),
    Vector.UD: VectorFacts(_F, False, _B, "Invalid Opcode"),
    Vector.NM: VectorFacts(_F, False, _B, "Device Not Available"),
    Vector.DF: VectorFacts(Kind.ABORT, True, Severity.DOUBLE_FAULT, "Double Fault"),
    Vector.TS: VectorFacts(_F, True, _C, "Invalid TSS"),
    Vector.NP: VectorFacts(_F, True, _C, "Segment Not Present"),
    Vector.SS: VectorFacts(_F, True, _C, "Stack-Segment Fault"),
    Vector.GP: VectorFacts(_F, True, _C, "General Protection"),
    Vector.PF: VectorFacts(_F, True, Severity.PAGE_FAULT, "Page Fault"),
    Vector.MF: VectorFacts(_F, False, _B, "x87 FPU Floating-Point Error"),
    Vector.AC: VectorFacts(_F, True, _B, "Alignment Check"),
    Vector.MC: VectorFacts(Kind.ABORT, False, _B, "Machine Check"),
    Vector.XM: VectorFacts(_F, False, _B, "SIMD Floating-Point Exception"),
    Vector.VE: VectorFacts(_F, False, Severity.PAGE_FAULT, "Virtualization Exception"),
    Vector.CP: VectorFacts(_F, True, _C, "Control Protection Exception"),
}
_PF = Severity.PAGE_FAULT
# SDM 3A "Interrupt 8-Double Fault Exception (#DF)": which second exception makes a double fault of the first.
_DOUBLE: dict[Severity, frozenset[Severity]] = {
    Severity.BENIGN: frozenset(),
    Severity.CONTRIBUTORY: frozenset({Severity.CONTRIBUTORY}),
    Severity.PAGE_FAULT: frozenset({Severity.CONTRIBUTORY, Severity.PAGE_FAULT}),
}


class PageFaultCode(Register):
    """Error code of #PF (SDM 3A "Page-Fault Exceptions")."""

    p = bit(0)
    wr = bit(1)
    us = bit(2)
    rsvd = bit(3)
    id = bit(4)
    pk = bit(5)


class Fault(GuestVisible):
    """An exception that the guest sees.

    *vector*; *error_code* is None exactly when the vector pushes none; *cr2* is the faulting gva of a #PF.
    """

    def __init__(self, vector: Vector, error_code: int | None = None, *, cr2: int | None = None) -> None:
        if FACTS[vector].error_code and error_code is None:
            error_code = 0
        assert FACTS[vector].error_code or error_code is None, vector
        super().__init__(vector, error_code, cr2)
        self.vector, self.error_code, self.cr2 = vector, error_code, cr2

    def __str__(self) -> str:
        code = "" if self.error_code is None else f"({self.error_code:#x})"
        return f"#{self.vector.name}{code}" + ("" if self.cr2 is None else f" at gva {self.cr2:#x}")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fault) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


class TripleFault(GuestVisible):
    """The processor enters shutdown (SDM 3A "Interrupt 8-Double Fault Exception (#DF)").

    *chain* holds the exceptions that led here, oldest first.
    """

    def __init__(self, chain: tuple[Fault, ...]) -> None:
        super().__init__(chain)
        self.chain = chain

    def __str__(self) -> str:
        return "triple fault: " + ", then ".join(map(str, self.chain))


def combine(first: Fault | None, second: Fault) -> Fault:
    """Return the exception to deliver when *second* arises while *first* is being delivered.

    *first* is None for an external or software interrupt: benign. Raises TripleFault when *first* is a #DF and
    *second* is not benign.
    """
    if first is None:
        return second
    one, two = FACTS[first.vector].severity, FACTS[second.vector].severity
    if one is Severity.DOUBLE_FAULT:
        if two is Severity.BENIGN:
            return second
        raise TripleFault((first, second))
    return Fault(Vector.DF, 0) if two in _DOUBLE[one] else second
