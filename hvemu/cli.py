"""The command line. Commands only put together what other modules do; `main` turns every error into a message.

A command returns its exit status. To add one: a function under @cli.command(), with @setup_from(*MACHINE) when it runs
a guest; it raises HvemuError for a person, and need not think of anything else that may go wrong.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import click

from hvemu.debug import repl as debug
from hvemu.errors import HvemuError, InputError
from hvemu.guest.image import load
from hvemu.guest.manifest import load_manifest
from hvemu.guest.program import render_listing
from hvemu.options import BUDGET, GUEST, JSON, MACHINE, TRACE, Output, setup_from
from hvemu.report import bench as measurements
from hvemu.report import outcome, vmcs_check, vmcs_template
from hvemu.report.attend import attend
from hvemu.report.compare import Comparison, compare
from hvemu.report.compare_text import as_json as compare_json
from hvemu.report.compare_text import render, render_total
from hvemu.report.console import Console
from hvemu.report.demo import tour
from hvemu.report.setup import Setup
from hvemu.report.trace import Tracer
from hvemu.vmx.vmcs_file import read as read_vmcs

BAD_INPUT, BUG, CTRL_C, BROKEN_PIPE = 2, 70, 130, 141


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("hvemu"), message="hvemu %(version)s")
@click.pass_context
def cli(context: click.Context) -> int:
    """One guest kernel, every way of virtualizing x86, side by side.

    A GUEST is a name from guests/guests.toml, an assembly source (.asm), a Multiboot kernel or a flat binary.
    Begin with `hvemu demo`.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    return 0


@cli.command()
@click.argument("guest")
@setup_from(*MACHINE)
@JSON
@TRACE
@click.option("-v", "--verbose", is_flag=True, help="Say at the end what the run cost, even into a pipe.")
def run(guest: str, setup: Setup, json_: Output | None, trace: Output | None, verbose: bool) -> int:
    """Run GUEST; its console is the output.

    Status: 0 it ended with success, 1 with failure, 2 bad input, 3 a budget ran out, 4 the guest died.
    """
    silent, traced = json_ is not None and json_.is_stdout, trace is not None and trace.is_stdout
    if silent and traced:
        raise InputError("--json - and --trace -: only one of them can have the standard output")
    console = Console(sys.stdout.buffer, by_line=traced)
    machine = setup.machine(
        guest,
        on_output=None if silent else console.put,
        sink=None if trace is None else Tracer(trace.stream, shared=traced),
        on_note=lambda text: click.echo(f"hvemu: {text}", err=True),
    )
    budget = setup.budget(guest)
    result = attend(machine, budget)
    console.flush()
    if json_ is not None:
        json_.write_json(outcome.as_json(machine, result))
    if verbose or sys.stderr.isatty():
        say(f"{outcome.headline(machine, result)}; {outcome.costs(result)}")
    elif result.ending.status:
        say(outcome.headline(machine, result))
    return result.ending.status


@cli.command()
@click.argument("file")
@click.option("--mode", type=click.Choice(["16", "32", "64"]), help="Code size at the start; 32 unless given.")
def asm(file: str, mode: str | None) -> int:
    """Print a listing: address, bytes, source.

    FILE is an assembly source or the name of a guest.
    """
    if file not in load_manifest() and Path(file).is_file() and Path(file).suffix != ".asm":
        raise InputError(f"{file}: not an assembly source: its name does not end in .asm")
    program = load(file, mode=None if mode is None else int(mode)).program
    assert program is not None
    for line in render_listing(program):
        click.echo(line)
    return 0


@cli.command("compare")
@click.argument("guest", required=False)
@click.option("--all", "everything", is_flag=True, help="Compare every guest of guests.toml.")
@setup_from(*GUEST, *BUDGET)
@JSON
def compare_command(guest: str | None, everything: bool, setup: Setup, json_: Output | None) -> int:
    """Run GUEST under every technique, side by side.

    What it can observe is compared with the bare machine, for every legal pair of technique and memory.

    Status: 0 it is the same, or differs only where guests.toml says so; 1 it is not; 3 a budget ran out.
    """
    if (guest is None) is not everything:
        raise InputError("compare: name one guest, or --all")
    names = [*load_manifest()] if guest is None else [guest]
    comparisons: list[Comparison] = []
    quiet = json_ is not None and json_.is_stdout
    for name in names:
        done = f"{len(comparisons) + 1} of {len(names)}: " if everything else ""
        with progress(done) as show:
            comparisons.append(compare(name, setup, before=show))
        if not quiet:
            click.echo("\n".join(render(comparisons[-1], breakdown=not everything)))
    if everything and not quiet:
        click.echo("\n".join(render_total(comparisons)))
    if json_ is not None:
        json_.write_json(compare_json(comparisons))
    return max((c.status for c in comparisons), key=(0, 3, 1).index)


@cli.command()
def demo() -> int:
    """Take a tour of one minute: one kernel, every technique."""
    for part in tour():
        click.echo("\n".join(part))
    return 0


@cli.command()
@click.argument("guest")
@setup_from(*MACHINE)
@click.option("-c", "commands", multiple=True, metavar="COMMAND", help="Run COMMAND instead of asking; repeatable.")
@click.option("-x", "script", metavar="SCRIPT", help="Run the commands in the file SCRIPT, before those of -c.")
def repl(guest: str, setup: Setup, commands: tuple[str, ...], script: str | None) -> int:
    """Debug GUEST, stopped at each VM exit. `help` lists the commands.

    A budget bounds each command. Status: that of the guest if it has ended; 2 a bad command of -c or -x.
    """
    return debug.repl(setup.machine(guest), commands, script, budget=setup.budget(guest))


@cli.command()
@JSON
def bench(json_: Output | None) -> None:
    """Measure what translation, VM exits and shadow paging cost, as ratios."""
    with progress("measuring ") as show:
        rows = measurements.bench(show)
    if json_ is None or not json_.is_stdout:
        click.echo(measurements.render(rows))
    if json_ is not None:
        json_.write_json(measurements.document(rows))


@cli.group()
def vmcs() -> None:
    """Find out why VMLAUNCH fails: check a VMCS by every clause of the manual."""


@vmcs.command("check")
@click.argument("file")
@click.option(
    "--capabilities",
    type=click.Choice([*vmcs_check.PROCESSORS]),
    help="Which controls the processor offers: those of hvemu, or any; any for a KVM dump, hvemu for all else.",
)
@JSON
def vmcs_check_command(file: str, capabilities: str | None, json_: Output | None) -> int:
    """Say which clauses the VMCS in FILE violates, and what would help.

    FILE is TOML or JSON with values by the names of fields, or a kernel log with the dump of Linux KVM; - is standard
    input.

    Status: 0 it would enter, 1 it would not, 2 bad input.
    """
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        given = read_vmcs(data, suffix=Path(file).suffix.lower())
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    verdict = vmcs_check.judge(given, capabilities)
    if json_ is None or not json_.is_stdout:
        click.echo("\n".join(vmcs_check.render(verdict, file)))
    if json_ is not None:
        json_.write_json(vmcs_check.as_json(verdict, file))
    return int(not verdict.enters)


@vmcs.command("template")
@click.option("--toml/--json", "toml", default=True, help="The form; TOML has comments.")
def vmcs_template_command(toml: bool) -> int:
    """Print a minimal VMCS that `check` accepts."""
    click.echo("\n".join(vmcs_template.as_toml()) if toml else json.dumps(vmcs_template.as_json(), indent=2))
    return 0


# -- what commands share -----------------------------------------------------------------------------------------------


@contextmanager
def progress(done: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows on a terminal what is being done, after *done*; at the end nothing is left of it."""
    terminal = sys.stderr.isatty()

    def show(what: str) -> None:
        if terminal:
            click.echo(f"\r\033[K{done}{what} ...", err=True, nl=False)

    try:
        yield show
    finally:
        if terminal:
            click.echo("\r\033[K", err=True, nl=False)


def say(message: str, command: str = "hvemu") -> None:
    """Tell a person *message*, in one line on standard error."""
    click.echo(f"{command}: {' '.join(message.split(chr(10)))}", err=True)


# -- errors ------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line *arguments*, by default the process's own; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main(arguments, prog_name="hvemu", standalone_mode=False)
        sys.stdout.flush()
    except HvemuError as error:
        say(str(error))
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "hvemu"
        say(f"{error.format_message().rstrip(chr(46))} (see {command} --help)", command)
        return BAD_INPUT
    except (click.Abort, KeyboardInterrupt):
        return CTRL_C
    except (BrokenPipeError, SystemExit):  # click makes the one into the other
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        return BAD_INPUT
    except Exception:  # noqa: BLE001 - whatever else comes up is a bug
        traceback.print_exc()
        say("this is a bug of hvemu: please report it, with the lines above, the command and the guest")
        return BUG
    return int(status or 0)
