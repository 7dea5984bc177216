"""What a guest's own act raises inside the VMM: an exception that the guest must be given.

A `GuestFault` never leaves the monitor: it becomes an injected exception, or a double or triple fault.
"""

from __future__ import annotations


class GuestFault(Exception):
    """The guest's instruction raises exception `vector` with `error` (None: the vector has no error code)."""

    def __init__(self, vector: int, error: int | None = None) -> None:
        super().__init__(vector, error)
        self.vector, self.error = vector, error


class GuestPageFault(GuestFault):
    """The guest's own tables forbid an access to `gva`: a true fault, with error code `code`."""

    def __init__(self, gva: int, code: int) -> None:
        super().__init__(14, code)
        self.gva, self.code = gva, code
