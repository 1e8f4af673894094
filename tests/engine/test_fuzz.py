"""A hostile guest ends in a stop, and never ends or hangs the host process (tests/engine/fuzz.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = 2_000  # runs of 200 instructions and steps, twelve of them to a seed
SOAK_SEEDS, CHUNK = 200_000, 5_000


def survive(first: int, count: int, seconds: float) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.engine.fuzz", str(first), str(count)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"seed {(expired.stdout or b'').decode().split()[-1]} does not end")
    last = done.stdout.split()[-1]
    assert (last, done.returncode) == ("survived", 0), f"seed {last}, exit status {done.returncode}:\n{done.stderr}"


def test_hostile_guests_stop():
    survive(0, SEEDS // 10, seconds=60)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(0, SOAK_SEEDS // 10, CHUNK))
def test_many_hostile_guests_stop(first):
    survive(first, CHUNK, seconds=1200)
