"""The command line as a person and a script meet it: what goes where, and with which status."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from hvemu import cli
from hvemu.guest.manifest import load_manifest
from hvemu.machine import PAIRS

ROOT = Path(__file__).parents[1]
MANIFEST = load_manifest()
HELLO = MANIFEST["hello32"].console.encode()
TRACE_LINE = re.compile(r" *(\d+) +\d+ 0x[0-9a-f]{8,16} \S+ *.*")
LOOP = "start: jmp start"
EXIT = "start: mov al, {}\nout 0xf4, al\n"
SLEEP = "start: cli\nhlt"
NO_IDT = "start: int 0x40"  # the first IDT of a guest has a limit of 0


@pytest.fixture
def hvemu(capfdbinary):
    """Run a command; return its status, its output and its errors."""

    def run(*arguments):
        status = cli.main([str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return run


@pytest.fixture
def source(tmp_path):
    """Write an assembly source; return its path."""

    def write(text, name="kernel.asm"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def one_line(err):
    """Return *err*, which must be one line."""
    assert err.startswith("hvemu"), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    return err


# -- run ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", [technique for technique, _ in PAIRS])
def test_the_output_of_a_run_is_the_console_and_nothing_else(hvemu, technique):
    assert hvemu("run", "hello32", "--technique", technique) == (0, HELLO, "")


def test_bytes_of_the_console_are_unchanged(hvemu, source):
    printed = bytes(range(256))
    guest = source("start: xor eax, eax\nmore: out 0xe9, al\ninc al\njnz more\nout 0xf4, al\n")
    assert hvemu("run", guest) == (0, printed, "")


def test_json_is_one_object_with_the_console_in_it(hvemu):
    status, out, err = hvemu("run", "hello32", "--json", "-")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert [*found] == [
        "guest", "technique", "memory", "console", "stop", "instructions", "exits", "modelled_cycles", "host_seconds",
    ]  # fmt: skip
    assert (found["guest"], found["technique"], found["memory"]) == ("hello32", "hardware", "ept")
    assert found["console"] == HELLO.decode()
    assert found["stop"] == {"reason": "exited", "code": 0}
    assert found["exits"]["total"] == sum(found["exits"]["by_reason"].values()) > 0


def test_the_same_run_gives_the_same_object_but_for_host_seconds(hvemu):
    first, second = (json.loads(hvemu("run", "hello32", "--json", "-")[1]) for _ in range(2))
    del first["host_seconds"], second["host_seconds"]
    assert first == second


def test_json_in_a_file_leaves_the_console_where_it_is(hvemu, tmp_path):
    assert hvemu("run", "hello32", "--json", tmp_path / "run.json") == (0, HELLO, "")
    assert json.loads((tmp_path / "run.json").read_bytes())["console"] == HELLO.decode()


def test_the_trace_has_a_line_for_each_exit_and_is_the_same_each_time(hvemu, tmp_path):
    traces = []
    for name in ("one", "two"):
        _, out, _ = hvemu("run", "hello32", "--trace", tmp_path / name, "--json", "-")
        traces.append((tmp_path / name).read_text().splitlines())
    numbers = [int(TRACE_LINE.fullmatch(line)[1]) for line in traces[0]]
    assert numbers == [*range(1, json.loads(out)["exits"]["total"] + 1)]
    assert traces[0] == traces[1]


def test_trace_and_console_share_the_output_by_whole_lines(hvemu):
    status, out, _ = hvemu("run", "hello32", "--trace", "-")
    lines = out.decode().splitlines()
    assert status == 0
    assert [line for line in lines if not TRACE_LINE.fullmatch(line)] == HELLO.decode().splitlines()
    assert "IO_INSTRUCTION" in lines[-1]  # the OUT to the exit port


def test_a_summary_is_told_on_request_and_not_in_the_output(hvemu):
    status, out, err = hvemu("run", "hello32", "--verbose")
    assert (status, out) == (0, HELLO)
    assert re.search(r"hello32 under hardware\+ept: it ended with success; \d+ exits, [\d,]+ instructions", err)


@pytest.mark.parametrize(
    ("text", "options", "status", "said"),
    [
        (EXIT.format(0), [], 0, ""),
        (EXIT.format(3), [], 1, "kernel under hardware+ept: it ended with failure: exit code 0x3"),
        (SLEEP, [], 1, "HLT before 0x100002 with interrupts disabled"),
        (LOOP, ["--max-instructions", "5000000"], 3, "after 5000000 instructions (--max-instructions)"),
        (LOOP, ["--timeout", "0.1"], 3, "after 0.1 seconds (--timeout)"),
        (LOOP, ["--timeout", "0.1", "--clock", "free"], 3, "after 0.1 seconds (--timeout)"),
        ("start: cpuid\njmp start", ["--max-exits", "50"], 3, "after 50 exits (--max-exits)"),
    ],
)
def test_the_status_says_how_the_guest_ended(hvemu, source, text, options, status, said):
    found, out, err = hvemu("run", source(text), *options)
    assert (found, out) == (status, b"")
    assert said in err
    assert (err == "") is (status == 0)


@pytest.mark.parametrize("technique", [technique for technique, _ in PAIRS])
def test_a_triple_fault_says_which_exceptions_led_there(hvemu, source, technique):
    status, _, err = hvemu("run", source(NO_IDT), "--technique", technique)
    assert status == 4
    # SDM 3A "Error Code": the gate of vector 0x40, in the IDT; then the gates of #GP and #DF, met from outside
    assert "the guest died: triple fault: #GP(0x202), then #GP(0x6b), then #DF(0x0), then #GP(0x43)" in one_line(err)


def test_a_named_guest_is_held_to_its_own_limits(hvemu, monkeypatch):
    monkeypatch.setitem(MANIFEST["hello32"].limits, "instructions", 10)
    monkeypatch.setattr("hvemu.report.setup.load_manifest", lambda: MANIFEST)
    assert hvemu("run", "hello32")[0] == 3
    assert hvemu("run", "hello32", "--max-instructions", 10_000)[0] == 0


def test_the_command_line_and_the_module_reach_a_kernel(hvemu, source, tmp_path):
    # Multiboot 1: [EBX + 16] points to the command line, [EBX + 24] to the list of modules
    module = tmp_path / "module"
    module.write_bytes(b"M\n")
    print_it = "next: lodsb\ntest al, al\njz done\nout 0xe9, al\njmp next\ndone:"
    text = f"start: mov esi, [ebx + 16]\n{print_it}\nmov esi, [ebx + 24]\nmov esi, [esi]\nmov al, [esi]\nout 0xe9, al\n"
    guest = source(text + "xor eax, eax\nout 0xf4, al\n")
    status, out, _ = hvemu("run", guest, "--append", "a=1 b", "--initrd", module)
    assert (status, out.endswith(b"a=1 bM")) == (0, True)


# -- what is wrong with the input --------------------------------------------------------------------------------------


def elf(*, machine=3, cut=None):
    """Return the header of an ELF executable for *machine*, without anything that it promises."""
    header = (
        b"\x7fELF\x01\x01\x01"
        + bytes(9)
        + struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    )
    return header[:cut]


BAD_FILES = {
    "empty.asm": (b"", "the file is empty"),
    "cut.elf": (elf(cut=30), "cut.elf"),
    "promises.elf": (elf(), "promises.elf"),
    "arm.elf": (elf(machine=40), "arm.elf"),
    "flat.bin": (b"\xf4", "a flat binary needs --mode 16, 32 or 64"),
    "big.asm": (b"start: nop\n.fill 0x200000\n", "big"),
    "typo.asm": (b"start:\n    movv eax, 1\n", "typo.asm:2: "),
    "macro.asm": (b".macro m\n m\n.endm\nm\n", "does a macro use itself?"),
    "long.asm": (b".rept 1000000000\nnop\n.endr\n", "long.asm:1: more than 100000 statements"),
    "latin.asm": (b"# \xe9\n", "not a text file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line(hvemu, tmp_path, name):
    data, said = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    status, out, err = hvemu("run", tmp_path / name, "--ram", "2M")
    assert (status, out) == (2, b"")
    assert said in one_line(err)
    assert name.split(".")[0] in err


def test_an_assembly_error_repeats_the_line(hvemu, source):
    path = source("start:\n    movv eax, 1\n")
    for command in ("run", "asm", "compare"):
        status, _, err = hvemu(command, path)
        assert status == 2
        assert one_line(err).startswith(f"hvemu: {path}:2: ")
        assert "movv eax, 1" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no-such"], "no such guest and no such file"),
        (["run", "pagin"], "did you mean paging?"),
        (["run", str(ROOT)], "Is a directory"),
        (["run"], "Missing argument 'GUEST'"),
        (["run", "hello32", "hello32"], "unexpected extra argument"),
        (["run", "hello32", "--frobnicate"], "No such option"),
        (["run", "hello32", "--technique", "bare", "--memory", "ept"], "bare+ept is not a legal pair"),
        (["run", "hello32", "--technique", "magic"], "'magic' is not one of"),
        (["run", "hello64", "--technique", "deprivilege"], "hello64 starts in 64-bit mode"),
        (["run", "hello16", "--technique", "deprivilege"], "hello16 starts in 16-bit mode"),
        (["run", "hello32", "--mode", "64"], "the guest hello32 starts in 32-bit mode"),
        (["run", "hello32", "--mode", "8"], "'8' is not one of"),
        (["run", "hello32", "--max-instructions", "-1"], "-1 is not in the range"),
        (["run", "hello32", "--max-exits", "many"], "'many' is not a valid integer"),
        (["run", "hello32", "--timeout", "-1"], "'-1' is not a number of seconds"),
        (["run", "hello32", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["run", "hello32", "--ram", "64X"], "'64X' is not a size"),
        (["run", "hello32", "--ram", "-1M"], "'-1M' is not a size"),
        (["run", "hello32", "--ram", "4095K"], "--ram"),
        (["run", "hello32", "--ram", "64G"], "--ram"),
        (["run", "hello32", "--ram", "0"], "hello32"),
        (["run", "hello32", "--json", "/no/such/place"], "/no/such/place: No such file or directory"),
        (["run", "hello32", "--trace", "/"], "/: Is a directory"),
        (["run", "hello32", "--json", "-", "--trace", "-"], "only one of them"),
        (["run", "hello32", "--clock", "free", "--max-instructions", "1"], "the free clock counts no instructions"),
        (["run", "hello32", "--initrd", "no-such"], "no-such: No such file or directory"),
        (["run", "hello64", "--append", "x"], "--append: hello64 starts in 64-bit mode"),
        (["asm", "pyproject.toml"], "not an assembly source"),
        (["asm", "no-such.asm"], "no such guest and no such file"),
        (["compare"], "name one guest, or --all"),
        (["compare", "hello32", "--all"], "name one guest, or --all"),
        (["compare", "no-such"], "no such guest and no such file"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(hvemu, monkeypatch, arguments, said):
    monkeypatch.chdir(ROOT)
    status, out, err = hvemu(*arguments)
    assert (status, out) == (2, b"")
    assert said in one_line(err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk without room is simulated by /dev/full")
def test_a_full_disk_is_one_line(hvemu):
    status, _, err = hvemu("run", "hello32", "--json", "/dev/full")
    assert status == 2
    assert "No space left on device" in one_line(err)


@pytest.mark.parametrize("size", ["8M", "8MiB", "8m", "8192K", "8388608"])
def test_a_size_can_be_written_in_several_ways(hvemu, source, size):
    # Multiboot 1: [EBX + 8] is the memory above 1 MiB in KiB
    guest = source(f"start: cmp dword ptr [ebx + 8], {8192 - 1024}\nsetne al\nout 0xf4, al\n")
    assert hvemu("run", guest, "--ram", size)[0] == 0


# -- what is not the person's fault ------------------------------------------------------------------------------------


def test_a_bug_shows_where_it_is_and_asks_to_be_reported(hvemu, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("two and two are five")

    monkeypatch.setattr(cli, "attend", broken)
    status, _, err = hvemu("run", "hello32")
    assert status == 70
    assert "Traceback" in err
    assert "two and two are five" in err
    assert "please report it" in err.splitlines()[-1]


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hvemu", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize("clock", ["counted", "free"])
def test_ctrl_c_ends_a_run_quietly(source, clock):
    guest = source("start: mov al, 10\nout 0xe9, al\nmore: jmp more\n")
    with start("run", guest, "--clock", clock) as process:
        process.stdout.readline()  # now it runs
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err.strip()) == (130, b"")  # a newline puts the prompt on a line of its own


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_a_reader_that_leaves_is_no_error(source):
    guest = source("start: mov al, 10\nmore: out 0xe9, al\njmp more\n")
    with start("run", guest) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=20)
    assert (process.returncode, err) == (141, b"")


# -- other commands ----------------------------------------------------------------------------------------------------


def test_without_a_command_there_is_help(hvemu):
    status, out, err = hvemu()
    assert (status, err) == (0, "")
    assert all(f"\n  {name} " in out.decode() for name in cli.cli.commands)


@pytest.mark.parametrize("name", cli.cli.commands)
def test_every_command_explains_itself(hvemu, name):
    status, out, err = hvemu(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: hvemu {name} ".encode())


def test_the_listing_shows_address_bytes_and_source(hvemu, source):
    path = source("start:\n    mov eax, 0x12345678\n    hlt\n")
    status, out, err = hvemu("asm", path)
    assert (status, err) == (0, "")
    # SDM 2B "MOV-Move": B8+rd id; SDM 2A "HLT-Halt": F4
    assert out.decode().splitlines() == [
        f"; {path}",
        "00100000                              1  start:",
        "00100000  b8 78 56 34 12              2      mov eax, 0x12345678",
        "00100005  f4                          3      hlt",
    ]


def test_the_listing_of_a_named_guest_is_in_its_own_mode(hvemu):
    status, out, _ = hvemu("asm", "hello16")
    assert (status, out.decode().splitlines()[1].startswith("00007c00")) == (0, True)


def test_compare_finds_every_pair_the_same_and_counts_what_each_costs(hvemu, tmp_path):
    status, out, err = hvemu("compare", "hello32", "--json", tmp_path / "all.json")
    lines = out.decode().splitlines()
    rows = {line.split()[0]: line.split()[1:3] for line in lines if line.split() and "+" in line.split()[0]}
    runs = json.loads((tmp_path / "all.json").read_bytes())["guests"][0]["runs"]
    assert (status, err) == (0, "")
    assert {name: row[0] for name, row in rows.items()} == {
        "bare+none": "(reference)", "deprivilege+shadow": "yes", "hardware+ept": "yes",
    }  # fmt: skip
    assert [int(row[1].replace(",", "")) for row in rows.values()] == [run["exits"]["total"] for run in runs]
    assert {run["console"] for run in runs} == {HELLO.decode()}
    assert max(map(len, lines)) <= 80


def test_compare_names_an_expected_divergence_and_its_reason(hvemu):
    status, out, _ = hvemu("compare", "popf")
    assert status == 0
    assert "deprivilege+shadow differs first in line 1 of the console:" in out.decode()
    assert "expected: POPF in ring 1 keeps IF" in out.decode()


def test_compare_to_a_script_is_one_object(hvemu):
    status, out, err = hvemu("compare", "popf", "--json", "-")
    (guest,) = json.loads(out)["guests"]
    assert (status, err, guest["guest"], guest["status"]) == (0, "", "popf", 0)
    assert {run["technique"]: run["verdict"] for run in guest["runs"]} == {
        "bare": "reference", "deprivilege": "expected", "hardware": "same",
    }  # fmt: skip
    assert guest["runs"][1]["divergence"] == {"line": 1, "reference": "CLI: IF = 0", "here": "CLI: IF = 1"}


def test_compare_tells_when_a_guest_notices_what_nobody_expected(hvemu, source):
    # MOV from CS shows the ring, and traps nowhere
    guest = source("start: mov eax, cs\nand al, 3\nadd al, '0'\nout 0xe9, al\nxor al, al\nout 0xf4, al\n")
    status, out, _ = hvemu("compare", guest)
    assert status == 1
    assert "deprivilege+shadow differs first in line 1 of the console:" in out.decode()
    assert "NOT EXPECTED" in out.decode()


def test_compare_leaves_out_the_pairs_that_a_mode_forbids(hvemu, source):
    guest = source("start: xor eax, eax\nout 0xf4, al\n")
    status, out, _ = hvemu("compare", guest, "--mode", "64", "--json", "-")
    (found,) = json.loads(out)["guests"]
    assert (status, [run["technique"] for run in found["runs"]]) == (0, ["bare", "hardware"])


def test_compare_without_an_end_is_no_verdict(hvemu, source):
    status, out, _ = hvemu("compare", source(LOOP), "--max-instructions", 1000)
    assert status == 3
    assert "no verdict" in out.decode()


def test_the_tour_shows_every_pair_on_a_narrow_terminal(hvemu):
    status, out, err = hvemu("demo")
    lines = out.decode().splitlines()
    assert (status, err) == (0, "")
    assert all(any("+".join(pair) in line for line in lines) for pair in PAIRS)
    assert "CLI: IF = 0                 CLI: IF = 1" in out.decode()
    assert out.decode().count("exactly what it saw in 1.") == len(PAIRS) - 1
    assert max(map(len, lines)) <= 80
