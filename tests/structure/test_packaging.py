"""pyproject.toml names every package, and an installed wheel finds the guests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def package(directory: Path, base: Path) -> str:
    return ".".join(("hvemu", *directory.relative_to(base).parts))


def test_every_package_is_named() -> None:
    code = {package(path.parent, ROOT / "hvemu") for path in (ROOT / "hvemu").rglob("*.py")}
    guests = {package(path.parent, ROOT) for path in (ROOT / "guests").rglob("*") if path.is_file()}
    assert sorted(SETUPTOOLS["packages"]) == sorted(code | guests)


def test_guest_packages_are_mapped_to_the_top_of_the_checkout() -> None:
    guests = {name for name in SETUPTOOLS["packages"] if name.split(".")[1:2] == ["guests"]}
    mapped = {name: name.removeprefix("hvemu.").replace(".", "/") for name in guests}
    assert SETUPTOOLS["package-dir"] == mapped


def test_every_data_file_is_shipped() -> None:
    patterns = SETUPTOOLS["package-data"]["*"]
    folders = [ROOT / "hvemu", ROOT / "guests"]
    data = [p for f in folders for p in f.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"}]
    assert [p.name for p in data if not any(p.match(pattern) for pattern in patterns)] == []


@pytest.mark.soak
def test_a_wheel_finds_its_guests(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet"]
    source = tmp_path / "source"  # a build leaves files in its source
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = "from hvemu.guest.manifest import guests_dir; print(guests_dir())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert Path(shown.strip()) == tmp_path / "site/hvemu/guests"
    assert (tmp_path / "site/hvemu/guests/guests.toml").is_file()
