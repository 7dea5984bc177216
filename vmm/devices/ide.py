"""An IDE channel: up to two ATA drives by programmed I/O, behind one set of registers and one interrupt line.

Knows registers, commands, addresses, data blocks, resets and errors. Must not know ports, nor which line of which controller INTRQ
is, nor what a disk image is made of. Source: ATA/ATAPI-6 (T13/1410D). Empty slots read 0, and an empty channel too: so do QEMU's.
From top to bottom: what a drive says of itself, the drive, the channel.
"""

from collections.abc import Callable
from typing import NamedTuple

from vmm.bus import Access
from vmm.devices.disk import SECTOR, DiskError, Storage

MODEL = "VMM VIRTUAL DISK"
FIRMWARE = "1.0"
MOST_MULTIPLE = 16
"""Sectors in a block of READ MULTIPLE and WRITE MULTIPLE at most."""
HEADS, TRACK = 16, 63
"""The geometry before INITIALIZE DEVICE PARAMETERS: heads, and sectors on a track."""
CHS_SECTORS = 16383 * HEADS * TRACK
"""All that cylinder, head and sector can address."""
LBA28_SECTORS = (1 << 28) - 1

HAS_LBA, HAS_IORDY = 0x200, 0x800
HAS_POWER, HAS_WRITE_CACHE, HAS_LOOK_AHEAD = 0x08, 0x20, 0x40
HAS_LBA48, HAS_FLUSH, HAS_FLUSH_EXT = 0x0400, 0x1000, 0x2000
VALID = 0x4000
"""Bit 14 set and bit 15 clear: the word says something."""


def cylinders(sectors: int, heads: int, track: int) -> int:
    """How many whole cylinders a drive of `sectors` has in this geometry, at least one."""
    return min(max(1, min(sectors, CHS_SECTORS) // (heads * track)), 0xFFFF)


def identity(sectors: int, *, slot: int, heads: int, track: int, multiple: int, write_cache: bool) -> bytes:
    """The 512 bytes of IDENTIFY DEVICE (ATA/ATAPI-6 8.15) for drive `slot` (0 master, 1 slave).

    `heads` and `track` are the geometry in force; `multiple` is the sectors in a block, 0 for off.
    """
    now = cylinders(sectors, heads, track)
    reachable = min(now * heads * track, sectors)
    small = min(sectors, LBA28_SECTORS)
    words = {
        0: 0x0040,  # a fixed ATA device
        1: cylinders(sectors, HEADS, TRACK),
        3: HEADS,
        6: TRACK,
        47: 0x8000 | MOST_MULTIPLE,
        48: 1,  # the data register takes 32 bits at a time
        49: HAS_IORDY | HAS_LBA,
        50: VALID,
        53: 3,  # words 54 to 58 and 64 to 70 are valid
        54: now,
        55: heads,
        56: track,
        **_spread(57, reachable, 2),
        59: 0x100 | multiple if multiple else 0,
        **_spread(60, small, 2),
        64: 3,  # PIO modes 3 and 4
        67: 120,  # nanoseconds a word, without flow control and with it
        68: 120,
        80: 0x0070,  # ATA/ATAPI-4, 5 and 6
        82: HAS_POWER | HAS_WRITE_CACHE | HAS_LOOK_AHEAD,
        83: VALID | HAS_LBA48 | HAS_FLUSH | HAS_FLUSH_EXT,
        84: VALID,
        85: HAS_POWER | HAS_LOOK_AHEAD | (HAS_WRITE_CACHE if write_cache else 0),
        86: HAS_LBA48 | HAS_FLUSH | HAS_FLUSH_EXT,
        87: VALID,
        93: VALID | 0x2000 | (0x100 if slot else 1),
        **_spread(100, sectors, 4),
    }
    page = bytearray(b"".join(words.get(i, 0).to_bytes(2, "little") for i in range(256)))
    for word, count, text in ((10, 10, f"VMM{slot}"), (23, 4, FIRMWARE), (27, 20, MODEL)):
        page[2 * word : 2 * (word + count)] = _text(text, 2 * count)
    page[510] = 0xA5  # what follows is a checksum: all bytes add up to zero
    page[511] = -sum(page) & 0xFF
    return bytes(page)


def _spread(first: int, value: int, count: int) -> dict[int, int]:
    return {first + i: value >> 16 * i & 0xFFFF for i in range(count)}


def _text(text: str, size: int) -> bytes:
    """ASCII padded with blanks; the first of two characters is in the high byte of its word."""
    padded = text.encode("ascii").ljust(size)
    swapped = bytearray(size)
    swapped[0::2], swapped[1::2] = padded[1::2], padded[0::2]
    return bytes(swapped)


BSY, DRDY, DSC, DRQ, ERR = 0x80, 0x40, 0x10, 0x08, 0x01
READY = DRDY | DSC
UNC, IDNF, ABRT = 0x40, 0x10, 0x04
"""Error register: data that cannot be read, an address that is not there, a command refused."""
PASSED = 0x01
"""Error register after a reset or a diagnostic."""
FEATURES, COUNT, LOW, MID, HIGH, DEVICE = 1, 2, 3, 4, 5, 6
LBA = 0x40
VERIFIED_AT_ONCE = 256
MASK = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}

EXT, MULTIPLE = 1, 2
"""How a command runs: with a 48-bit address and a 16-bit count; in blocks of several sectors."""


class Drive:
    """One drive. `changed` is called whenever `intrq` has changed. A command takes no time: BSY shows only while a reset is held."""

    def __init__(self, disk: Storage, slot: int, changed: Callable[[], None]) -> None:
        """`slot` is 0 for a master and 1 for a slave. Starts as after a reset."""
        self._disk = disk
        self._changed = changed
        self.slot = slot
        self.registers = [0] * 7
        """What was written last, by offset; the drive's answers stand there too."""
        self.previous = [0] * 7
        """What was written before that: the high half of 48-bit addresses and 16-bit counts."""
        self.status = READY
        self.error = PASSED
        self.intrq = False
        self.heads, self.track = HEADS, TRACK
        # On from the start: QEMU's drives are so, and kernels that were only run there never send SET MULTIPLE MODE.
        self.multiple = MOST_MULTIPLE
        self.write_cache = True
        self.extended = False
        """Does the command at work take 48-bit addresses?"""
        self.lba = self.remaining = self.block = 0
        """Of the transfer at work: the first sector of the next block, sectors from there on, sectors in a block."""
        self.read_block = b""
        self.write_block = bytearray(MOST_MULTIPLE * SECTOR)
        self.at = 0
        self.read_end = self.write_end = 0
        """Where the block ends that is on its way through the data register; at most one is not 0."""
        self.sign()

    def data(self, size: int, value: int | None) -> int:
        """The data register, `size` bytes at once. Hot: kernels move every word of a disk through it."""
        at = self.at
        end = at + size
        if value is None:
            if end > self.read_end:
                return 0
            self.at = end
            word = int.from_bytes(self.read_block[at:end], "little")
            if end == self.read_end:
                self._block_read()
            return word
        if end <= self.write_end:
            self.at = end
            self.write_block[at:end] = (value & MASK[size]).to_bytes(size, "little")
            if end == self.write_end:
                self._block_written()
        return 0

    def read(self, offset: int, high: bool) -> int:
        """Register `offset` 1 to 6; `high` shows the earlier bytes of count and address."""
        if offset == FEATURES:
            return self.error
        if offset == DEVICE:
            return self.registers[DEVICE] | 0xA0
        return (self.previous if high else self.registers)[offset]

    def write(self, offset: int, value: int) -> None:
        """Register `offset` 1 to 6. Each drive of a channel gets every write, selected or not."""
        self.previous[offset] = self.registers[offset]
        self.registers[offset] = value

    def command(self, opcode: int) -> None:
        """A command for this drive. One that comes in the middle of another's data ends that."""
        if self.status & BSY:
            return
        self._stop()
        self.take_back()
        self.error = 0
        run, how = COMMANDS.get(opcode, (Drive._abort, 0))
        self.extended = bool(how & EXT)
        run(self, how)

    def take_back(self) -> None:
        """The status was read or a command written: no interrupt any more. The next one is an edge of its own."""
        if self.intrq:
            self.intrq = False
            self._changed()

    def hold_reset(self) -> None:
        """SRST is set: the drive is busy until it is cleared."""
        self._stop()
        self.take_back()
        self.status = BSY

    def diagnose(self) -> None:
        """The end of a reset or of EXECUTE DEVICE DIAGNOSTIC: the signature of an ATA drive, and no errors. Settings stay."""
        self._stop()
        self.take_back()
        self.status = READY
        self.error = PASSED
        self.sign()

    def sign(self) -> None:
        """ATA/ATAPI-6 9.12 "Signature and persistence": what tells this drive from a packet device."""
        self.registers = [0, 0, 1, 1, 0, 0, 0]
        self.previous = [0] * 7

    def _stop(self) -> None:
        self.remaining = self.at = self.read_end = self.write_end = 0

    def finish(self, _how: int = 0) -> None:
        """A command has ended without an error."""
        self.status = READY
        self._interrupt()

    def _abort(self, _how: int = 0) -> None:
        self._fail(ABRT)

    def _fail(self, error: int, lba: int | None = None) -> None:
        """The command ends with `error`, at sector `lba` if that means something."""
        self._stop()
        self.status = READY | ERR
        self.error = error
        if lba is not None:
            self._show_address(lba)
        self._interrupt()

    def _interrupt(self) -> None:
        self.intrq = True
        self._changed()

    # Addresses

    def _address(self) -> int:
        """The sector that the registers name; one past the end for a cylinder, head or sector that the geometry does not have."""
        low, mid, high, device = self.registers[LOW:]
        if self.extended:
            before = self.previous
            return before[HIGH] << 40 | before[MID] << 32 | before[LOW] << 24 | high << 16 | mid << 8 | low
        if device & LBA:
            return (device & 0xF) << 24 | high << 16 | mid << 8 | low
        if not 1 <= low <= self.track or device & 0xF >= self.heads:
            return self._disk.sectors
        return ((high << 8 | mid) * self.heads + (device & 0xF)) * self.track + low - 1

    def _show_address(self, lba: int) -> None:
        head = lba >> 24 & 0xF
        if self.extended:
            self.previous[LOW : HIGH + 1] = [lba >> 24 & 0xFF, lba >> 32 & 0xFF, lba >> 40 & 0xFF]
        elif not self.registers[DEVICE] & LBA:
            rest, sector = divmod(lba, self.track)
            cylinder, head = divmod(rest, self.heads)
            lba = (cylinder & 0xFFFF) << 8 | sector + 1
        self.registers[LOW : HIGH + 1] = [lba & 0xFF, lba >> 8 & 0xFF, lba >> 16 & 0xFF]
        if not self.extended:
            self.registers[DEVICE] = self.registers[DEVICE] & 0xF0 | head

    def _sectors(self) -> int:
        """The sector count, where 0 stands for the largest and one more."""
        if self.extended:
            return self.previous[COUNT] << 8 | self.registers[COUNT] or 0x10000
        return self.registers[COUNT] or 0x100

    # Commands with data

    def _transfer(self, how: int) -> bool:
        """Take address, count and block size from the registers; False for multiple mode when that is off."""
        if how & MULTIPLE and not self.multiple:
            self._abort()
            return False
        self.lba, self.remaining = self._address(), self._sectors()
        self.block = self.multiple if how & MULTIPLE else 1
        return True

    def _read_sectors(self, how: int) -> None:
        if self._transfer(how):
            self._next_read()

    def _next_read(self) -> None:
        """INTRQ, then a block: the interrupt comes when it is ready."""
        count = min(self.block, self.remaining)
        if self.lba + count > self._disk.sectors:
            return self._fail(IDNF, self.lba)
        try:
            data = self._disk.read(self.lba, count)
        except DiskError:
            return self._fail(UNC, self.lba)
        self.lba += count
        self.remaining -= count
        self._offer(data)

    def _offer(self, data: bytes) -> None:
        self.read_block = data
        self.at, self.read_end = 0, len(data)
        self.status = READY | DRQ
        self._interrupt()

    def _block_read(self) -> None:
        self.at = self.read_end = 0
        if self.remaining:
            self._next_read()
        else:
            self.status = READY  # no interrupt: the last one said that these data were ready

    def _write_sectors(self, how: int) -> None:
        if self._transfer(how):
            self._next_write()

    def _next_write(self) -> bool:
        """Ask for a block, without an interrupt. False if there is no place for it: the command has failed."""
        count = min(self.block, self.remaining)
        if self.lba + count > self._disk.sectors:
            self._fail(IDNF, self.lba)
            return False
        self.at, self.write_end = 0, count * SECTOR
        self.status = READY | DRQ
        return True

    def _block_written(self) -> None:
        count = self.write_end // SECTOR
        try:
            self._disk.write(self.lba, bytes(self.write_block[: self.write_end]))
            if not self.write_cache:
                self._disk.flush()
        except DiskError:
            return self._fail(ABRT, self.lba)
        self.at = self.write_end = 0
        self.lba += count
        self.remaining -= count
        if not self.remaining:
            self.finish()
        elif self._next_write():
            self._interrupt()

    def _identify(self, _how: int) -> None:
        sectors, slot = self._disk.sectors, self.slot
        page = identity(sectors, slot=slot, heads=self.heads, track=self.track, multiple=self.multiple, write_cache=self.write_cache)
        self._offer(page)

    # Commands without data

    def _identify_packet(self, _how: int) -> None:
        """Not a packet device: it says so with its signature."""
        self.sign()
        self._abort()

    def _verify(self, _how: int) -> None:
        lba, end = self._address(), self._address() + self._sectors()
        while lba < end:
            count = min(VERIFIED_AT_ONCE, end - lba)
            if lba + count > self._disk.sectors:
                return self._fail(IDNF, max(lba, self._disk.sectors))
            try:
                self._disk.read(lba, count)
            except DiskError:
                return self._fail(UNC, lba)
            lba += count
        self.finish()

    def _seek(self, _how: int) -> None:
        lba = self._address()
        if lba >= self._disk.sectors:
            return self._fail(IDNF, lba)
        self.finish()

    def _flush(self, _how: int) -> None:
        try:
            self._disk.flush()
        except DiskError:
            return self._abort()
        self.finish()

    def _set_multiple(self, _how: int) -> None:
        count = self.registers[COUNT]
        if count > MOST_MULTIPLE or count & count - 1:
            return self._abort()
        self.multiple = count
        self.finish()

    def _set_geometry(self, _how: int) -> None:
        if not self.registers[COUNT]:
            return self._abort()
        self.heads, self.track = (self.registers[DEVICE] & 0xF) + 1, self.registers[COUNT]
        self.finish()

    def _set_features(self, _how: int) -> None:
        match self.registers[FEATURES]:
            case 0x02:
                self.write_cache = True
            case 0x82:
                self.write_cache = False
                return self._flush(0)
            case 0x03 if self.registers[COUNT] >> 3 > 1:
                return self._abort()  # a DMA mode
            case 0x03 | 0x55 | 0xAA | 0x66 | 0xCC:
                pass  # PIO mode, look-ahead off and on, keep or forget settings at a reset: nothing that shows
            case _:
                return self._abort()
        self.finish()

    def _check_power(self, _how: int) -> None:
        self.registers[COUNT] = 0xFF  # active or idle
        self.finish()

    def _native_max(self, _how: int) -> None:
        last = self._disk.sectors - 1
        if not self.registers[DEVICE] & LBA:
            return self._abort()
        self._show_address(last if self.extended else min(last, LBA28_SECTORS))
        self.finish()


COMMANDS: dict[int, tuple[Callable[[Drive, int], None], int]] = {
    # Those that are not here are refused: NOP (which never does anything else), DEVICE RESET (packet devices'), SET MAX ADDRESS, DMA.
    **dict.fromkeys(range(0x10, 0x20), (Drive.finish, 0)),  # RECALIBRATE
    0x20: (Drive._read_sectors, 0),  # READ SECTOR(S), with and without retries
    0x21: (Drive._read_sectors, 0),
    0x24: (Drive._read_sectors, EXT),  # READ SECTOR(S) EXT
    0x27: (Drive._native_max, EXT),  # READ NATIVE MAX ADDRESS EXT
    0x29: (Drive._read_sectors, EXT | MULTIPLE),  # READ MULTIPLE EXT
    0x30: (Drive._write_sectors, 0),  # WRITE SECTOR(S), with and without retries
    0x31: (Drive._write_sectors, 0),
    0x34: (Drive._write_sectors, EXT),  # WRITE SECTOR(S) EXT
    0x39: (Drive._write_sectors, EXT | MULTIPLE),  # WRITE MULTIPLE EXT
    0x40: (Drive._verify, 0),  # READ VERIFY SECTOR(S), with and without retries
    0x41: (Drive._verify, 0),
    0x42: (Drive._verify, EXT),  # READ VERIFY SECTOR(S) EXT
    0x70: (Drive._seek, 0),  # SEEK
    0x91: (Drive._set_geometry, 0),  # INITIALIZE DEVICE PARAMETERS
    0xA1: (Drive._identify_packet, 0),  # IDENTIFY PACKET DEVICE
    0xC4: (Drive._read_sectors, MULTIPLE),  # READ MULTIPLE
    0xC5: (Drive._write_sectors, MULTIPLE),  # WRITE MULTIPLE
    0xC6: (Drive._set_multiple, 0),  # SET MULTIPLE MODE
    0xE0: (Drive._flush, 0),  # STANDBY IMMEDIATE: a drive that may be switched off next has written everything
    0xE1: (Drive.finish, 0),  # IDLE IMMEDIATE
    0xE2: (Drive._flush, 0),  # STANDBY
    0xE3: (Drive.finish, 0),  # IDLE
    0xE5: (Drive._check_power, 0),  # CHECK POWER MODE
    0xE7: (Drive._flush, 0),  # FLUSH CACHE
    0xEA: (Drive._flush, EXT),  # FLUSH CACHE EXT
    0xEC: (Drive._identify, 0),  # IDENTIFY DEVICE
    0xEF: (Drive._set_features, 0),  # SET FEATURES
    0xF8: (Drive._native_max, 0),  # READ NATIVE MAX ADDRESS
}


STATUS = 7
"""Read: the status; written: a command."""
NIEN, SRST, HOB = 0x02, 0x04, 0x80
"""Device control register: no interrupts, software reset, show the earlier bytes."""
DIAGNOSTIC = 0x90
"""EXECUTE DEVICE DIAGNOSTIC: the one command that both drives take, whichever is selected."""


class Registers(NamedTuple):
    """One of the channel's two ranges of registers, as the bus sees it."""

    access: Access


class IdeChannel:
    """One channel. `commands` has 8 registers, of which the first (data) takes 2 and 4 bytes at once: attach it with `widest=4`.
    `control` has one: alternate status and device control. `irq` is told the level of INTRQ."""

    def __init__(self, irq: Callable[[bool], None], master: Storage | None, slave: Storage | None) -> None:
        self._irq = irq
        self.drives = tuple(Drive(disk, slot, self._update) if disk is not None else None for slot, disk in enumerate((master, slave)))
        self.selected = 0
        self._drive = self.drives[0]
        self.device_control = 0
        self.level = False
        self.commands = Registers(self._access_commands)
        self.control = Registers(self._access_control)

    def _access_commands(self, offset: int, size: int, value: int | None) -> int:
        if offset == 0:  # first: a word of data each time
            return 0 if self._drive is None else self._drive.data(size, value)
        if size > 1:
            # Registers of 8 bits: wider accesses are so many of them, from the lowest on.
            parts = [(i, None if value is None else value >> 8 * i & 0xFF) for i in range(size)]
            return sum(self._access_commands(offset + i, 1, part) << 8 * i for i, part in parts)
        if offset > STATUS:
            return 0xFF if value is None else 0
        if value is None:
            return self._read(offset)
        self._write(offset, value & 0xFF)
        return 0

    def _read(self, offset: int) -> int:
        drive = self._drive
        if drive is None:
            return 0
        if offset != STATUS:
            return drive.read(offset, bool(self.device_control & HOB))
        drive.take_back()
        return drive.status

    def _write(self, offset: int, value: int) -> None:
        self.device_control &= ~HOB
        if offset == STATUS:
            self._command(value)
            return
        for drive in self.drives:
            if drive is not None:
                drive.write(offset, value)
        if offset == DEVICE:
            self._select(value >> 4 & 1)

    def _command(self, opcode: int) -> None:
        if opcode == DIAGNOSTIC:
            self._diagnose()
        elif self._drive is not None:
            self._drive.command(opcode)

    def _diagnose(self) -> None:
        if self.device_control & SRST:
            return
        self._finish_reset()
        if self._drive is not None:
            self._drive.finish()

    def restored(self) -> None:
        """Another state was put into the attributes."""
        self._drive = self.drives[self.selected]

    def _select(self, slot: int) -> None:
        self.selected = slot
        self._drive = self.drives[slot]
        self._update()

    def _access_control(self, offset: int, size: int, value: int | None) -> int:
        if offset:
            return (1 << 8 * size) - 1 if value is None else 0
        if value is None:
            return 0 if self._drive is None else self._drive.status
        before, self.device_control = self.device_control, value & 0xFF
        if value & ~before & SRST:
            for drive in self.drives:
                if drive is not None:
                    drive.hold_reset()
        elif before & ~value & SRST:
            self._finish_reset()
        self._update()
        return 0

    def _finish_reset(self) -> None:
        for drive in self.drives:
            if drive is not None:
                drive.diagnose()
        self._select(0)

    def _update(self) -> None:
        """INTRQ is the selected drive's, unless nIEN cuts it off."""
        drive = self._drive
        level = drive is not None and drive.intrq and not self.device_control & NIEN
        if level != self.level:
            self.level = level
            self._irq(level)
