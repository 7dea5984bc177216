"""The state of a board's devices: the table forgets nothing, and a state goes through another board unchanged."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.devices.memory import GuestRam
from vmm.board import Board, build_board
from vmm.clock import Clock
from vmm.devices.disk import Disk
from vmm.errors import InputError
from vmm.snapshot.device_fields import FIELDS
from vmm.snapshot.devices import devices, restore, save


class Bench:
    """A board with a disk on each channel, and its time."""

    def __init__(self, folder: Path) -> None:
        self.time = 0
        self.clock = Clock(lambda: self.time)
        self.out = bytearray()
        self.disks = [disk_image(folder / name) for name in ("a", "b", "c")]
        self.board: Board = build_board(
            GuestRam(1 << 20), self.clock, console=self.out.extend, disks=self.disks, stop=lambda stop: None, interrupts_changed=lambda: None, date=0,
            firmware={"etc/one": b"1"},
        )  # fmt: skip
        self.port = self.board.bus.port


def disk_image(path: Path) -> Disk:
    path.write_bytes(bytes(64 * 512) if not path.exists() else path.read_bytes())
    return Disk(str(path), read_only=True)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for disk in bench.disks:
        disk.close()


def attributes(device: object) -> set[str]:
    """The names of all attributes that a device has."""
    slots = {name for kind in type(device).__mro__ for name in getattr(kind, "__slots__", ())}
    return slots | vars(device).keys() if hasattr(device, "__dict__") else slots


def test_no_attribute_of_any_device_is_forgotten(bench: Bench) -> None:
    """Each attribute of each device on the board stands in the table once: as state, as a part, as an alarm or as a wire."""
    for name, device in devices(bench.board):
        fields = FIELDS[type(device)]
        listed = [*fields.values, *fields.parts, *fields.alarms, *fields.wires]
        assert sorted(listed) == sorted(attributes(device)), name


def test_every_device_is_met(bench: Bench) -> None:
    """What the board itself names is among those that are found by the bus and by their parts."""
    found = [device for _, device in devices(bench.board)]
    board = bench.board
    for one in (board.pit, board.rtc, board.keyboard, board.serial, board.vga, *board.ide, board.post_code, board.debug_exit, board.a20):
        assert any(device is one for device in found), one


def test_a_state_goes_through_another_board(bench: Bench, tmp_path: Path) -> None:
    """Ports are written at random; the state survives JSON and another board, which behaves alike from then on."""
    chance = random.Random(1)
    ranges = ((0x20, 2), (0x40, 4), (0x60, 2), (0x64, 1), (0x70, 2), (0x80, 1), (0xA0, 2), (0x1F0, 8), (0x3C0, 32), (0x3F8, 8))
    ports = [first + n for first, count in ranges for n in range(count)]
    for _ in range(3000):
        bench.time += chance.randrange(100_000)
        bench.clock.run_due()
        bench.port(chance.choice(ports), 1, chance.choice((None, chance.randrange(256))))
        if not chance.randrange(100):
            bench.board.serial.receive(b"typed")
            bench.board.keyboard.press("Typed")
    state = json.loads(json.dumps(save(bench.board)))
    other = Bench(tmp_path)
    other.clock.go_on_from(bench.time)
    restore(other.board, other.clock, state)
    assert save(other.board).keys() == state.keys()
    first = other.time
    for _ in range(2000):
        step, port, value = chance.randrange(100_000), chance.choice(ports), chance.choice((None, chance.randrange(256)))
        answers = []
        for one in (bench, other):
            one.time += step
            one.clock.run_due()
            answers.append((one.port(port, 1, value), one.board.interrupts.asserted, one.clock.next_deadline()))
        assert answers[0] == answers[1], (hex(port), value, other.time - first)
    for disk in other.disks:
        disk.close()


@pytest.mark.parametrize(
    "device, attribute, value",
    [("Pit 1", "alarm", [1]), ("Serial 1", "ier", "x"), ("Rtc 1", "ram", "00"), ("Serial 1", "ier", None), ("Pic 1", "poll", 1)],
)
def test_a_wrong_value_is_refused(bench: Bench, tmp_path: Path, device: str, attribute: str, value: object) -> None:
    """By the names of device and attribute."""
    state = save(bench.board)
    state[device][attribute] = value  # type: ignore[assignment]
    with pytest.raises(InputError, match=device):
        restore(bench.board, bench.clock, state)


def test_another_board_s_state_is_refused(bench: Bench) -> None:
    """A device too few, or an attribute."""
    state = save(bench.board)
    del state["Vga 1"]
    with pytest.raises(InputError, match="Vga 1"):
        restore(bench.board, bench.clock, state)
    state = save(bench.board)
    del state["Vga 1"]["misc"]
    with pytest.raises(InputError, match="Vga 1"):
        restore(bench.board, bench.clock, state)
