from __future__ import annotations

import hashlib
import re

import pytest

from hvemu.debug.commands import COMMANDS, QuitDebugger, find
from hvemu.errors import InputError
from hvemu.x86.registers import Gpr
from tests.debug.guests import DIE, HALT, ORIGIN, SPIN, ask, at, machine, paused, session

LOOKING = (
    "where",
    "registers",
    "registers cr",
    "registers dr",
    "disassemble",
    "disassemble main 20",
    "memory esp",
    "memory gpa:0 4096",
    "memory 0x3ff000 8192",
    "walk esp",
    "walk 0x40000000",
    "walk 0xffffffff",
    "stack",
    "gdt",
    "idt",
    "vmcs",
    "vmcs cr0",
    "exits",
    "console",
    "help",
    "help step",
)
RUNNING = ("step", "instruction", "continue", "until")


def fingerprint(s):
    return hashlib.sha256(s.vm.engine.ram).digest(), s.vm.engine.snapshot(), s.vm.clock.now


@pytest.mark.parametrize("technique", ["bare", "deprivilege", "hardware"])
def test_looking_changes_nothing(technique):
    s = at("paging", "protect", technique)
    before = fingerprint(s)
    for line in LOOKING:
        if technique == "hardware" or not line.startswith("vmcs"):
            assert ask(s, line)
    assert fingerprint(s) == before


@pytest.mark.parametrize("technique", ["bare", "deprivilege", "hardware"])
def test_a_guest_that_was_watched_runs_as_one_that_was_not(technique):
    alone, s = machine("paging", technique).run(), session("paging", technique)
    for line in (
        "until main",
        "step 3",
        "instruction 5",
        "memory esp",
        "walk esp",
        "continue 20",
        "registers",
        "continue",
    ):
        ask(s, line)
    assert (s.vm.instructions, s.vm.books.exits, s.vm.clock.now) == (alone.instructions, alone.exits, alone.cycles)
    assert ask(s, "console").replace("guest| ", "") == alone.console.decode().rstrip("\n")


# -- finding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_beginning_that_fits_one_command_means_it(name):
    shorts = {short for entry in COMMANDS.values() for short in entry.short}
    for end in range(1, len(name) + 1):
        word = name[:end]
        fits = [other for other in COMMANDS if other.startswith(word)]
        if word in shorts or word in COMMANDS:
            continue
        if len(fits) == 1:
            assert find(word).name == name
        else:
            with pytest.raises(InputError, match="or"):
                find(word)
    assert find(name).name == name


def test_no_short_name_means_two_commands():
    shorts = [short for entry in COMMANDS.values() for short in entry.short]
    assert sorted(shorts) == sorted({*shorts})
    assert not {*shorts} & COMMANDS.keys()


@pytest.mark.parametrize("entry", COMMANDS.values(), ids=lambda entry: entry.name)
def test_every_command_is_explained_with_an_example_that_runs(entry):
    assert entry.usage.split()[0] == entry.name
    assert entry.about.endswith(".")
    example = re.fullmatch(r"(?s).*Example: (.+)", f"\n{entry.more}")
    assert example[1].split()[0] == entry.name
    s = session("hello32") if entry.name in RUNNING else paused("paging", "map_and_unmap")
    if entry.name == "quit":
        with pytest.raises(QuitDebugger):
            ask(s, example[1])
    else:
        assert ask(s, example[1])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "nonsense: no such command"),
        ("co", "continue or console"),
        ("step 1 2", "usage: step [N]"),
        ("step 0", "0: not a number"),
        ("step -1", "not a number"),
        ("step x", "not a number"),
        ("continue 1.5", "not a number"),
        ("until", "usage: until ADDRESS"),
        ("until nowhere", "no label, register or number"),
        ("until mian", "did you mean main"),
        ("memory", "usage: memory ADDRESS [LENGTH]"),
        ("memory 0 0x10001", "1 to 0x10000"),
        ("memory 0x50000000", "not mapped"),
        ("memory esp+", "esp+: not an address"),
        ("memory 5-9", "negative"),
        ("disassemble 0x50000000", "not mapped"),
        ("registers zz", "no register"),
        ("vmcs nothing_like_this", "no field"),
        ("walk", "usage: walk GVA"),
        ("help nonsense", "no such command"),
        ("stack 70000", "1 to 0x10000"),
        ("gdt 1", "usage: gdt"),
        ("quit now", "usage: quit"),
    ],
)
def test_what_cannot_be_understood_is_told_in_one_line(line, says):
    s = paused("paging", "map_and_unmap")
    with pytest.raises(InputError) as told:
        ask(s, line)
    assert says in str(told.value)
    assert "\n" not in str(told.value)


# -- running ----------------------------------------------------------------------------------------------------------


def test_each_step_shows_the_exit_the_place_and_the_new_output():
    s = session("hello32")
    answer = ask(s, "step 4").splitlines()
    assert [line.split(":")[0] for line in answer if line.startswith("exit")] == [
        "exit 1",
        "exit 2",
        "exit 3",
        "exit 4",
    ]
    assert sum(line.startswith("=> 0x") for line in answer) == 4
    assert "guest| h" in answer
    assert any(line.startswith("handled: fetch at gpa 0x1000c4: mapped") for line in answer)


def test_steps_of_the_bare_machine_are_instructions():
    assert (
        ask(session(SPIN, "bare"), "step 2")
        == "=> 0x100001 <start+0x1>: mov eax, 0x1234\n=> 0x100006 <start+0x6>: jmp 0x100006"
    )


def test_the_end_is_told_and_then_there_is_nothing_to_run():
    s = session("hello32")
    assert "guest| hello from 32-bit protected mode\nend: it ended with success" in ask(s, "continue")
    with pytest.raises(InputError, match="has ended"):
        ask(s, "step")
    assert ask(s, "registers eip").startswith("eip 0x")


@pytest.mark.parametrize(
    ("guest", "why"), [(HALT, "HLT before 0x100002 with interrupts disabled"), (DIE, "triple fault")]
)
@pytest.mark.parametrize("technique", ["bare", "hardware"])
def test_a_guest_that_cannot_go_on_tells_why(guest, why, technique):
    assert why in ask(session(guest, technique), "continue")


def test_waiting_for_a_sum_of_a_label_and_a_number():
    s = session("hello32")
    assert f"=> {s.symbols.address('start') + 6:#x} <start+0x6>: lgdt" in ask(s, "until start + 6")


# -- looking ----------------------------------------------------------------------------------------------------------


def test_memory_is_shown_by_gva_and_by_gpa():
    s = at("paging", "protect")
    s.vm.ram.write_bytes(0x310000, bytes(range(0x3A, 0x4E)))
    by_gpa = ask(s, "memory gpa:0x310000 20").splitlines()
    assert by_gpa == [
        "0x00310000  3a 3b 3c 3d 3e 3f 40 41 42 43 44 45 46 47 48 49  :;<=>?@ABCDEFGHI",
        "0x00310010  4a 4b 4c 4d                                      JKLM",
    ]
    assert ask(s, "memory 0x310000 20").splitlines() == by_gpa  # the kernel maps its first 4 MiB to themselves
    assert [line[10:] for line in ask(s, "memory 0x40001000 20").splitlines()] == [
        line[10:] for line in by_gpa
    ]  # MIRROR


def test_memory_stops_where_the_mapping_does():
    s = paused("paging", "protect")  # the kernel maps 4 MiB, and there is nothing behind them
    assert ask(s, "memory 0x3ffff0 32").splitlines()[-1] == "gva 0x400000 is not mapped"


def test_memory_without_ram_is_all_ones():
    assert ask(session(SPIN), "memory 0xf0000000 4").startswith("0xf0000000  ff ff ff ff")


def test_the_stack_is_shown_with_labels():
    s = paused("hello32", "print_following")  # entered by a CALL in main: the return address is the text behind it
    first = ask(s, "stack 1")
    assert re.fullmatch(r"0x0007fffc  0x[0-9a-f]{8} <main\+0x5>", first)


def test_the_stack_of_real_mode_has_words():
    s = session("hello16")
    s.truth.set_gpr(Gpr.RSP, 0x7C00)
    s.vm.ram.write_bytes(0x7C00, bytes.fromhex("34 12 78 56"))
    assert ask(s, "stack 2").splitlines() == ["0x00007c00  0x1234", "0x00007c02  0x5678"]


def test_code_is_shown_with_labels_and_where_it_stands():
    s = paused("hello32", "reload")
    lines = ask(s, "disassemble start 5").splitlines()
    assert lines[0] == "start:"
    assert lines[1].split() == ["0x001000c4", "fc", "cld"]
    assert lines[4].endswith("ljmp 0x8:0x1000d8 <reload>")
    assert lines[5] == "reload:"
    assert lines[6].startswith("=> ")


def test_the_vmcs_is_shown_whole_or_in_part():
    s = session("hello32")
    s.step()
    assert "guest-state area" in ask(s, "vmcs")
    (line,) = ask(s, "vmcs exit_qualification").splitlines()
    assert line.split() == ["0x6400", "EXIT_QUALIFICATION", "0x184"]  # fetch, linear address valid, of the final gpa
    with pytest.raises(InputError, match="no VMCS"):
        ask(session(SPIN, "bare"), "vmcs")


def test_exits_are_counted_as_they_are_handled():
    s = session("hello32")
    assert ask(s, "exits") == "       0 exits, 0 instructions, 0 cycles"
    lines = ask(s, "step 4", "exits").splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["2", "IO_INSTRUCTION"], ["1", "EPT_VIOLATION"]]
    assert lines[2].strip().startswith("3 exits, ")


def test_the_console_is_what_was_printed_so_far():
    s = session("hello32")
    assert ask(s, "console") == "the guest has printed nothing"
    assert ask(s, "step 8", "console") == "guest| hel"


def test_where_tells_again_what_a_stop_told():
    s = session("hello32")
    assert ask(s, "step", "where") == ask(s, "where")
    assert ask(s, "where").startswith("exit 1: EPT_VIOLATION")
    assert ask(session(SPIN, "bare"), "where") == f"=> {ORIGIN:#x} <start>: nop"


def test_help_lists_every_command():
    lines = ask(session(SPIN), "help").splitlines()
    assert [line.split()[0] for line in lines] == [*COMMANDS]
    assert ask(session(SPIN), "help step").startswith("step [N]  (also: s)\n")
