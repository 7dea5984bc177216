"""The bare physical machine of the project running 32-bit code at CPL 1 under an identity map: no guest, no translator.

Knows the machine's interface and 4-level page tables. For tests of what the machine itself promises.
"""

from tests.machine.flat import assemble
from vmm.cpu_state import Cpu
from vmm.machine import FRAME, MIB, Machine

SIZE, CODE, DATA, ABSENT = 16 * MIB, 0x100000, 0x200000, 0x400000  # the 2 MiB from ABSENT on are not mapped
_CODE_SEGMENT, _DATA_SEGMENT, _RING = 0x00CF9B00, 0x00CF9300, 1
_NX = 1 << 63


class Host:
    """A machine whose linear addresses below 16 MiB are its physical ones, the pages at CODE executable, the others not.

    entry(gva): index into `machine.quads` of the page-table entry for an address.
    """

    def __init__(self) -> None:
        machine = self.machine = Machine(SIZE)
        tables = 8 * MIB // FRAME
        quads = machine.quads
        quads[tables << 9] = (tables + 1) * FRAME | 7
        quads[tables + 1 << 9] = (tables + 2) * FRAME | 7
        self._leaves = tables + 3
        for region in range(8):
            quads[(tables + 2 << 9) + region] = (self._leaves + region) * FRAME | 7
            for page in range(512):
                address = region << 21 | page << 12
                executable = address < ABSENT // 2 and address >> 16 in (CODE >> 16, 0)
                present = not ABSENT <= address < ABSENT + 0x200000
                quads[(self._leaves + region << 9) + page] = (address | 0x61 | (0 if executable else 2 | _NX)) if present else 0
        machine.enter_long_mode(tables * FRAME)

    def entry(self, gva: int) -> int:
        """Where the page-table entry of an address stands."""
        return (self._leaves + (gva >> 21) << 9) + (gva >> 12 & 511)

    def start(self, source: str, at: int = CODE) -> None:
        """Puts code at `at` and the CPU there, at CPL 1 in flat segments."""
        machine = self.machine
        code = assemble(source, at) + b"\xeb\xfe"  # jmp to itself: a stop out of a port handler takes effect at the end of the block
        machine.memory[at : at + len(code)] = code
        machine.flush_code()
        for register in (Cpu.ES, Cpu.SS, Cpu.DS, Cpu.FS, Cpu.GS):
            machine.set_segment(register, 0x10 | _RING, 0, 0xFFFFFFFF, _DATA_SEGMENT | _RING << 13)
        machine.set_segment(Cpu.CS, 8 | _RING, 0, 0xFFFFFFFF, _CODE_SEGMENT | _RING << 13)
        machine.set_mode(_RING)
        machine.set_flags(0x202)
        machine.state[Cpu.ESP] = DATA + 0x1000
        machine.state[Cpu.EIP] = at

    def run_until_port(self) -> None:
        """Runs, over any number of kicks, until the code accesses a port."""
        done: list[int] = []

        def port(number: int, size: int, value: int | None) -> int:
            done.append(number)
            self.machine.stop()
            return 0

        self.machine.on_port = port
        while not done:
            self.machine.run()
