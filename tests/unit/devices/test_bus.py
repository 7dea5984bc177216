"""The bus: who answers, how wide, and what an empty one reads."""

from vmm.bus import Bus


class Recorder:
    """A device that writes down its accesses and reads as a fixed byte at each offset."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int | None]] = []

    def access(self, offset: int, size: int, value: int | None) -> int:
        self.seen.append((offset, size, value))
        return sum((0x10 + offset + i) << 8 * i for i in range(size)) if value is None else 0


def test_absent_ports_read_all_ones() -> None:
    """Of the width of the access, and writes vanish."""
    bus = Bus()
    assert [bus.port(0x300, size, None) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    assert bus.port(0x300, 4, 5) == 0


def test_wide_access_to_bytes_is_split() -> None:
    """Little-endian at successive ports, which may be absent or another's."""
    bus, device = Bus(), Recorder()
    bus.attach_ports(0x300, 2, device)
    assert bus.port(0x300, 4, None) == 0xFFFF1110
    bus.port(0x2FF, 4, 0xAABBCCDD)
    assert device.seen[2:] == [(0, 1, 0xCC), (1, 1, 0xBB)]


def test_wide_device_gets_the_access_whole() -> None:
    """Up to its width; wider ones are still split."""
    bus, device = Bus(), Recorder()
    bus.attach_ports(0x300, 1, device, offset=7, widest=2)
    bus.port(0x300, 2, 0x1234)
    bus.port(0x300, 4, 0x12345678)
    assert device.seen == [(7, 2, 0x1234), (7, 1, 0x78)]


def test_ports_wrap_at_64_kib() -> None:
    """A word at port FFFFh has its high byte at port 0."""
    bus, device = Bus(), Recorder()
    bus.attach_ports(0, 1, device)
    assert bus.port(0xFFFF, 2, None) == 0x10FF


def test_memory_devices() -> None:
    """Offsets into the range; absent reads all ones; 8 bytes and accesses across the end are split."""
    bus, device = Bus(), Recorder()
    bus.attach_memory(0xFEC00000, 0x1000, device)
    assert bus.memory_device(0xFEC00FFF)
    assert not bus.memory_device(0xFEC01000)
    assert bus.memory(0xFEC00010, 4, None) == 0x23222120
    assert bus.memory(0xFEE00000, 4, None) == 0xFFFFFFFF
    device.seen.clear()
    bus.memory(0xFEC00020, 8, 0x1122334455667788)
    assert device.seen == [(0x20, 4, 0x55667788), (0x24, 4, 0x11223344)]
    device.seen.clear()
    assert bus.memory(0xFEC00FFE, 4, None) >> 16 == 0xFFFF
    assert device.seen == [(0xFFE, 2, None)]
