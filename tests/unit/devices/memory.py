"""Guest RAM for device tests: a bytearray behind the `Memory` protocol."""


class GuestRam:
    """`size` bytes from gpa 0."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)

    @property
    def size(self) -> int:
        return len(self.bytes)

    def read(self, gpa: int, size: int) -> bytes:
        assert 0 <= gpa <= gpa + size <= self.size
        return bytes(self.bytes[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        assert 0 <= gpa <= gpa + len(data) <= self.size
        self.bytes[gpa : gpa + len(data)] = data
