"""Random guests (tests/engine/fuzz.py) end in a stop, and never end or hang the host process; both clocks agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hvemu.engine.traps import Kind
from hvemu.x86.decode import Truncated, decode
from hvemu.x86.registers import Sreg
from hvemu.x86.vectors import Fault
from tests.engine.fuzz import Fuzz
from tests.engine.rig import Rig

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


KILLER = """
from tests.engine.rig import rig
rig(32).run(bytes.fromhex("f00fabc0"))  # lock bts eax, eax
"""


def test_the_one_known_instruction_that_ends_the_host_process_still_does():
    """When this fails, docs/deviations.md and the filter in fuzz.py have had their time."""
    assert subprocess.run([sys.executable, "-c", KILLER], cwd=ROOT, capture_output=True, check=False).returncode < 0


# -- both clocks ------------------------------------------------------------------------------------------------------

RF = 1 << 16
TABLES = 0x8_0000  # from here on the two may differ: the emulator sets A ahead of what it runs
STEPS = 25


def picture(r):
    """Return what the guest can see, but for RF, which the emulator clears at the end of a block."""
    s = r.state
    return {
        "gprs": [*s.regs], "rip": s.rip, "rflags": s.rflags & ~RF, "dr6": s.dr6, "efer": s.efer, "ldtr": s.ldtr,
        "tr": s.tr, "segments": [s.segment(n) for n in Sreg], "crs": [s.cr[n] for n in (0, 2, 3, 4)],
        "shadow": s.blocking_by_sti_or_mov_ss, "ram": bytes(r.ram[:TABLES]),
    }  # fmt: skip


def instruction(r):
    try:
        return decode(r.engine.fetch(), r.state.code_bits)
    except (Fault, Truncated):
        return None


def prepare(r, seed):
    fuzz = Fuzz(r, seed)
    fuzz.machine()
    r.engine.open_window(False)
    r.engine.arm_registers(cr_read=0, cr_write=0xFFFF, dr_read=0, dr_write=0xFFFF)
    r.put(fuzz.code())
    r.state.rip = r.start


def compare_steps(rigs, seed):
    for r in rigs:
        prepare(r, seed)
    counted, free = rigs
    for _ in range(STEPS):
        about = instruction(counted)
        if about is None or about.mnemonic in ("rdrand", "rdseed", "sysexit"):
            return
        stop, other = counted.engine.step(), free.engine.step()
        if about.rep and counted.state.rip != free.state.rip:
            stop = counted.engine.step()  # finding the end is a step of its own
        assert (other, picture(free)) == (stop, picture(counted)), f"seed {seed}: {about.text}"
        if stop.kind not in (Kind.LIMIT, Kind.SOFTWARE_INT):
            for r in rigs:
                r.state.retire(r.state.rip + about.length & r.state.linear_mask)


@pytest.fixture(scope="module")
def rigs():
    return Rig(counted=True), Rig(counted=False)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_a_random_machine_steps_alike_on_both_clocks(rigs, first):
    for seed in range(first, first + 50):
        compare_steps(rigs, seed)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(0, 20_000, 1_000))
def test_many_random_machines_step_alike_on_both_clocks(rigs, first):
    for seed in range(first, first + 1_000):
        compare_steps(rigs, seed)
