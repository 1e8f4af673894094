"""VM exits in words: what the guest did, whatever the technique calls the trap that came of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

_WORDS = (
    (r"IO_INSTRUCTION|(REP )?(IN|OUT)S?[BWD]?", "a port of a device, read or written"),
    (r"EPT_VIOLATION", "memory touched for the first time"),
    (r"EPT_MISCONFIGURATION", "an EPT entry that makes no sense"),
    (r"HIDDEN_PAGE", "a page not in the shadow tables yet"),
    (r"TRACED_WRITE", "a write to a table that is shadowed"),
    (r"HIDDEN_DESCRIPTOR", "a descriptor not in the shadow table yet"),
    (r"WRITE_WITH_WP_OFF", "a read-only page written with WP = 0"),
    (r"NO_RAM", "an address where there is no memory"),
    (r"MONITOR_MOVES", "the monitor was in the way, and moved"),
    (r"UNMAPPABLE_PAGE", "a page that no shadow can map"),
    (r"CR_ACCESS|MOV_(TO|FROM)_CR\d|CLTS|LMSW|SMSW", "control registers"),
    (r"MOV_DR|MOV_(TO|FROM)_DR\d", "debug registers"),
    (r"RDMSR|WRMSR", "model-specific registers"),
    (r"INVLPG|INVPCID", "INVLPG: a translation is to be forgotten"),
    (r"L[GIL]DT|LTR|ACCESS_TO_\w+", "descriptor tables loaded"),
    (r"LOAD_[A-Z]S|L[DEFGS]S|POP(_?[A-Z]S)?", "segment registers loaded"),
    (r"IRETD?|L?CALL|L?JMP|RETF", "far calls, jumps and returns, IRET"),
    (r"SYSENTER|SYSEXIT|SYSCALL|SYSRET|INT_0x[0-9a-f]+", "INT n and SYSENTER: doors into the kernel"),
    (r"GUEST_[A-Z]{2}|EXCEPTION_OR_NMI", "exceptions for the kernel's own handlers"),
    (r"CLI|STI", "CLI and STI: interrupts off and on"),
    (r"HLT", "HLT: nothing to do until an interrupt"),
    (r"EXTERNAL_INTERRUPT", "the timer of the hypervisor"),
    (r"INTERRUPT_WINDOW", "the moment when an interrupt may go in"),
    (r"CPUID", "CPUID: what the processor can do"),
    (r"RDTSCP?", "the time-stamp counter"),
    (r"S[GIL]DT|STR", "descriptor tables looked up"),
    (r"(WB(NO)?)?INVD(_OR_WBNOINVD)?|PAUSE", "hints to caches and other processors"),
    (r"TRIPLE_FAULT", "triple fault"),
    (r"VM[A-Z]+|INVEPT|INVVPID", "VMX instructions of a hypervisor"),
)
"""Names as VmExit and the techniques give them, and what they mean to a person; 41 characters at most."""
_RULES = tuple((re.compile(names), words) for names, words in _WORDS)


def in_words(what: str) -> str:
    """Return what the exit *what* means; a name that is not known here, as it is."""
    return next((words for names, words in _RULES if names.fullmatch(what)), what.replace("_", " "))


def reasons(by_reason: Mapping[str, int]) -> Counter[str]:
    """Return how often each thing happened, in words; exits that mean the same are counted together."""
    counts: Counter[str] = Counter()
    for what, count in by_reason.items():
        counts[in_words(what)] += count
    return counts
