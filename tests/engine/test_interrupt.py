"""A run can be ended from outside, on both clocks, at any moment, and nothing is lost by it."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from hvemu.engine import native
from hvemu.engine.traps import Kind
from tests.engine.rig import RAX, RBX, rig, summary

CLOCKS = pytest.mark.parametrize("counted", [True, False])
FOREVER = 1 << 60
# inc eax; inc ebx; jmp -4
LOOP = b"\x40\x43\xeb\xfc"


def started(r, code=LOOP):
    """Let another thread run *code*; return that thread and the list that its stop goes to."""
    r.put(code)
    r.state.rip = r.start
    stops = []
    thread = threading.Thread(target=lambda: stops.append(r.engine.run(FOREVER)), daemon=True)
    thread.start()
    return thread, stops


@CLOCKS
@pytest.mark.parametrize("code", [b"\xeb\xfe", LOOP], ids=["jump", "loop"])
def test_an_endless_loop_is_ended_by_another_thread(code, counted):
    r = rig(32, counted=counted)
    thread, stops = started(r, code)
    r.engine.interrupt()
    thread.join(10)
    assert [summary(stop) for stop in stops] == [(Kind.LIMIT, 0)]


@CLOCKS
def test_a_call_that_comes_before_the_run_ends_that_run(counted):
    r = rig(32, counted=counted)
    r.engine.interrupt()
    assert summary(r.run(LOOP, limit=FOREVER)) == (Kind.LIMIT, 0)
    assert (r.offset, r.engine.instructions) == (0, 0)
    assert summary(r.run(b"\xf4")) == (Kind.HLT, 0)  # and no other


@CLOCKS
def test_a_call_ends_one_run_and_the_next_goes_on(counted):
    r = rig(32, counted=counted)
    thread, _ = started(r)
    r.engine.interrupt()
    thread.join(10)
    r.put(b"\xf4" * 4)
    assert r.engine.run(FOREVER).kind is Kind.HLT


class At:
    """Calls something the first time that a native function is entered, as if another thread came just then."""

    def __init__(self, function, action, *, after):
        self.function, self.action, self.after, self.done = function, action, after, False

    def __call__(self, *arguments):
        if not self.done and not self.after:
            self.done = True
            self.action()
        result = self.function(*arguments)
        if not self.done:
            self.done = True
            self.action()
        return result


@CLOCKS
@pytest.mark.parametrize("name", ["context_restore", "emu_start"])
@pytest.mark.parametrize("after", [False, True])
def test_a_call_at_the_worst_moment_is_not_lost(monkeypatch, name, after, counted):
    r = rig(32, counted=counted)
    threads = []

    def interrupt():
        """Another thread has said it and waits; the emulator forgets what it is told before it has started."""
        thread = threading.Thread(target=r.engine.interrupt, daemon=True)
        thread.start()
        threads.append(thread)
        while not r.engine._interrupted:
            time.sleep(0)

    monkeypatch.setattr(native, name, At(getattr(native, name), interrupt, after=after))
    code = b"\xf4" if after and name == "emu_start" else LOOP
    r.put(code)
    r.state.rip = r.start
    first = r.engine.run(FOREVER)
    if first.kind is Kind.HLT:  # it came when the run was over: it ends the next one
        first = r.run(LOOP, limit=FOREVER)
    assert first.kind is Kind.LIMIT
    threads[0].join(10)
    assert not threads[0].is_alive()


@CLOCKS
def test_a_signal_handler_of_the_running_thread_may_call_it_at_any_bytecode(monkeypatch, counted):
    r = rig(32, counted=counted)

    def handler(_signal, _frame):
        r.engine.interrupt()

    old = signal.signal(signal.SIGALRM, handler)
    try:
        # the worst moment: after the last look at the flag, before the emulator starts
        original = native.emu_start
        monkeypatch.setattr(native, "emu_start", lambda *a: (signal.raise_signal(signal.SIGALRM), original(*a))[1])
        assert r.run(LOOP, limit=FOREVER).kind is Kind.LIMIT
    finally:
        signal.signal(signal.SIGALRM, old)


@CLOCKS
def test_two_hundred_calls_from_a_thread_that_does_not_wait_leave_every_instruction_counted(counted):
    r = rig(32, counted=counted)
    r.put(LOOP)
    r.state.rip = r.start
    over = threading.Event()

    def keep_on():
        while not over.is_set():
            r.engine.interrupt()
            time.sleep(0.0001)

    thread = threading.Thread(target=keep_on, daemon=True)
    thread.start()
    for _ in range(200):
        assert r.engine.run(FOREVER).kind is Kind.LIMIT
        turns, part = r.state.gpr(RAX), r.offset  # 0: none of a turn, 1: inc eax, 2: both
        assert r.state.gpr(RBX) == (turns - 1 if part == 1 else turns) & 0xFFFF_FFFF
        if counted:
            whole = turns - 1 if part else turns
            assert r.engine.instructions == 3 * whole + part
    over.set()
    thread.join(10)
    r.engine.interrupt()
    r.engine.run(1)  # takes what may be left


@CLOCKS
def test_a_step_finishes_and_leaves_the_call_to_the_next_run(counted):
    r = rig(32, counted=counted)
    r.put(b"\x40" * 10)
    r.state.rip = r.start
    r.engine.interrupt()
    for n in range(1, 4):
        assert summary(r.engine.step()) == (Kind.LIMIT, 0)
        assert r.offset == n
    assert r.engine.run(FOREVER).kind is Kind.LIMIT
    assert r.offset == 3


@CLOCKS
def test_steps_under_a_hail_of_calls_are_exact(counted):
    r = rig(32, counted=counted)
    r.put(b"\x40\x9c\x9d\x43\xeb\xfa")  # inc eax; pushf; popf; inc ebx; jmp
    r.state.rip = r.start
    over = threading.Event()

    def keep_on():
        while not over.is_set():
            r.engine.interrupt()

    thread = threading.Thread(target=keep_on, daemon=True)
    thread.start()
    for n in range(1, 201):
        assert summary(r.engine.step()) == (Kind.LIMIT, 0)
        assert (r.state.gpr(RAX), r.state.gpr(RBX)) == ((n + 4) // 5, (n + 1) // 5)
    over.set()
    thread.join(10)
    r.engine.run(1)


@CLOCKS
def test_a_stop_that_comes_first_is_reported_and_the_call_ends_the_next_run(counted):
    r = rig(32, counted=counted)
    hooks = r.engine._hooks
    record = hooks.record

    def slow(code):
        record(code)
        r.engine._interrupted = True

    hooks.record = slow
    try:
        assert r.run(b"\x0f\xa2").kind is Kind.CPUID
    finally:
        del hooks.record
    assert r.engine.run(FOREVER).kind is Kind.LIMIT
