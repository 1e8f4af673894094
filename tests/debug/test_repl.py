from __future__ import annotations

import io
import re
import shlex
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from hvemu.cli import cli
from hvemu.debug.repl import Prompt, interruptible, repl
from hvemu.errors import InputError
from hvemu.techniques.vm import Budget
from tests.debug.guests import DIE, FAIL, HALT, SPIN, machine, session

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = BLOCK.findall((ROOT / "docs/repl.md").read_text(encoding="utf-8"))


def run(guest, *commands, technique="hardware", **options):
    out = io.StringIO()
    status = repl(machine(guest, technique), commands, output=out, **options)
    return status, out.getvalue()


# -- commands and scripts ---------------------------------------------------------------------------------------------


def test_commands_are_echoed_with_their_answers():
    status, text = run("hello32", "step", "registers eip")
    lines = text.splitlines()
    assert status == 0
    assert lines[0].startswith("hello32 under hardware+ept;")
    assert [line for line in lines if line.startswith("(hvemu) ")] == ["(hvemu) step", "(hvemu) registers eip"]
    assert lines[-1].startswith("eip 0x001000c4")


def test_the_same_commands_give_the_same_text():
    assert run("paging", "step 5", "continue 50", "registers", "continue", "exits") == run(
        "paging", "step 5", "continue 50", "registers", "continue", "exits"
    )


@pytest.mark.parametrize(
    ("guest", "commands", "status"),
    [
        ("hello32", ["step"], 0),
        ("hello32", ["continue"], 0),
        (FAIL, ["continue"], 1),
        (HALT, ["continue"], 1),
        (DIE, ["continue"], 4),
        (SPIN, ["continue"], 3),
        (SPIN, ["continue", "registers"], 3),
        (SPIN, ["continue", "quit", "no such command"], 3),
    ],
)
@pytest.mark.parametrize("technique", ["bare", "hardware"])
def test_the_status_is_that_of_the_guest(guest, commands, status, technique):
    assert run(guest, *commands, technique=technique, budget=Budget(max_instructions=5000))[0] == status


def test_a_bad_command_is_the_end_and_nothing_after_it_runs():
    out = io.StringIO()
    with pytest.raises(InputError, match="nonsense: no such command"):
        repl(machine("hello32"), ["step", "nonsense", "continue"], output=out)
    assert out.getvalue().splitlines()[-1] == "(hvemu) nonsense"


def test_a_script_runs_before_the_commands_without_its_comments(tmp_path):
    script = tmp_path / "commands.txt"
    script.write_text("# to main\n\n  until main  \n", encoding="utf-8")
    _, text = run("hello32", "where", script=script)
    assert [line for line in text.splitlines() if line.startswith("(hvemu)")] == ["(hvemu) until main", "(hvemu) where"]


def test_a_bad_line_of_a_script_is_told_with_its_place(tmp_path):
    script = tmp_path / "commands.txt"
    script.write_text("step\nsteep\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"commands\.txt:2: steep: no such command"):
        run("hello32", script=script)


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"\xff\xfe\x00", "not a text file")])
def test_a_script_that_cannot_be_read_is_told_before_anything_runs(tmp_path, content, why):
    script = tmp_path / "commands.txt"
    if content is not None:
        script.write_bytes(content)
    with pytest.raises(InputError, match=why):
        run("hello32", script=script)


def test_a_pipe_goes_on_after_a_bad_command(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("nonsense\n# nothing\n\nwhere\nquit\nstep\n"))
    status, text = run("hello32")
    assert status == 0
    assert "error: nonsense: no such command; help lists them" in text
    assert [line for line in text.splitlines() if line.startswith("(hvemu)")][1:] == ["(hvemu) where", "(hvemu) quit"]


# -- the prompt -------------------------------------------------------------------------------------------------------


def typed(guest, keys: str) -> str:
    out = io.StringIO()
    with create_pipe_input() as source:
        source.send_text(keys)
        Prompt(session(guest), out).ask(source=source, screen=DummyOutput())
    return out.getvalue()


CONTROL_C, CONTROL_D, TAB = "\x03", "\x04", "\t"


def test_a_person_is_asked_until_the_end_of_input():
    text = typed("hello32", f"step\nregisters eip\n{CONTROL_D}")
    assert text.splitlines()[0].startswith("exit 1: EPT_VIOLATION")
    assert text.splitlines()[-1].startswith("eip 0x001000c4")


def test_an_empty_line_repeats_the_last_command():
    text = typed("hello32", f"\nstep\n\n\n{CONTROL_D}")
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("exit")] == [
        "exit 1",
        "exit 2",
        "exit 3",
    ]


def test_ctrl_c_at_the_prompt_drops_the_line():
    assert typed("hello32", f"nonsense{CONTROL_C}where\n{CONTROL_D}") == "=> 0x1000c4 <start>: cld\n"


def test_a_bad_command_is_one_line_and_the_prompt_comes_back():
    text = typed("hello32", f"step x\nmemory\nwhere\n{CONTROL_D}")
    assert text.splitlines() == [
        "error: x: not a number from 1 on",
        "error: usage: memory ADDRESS [LENGTH]",
        "=> 0x1000c4 <start>: cld",
    ]


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def signalled(guest, monkeypatch, *, times: int = 1):
    """A machine in whose third turn Ctrl-C is pressed *times*."""
    m, turns = machine(guest), []
    really = m.technique.run

    def pressed_in_the_third_turn(limit):
        turns.append(limit)
        for _ in range(times if len(turns) == 3 else 0):
            signal.raise_signal(signal.SIGINT)
        return really(limit)

    monkeypatch.setattr(m.technique, "run", pressed_in_the_third_turn)
    return m


def test_ctrl_c_stops_a_guest_that_loops_for_ever(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO("continue\nregisters eax\n"))
    assert repl(signalled(SPIN, monkeypatch), output=out) == 0
    assert out.getvalue().splitlines()[-4:] == [
        "stopped: interrupted",
        "=> 0x100006 <start+0x6>: jmp 0x100006",
        "(hvemu) registers eax",
        "eax 0x00001234",
    ]


def test_ctrl_c_ends_a_script(monkeypatch):
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        repl(signalled(SPIN, monkeypatch), ["continue", "where"], output=out)
    assert "(hvemu) where" not in out.getvalue()


def test_a_second_ctrl_c_does_not_wait(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO("continue\nregisters eax\n"))
    repl(signalled(SPIN, monkeypatch, times=2), output=out)
    assert "error: stopped inside the hypervisor" in out.getvalue()


def test_ctrl_c_means_afterwards_what_it_meant_before():
    before = signal.getsignal(signal.SIGINT)
    with interruptible(session(SPIN)):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


# -- the command line and its chapter ---------------------------------------------------------------------------------


def as_pattern(shown: str) -> str:
    """A line `...` in an example stands for any lines."""
    return "".join("(?:.*\n)*?" if line == "..." else f"{re.escape(line)}\n" for line in shown.splitlines())


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.partition("\n")[0] for example in EXAMPLES])
def test_every_example_of_the_chapter_is_what_happens(example):
    line, _, shown = example.partition("\n")
    prompt, program, *arguments = shlex.split(line)
    assert (prompt, program) == ("$", "hvemu")
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert re.fullmatch(as_pattern(shown), result.output), result.output


def test_the_chapter_has_an_example_of_every_kind_of_command():
    used = {word for example in EXAMPLES for word in re.findall(r"^\(hvemu\) (\w+)", example, re.MULTILINE)}
    assert {"step", "until", "continue", "registers", "walk", "vmcs", "memory", "gdt", "stack", "exits"} <= used


def test_the_command_line_hands_on_its_options():
    result = CliRunner().invoke(cli, ["repl", "hello32", "--technique", "bare", "-c", "step 2", "-c", "where"])
    assert "hello32 under bare+none" in result.output
    assert "(hvemu) where" in result.output
