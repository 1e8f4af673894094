"""How many instructions retired: every instruction that ended counts one, and nothing else does."""

from __future__ import annotations

import pytest

from tests.cpu.silicon import IF, RBX, RDI, RSI, TF, program, silicon

ALL = (16, 32, 64)
HANDLER_HLT = 1
# name: code that ends in HLT or in an event, and how many instructions of it retire, HLT included
SNIPPETS = {
    "straight": ("nop\nnop\ninc eax\ncmp eax, 3\nmov ebx, eax\nhlt", 6),
    "loop_": ("mov ecx, 5\nagain: dec ecx\njnz again\nhlt", 1 + 2 * 5 + 1),
    "calls": ("call one\ncall one\nhlt\none: nop\n.byte 0xc3", 2 * 3 + 1),
    "rep_movs": ("mov ecx, 5\nrep movsb\nhlt", 1 + 5 + 1 + 1),  # the iterations, and finding the count at zero
    "rep_zero": ("xor ecx, ecx\nrep movsb\nhlt", 1 + 1 + 1),
    "rep_outs": ("mov ecx, 5\nmov edx, 0x90\nrep outsb\nhlt", 2 + 5 + 1),
    "scas_": ("mov ecx, 5\nmov al, 3\n.byte 0xf2, 0xae\nhlt", 2 + 4 + 1),  # 3 is the fourth byte
    "cpuid_": ("cpuid\ncpuid\nhlt", 3),
    "io": ("in al, 0x90\nout 0x90, al\nin eax, 0x90\nhlt", 4),
    "msrs": ("mov ecx, 0x174\nrdmsr\nwrmsr\nhlt", 4),
    "tsc": ("rdtsc\nrdtscp\nhlt", 3),
    "crs": ("mov {a}, cr0\nmov cr0, {a}\nmov {a}, cr3\nmov cr3, {a}\nclts\nhlt", 6),
    "drs": ("mov {a}, dr7\nmov dr0, {a}\nmov {a}, dr6\nmov dr6, {a}\nhlt", 5),
    "pauses": ("pause\nwbinvd\nhlt", 3),
    "flags": ("{pushf}\n{popf}\ncli\nsti\nnop\nhlt", 6),
    "int_": ("nop\nint 0x40\nhlt", 2 + HANDLER_HLT),
    "int3_": ("nop\nint3\nhlt", 2 + HANDLER_HLT),
    "int1_": ("nop\n.byte 0xf1\nhlt", 2 + HANDLER_HLT),
    "and_back": ("int 0x41\nint 0x41\nhlt\nreturns: {iret}", 2 * 2 + 1),
    "divide": ("nop\nxor ecx, ecx\ndiv ecx\nhlt", 2 + HANDLER_HLT),
    "undefined": ("nop\nud2\nhlt", 1 + HANDLER_HLT),
    "resumed": ("mov ebx, 1\nud2_: ud2\nhlt\nskips: add {w} ptr [{sp}], 2\n{iret}", 1 + 2 + 1),
}
PROTECTED = {
    "general": ("mov ax, 0x1230\nmov ds, ax\nhlt", 1 + HANDLER_HLT),
    "int_refused": ("nop\nint 0x42\nhlt", 1 + HANDLER_HLT),
    "mmio": ("mov esi, 0x800000\nmov eax, [{si}]\nmov [{si}], eax\nhlt", 4),
}
WORDS = {
    16: {"a": "eax", "w": "word", "sp": "0x6ffa", "si": "si", "pushf": "pushf", "popf": "popf", "iret": "iret"},
    32: {"a": "eax", "w": "dword", "sp": "esp", "si": "esi", "pushf": "pushfd", "popf": "popfd", "iret": "iretd"},
    64: {"a": "rax", "w": "qword", "sp": "rsp", "si": "rsi", "pushf": "pushfq", "popf": "popfq", "iret": "iretq"},
}


def snippets(mode):
    return SNIPPETS if mode == 16 else SNIPPETS | PROTECTED


CODE = {
    mode: program(
        mode, "\n".join(f"{name}: {text}" for name, (text, _) in snippets(mode).items()).format(**WORDS[mode])
    )
    for mode in ALL
}
CASES = [(name, mode) for mode in ALL for name in snippets(mode)]


def machine(mode):
    s = silicon(CODE[mode]).gpr(RSI, 0x4000).gpr(RDI, 0x5000)
    s.poke(0x5003, 1, 3)
    s.gate(0x41, "returns")
    s.gate(0x42, p=0)
    return s


def prepared(name, mode):
    s = machine(mode)
    if name == "resumed":
        s.gate(6, "skips")
    return s


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_run_counts_what_retires(name, mode):
    s = prepared(name, mode)
    s.halts(name)
    assert s.retired == snippets(mode)[name][1]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_steps_count_the_same(name, mode):
    s = prepared(name, mode)
    s.state.rip = s.at(name)
    for _ in range(100):
        before = s.retired
        s.step()
        assert s.retired - before in (0, 1)  # 0: an event was delivered
        if s.cpu.halted:
            break
    assert s.retired == snippets(mode)[name][1]


@pytest.mark.parametrize(("name", "mode"), [case for case in CASES if case[0] not in ("drs", "int1_")])
def test_breakpoints_that_nobody_meets_change_nothing(name, mode):
    s = prepared(name, mode)
    s.state.set_dr(0, 0x6_0000)
    s.state.dr7 = 0x400 | 2 | 3 << 16
    s.halts(name)
    assert s.retired == snippets(mode)[name][1]


@pytest.mark.parametrize("mode", ALL)
def test_interrupts_and_traps_count_nothing(mode):
    s = silicon(CODE[mode], pins=[0x50]).flags(IF)
    assert s.vector("straight") == 0x50
    assert s.retired == HANDLER_HLT
    s = silicon(CODE[mode]).flags(TF)
    assert s.vector("straight") == 1
    assert s.retired == 1 + HANDLER_HLT


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("limit", range(1, 7))
def test_a_limit_is_met_exactly(mode, limit):
    s = machine(mode)
    s.run("straight", limit)
    assert s.retired == limit
    assert s.cpu.halted is (limit == 6)


def test_an_instruction_that_is_repeated_after_a_page_fault_counts_once():
    code = program(
        64,
        """
        start: mov eax, [rbx]
            hlt
        handler: add rsp, 8
            or byte ptr [rsi], 1
            iretq
    """,
    )
    s = silicon(code).gpr(RBX, 0x20_0000).gpr(RSI, 0x3008)
    s.poke(0x3008, 8, 0x20_0086)  # the second 2 MiB, not present
    s.gate(14, "handler")
    s.halts("start")
    assert s.retired == 2 + 3
