"""Virtual time and its alarms."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from vmm.clock import Clock, real_time


class Time:
    """A time source that stands where it is put."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def noting(log: list[int], item: int) -> Callable[[], None]:
    return lambda: log.append(item)


@given(st.lists(st.integers(0, 50)), st.sets(st.integers(0, 20)), st.integers(0, 60))
def test_due_alarms_run_in_order(deadlines: list[int], cancelled: set[int], now: int) -> None:
    """Exactly those due and not cancelled, by deadline, then in the order of setting."""
    time, log = Time(), list[int]()
    clock = Clock(time)
    alarms = [clock.at(deadline, noting(log, i)) for i, deadline in enumerate(deadlines)]
    for i in cancelled & set(range(len(alarms))):
        alarms[i].cancel()
    time.now = now
    clock.run_due()
    live = [(deadline, i) for i, deadline in enumerate(deadlines) if i not in cancelled]
    assert log == [i for deadline, i in sorted(live) if deadline <= now]
    assert clock.next_deadline() == min((deadline for deadline, _ in live if deadline > now), default=None)


def test_rearming_in_the_past_ends() -> None:
    """An action that sets itself anew for a time gone by waits for the next call."""
    clock, log = Clock(Time()), list[int]()

    def again() -> None:
        log.append(1)
        clock.at(0, again)

    clock.at(0, again)
    clock.run_due()
    assert log == [1]
    assert clock.next_deadline() == 0


def test_an_action_cancels_another_that_is_due() -> None:
    """Cancelled means cancelled, even in the same round."""
    clock, log = Clock(Time()), list[int]()
    clock.at(0, lambda: second.cancel())
    second = clock.at(0, noting(log, 2))
    clock.run_due()
    assert log == []


def test_cancelled_alarms_do_not_pile_up() -> None:
    """A guest that restarts a long one-shot for ever does not fill our memory."""
    clock = Clock(Time())
    for _ in range(10_000):
        clock.at(10**18, lambda: None).cancel()
    assert len(clock._heap) < 200


def test_real_time_starts_at_zero_and_goes_on() -> None:
    """Nanoseconds since the call."""
    source = real_time()
    first = source()
    assert 0 <= first <= source() < 10**9
