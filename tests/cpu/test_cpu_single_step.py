"""EFLAGS.TF: a trap after every instruction, whoever executed it (SDM 3B "Single-Step Exception Condition")."""

from __future__ import annotations

import pytest

from tests.cpu.silicon import (
    BS,
    CF,
    CS0,
    CS3,
    DS0,
    HANDLERS,
    IF,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RF,
    RSI,
    STACK,
    TF,
    program,
    silicon,
)

ALL, WIDE, LONG = (16, 32, 64), (32, 64), (64,)
INIT6 = 0xFFFF_0FF0
# name: the instruction, and the modes where it is tested. TRAPS come right after it, with nothing special.
INSTRUCTIONS = {
    "nop_": ("nop", ALL),
    "add_": ("add eax, ecx", ALL),
    "jump": ("jmp jump_after", ALL),
    "load": ("mov eax, [0x4000]", ALL),
    "store": ("mov [0x4000], eax", ALL),
    "cpuid_": ("cpuid", ALL),
    "out_": ("out 0x90, al", ALL),
    "in_": ("in al, 0x90", ALL),
    "rdtsc_": ("rdtsc", ALL),
    "rdtscp_": ("rdtscp", ALL),
    "rdmsr_": ("rdmsr", ALL),
    "wrmsr_": ("wrmsr", ALL),
    "wbinvd_": ("wbinvd", ALL),
    "pause_": ("pause", ALL),
    "clts_": ("clts", ALL),
    "sti_": ("sti", ALL),
    "cli_": ("cli", ALL),
    "smsw_": ("smsw ax", ALL),
    "lmsw_": ("lmsw bx", ALL),
    "sidt_": ("sidt [0x4000]", ALL),
    "from_cr0": ("mov {a}, cr0", ALL),
    "to_cr0": ("mov cr0, {b}", ALL),
    "to_cr2": ("mov cr2, {a}", ALL),
    "to_cr3": ("mov cr3, {d}", ALL),
    "from_dr6": ("mov {a}, dr6", ALL),
    "to_dr0": ("mov dr0, {a}", ALL),
    "to_dr7": ("mov dr7, {c}", ALL),
    "to_cr8": ("mov cr8, rax", LONG),
    "swapgs_": ("swapgs", LONG),
    "str_": ("str ax", WIDE),
    "invlpg_": ("invlpg [0x4000]", WIDE),
    "outs_": ("outsb", ALL),
    "ins_": ("insb", ALL),
    "movs_": ("movsb", ALL),
    "hlt_": ("hlt", ALL),
    "pushf_": ("{pushf}", ALL),
}
CASES = [(name, mode) for name, (_, modes) in INSTRUCTIONS.items() for mode in modes]
WORDS = {
    16: {"a": "eax", "b": "ebx", "c": "ecx", "d": "edx", "pushf": "pushf", "popf": "popf", "iret": "iret"},
    32: {"a": "eax", "b": "ebx", "c": "ecx", "d": "edx", "pushf": "pushfd", "popf": "popfd", "iret": "iretd"},
    64: {"a": "rax", "b": "rbx", "c": "rcx", "d": "rdx", "pushf": "pushfq", "popf": "popfq", "iret": "iretq"},
}
OTHERS = """
    rep_movs: rep movsb
    rep_movs_after: hlt
    rep_outs: rep outsb
    rep_outs_after: hlt
    ss_: mov ss, ax
        nop
    ss_after: hlt
    int_: int 0x40
    int_after: nop
    int_next: hlt
    icebp: .byte 0xf1
    icebp_after: hlt
    div_: div edi
    popf_: {popf}
    popf_after: nop
    popf_next: hlt
    iret_: {iret}
    back: {iret}
    target: nop
    target_next: hlt
    syscall_: syscall
    sysenter_: sysenter
    kernel: nop
    kernel_next: hlt
"""


def source(mode):
    lines = [f"{name}: {text}\n{name}_after: hlt" for name, (text, modes) in INSTRUCTIONS.items() if mode in modes]
    return "\n".join([*lines, OTHERS]).format(**WORDS[mode])


CODE = {mode: program(mode, source(mode)) for mode in ALL}


def machine(mode, ring=0, flags=TF):
    s = silicon(CODE[mode], ring).flags(flags)
    s.gpr(RBX, s.state.cr0).gpr(RDX, s.state.cr3).gpr(RCX, 0x174)
    return s.gpr(RSI, 0x4000).gpr(RDI, 0x4100)


def trap(s, start, *, bits=BS):
    """Run to the #DB; return RIP and flags in its frame."""
    assert s.vector(start) == 1
    assert s.state.dr6 == INIT6 | bits
    assert s.state.rflags & TF == 0
    frame = s.frame(3)
    return frame[0], frame[2]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_trap_follows_the_instruction(name, mode):
    s = machine(mode)
    if name in ("wrmsr_", "rdmsr_"):
        s.gpr(RDX, 0)
    if name == "to_dr7":
        s.gpr(RCX, 0x400)
    if name in ("in_", "out_", "outs_", "ins_"):
        s.gpr(RDX, 0x90)
    rip, flags = trap(s, name)
    assert rip == s.at(f"{name}_after")
    assert flags & (TF | RF) == TF
    assert s.retired == 2  # it, and the HLT of the handler


@pytest.mark.parametrize("mode", WIDE)
@pytest.mark.parametrize("name", ["nop_", "cpuid_", "rdtsc_", "store", "pushf_", "str_"])
def test_a_program_is_stepped_too(name, mode):
    s = machine(mode, 3)
    rip, _ = trap(s, name)
    assert rip == s.at(f"{name}_after")
    assert s.frame(2)[1] == CS3


@pytest.mark.parametrize("mode", ALL)
def test_pushf_shows_tf(mode):
    s = machine(mode, flags=TF | CF)
    trap(s, "pushf_")
    assert s.peek(STACK - s.word, s.word) == TF | CF | 2


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("name", ["rep_movs", "rep_outs"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_iteration_is_a_step(name, mode, count):
    s = machine(mode).gpr(RDX, 0x90).gpr(RCX, count)
    rip, flags = trap(s, name)
    last = count < 2
    assert rip == s.at(f"{name}_after" if last else name)
    assert s.reg(RCX) == max(count - 1, 0)
    # SDM 3B "Instruction-Breakpoint Exception Condition": RF in the frame after every iteration but the last
    assert bool(flags & RF) is (not last and mode != 16)
    steps = 1
    while rip != s.at(f"{name}_after"):
        s.state.rip, s.cpu.halted, s.state.rflags = rip, False, TF | 2
        rip, steps = trap(s, None)[0], steps + 1
    assert steps == max(count, 1)


@pytest.mark.parametrize("mode", ALL)
def test_a_load_of_ss_is_stepped_together_with_the_next_instruction(mode):
    s = machine(mode).gpr(RAX, 0 if mode == 16 else DS0)
    assert trap(s, "ss_")[0] == s.at("ss_after")


@pytest.mark.parametrize("mode", ALL)
def test_int_n_clears_tf_and_its_handler_is_not_stepped(mode):
    s = machine(mode)
    assert s.vector("int_") == 0x40
    assert s.frame(3)[2] & TF
    assert s.state.rflags & TF == 0
    assert s.state.dr6 == INIT6


@pytest.mark.parametrize("mode", ALL)
def test_after_the_handlers_iret_one_more_instruction_runs(mode):
    s = machine(mode)
    s.gate(0x40, "back")
    assert trap(s, "int_")[0] == s.at("int_next")


@pytest.mark.parametrize("mode", ALL)
def test_int1_is_a_debug_exception_without_a_cause(mode):
    s = machine(mode, flags=0)
    rip, _ = trap(s, "icebp", bits=0)
    assert rip == s.at("icebp_after")
    s = machine(mode)
    rip, flags = trap(s, "icebp", bits=0)  # one, not two: it clears TF as INT n does
    assert (rip, flags & TF) == (s.at("icebp_after"), TF)


@pytest.mark.parametrize("mode", ALL)
def test_an_instruction_that_faults_is_not_a_step(mode):
    s = machine(mode).gpr(RDI, 0)
    assert s.vector("div_") == 0
    assert s.state.dr6 == INIT6


@pytest.mark.parametrize("mode", ALL)
def test_the_instruction_that_sets_tf_is_not_a_step(mode):
    s = machine(mode, flags=0)
    s.poke(STACK, s.word, TF | 2)
    assert trap(s, "popf_")[0] == s.at("popf_next")


@pytest.mark.parametrize("mode", ALL)
def test_the_instruction_that_clears_tf_is_the_last_step(mode):
    s = machine(mode)
    s.poke(STACK, s.word, 2)
    rip, flags = trap(s, "popf_")
    assert (rip, flags & TF) == (s.at("popf_after"), 0)


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("before", [0, TF])
def test_iret_is_a_step_if_tf_was_set_before_it(mode, before):
    s = machine(mode, flags=before)
    for n, value in enumerate((s.at("target"), 0 if mode == 16 else CS0, TF ^ before | 2, STACK, DS0)):
        s.poke(STACK + n * s.word, s.word, value)
    rip, flags = trap(s, "iret_")
    assert (rip, flags & TF) == ((s.at("target"), 0) if before else (s.at("target_next"), TF))


@pytest.mark.parametrize("fmask", [0, TF])
def test_after_syscall_the_new_tf_counts(fmask):
    """As after INT n: a kernel that masks TF is not stepped."""
    s = machine(64, 3)
    s.state.efer |= 1
    for index, value in ((0xC000_0081, CS0 << 32), (0xC000_0082, s.at("kernel")), (0xC000_0084, fmask)):
        s.cpu.msrs.write(index, value)
    if fmask:
        s.state.rip = s.at("syscall_")
        assert s.step() == s.at("kernel")
        assert s.step() == s.at("kernel_next")
    else:
        assert trap(s, "syscall_")[0] == s.at("kernel")


@pytest.mark.parametrize("mode", WIDE)
def test_sysenter_does_not_clear_tf(mode):
    s = machine(mode, 3, flags=TF | IF)
    for index, value in ((0x174, CS0), (0x175, 0x2_4000), (0x176, s.at("kernel"))):
        s.cpu.msrs.write(index, value)
    rip, flags = trap(s, "sysenter_")
    assert (rip, flags & (TF | IF)) == (s.at("kernel"), TF)


def test_steps_add_up_to_the_program():
    s = machine(32)
    s.gate(1, "back")
    s.run("rep_movs", 20)
    assert HANDLERS not in (s.state.rip, s.state.rip - 1)
    assert s.state.dr6 == INIT6 | BS
