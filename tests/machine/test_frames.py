"""Host-physical frames: each is given once, neighbours lie apart, and runs are consecutive."""

import pytest

from vmm.machine import FRAME, MIB, Machine, OutOfFrames


def test_frames_are_given_once_and_scattered() -> None:
    """All frames but 0 and the run's part are given, none twice, none next to the one before."""
    machine = Machine(MIB, runs=256 * 1024)
    frames = machine.allocate(100) + machine.allocate(91)
    assert sorted(frames) == list(range(1, 192))
    assert sum(abs(a - b) == 1 for a, b in zip(frames, frames[1:], strict=False)) <= 2
    with pytest.raises(OutOfFrames, match="1 frames wanted, 0 free"):
        machine.allocate(1)
    machine.release(frames[:2])
    assert sorted(machine.allocate(2)) == sorted(frames[:2])


def test_a_refused_allocation_takes_nothing() -> None:
    """After OutOfFrames all that was free still is."""
    machine = Machine(MIB)
    with pytest.raises(OutOfFrames):
        machine.allocate(256)
    assert len(machine.allocate(255)) == 255


def test_runs_are_consecutive_and_apart_from_frames() -> None:
    """Runs come out of their own part, zeroed, until it is used up."""
    machine = Machine(MIB, runs=64 * 1024)
    first, second = machine.allocate_run(10), machine.allocate_run(6)
    assert (first, second) == (246, 240)
    assert not any(machine.memory[second * FRAME :])
    with pytest.raises(OutOfFrames, match="1 consecutive frames wanted, 0 kept"):
        machine.allocate_run(1)
    assert max(machine.allocate(239)) < 240


def test_clear_fills_one_frame_with_zeroes() -> None:
    """And no byte of its neighbours."""
    machine = Machine(MIB)
    machine.memory[: 3 * FRAME] = b"\xff" * (3 * FRAME)
    machine.clear(1)
    assert [machine.memory[at] for at in (FRAME - 1, FRAME, 2 * FRAME - 1, 2 * FRAME)] == [255, 0, 0, 255]


def test_the_views_show_the_same_memory() -> None:
    """Bytes, words and quadwords of host-physical memory."""
    machine = Machine(MIB)
    machine.quads[5] = 0x1122334455667788
    assert (machine.words[10], machine.memory[40]) == (0x55667788, 0x88)
