"""A world: all that one VM has made of the physical CPU, put aside while another VM runs on it.

Plain data that `Machine.switch` fills and empties. What lies in host-physical memory needs no switch: no two worlds hold the same frame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

HANDLERS = ("on_interrupt", "on_invalid", "on_port", "on_cpuid", "on_fast_call", "on_memory", "on_code", "stop_behind", "kick_exits")
"""The handlers of a machine that each world has its own of, and how a kick gets to it."""


class World:
    """One VM's CPU, at first as it is after a reset.

    state: the CPU's state. features: which instructions it has been left. handlers: by the order of HANDLERS. requests: what it was asked between
    instructions. frames, runs: the host-physical frames that it holds, and the runs of consecutive ones by first frame with their lengths;
    most: how many frames it may hold beside the runs, so that no VM lives on another's. ends: what ends the watches on its frames.
    """

    __slots__ = ("ends", "features", "frames", "handlers", "most", "requests", "runs", "state")

    def __init__(self, state: bytes, features: bytes, handlers: tuple[object, ...], most: int = sys.maxsize) -> None:
        self.state, self.features, self.handlers, self.most = state, features, handlers, most
        self.requests = 0
        self.frames: set[int] = set()
        self.runs: dict[int, int] = {}
        self.ends: list[Callable[[], None]] = []
