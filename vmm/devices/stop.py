"""What a device can ask of the machine as a whole: a reset, power off, or the end of the run with a value.

Knows nothing else; `vmm.board` passes the wish on to whoever runs the VM.
"""

from dataclasses import dataclass
from enum import Enum


class StopKind(Enum):
    RESET = "reset"
    POWER_OFF = "power off"
    DEBUG_EXIT = "debug exit"


@dataclass(frozen=True, slots=True)
class Stop:
    """`by` names the device that asked, for the person who reads why the run ended; `value` is what the guest wrote to the
    debug exit port, 0 for the other kinds."""

    kind: StopKind
    by: str
    value: int = 0
