from __future__ import annotations

import itertools

import pytest

from hvemu.x86.vectors import FACTS, Fault, Kind, PageFaultCode, Severity, TripleFault, Vector, combine

# SDM 3A "Exception and Interrupt Vectors": vector, mnemonic, class, error code.
TABLE = """
 0 DE  fault     no
 1 DB  trap      no
 2 NMI interrupt no
 3 BP  trap      no
 4 OF  trap      no
 5 BR  fault     no
 6 UD  fault     no
 7 NM  fault     no
 8 DF  abort     yes
10 TS  fault     yes
11 NP  fault     yes
12 SS  fault     yes
13 GP  fault     yes
14 PF  fault     yes
16 MF  fault     no
17 AC  fault     yes
18 MC  abort     no
19 XM  fault     no
20 VE  fault     no
21 CP  fault     yes
"""
# SDM 3A "Interrupt 8-Double Fault Exception (#DF)": the classes of the first table, and the second table by class.
BENIGN = {1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19}
CONTRIBUTORY = {0, 10, 11, 12, 13, 21}
PAGE_FAULT = {14, 20}
SERIAL, DOUBLE = "handle serially", "double fault"
MATRIX = {
    ("benign", "benign"): SERIAL, ("benign", "contributory"): SERIAL, ("benign", "page fault"): SERIAL,
    ("contributory", "benign"): SERIAL, ("contributory", "contributory"): DOUBLE,
    ("contributory", "page fault"): SERIAL,
    ("page fault", "benign"): SERIAL, ("page fault", "contributory"): DOUBLE, ("page fault", "page fault"): DOUBLE,
    ("double fault", "benign"): SERIAL, ("double fault", "contributory"): "shutdown",
    ("double fault", "page fault"): "shutdown",
}  # fmt: skip


def severity(vector: int) -> str:
    rows = {"benign": BENIGN, "contributory": CONTRIBUTORY, "page fault": PAGE_FAULT, "double fault": {8}}
    return next(name for name, members in rows.items() if vector in members)


def test_the_vector_table() -> None:
    facts = [(int(v), v.name, FACTS[v].kind.value, "yes" if FACTS[v].error_code else "no") for v in sorted(Vector)]
    rows = [(int(v), *rest) for v, *rest in (line.split() for line in TABLE.strip().splitlines())]
    assert facts == rows


def test_every_vector_has_its_severity() -> None:
    assert {int(v): FACTS[v].severity.value for v in Vector} == {int(v): severity(v) for v in Vector}
    assert {s.value for s in Severity} == {name for pair in MATRIX for name in pair}
    assert {f.kind for f in FACTS.values()} == {*Kind}


@pytest.mark.parametrize("first", Vector, ids=lambda v: v.name)
def test_the_double_fault_matrix(first: Vector) -> None:
    for vector in (v for v in Vector if v is not Vector.DF):
        second, before = Fault(vector), Fault(first)
        what = MATRIX[severity(first), severity(vector)]
        if what == "shutdown":
            with pytest.raises(TripleFault) as raised:
                combine(before, second)
            assert raised.value.chain == (before, second)
        else:
            assert combine(before, second) == (Fault(Vector.DF, 0) if what == DOUBLE else second)


@pytest.mark.parametrize("second", Vector, ids=lambda v: v.name)
def test_interrupts_are_benign(second: Vector) -> None:
    assert combine(None, Fault(second)) == Fault(second)


def test_the_second_fault_keeps_its_error_code_and_address() -> None:
    second = Fault(Vector.PF, 2, cr2=0x1234)
    assert combine(Fault(Vector.GP, 8), second) is second


def test_an_error_code_goes_with_exactly_the_vectors_that_push_one() -> None:
    for vector, code in itertools.product(Vector, (None, 0, 0x58)):
        if FACTS[vector].error_code:
            assert Fault(vector, code).error_code == (code or 0)
        elif code is None:
            assert Fault(vector).error_code is None
        else:
            with pytest.raises(AssertionError):
                Fault(vector, code)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(Vector.UD), "#UD"),
        (Fault(Vector.GP), "#GP(0x0)"),
        (Fault(Vector.TS, 0x98), "#TS(0x98)"),
        (Fault(Vector.PF, 6, cr2=0x40001000), "#PF(0x6) at gva 0x40001000"),
    ],
)
def test_a_fault_prints_as_the_manual_writes_it(fault: Fault, text: str) -> None:
    assert (str(fault), repr(fault)) == (text, text)


def test_faults_are_equal_when_all_of_them_is() -> None:
    fault = Fault(Vector.PF, 6, cr2=0x1000)
    others = [Fault(Vector.PF, 6, cr2=0x2000), Fault(Vector.PF, 4, cr2=0x1000), Fault(Vector.GP, 6), 14]
    assert fault == Fault(Vector.PF, 6, cr2=0x1000)
    assert hash(fault) == hash(Fault(Vector.PF, 6, cr2=0x1000))
    assert fault not in others


def test_a_triple_fault_tells_how_it_came() -> None:
    chain = (Fault(Vector.PF, 2, cr2=0x10), Fault(Vector.NP, 0x42), Fault(Vector.DF))
    assert str(TripleFault(chain)) == "triple fault: #PF(0x2) at gva 0x10, then #NP(0x42), then #DF(0x0)"


def test_the_error_code_of_a_page_fault() -> None:  # the figure of SDM 3A "Page-Fault Exceptions"
    assert [*PageFaultCode.fields] == ["p", "wr", "us", "rsvd", "id", "pk"]
    assert [f.lo for f in PageFaultCode.fields.values()] == [*range(6)]
