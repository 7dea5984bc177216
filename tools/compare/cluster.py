"""Rows spread over many machines: jobs sent to the workers of a dask.distributed scheduler.

The one module that imports distributed, an optional extra. A worker carries a whole row out, so that its ways take turns on one machine; it needs
this package, and the guests that are compared, where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tools.compare.model import Sample
from tools.compare.runner import Pace, RowJob, RowSamples, measure_row
from vmm.errors import InputError

if TYPE_CHECKING:
    from distributed import Future

_CONNECT_S: Final = "10s"
_LOOK: Final = "1s"


def measure_on_cluster(jobs: list[RowJob], address: str, done: Callable[[], object], pace: Pace) -> Iterator[RowSamples]:
    """Carries all jobs out on the cluster; yields what became of each as it ends, or all is over. Raises InputError when there is none there."""
    try:
        from distributed import Client, wait
    except ImportError:
        raise InputError("--cluster: needs dask.distributed (pip install 'vmm[cluster]')") from None
    try:
        client = Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--cluster {address}: no scheduler there ({type(error).__name__})") from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise InputError(f"--cluster {address}: the scheduler has no workers")
        of = {client.submit(measure_row, job, pure=False): job for job in jobs}
        while of and not pace.over():
            with suppress(TimeoutError):
                wait(list(of), timeout=_LOOK, return_when="FIRST_COMPLETED")
            for future in [future for future in of if future.done()]:
                job = of.pop(future)
                for _ in range(len(job.ways) * (1 + job.rounds)):
                    done()
                yield _result(future, job)
        client.cancel(list(of))
        for job in of.values():
            yield RowSamples(job, {way: [Sample(pace.over())] for way in job.ways})


def _result(future: Future, job: RowJob) -> RowSamples:
    """What became of a job; where its worker was lost, that is the reason of all its cells."""
    if future.status == "finished":
        found = future.result()
        assert isinstance(found, RowSamples)
        return found
    lost = Sample(f"lost on the cluster: {future.status} ({type(future.exception()).__name__})")
    return RowSamples(job, {way: [lost] for way in job.ways})
