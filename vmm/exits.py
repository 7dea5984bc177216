"""Why guest code stopped running, and what the monitor made of it: two closed families of types.

An exit is architectural when a real CPU would have exited too under the same technique; what this CPU merely cannot do by
itself is an engine assist. Plain data; knows nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from bt.decode import Instruction
from bt.sensitive import Row


@dataclass(slots=True)
class Sensitive:
    """A sensitive instruction of the guest's kernel that must be emulated."""

    instruction: Instruction
    row: Row


@dataclass(slots=True)
class Raised:
    """The guest's instruction raised an exception; EIP is at it."""

    vector: int
    error: int | None = None


@dataclass(slots=True)
class PageFault:
    """A true page fault of the guest, by its own tables."""

    gva: int
    error: int


@dataclass(slots=True)
class SoftwareInterrupt:
    """INT n, INT3 or INTO in user mode; EIP is at it, `next` behind it."""

    vector: int
    next: int


@dataclass(slots=True)
class DeviceMemory:
    """An access to guest-physical memory where there is no RAM; EIP is at the instruction."""

    gpa: int
    gva: int
    write: bool


@dataclass(slots=True)
class PortAccess:
    """IN or OUT in user mode; EIP is at the instruction. allowed by nobody yet: the monitor asks IOPL and the TSS."""

    port: int
    size: int


@dataclass(slots=True)
class Hypercall:
    """A paravirtual guest's kernel asks the VMM for something; EIP is behind the INT. number: as in EAX."""

    number: int


@dataclass(slots=True)
class Privileged:
    """#GP (with its error code) or #UD (None) of a paravirtual guest, which may stand for an instruction that the ABI has emulated."""

    error: int | None
    code: Callable[[], bytes]  # the bytes at EIP, fewer than 15 where no more can be read


@dataclass(slots=True)
class External:
    """An interrupt is pending, IF is set and the guest is at an instruction boundary."""


@dataclass(slots=True)
class NonMaskable:
    """A non-maskable interrupt, which the guest takes now: it is at an instruction boundary, and its last one has ended."""


Exit = Sensitive | Raised | PageFault | SoftwareInterrupt | DeviceMemory | PortAccess | Hypercall | Privileged | External | NonMaskable


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on at the vCPU's EIP."""


@dataclass(frozen=True, slots=True)
class Wait:
    """HLT: go on when an interrupt comes."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The run ends. reason: one line for a person. why: what kind of end; value: what the guest reported, where it did."""

    why: End
    reason: str
    value: int = 0


class End(Enum):
    """Kinds of end of a run."""

    REPORTED = "reported"  # the guest wrote its debug-exit port
    SHUTDOWN = "power off"
    RESET = "reset"
    DIED = "died"  # triple fault, halted for good, ran out of the world
    UNSUPPORTED = "unsupported"  # needs what this machine has not; named in the reason
    QUIT = "quit"  # the user ended it
    TIMEOUT = "time-out"


Outcome = Resume | Wait | Stop

RESUME = Resume()
WAIT = Wait()


class Stopped(Exception):
    """Raised where a stop is found deep inside an emulation; the monitor turns it into its `Stop`."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop
