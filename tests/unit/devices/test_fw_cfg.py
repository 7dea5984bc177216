"""fw_cfg as SeaBIOS uses it: items, the directory of files, and transfers by memory, wild ones included."""

import struct

import pytest

from tests.unit.devices.memory import GuestRam
from vmm.bus import Bus
from vmm.devices.fw_cfg import DATA, DMA, FwCfg

RAM = 1 << 16
FILES = {"etc/one": b"first", "etc/other": bytes(range(200))}
READ, SKIP, SELECT, WRITE = 2, 4, 8, 16


class Rig:
    """The device at its ports, and the memory that it transfers to."""

    def __init__(self) -> None:
        self.ram, self.bus = GuestRam(RAM), Bus()
        device = FwCfg(self.ram, {5: b"\x01\x00"}, FILES)
        self.bus.attach_ports(0x510, 1, device, widest=2)
        self.bus.attach_ports(0x511, 1, device, offset=DATA)
        self.bus.attach_ports(0x514, 8, device, offset=DMA, widest=4)

    def read(self, selector: int, size: int) -> bytes:
        self.bus.port(0x510, 2, selector)
        return bytes(self.bus.port(0x511, 1, None) for _ in range(size))

    def transfer(self, control: int, length: int, address: int, at: int = 0x100) -> int:
        """Starts a transfer whose descriptor is at `at`; its first word behind it."""
        if at + 16 <= RAM:
            self.ram.write(at, struct.pack(">IIQ", control, length, address))
        self.bus.port(0x514, 4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"))
        self.bus.port(0x518, 4, int.from_bytes((at & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
        return int.from_bytes(self.ram.read(min(at, RAM - 4), 4), "big")


@pytest.fixture
def rig() -> Rig:
    return Rig()


def directory(rig: Rig) -> dict[str, tuple[int, int]]:
    """(size, selector) of each file by name."""
    (count,) = struct.unpack(">I", rig.read(0x19, 4))
    entries = struct.iter_unpack(">IHH56s", b"".join(bytes(rig.bus.port(0x511, 1, None) for _ in range(64)) for _ in range(count)))
    return {name.rstrip(b"\0").decode(): (size, selector) for size, selector, _, name in entries}


def test_items(rig: Rig) -> None:
    """The signature, the two ways of access, the number of CPUs; zeros behind the end and where there is nothing."""
    assert rig.read(0, 6) == b"QEMU\0\0"
    assert rig.read(1, 4) == b"\x03\0\0\0"
    assert rig.read(5, 3) == b"\x01\0\0"
    assert rig.read(0x8003, 4) == bytes(4)


def test_files(rig: Rig) -> None:
    """By the directory, in bytes."""
    found = directory(rig)
    assert {name: size for name, (size, _) in found.items()} == {name: len(data) for name, data in FILES.items()}
    assert rig.read(found["etc/one"][1], 5) == b"first"


def test_transfers(rig: Rig) -> None:
    """Select, skip and read by memory; the signature stands where the address is written."""
    selector = directory(rig)["etc/other"][1]
    high, low = (rig.bus.port(port, 4, None).to_bytes(4, "little") for port in (0x514, 0x518))
    assert high + low == b"QEMU CFG"
    assert rig.transfer(SELECT | SKIP | selector << 16, 10, 0) == 0
    assert rig.transfer(READ, 20, 0x200) == 0
    assert rig.ram.read(0x200, 21) == bytes(range(10, 30)) + b"\0"
    assert rig.transfer(SELECT | READ | selector << 16, 300, 0x200) == 0
    assert rig.ram.read(0x200, 300) == bytes(range(200)) + bytes(100)


@pytest.mark.parametrize(
    "control, length, address, at",
    [(WRITE, 4, 0x200, 0x100), (SELECT | READ, 4, RAM, 0x100), (SELECT | READ, 0xFFFFFFFF, RAM - 2, 0x100), (READ, 8, 1 << 60, 0x100)],
)
def test_transfers_that_fail(rig: Rig, control: int, length: int, address: int, at: int) -> None:
    """Writes, and memory that is not there: the error bit, at once."""
    assert rig.transfer(control, length, address, at) == 1


@pytest.mark.parametrize("at", (RAM - 2, RAM, 1 << 40, (1 << 64) - 8))
def test_descriptors_outside_memory(rig: Rig, at: int) -> None:
    """Do nothing."""
    rig.transfer(READ, 4, 0x200, at)
    assert rig.ram.read(0x200, 4) == bytes(4)
