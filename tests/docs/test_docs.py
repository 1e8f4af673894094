"""Everything in README.md and docs/ that can be run is run, and shows what the page says that it shows."""

from __future__ import annotations

import io
import json
import re
import tomllib
from pathlib import Path

import pytest

from hvemu.guest.image import from_source, load
from hvemu.guest.manifest import load_manifest
from hvemu.report import bench
from tests.docs.pages import BLOCKS, PAGES, ROOT, Block, as_pattern, hvemu, of, put_files, sessions
from tests.guest.test_image import make_elf
from tests.structure.test_sdm_titles import LISTED, citations

LANGUAGES = {"", "asm", "console", "json", "python", "sh", "text", "toml"}
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
EXAMPLE = ("3A", "Protected-Mode Address Translation")  # of a citation, in sdm.md
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def named(languages: str) -> pytest.MarkDecorator:
    found = of(languages)
    return pytest.mark.parametrize("block", found, ids=[block.name for block in found])


@pytest.fixture
def folder(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files that the page shows, and nothing else."""
    monkeypatch.chdir(tmp_path)
    put_files(block.page, tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])
def test_every_block_is_of_a_kind_that_is_checked(block):
    assert block.language in LANGUAGES
    if block.language == "text":
        assert block.follows is not None
        assert block.follows.language == "python"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_closed(page):
    fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * sum(block.page == page for block in BLOCKS)


@named("console")
def test_commands_print_what_is_shown(block, folder, capfd):
    status = 0
    for command, shown in sessions(block):
        if command == "echo $?":
            printed = f"{status}\n"
        else:
            status = hvemu(command)
            printed = "".join(capfd.readouterr())
        assert as_pattern(shown).fullmatch(printed), f"$ {command}\n{printed}"


@named("python")
def test_scripts_run_and_print_what_is_shown(block, folder, capsys):
    exec(compile(block.text, block.name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    (shown,) = [b.text for b in BLOCKS if b.language == "text" and b.follows == block] or [""]
    assert as_pattern(shown).fullmatch(printed), printed


@named("asm")
def test_sources_assemble(block):
    assert from_source(block.text, mode=block.mode, path=block.file or "block.asm").segments


@named("toml")
def test_manifests_are_read(block, tmp_path):
    path = tmp_path / "guests.toml"
    path.write_text(block.text, encoding="utf-8")
    assert load_manifest(path) if "source" in block.text else tomllib.loads(block.text)


@named("json")
def test_objects_are_json(block):
    assert json.loads(block.text)


# -- links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names that the headings of a page have as targets of links."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in (match["target"] for match in LINK.finditer(page.read_text(encoding="utf-8"))):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def test_the_index_leads_to_every_page_and_every_example():
    linked = {m["target"] for m in LINK.finditer((ROOT / "docs/index.md").read_text(encoding="utf-8"))}
    pages = {page.name for page in PAGES if page.parent.name == "docs"} - {"index.md"}
    assert pages | {f"../examples/{path.name}" for path in EXAMPLES} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_cited_titles_are_listed(page):
    assert {*citations(page.read_text(encoding="utf-8"))} - LISTED - {EXAMPLE} == set()


# -- commands without output ------------------------------------------------------------------------------------------

SPAN = re.compile(r"`(hvemu [^`]+)`")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z]+\b")


def commands(page: Path) -> set[str]:
    """The commands in the text and in the `sh` blocks of a page that can be run as they are."""
    text = page.read_text(encoding="utf-8")
    lines = {line for block in of("sh") if block.page == page for line in block.text.splitlines()}
    spans = {" ".join(span.split()) for span in SPAN.findall(text)}
    return {line for line in lines | spans if not PLACEHOLDER.search(line)}


SHOWN = {command for block in of("console") for command, _ in sessions(block)}
NAMED = {command.partition(" #")[0].strip().removeprefix(".venv/bin/") for page in PAGES for command in commands(page)}


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """The files that the commands of the README name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernel.asm").write_text('.include "lib/kernel32.inc"\nmain: EXIT 0\n', encoding="utf-8")
    code = {mode: load(f"hello{mode}").segments[0][1] for mode in (16, 32)}
    (tmp_path / "boot.bin").write_bytes(code[16])
    (tmp_path / "kernel.elf").write_bytes(make_elf(text=code[32], entry=load("hello32").entry))


@pytest.mark.parametrize("command", sorted(c for c in NAMED - SHOWN if c.startswith("hvemu")))
def test_a_command_in_the_text_ends_with_success(command, own_files, capfd, monkeypatch):
    for name in ("_ROUNDS", "_EXITS", "_WRITES"):
        monkeypatch.setattr(bench, name, 2_000)  # its numbers are nobody's business here
    monkeypatch.setattr("sys.stdin", io.StringIO("quit\n"))
    assert hvemu(command) == 0, capfd.readouterr().err


def test_make_demo_is_the_tour():
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in (c for c in NAMED if c.startswith("make")):
        assert re.search(rf"^{command.removeprefix('make ')}:", targets, re.MULTILINE)
    assert re.search(r"^demo: .*\n\t@\$\(BIN\)/hvemu demo$", targets, re.MULTILINE)
