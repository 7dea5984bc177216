"""Debian's SeaBIOS, unmodified, in guest mode: it boots a boot sector of ours, and GRUB to its prompt.

Knows disk images, and what a person would type and see at the serial console that SeaBIOS has beside the screen.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from tests.assembly import assemble
from tests.guests.dialogue import Dialogue, Step
from tests.require import require, require_file
from tools.cli import status
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from vmm.backends.hw import HwOptions
from vmm.boot.bios import read_bios
from vmm.devices.disk import Disk
from vmm.exits import End, Stop
from vmm.vm import Vm, machine_for

MEMORY_MIB = 64
TIMEOUT, LINUX_TIMEOUT = 120.0, 380.0
SEABIOS, GRUB = Path("/usr/share/seabios"), Path("/usr/lib/grub/i386-pc")
SECTOR, FILES = 512, 4096
MOVES = re.compile(r"\x1b(?:c|\[[0-9;?]*[a-zA-Z])|\r")


class Screen(Dialogue):
    """A dialogue over text alone: SeaBIOS moves the terminal's cursor at each tick of its clock, in the middle of words."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__(steps)
        self.begun = b""

    def write(self, data: bytes) -> None:
        text = MOVES.sub("", (self.begun + data).decode("latin-1"))
        text, escape, rest = text.partition("\x1b")  # one that has not all come yet
        self.begun = (escape + rest).encode("latin-1")
        if text:
            super().write(text.encode("latin-1"))


def boot(image: str, disk: Path, steps: tuple[Step, ...], memory_mib: int = MEMORY_MIB, timeout: float = TIMEOUT) -> tuple[Vm, Screen, Stop]:
    """Starts the machine with a disk, and holds a dialogue at its serial console."""
    bios = read_bios(str(require_file(SEABIOS / image, "SeaBIOS (Debian's package seabios)")))
    options, console, drive = HwOptions(mmu="nested"), Screen(steps), Disk(str(disk))
    vm = Vm(machine_for(memory_mib, options), memory_mib=memory_mib, options=options, disks=[drive], console=console, bios=bios)
    console.attach(vm)
    vm.reset()
    try:
        stop = vm.run(timeout)
    finally:
        drive.close()
    return vm, console, stop


def boot_disk(path: Path) -> Path:
    """A disk whose boot sector says hello by INT 10h, has the BIOS read the third sector and says that, then reports 0."""
    # The CPU, its data at 7C00h; DL is the drive that was booted from.
    say = "say: lodsb; test al, al; jz said; mov ah, 0x0e; mov bx, 7; int 0x10; jmp say; said: ret"
    code = assemble(
        f"""
        xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov sp, 0x7c00; sti
        mov si, 0x7d80; call say
        mov ah, 0x42; mov si, 0x7da0; int 0x13; jc failed
        mov si, 0x8000; call say
        int 0x12; mov si, 0x7db0; cmp ax, 600; ja enough; failed: mov si, 0x7dc0; enough: call say
        mov al, 0; out 0xf4, al; hang: hlt; jmp hang
        {say}
        """,
        0x7C00,
        wide=False,
    )
    sector = bytearray(code.ljust(SECTOR, b"\0"))
    assert len(code) < 0x180
    address_packet = bytes((16, 0, 1, 0, 0, 0x80, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0))  # one sector, to 0:8000h, from the third on
    for at, data in ((0x180, b"booted by INT 10h\r\n\0"), (0x1A0, address_packet), (0x1B0, b"enough\r\n.\r\n.\0"), (0x1C0, b"bad\0")):
        sector[at : at + len(data)] = data
    sector[510:] = b"\x55\xaa"
    path.write_bytes(bytes(sector) + bytes(SECTOR) + b"read by INT 13h\r\n\0".ljust(SECTOR, b"\0") + bytes(1000 * SECTOR))
    return path


BOOTED = ("booted by INT 10h", "read by INT 13h", "enough")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("image", ("bios.bin", "bios-256k.bin"))
def test_boot_sector(image: str, tmp_path: Path) -> None:
    """SeaBIOS finds the disk on the IDE channel and boots it; what it prints is on the screen and, but for the very last, on the serial line."""
    vm, console, stop = boot(image, boot_disk(tmp_path / "disk"), (Step("never said"),))
    text = console.text
    assert "SeaBIOS (version" in text, text
    assert [line for line in text.splitlines() if line.strip() in BOOTED] == list(BOOTED), text
    assert [line for line in vm.board.vga.text() if line in BOOTED] == list(BOOTED)
    assert (stop.why, stop.value) == (End.REPORTED, 0)


@pytest.mark.timeout(120)
def test_its_debug_console(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`-d bios` shows what SeaBIOS says of its work, line by line."""
    image = require_file(SEABIOS / "bios-256k.bin", "SeaBIOS (Debian's package seabios)")
    assert status(["run", "--bios", str(image), "--disk", str(boot_disk(tmp_path / "disk")), "-d", "bios", "--timeout", "60"]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("bios: ")]
    assert re.match(r"bios: SeaBIOS \(version .*\)$", said[0])
    assert "bios: Booting from 0000:7c00" in said


@pytest.mark.timeout(120)
def test_the_same_on_qemu(tmp_path: Path) -> None:
    """The boot sector is one."""
    command = [require("qemu-system-i386"), "-nographic", "-net", "none", "-drive", f"format=raw,file={boot_disk(tmp_path / 'disk')}"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=100, check=False)
    text = MOVES.sub("", done.stdout.decode("latin-1"))
    assert [line for line in text.splitlines() if line.strip() in BOOTED] == list(BOOTED), text


def grub_disk(folder: Path, terminal: str, then: str = "", files: bytes = b"") -> Path:
    """A disk with GRUB in its first sectors and one partition. terminal: where its prompt is to be. then: more commands; files: from FILES on."""
    configuration = folder / "early.cfg"
    configuration.write_text(f"serial\nterminal_input {terminal}\nterminal_output {terminal}\n{then}")
    core, disk = folder / "core.img", folder / "disk"
    modules = ("biosdisk", "part_msdos", "normal", "ls", "echo", "serial", "terminal", "reboot", "linux")
    require_file(GRUB / "boot.img", "GRUB for PCs (Debian's package grub-pc-bin)")
    subprocess.run([require("grub-mkimage"), "-O", "i386-pc", "-o", str(core), "-c", str(configuration), "-p", "/", *modules], check=True, timeout=60)
    sector = bytearray((GRUB / "boot.img").read_bytes()[:SECTOR])
    partition = bytes((0, 0, 2, 0, 0x83, 0, 0, 0)) + (2048).to_bytes(4, "little") + (2048).to_bytes(4, "little")
    sector[446:510] = partition.ljust(64, b"\0")  # boot.img has code for floppies there
    sector[510:] = b"\x55\xaa"
    image = bytearray(FILES * SECTOR)
    image[:SECTOR] = sector
    gap = core.read_bytes()
    assert len(gap) < 2047 * SECTOR
    image[SECTOR : SECTOR + len(gap)] = gap
    disk.write_bytes(image + files)
    return disk


@pytest.mark.timeout(180)
@pytest.mark.parametrize("terminal", ("console", "serial"))
def test_grub(terminal: str, tmp_path: Path) -> None:
    """Its prompt comes, by the BIOS's keyboard and screen or by the serial line alone; it lists the disk, and its reboot ends the run."""
    steps = (
        Step("grub> ", "ls\r"),
        Step("(hd0,msdos1)"),
        Step("grub> ", "echo on-$root\r"),  # the BIOS's keyboard buffer has room for 15 keys
        Step("on-hd0"),
        Step("grub> ", "reboot\r"),
        Step("never said"),
    )
    _, console, stop = boot("bios-256k.bin", grub_disk(tmp_path, terminal), steps)
    assert stop.why is End.RESET, f"{stop.reason}:\n{console.text}"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_linux_with_its_tables(tmp_path: Path) -> None:
    """GRUB loads Linux, which goes from real mode through its own decompressor, finds SeaBIOS's ACPI tables, works by them and powers off."""
    files, places = b"", []
    busybox = require_file(guest("busybox"), "BusyBox (python -m tools.fetch_guests)")
    kernel = require_file(guest("linux-pae"), "Linux (python -m tools.fetch_guests)")
    for data in (kernel.read_bytes(), make_initrd(busybox.read_bytes())):
        sectors = -(-len(data) // SECTOR)
        places.append(f"(hd0){FILES + len(files) // SECTOR}+{sectors}")
        files += data.ljust(sectors * SECTOR, b"\0")
    then = f"linux {places[0]} console=ttyS0\ninitrd {places[1]}\nboot\n"
    steps = (
        Step("ACPI: PM-Timer IO Port: 0xb008"),
        Step("ACPI: Interpreter enabled"),
        Step("ACPI: Using IOAPIC for interrupt routing"),
        Step(READY),
        Step("# ", "md5sum /bin/busybox\n"),
        Step(hashlib.md5(busybox.read_bytes()).hexdigest()),
        Step("# ", "poweroff -f\n"),
        Step("never said"),
    )
    _, console, stop = boot("bios-256k.bin", grub_disk(tmp_path, "serial", then, files), steps, 128, LINUX_TIMEOUT)
    assert stop.why is End.SHUTDOWN, f"{stop.reason}:\n{console.text[-3000:]}"
    assert not re.search(r"BUG:|Call Trace|ACPI Error|ACPI BIOS Error", console.text)
