"""The VGA in text mode: its registers at 3C0h to 3DFh, and what the screen shows of the text memory at B8000h.

Knows registers, the cursor, and how characters lie in memory. Must not know how a screen is drawn. Text memory is plain guest RAM,
so the guest writes it without exits. Source: IBM VGA Technical Reference (PS/2 Hardware Interface, "Video Subsystem"). Graphics
modes are stored but not shown.
"""

from vmm.bus import Memory
from vmm.clock import SECOND, Clock

TEXT_MEMORY, TEXT_MEMORY_SIZE = 0xB8000, 0x8000
COLUMNS, ROWS = 80, 25
CRTC_START, CRTC_CURSOR = 0x0C, 0x0E
CURSOR_OFF = 0x20
FRAME = SECOND // 70
VERTICAL_RETRACE = FRAME // 12
LINE = FRAME // 449
HORIZONTAL_RETRACE = LINE // 5
CRTC_MODE_3 = bytes.fromhex("5f 4f 50 82 55 81 bf 1f 00 4f 0d 0e 00 00 00 00 9c 8e 8f 28 1f 96 b9 a3 ff")
ATTRIBUTE_MODE_3 = bytes.fromhex("00 01 02 03 04 05 14 07 38 39 3a 3b 3c 3d 3e 3f 0c 00 0f 08 00")
SEQUENCER_MODE_3 = bytes.fromhex("03 00 03 00 02")
GRAPHICS_MODE_3 = bytes.fromhex("00 00 00 00 00 10 0e 00 ff")
GLYPHS = [" ", *"☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼", *(bytes([i]).decode("cp437") for i in range(32, 127)), "⌂",
          *(bytes([i]).decode("cp437") for i in range(128, 256))]
GLYPHS[255] = " "


class Vga:
    """Registers by offset from 3C0h. Index and data pairs keep what is written to them."""

    def __init__(self, memory: Memory, clock: Clock) -> None:
        """Starts in mode 3 (80 by 25 colour text) as firmware leaves it."""
        self._memory = memory
        self._clock = clock
        self.crtc = bytearray(CRTC_MODE_3.ljust(256, b"\0"))
        self.attribute = bytearray(ATTRIBUTE_MODE_3.ljust(32, b"\0"))
        self.sequencer = bytearray(SEQUENCER_MODE_3.ljust(256, b"\0"))
        self.graphics = bytearray(GRAPHICS_MODE_3.ljust(256, b"\0"))
        self.indices = {0x04: 0, 0x0E: 0, 0x14: 0}
        """Index registers of sequencer (3C4h), graphics (3CEh) and CRTC (3D4h)."""
        self.attribute_index = 0x20
        self.attribute_data_next = False
        """The flip-flop of 3C0h: is the next write data?"""
        self.misc = 0x67
        self.pel_mask = 0xFF
        self.palette = bytearray(768)
        self.palette_index = 0
        self.palette_reading = False
        self.shown = self._snapshot()
        """Text memory and cursor as `text` returned them last."""

    def text(self) -> list[str]:
        """The screen: 25 lines without trailing blanks, in Unicode. Attributes (colours) are left out."""
        self.shown = self._snapshot()
        cells = self.shown[0]
        lines = (cells[row * COLUMNS * 2 : (row + 1) * COLUMNS * 2 : 2] for row in range(ROWS))
        return ["".join([GLYPHS[byte] for byte in line]).rstrip() for line in lines]

    def changed(self) -> bool:
        """Has the screen or its cursor changed since the last `text` (or since the start)?"""
        return self._snapshot() != self.shown

    def cursor(self) -> tuple[int, int] | None:
        """Row and column of the cursor, or None when it is off or outside the screen."""
        row, column = divmod(self._word(CRTC_CURSOR) - self._word(CRTC_START), COLUMNS)
        return (row, column) if 0 <= row < ROWS and not self.crtc[0x0A] & CURSOR_OFF else None

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            return self._read(offset)
        self._write(offset, value & 0xFF)
        return 0

    def _word(self, index: int) -> int:
        return self.crtc[index] << 8 | self.crtc[index + 1]

    def _snapshot(self) -> tuple[bytes, int]:
        size = COLUMNS * ROWS * 2
        start = self._word(CRTC_START) * 2 % TEXT_MEMORY_SIZE
        first = min(size, TEXT_MEMORY_SIZE - start)
        if self._memory.size < TEXT_MEMORY + TEXT_MEMORY_SIZE:
            return bytes(size), 0  # a machine with less than 768 KiB has no text memory in its RAM
        cells = self._memory.read(TEXT_MEMORY + start, first)
        if first < size:
            cells += self._memory.read(TEXT_MEMORY, size - first)
        return cells, self._word(CRTC_CURSOR)

    def _indexed(self, offset: int) -> bytearray | None:
        """The register file whose data port is at `offset`."""
        return {0x05: self.sequencer, 0x0F: self.graphics, 0x15: self.crtc}.get(offset)

    def _read(self, offset: int) -> int:
        if offset == 0x1A:
            return self._read_status()
        if offset in self.indices:
            return self.indices[offset]
        file = self._indexed(offset)
        if file is not None:
            return file[self.indices[offset - 1]]
        match offset:
            case 0x00:
                return self.attribute_index
            case 0x01:
                return self.attribute[self.attribute_index & 0x1F]
            case 0x02:
                return 0x10  # a monitor is connected
            case 0x06:
                return self.pel_mask
            case 0x07:
                return 3 if self.palette_reading else 0
            case 0x08:
                return self.palette_index // 3
            case 0x09:
                return self._step_palette()
            case 0x0C:
                return self.misc
            case _:
                return 0xFF

    def _read_status(self) -> int:
        """Input status 1: bit 3 vertical retrace, bit 0 no display; reading it makes the next write to 3C0h an index."""
        self.attribute_data_next = False
        in_frame = self._clock.now() % FRAME
        if in_frame < VERTICAL_RETRACE:
            return 0x09
        return int(in_frame % LINE < HORIZONTAL_RETRACE)

    def _write(self, offset: int, value: int) -> None:
        if offset in self.indices:
            self.indices[offset] = value
            return
        file = self._indexed(offset)
        if file is not None:
            file[self.indices[offset - 1]] = value
            return
        match offset:
            case 0x00:
                self._write_attribute(value)
            case 0x02:
                self.misc = value
            case 0x06:
                self.pel_mask = value
            case 0x07 | 0x08:
                self.palette_index = value * 3
                self.palette_reading = offset == 0x07
            case 0x09:
                self.palette[self.palette_index] = value & 0x3F
                self._step_palette()

    def _write_attribute(self, value: int) -> None:
        if self.attribute_data_next:
            self.attribute[self.attribute_index & 0x1F] = value
        else:
            self.attribute_index = value & 0x3F
        self.attribute_data_next = not self.attribute_data_next

    def _step_palette(self) -> int:
        value = self.palette[self.palette_index]
        self.palette_index = (self.palette_index + 1) % 768
        return value
