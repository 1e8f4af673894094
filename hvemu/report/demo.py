"""The guided tour: one kernel under every technique, then the one that a technique cannot fool."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from textwrap import wrap

from hvemu.guest.manifest import Pair
from hvemu.machine import PAIRS, Result
from hvemu.report.attend import attend
from hvemu.report.compare import REFERENCE, find_divergence
from hvemu.report.outcome import text
from hvemu.report.setup import Setup
from hvemu.report.words import reasons

KERNEL, ODD_ONE = "paging", "popf"
WIDTH, SHOWN = 76, 6
FOOLED: Pair = ("deprivilege", "shadow")
INTRODUCTION = (
    f'The kernel "{KERNEL}" maps, protects, shares and switches pages, handles its own page faults and runs a program '
    "in ring 3. It does not know where it runs. Here it runs once for each way to virtualize x86."
)
TECHNIQUES: dict[Pair, tuple[str, str]] = {
    REFERENCE: (
        "the machine itself",
        (
            "No hypervisor: the kernel owns ring 0, the page tables and every device. What it sees here is the truth "
            "that the others have to reproduce."
        ),
    ),
    FOOLED: (
        "ring deprivileging, with shadow page tables",
        (
            "A monitor takes ring 0 and puts the kernel into ring 1, where privileged instructions trap, and the "
            "monitor does their work. The processor walks shadow page tables, which the monitor keeps in step with the "
            "kernel's own."
        ),
    ),
    ("hardware", "ept"): (
        "VT-x, with extended page tables",
        (
            "The kernel has its ring 0 back, in a mode of the processor made for guests, and a VMCS says what leaves "
            "it. The processor walks two sets of page tables, the kernel's and the hypervisor's, so that neither has "
            "to follow the other."
        ),
    ),
}
"""What each pair is: a title, and two sentences."""
PURPOSES = {
    "a port of a device, read or written": "the serial port is software: each character is two exits",
    "a write to a table that is shadowed": "the kernel changed a table: its shadow must follow",
    "a page not in the shadow tables yet": "the shadow is filled when a page is first used",
    "control registers": "paging is turned on, page tables are switched and looked up",
    "exceptions for the kernel's own handlers": "the monitor passes them on, as the processor would",
    "far calls, jumps and returns, IRET": "ring 1 cannot return to where the kernel thinks it goes",
    "INVLPG: a translation is to be forgotten": "the kernel says so: the shadow must forget it too",
    "memory touched for the first time": "EPT is filled on demand, 2 MiB at a time",
}
"""What the exits of this kernel are there for, by their name in words."""
HOLE = (
    "x86 has instructions that act otherwise outside ring 0 and do not trap. This kernel switches interrupts off and "
    "on with CLI, STI and POPF, and looks at the interrupt flag IF with PUSHF:"
)
WHY = (
    "CLI and STI trap in ring 1, so the monitor knows what the kernel wants. POPF leaves IF alone without a trap, and "
    "PUSHF shows the IF of the real machine, which is always 1. What does not trap cannot be hidden. Binary "
    "translation and paravirtualization got around such instructions; VT-x gave the kernel its ring 0 back."
)
NEXT = (
    ("hvemu compare paging", "every pair side by side, with all the exits"),
    ("hvemu repl paging", "stop at each VM exit and look around"),
    ("hvemu run rings --trace -", "one line for each exit, as it comes"),
    ("hvemu asm popf", "the kernel that cannot be fooled, byte by byte"),
)
Lines = list[str]


def tour() -> Iterator[Lines]:
    """Yield the parts of the tour as the kernels run, each as lines of at most 80 columns."""
    yield ["hvemu: one kernel, every way to virtualize x86", "", *_paragraph(INTRODUCTION)]
    reference: Result | None = None
    for number, pair in enumerate(PAIRS, 1):
        result = _run(KERNEL, pair)
        reference = reference or result
        yield _technique(number, pair, result, reference)
    yield _hole(len(PAIRS) + 1)
    width = max(len(command) for command, _ in NEXT)
    yield ["", "Now try", *(f"    {command:{width}}   {what}" for command, what in NEXT)]


def _run(guest: str, pair: Pair) -> Result:
    setup = Setup().under(pair)
    return attend(setup.machine(guest), setup.budget(guest))


def _paragraph(words: str) -> Lines:
    return [f"   {line}" for line in wrap(words, WIDTH)]


def _technique(number: int, pair: Pair, result: Result, reference: Result) -> Lines:
    """Return the part about one pair: what it is, what it took, and whether the kernel noticed."""
    title, about = TECHNIQUES.get(pair, ("", ""))
    lines = ["", f"{number}. {'+'.join(pair)}: {title}", "", *_paragraph(about), "", *_exits(result)]
    if result is reference:
        printed = text(result.console).splitlines()
        return [
            *lines,
            *_paragraph(f"It prints {len(printed)} lines, the last of them:"),
            f"       {printed[-1].strip()}",
        ]
    same = find_divergence(reference, result) is None
    return [
        *lines,
        *_paragraph("The kernel saw " + ("exactly what it saw in 1." if same else "something else than in 1.")),
    ]


def _exits(result: Result) -> Lines:
    """Return the exits by reason, the most frequent first, and what they are there for."""
    lines = _paragraph(f"{result.exits:,} VM exits in {result.instructions:,} instructions")
    ordered = sorted(reasons(result.by_reason).items(), key=lambda item: (-item[1], item[0]))
    for words, count in ordered[:SHOWN]:
        lines.append(f"   {count:>7,}  {words}")
        if words in PURPOSES:
            lines.append(f"            ({PURPOSES[words]})")
    if rest := ordered[SHOWN:]:
        lines.append(f"   {sum(count for _, count in rest):>7,}  of {len(rest)} other kinds")
    return lines


def _hole(number: int) -> Lines:
    """Return the part about the kernel that sees through a technique."""
    results = {pair: _run(ODD_ONE, pair) for pair in PAIRS}
    columns = [["+".join(pair), *text(results[pair].console).splitlines()[:-1]] for pair in (REFERENCE, FOOLED)]
    width = max(map(len, columns[0])) + 6
    rows = [f"       {one:{width}}{other}" for one, other in zip_longest(*columns, fillvalue="")]
    same = ["+".join(p) for p in PAIRS if p != REFERENCE and find_divergence(results[REFERENCE], results[p]) is None]
    lines = ["", f"{number}. Where it shows: {ODD_ONE}", "", *_paragraph(HOLE), "", *rows, "", *_paragraph(WHY)]
    return (
        [*lines, *_paragraph(f"Under {' and '.join(same)} it sees what it saw on the bare machine.")] if same else lines
    )
