"""Another machine's memory, for `--break raw-ptp` to reach: frames that say whose they are.

Knows frames and nothing of any guest.
"""

from __future__ import annotations

from vmm.machine import FRAME, MIB, Machine

_SIZE = 16 * MIB


def make_neighbour(machine: Machine) -> None:
    """Gives 16 MiB to a machine that does not run, and fills each of its frames with a line about itself."""
    for hfn in machine.allocate(_SIZE // FRAME):
        line = f"Neighbour's secret, frame {hfn:6}"
        machine.memory[hfn * FRAME : (hfn + 1) * FRAME] = line.encode() * (FRAME // len(line))
