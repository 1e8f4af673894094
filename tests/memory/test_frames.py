from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.memory.frames import FRAME, Frames


@given(
    base=st.integers(0, 1 << 30).map(lambda n: n * FRAME),
    count=st.integers(0, 6),
    rest=st.integers(0, FRAME - 1),
    steps=st.lists(st.none() | st.integers(0, 5), max_size=30),
)
def test_every_frame_goes_out_once_lowest_first(base, count, rest, steps) -> None:
    frames, free, taken = Frames(base, count * FRAME + rest), [base + n * FRAME for n in range(count)], []
    for step in steps:  # None: allocate; a number: free that one of the taken frames
        if step is None and free:
            taken.append(frames.allocate())
            assert taken[-1] == min(free)
            free.remove(taken[-1])
        elif step is None:
            with pytest.raises(MemoryError, match=f"all {count} frames"):
                frames.allocate()
        elif step < len(taken):
            free.append(taken.pop(step))
            frames.free(free[-1])
        assert frames.free_count == len(free)


def test_a_frame_is_freed_once_and_only_if_it_was_taken() -> None:
    frames = Frames(0x10_0000, 2 * FRAME)
    hpa = frames.allocate()
    frames.free(hpa)
    for wrong in (hpa, 0x10_1000, 0x0):
        with pytest.raises(AssertionError, match=f"{wrong:#x} is not allocated"):
            frames.free(wrong)


def test_frames_are_aligned() -> None:
    with pytest.raises(ValueError, match="0x10"):
        Frames(0x10, FRAME)


def test_frames_print_themselves_in_hex() -> None:
    frames = Frames(0x8000, 3 * FRAME)
    frames.allocate()
    assert repr(frames) == "Frames(2 of 3 free, from hpa 0x8000)"
