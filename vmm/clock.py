"""The virtual time of one VM: what time it is, and what is to happen when.

Knows nanoseconds since the VM's start and a heap of alarms. Must not know devices, nor where time comes from: the source
is real time or a count of retired instructions, and nothing here can tell.
"""

import heapq
import time
from collections.abc import Callable

SECOND = 1_000_000_000
"""Nanoseconds."""


def real_time() -> Callable[[], int]:
    """A time source: nanoseconds of host time since this call, never going back."""
    start = time.monotonic_ns()
    return lambda: time.monotonic_ns() - start


class Alarm:
    """One action that is to run at a time. Spent or cancelled, its action is None. order: of those due together, the smallest runs first."""

    __slots__ = ("action", "deadline", "order")

    def __init__(self, deadline: int, action: Callable[[], None], order: int = 0) -> None:
        self.deadline, self.order = deadline, order
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Forget the action; harmless when it has already run."""
        self.action = None


class Clock:
    """Virtual time with alarms. All times are nanoseconds since the VM's start. real: it passes whether or not the VM runs."""

    def __init__(self, source: Callable[[], int] | None = None) -> None:
        """`source` returns the time, and never goes back; None means real time from now on."""
        self.real = source is None
        self._source = source if source is not None else real_time()
        self._heap: list[tuple[int, int, Alarm]] = []
        self._order = 0
        self._compact_at = 64

    def now(self) -> int:
        """The virtual time."""
        return self._source()

    def go_on_from(self, now: int) -> None:
        """From now on it is `now` and what passes from here. Alarms that are set already keep their deadlines."""
        source = self._source
        ahead = now - source()
        self._source = lambda: source() + ahead

    def at(self, deadline: int, action: Callable[[], None]) -> Alarm:
        """Have `action` run by the first `run_due` at or after `deadline`; a deadline that has passed is the next one."""
        self._order += 1
        alarm = Alarm(deadline, action, self._order)
        heapq.heappush(self._heap, (deadline, self._order, alarm))
        if len(self._heap) > self._compact_at:
            self._compact()
        return alarm

    def next_deadline(self) -> int | None:
        """When the next alarm is due, or None when there is none."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_due(self) -> None:
        """Run the actions whose deadline has passed, in the order of their deadlines, then of their setting.

        Alarms that an action sets belong to the next call even when already due: a device that re-arms itself in the
        past cannot keep the VMM here for ever.
        """
        now, last = self._source(), self._order
        heap, later = self._heap, []
        while heap and heap[0][0] <= now:
            entry = heapq.heappop(heap)
            if entry[1] > last:
                later.append(entry)
            elif (action := entry[2].action) is not None:
                entry[2].action = None
                action()
        for entry in later:
            heapq.heappush(heap, entry)

    def _compact(self) -> None:
        # A guest that restarts a one-shot timer in a loop leaves cancelled alarms with far deadlines: they must not pile up.
        # In place: `run_due` holds the list while actions set alarms.
        self._heap[:] = [entry for entry in self._heap if entry[2].action is not None]
        heapq.heapify(self._heap)
        self._compact_at = max(64, 2 * len(self._heap))
