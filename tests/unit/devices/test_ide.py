"""The IDE channel: transfers, interrupts, errors, resets and empty slots, as a driver sees them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.bus import Bus
from vmm.devices.disk import SECTOR, Disk, DiskError
from vmm.devices.ide import IdeChannel

SECTORS = 4096
DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS, CONTROL = 0x1F0, 0x1F1, 0x1F2, 0x1F3, 0x1F4, 0x1F5, 0x1F6, 0x1F7, 0x3F6
IDLE, READY, FAILED = 0x50, 0x58, 0x51
UNC, IDNF, ABRT = 0x40, 0x10, 0x04
MASTER, SLAVE = 0xE0, 0xF0


class Rig:
    """A channel on a bus, with a record of its interrupt line."""

    def __init__(self, master: Disk | None, slave: Disk | None = None) -> None:
        self.bus = Bus()
        self.levels: list[bool] = []
        self.channel = IdeChannel(self.levels.append, master, slave)
        self.bus.attach_ports(0x1F0, 8, self.channel.commands, widest=4)
        self.bus.attach_ports(0x3F6, 1, self.channel.control)

    def inb(self, port: int) -> int:
        return self.bus.port(port, 1, None)

    def outb(self, port: int, value: int) -> None:
        self.bus.port(port, 1, value)

    def take(self, size: int = SECTOR, width: int = 2) -> bytes:
        return b"".join(self.bus.port(DATA, width, None).to_bytes(width, "little") for _ in range(size // width))

    def give(self, data: bytes, width: int = 2) -> None:
        for at in range(0, len(data), width):
            self.bus.port(DATA, width, int.from_bytes(data[at : at + width], "little"))

    def start(self, command: int, lba: int = 0, count: int = 1, *, device: int = MASTER, ext: bool = False) -> None:
        if ext:
            for port, value in ((COUNT, count >> 8), (LOW, lba >> 24), (MID, lba >> 32), (HIGH, lba >> 40)):
                self.outb(port, value & 0xFF)
        self.outb(DEVICE, device if ext else device | lba >> 24 & 0xF)
        for port, value in ((COUNT, count), (LOW, lba), (MID, lba >> 8), (HIGH, lba >> 16)):
            self.outb(port, value & 0xFF)
        self.outb(STATUS, command)

    def rises(self) -> int:
        return self.levels.count(True)


def fill(lba: int) -> bytes:
    return (lba.to_bytes(4, "little") * 128)[:SECTOR]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """4096 sectors, each full of its number."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(fill(i) for i in range(SECTORS)))
    disk = Disk(str(path))
    yield disk
    disk.close()


@pytest.fixture
def rig(disk: Disk) -> Rig:
    """The disk as master, alone."""
    return Rig(disk)


def words(page: bytes) -> list[int]:
    return [int.from_bytes(page[i : i + 2], "little") for i in range(0, 512, 2)]


def test_identify(rig: Rig) -> None:
    """IDENTIFY DEVICE tells sizes, geometry, model and multiple mode, and adds up to zero."""
    rig.start(0xEC)
    assert rig.inb(STATUS) == READY
    page = rig.take()
    assert rig.inb(STATUS) == IDLE
    word = words(page)
    assert word[1] * word[3] * word[6] <= SECTORS and (word[1], word[3], word[6]) == (4, 16, 63)
    assert word[60] | word[61] << 16 == word[100] | word[101] << 16 == SECTORS
    assert word[49] & 0x200 and word[83] & 0xC400 == 0x4400 and word[47] & 0xFF == 16 and word[59] == 0x110
    assert b"".join(w.to_bytes(2, "big") for w in word[27:47]).strip() == b"VMM VIRTUAL DISK"
    assert sum(page) % 256 == 0 and page[510] == 0xA5


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(
    ("read", "write", "count", "block", "ext"),
    [
        (0x20, 0x30, 1, 1, False),
        (0x21, 0x31, 8, 1, False),
        (0x20, 0x30, 256, 1, False),
        (0xC4, 0xC5, 40, 16, False),
        (0x24, 0x34, 300, 1, True),
        (0x29, 0x39, 33, 16, True),
    ],
)
def test_transfers(rig: Rig, read: int, write: int, count: int, block: int, ext: bool, width: int) -> None:
    """What is written is read back; an interrupt before each block that is read and after each that is written, and no others."""
    data = [bytes([i & 0xFF, i >> 8]) * 256 for i in range(count)]
    blocks = -(-count // block)
    rig.start(write, 1000, count, ext=ext)
    for i in range(0, count, block):
        assert rig.rises() == i // block and rig.inb(STATUS) == READY
        rig.give(b"".join(data[i : i + block]), width)
    assert rig.rises() == blocks and rig.inb(STATUS) == IDLE
    rig.start(read, 1000, count, ext=ext)
    for i in range(0, count, block):
        assert rig.rises() == blocks + i // block + 1 and rig.inb(STATUS) == READY
        assert rig.take(len(data[i : i + block]) * SECTOR, width) == b"".join(data[i : i + block])
    assert rig.rises() == 2 * blocks and rig.inb(STATUS) == IDLE
    rig.start(read, 999, 1, ext=ext)
    assert rig.take() == fill(999)


def test_chs(rig: Rig) -> None:
    """Cylinder, head and sector name the sector of the geometry in force; what the geometry does not have is not found."""
    for heads, track in ((16, 63), (4, 32)):
        rig.start(0x91, 0, track, device=0xA0 | heads - 1)
        assert rig.inb(STATUS) == IDLE
        rig.start(0x20, 5 | 2 << 8, 1, device=0xA0 | 3)
        assert rig.take() == fill((2 * heads + 3) * track + 4)
    for sector, head in ((0, 0), (33, 0), (1, 4)):
        rig.start(0x20, sector, 1, device=0xA0 | head)
        assert (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, IDNF)


def test_interrupt_is_taken_back(rig: Rig) -> None:
    """By the status register and by a command, not by the alternate status; each interrupt is an edge."""
    rig.start(0xE1)
    assert rig.inb(CONTROL) == IDLE and rig.levels == [True]
    rig.outb(STATUS, 0xE1)
    assert rig.levels == [True, False, True]
    assert rig.inb(STATUS) == IDLE and rig.levels == [True, False, True, False]


def test_nien(rig: Rig) -> None:
    """nIEN cuts the line off; the request behind it comes through when nIEN is cleared."""
    rig.outb(CONTROL, 2)
    rig.start(0xE1)
    assert rig.levels == []
    rig.outb(CONTROL, 0)
    assert rig.levels == [True]
    rig.outb(CONTROL, 2)
    assert rig.levels == [True, False]
    rig.inb(STATUS)
    rig.outb(CONTROL, 0)
    assert rig.levels == [True, False]


@pytest.mark.parametrize("command", [0x00, 0x08, 0xA1, 0xC8, 0xF9, 0xFF])
def test_refused(rig: Rig, command: int) -> None:
    """NOP, packet devices' commands, DMA and the unknown end with ABRT and an interrupt; the next command works."""
    rig.start(command)
    assert rig.rises() == 1 and (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, ABRT)
    rig.start(0xEC)
    assert rig.inb(STATUS) == READY and rig.inb(ERROR) == 0


@pytest.mark.parametrize("command", [0x20, 0x30, 0x40, 0x70, 0xC4])
def test_beyond_the_end(rig: Rig, command: int) -> None:
    """The first sector that is not there is IDNF, and no data are asked for or offered."""
    rig.start(command, SECTORS)
    assert rig.rises() == 1 and (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, IDNF)
    rig.give(b"\xff" * SECTOR)
    assert rig.take() == bytes(SECTOR)


def test_across_the_end(rig: Rig) -> None:
    """Sectors before the end are transferred; then the error names the first that is not there."""
    rig.start(0x20, SECTORS - 1, 2)
    assert rig.take() == fill(SECTORS - 1)
    assert (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, IDNF)
    assert rig.inb(LOW) | rig.inb(MID) << 8 | rig.inb(HIGH) << 16 == SECTORS
    rig.start(0x34, SECTORS - 1, 2, ext=True)
    rig.give(b"\x77" * SECTOR)
    assert rig.rises() == 2 and (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, IDNF)


def test_48_bits(rig: Rig) -> None:
    """All 48 bits count, and HOB shows the upper half until a register is written."""
    rig.start(0x24, 1 << 40 | 5, 1, ext=True)
    assert (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, IDNF)
    rig.outb(CONTROL, 0x80)
    assert (rig.inb(LOW), rig.inb(HIGH)) == (0, 1)
    rig.outb(DEVICE, MASTER)
    assert (rig.inb(LOW), rig.inb(HIGH)) == (5, 0)


def test_native_max(rig: Rig) -> None:
    """READ NATIVE MAX ADDRESS, with 28 and 48 bits: the last sector."""
    for command in (0xF8, 0x27):
        rig.start(command)
        assert rig.inb(STATUS) == IDLE
        assert rig.inb(LOW) | rig.inb(MID) << 8 | rig.inb(HIGH) << 16 == SECTORS - 1


def test_multiple_mode(rig: Rig) -> None:
    """Powers of two up to 16; 0 turns it off, and READ MULTIPLE is refused then."""
    for count, status in ((16, IDLE), (3, FAILED), (32, FAILED), (4, IDLE)):
        rig.start(0xC6, 0, count)
        assert rig.inb(STATUS) == status
    rig.start(0xC4, 0, 6)
    assert rig.rises() == 5 and rig.inb(STATUS) == READY
    assert rig.take(4 * SECTOR)[-SECTOR:] == fill(3) and rig.rises() == 6
    rig.start(0xC6, 0, 0)
    rig.start(0xC4, 0, 1)
    assert (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, ABRT)


@pytest.mark.parametrize("command", [0x10, 0x1F, 0x40, 0x41, 0x70, 0xE0, 0xE1, 0xE2, 0xE3, 0xE5, 0xE7, 0xEA])
def test_without_data(rig: Rig, command: int) -> None:
    """Commands that only say that they are done."""
    rig.start(command)
    assert rig.rises() == 1 and rig.inb(STATUS) == IDLE and rig.inb(ERROR) == 0


def test_verify_ext(rig: Rig) -> None:
    """READ VERIFY SECTORS EXT reads all it is told to, and finds the end."""
    rig.start(0x42, 0, SECTORS, ext=True)
    assert rig.inb(STATUS) == IDLE
    rig.start(0x42, 1, SECTORS, ext=True)
    assert (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, IDNF)
    assert rig.inb(LOW) | rig.inb(MID) << 8 == SECTORS


def test_features(rig: Rig) -> None:
    """Write cache on and off shows in IDENTIFY; PIO modes are taken, DMA modes and the unknown are not."""
    for feature, count, status in ((0x82, 0, IDLE), (0x03, 0x0C, IDLE), (0x03, 0x45, FAILED), (0x99, 0, FAILED)):
        rig.outb(ERROR, feature)
        rig.start(0xEF, 0, count)
        assert rig.inb(STATUS) == status
    rig.start(0xEC)
    assert not words(rig.take())[85] & 0x20


class Failing(Disk):
    """A disk whose host has gone bad."""

    def read(self, lba: int, count: int) -> bytes:
        raise DiskError("bad")

    def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        raise DiskError("full")

    def flush(self) -> None:
        raise DiskError("bad")


def test_errors_of_the_host(disk: Disk) -> None:
    """A read that fails is UNC, a write or flush that fails is ABRT; IDENTIFY still works."""
    disk.close()
    failing = Failing(disk.path)
    rig = Rig(failing)
    for command, error in ((0x20, UNC), (0x40, UNC), (0xE7, ABRT)):
        rig.start(command)
        assert (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, error)
    rig.start(0x30, 0, 2)
    rig.give(bytes(SECTOR))
    assert (rig.inb(STATUS), rig.inb(ERROR)) == (FAILED, ABRT)
    rig.start(0xEC)
    assert rig.inb(STATUS) == READY
    failing.close()


def test_soft_reset(rig: Rig) -> None:
    """SRST: busy while it is set, no interrupt, no command; then the signature, and data in flight are gone."""
    rig.start(0x20, 5, 2)
    rig.outb(CONTROL, 4)
    assert rig.inb(STATUS) == 0x80 and rig.levels == [True, False]
    rig.outb(STATUS, 0xEC)
    assert rig.inb(CONTROL) == 0x80
    rig.outb(CONTROL, 0)
    assert [rig.inb(port) for port in (ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS)] == [1, 1, 1, 0, 0, 0xA0, IDLE]
    assert rig.take() == bytes(SECTOR) and rig.levels == [True, False]


def test_diagnostic(rig: Rig) -> None:
    """EXECUTE DEVICE DIAGNOSTIC selects the master, leaves the signature and interrupts, whoever was selected."""
    rig.outb(DEVICE, SLAVE)
    rig.outb(STATUS, 0x90)
    assert rig.levels == [True]
    assert [rig.inb(port) for port in (ERROR, COUNT, LOW, MID, HIGH, STATUS)] == [1, 1, 1, 0, 0, IDLE]


@pytest.mark.parametrize("present", [0, 1])
def test_an_empty_slot(disk: Disk, present: int) -> None:
    """Its status is 0 and commands to it do nothing, interrupts included; the other drive works on."""
    rig = Rig(disk, None) if present == 0 else Rig(None, disk)
    there, absent = (MASTER, SLAVE) if present == 0 else (SLAVE, MASTER)
    rig.start(0x20, 7, device=absent)
    assert rig.inb(STATUS) == rig.inb(CONTROL) == 0 and rig.take() == bytes(SECTOR) and rig.levels == []
    rig.start(0x20, 7, device=there)
    assert rig.inb(STATUS) == READY and rig.take() == fill(7)


def test_no_drive_at_all() -> None:
    """An empty channel reads 0 and swallows everything."""
    rig = Rig(None)
    rig.start(0x90)
    rig.outb(CONTROL, 4)
    rig.outb(CONTROL, 0)
    assert rig.inb(STATUS) == rig.inb(CONTROL) == 0 and rig.levels == []


def test_intrq_is_the_selected_drives(disk: Disk, tmp_path: Path) -> None:
    """A drive that is not selected keeps its request to itself until it is."""
    path = tmp_path / "other.img"
    path.write_bytes(bytes(SECTOR))
    other = Disk(str(path))
    rig = Rig(disk, other)
    rig.start(0xE1)
    rig.outb(DEVICE, SLAVE)
    assert rig.levels == [True, False]
    rig.outb(DEVICE, MASTER)
    assert rig.levels == [True, False, True]
    other.close()


def test_a_command_ends_a_transfer(rig: Rig) -> None:
    """A driver that gives up half way starts afresh; what it wrote of an unfinished block is nowhere."""
    rig.start(0x30, 9, 2)
    rig.give(b"\xff" * 100)
    rig.start(0x20, 9)
    assert rig.take() == fill(9)


def test_wide_accesses_to_narrow_registers(rig: Rig) -> None:
    """A word at the sector count is two registers; reads in the wrong direction or past a block give 0."""
    rig.bus.port(COUNT, 2, 0x3412)
    assert (rig.inb(COUNT), rig.inb(LOW)) == (0x12, 0x34) and rig.bus.port(COUNT, 2, None) == 0x3412
    assert rig.channel.commands.access(7, 4, None) == 0xFFFFFF00 | IDLE
    rig.start(0x30, 9)
    assert rig.take(4) == bytes(4)
    rig.give(fill(77))
    rig.start(0x20, 9)
    assert rig.take() == fill(77)


PORTS = st.sampled_from([*range(0x1F0, 0x1F8), 0x3F6])


@given(st.lists(st.tuples(PORTS, st.sampled_from([1, 2, 4]), st.none() | st.integers(0, 0xFFFFFFFF)), max_size=40))
@settings(max_examples=150, deadline=None)
def test_nothing_raises(accesses: list[tuple[int, int, int | None]]) -> None:
    """Whatever a guest does at whatever width, it gets a value of that width, and the line only ever toggles."""
    rig = Rig(NOTHING, None)
    for port, size, value in accesses:
        assert 0 <= rig.bus.port(port, size, None if value is None else value & (1 << 8 * size) - 1) < 1 << 8 * size
    assert rig.levels == [i % 2 == 0 for i in range(len(rig.levels))]


class Nothing(Disk):
    """A disk without a file: zeros, and writes go nowhere."""

    def __init__(self) -> None:
        self.sectors = 64

    def read(self, lba: int, count: int) -> bytes:
        return bytes(count * SECTOR)

    def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        assert 0 <= lba and lba + len(data) // SECTOR <= self.sectors

    def flush(self) -> None:
        pass


NOTHING = Nothing()
