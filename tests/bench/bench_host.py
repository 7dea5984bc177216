"""What it costs to go from one VM to another on the same machine, against what an empty callback of the CPU costs."""

from __future__ import annotations

from tests.bench.bench_translate import callback_seconds
from tests.bench.conftest import Keep
from tests.bench.timing import cpu_seconds, in_turns
from tests.machine.flat import ENTRY, flat_host
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions

TIMES = 10_000


def test_world_switch(keep: Keep) -> None:
    """To a VM under hw and back to one under bt: state, handlers and requests of the CPU, and its TLB emptied."""
    spin = {ENTRY: "l: jmp l"}
    host = flat_host((spin, BtOptions()), (spin, HwOptions()))
    host.run(0.05)
    switch = host.machine.switch
    first, second = (resident.world for resident in host.residents)

    def to_and_fro() -> None:
        for _ in range(TIMES):
            switch(first)
            switch(second)

    pair = in_turns(lambda: cpu_seconds(to_and_fro) / (2 * TIMES), callback_seconds)
    keep("world-switch", pair.ratio, f"{pair.ours * 1e6:.1f} µs against {pair.theirs * 1e6:.2f} µs")
