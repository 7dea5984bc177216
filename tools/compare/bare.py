"""One run of one cell on a bare Unicorn engine: port hooks and nothing else, as a script would have it. Only the time between the marks.

The one module beside vmm.machine that imports unicorn, because what is measured here is the CPU without us. It delivers no exception and no
interrupt and has no device: what needs one ends with the engine's own error, and that is the sample's reason.
"""

from __future__ import annotations

import time
from typing import Final

import unicorn
from unicorn import x86_const as x86

import guest_kernels
from tools.compare.cell import Wanted, command_line, count_in, wrong
from tools.compare.model import Sample, kernels
from tools.compare.outside import Marks
from vmm.boot.elf import parse

_MEMORY: Final = 32 << 20
_COMMAND_LINE: Final = 0x500
_INFORMATION: Final = 0x600
_LOADED_BY_MULTIBOOT: Final = 0x2BADB002
_LINE_STATUS, _DEBUG_CONSOLE, _DEBUG_EXIT, _SERIAL = 0x3FD, 0xE9, 0xF4, 0x3F8
_TRANSMITTER_EMPTY: Final = 0x60


def on_unicorn(wanted: Wanted) -> Sample:
    """One run of a cell on a bare engine: the kernel's segments in one map that may be read, written and executed."""
    kernel = kernels()[wanted.cell.kernel]
    if not kernel.file:
        return Sample("a bare engine has no devices, and delivers no interrupt: it boots no such kernel")
    file = guest_kernels.kernels()[kernel.file["pc"]].file
    image = file.read_bytes()
    elf = parse(file.name, image)
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    engine.mem_map(0, _MEMORY, unicorn.UC_PROT_ALL)
    for segment in elf.segments:
        engine.mem_write(segment.paddr, image[segment.offset : segment.offset + segment.filesz])
    text = command_line(wanted).encode() + b" noexec=off\0"  # one map that may be written and executed, as scripts have it
    engine.mem_write(_COMMAND_LINE, text)
    engine.mem_write(_INFORMATION, b"".join(word.to_bytes(4, "little") for word in (1 << 2, 0, 0, 0, _COMMAND_LINE)))
    engine.reg_write(x86.UC_X86_REG_EAX, _LOADED_BY_MULTIBOOT)
    engine.reg_write(x86.UC_X86_REG_EBX, _INFORMATION)
    marks, serial = Marks(time.process_time_ns), bytearray()

    def port_in(_engine: object, port: int, _size: int, _data: object) -> int:
        return _TRANSMITTER_EMPTY if port == _LINE_STATUS else 0xFF

    def port_out(_engine: object, port: int, _size: int, value: int, _data: object) -> None:
        if port == _DEBUG_CONSOLE:
            marks.heard(value & 0xFF)
        elif port == _SERIAL:
            serial.append(value & 0xFF)
        elif port == _DEBUG_EXIT:
            engine.emu_stop()

    engine.hook_add(unicorn.UC_HOOK_INSN, port_in, None, 1, 0, x86.UC_X86_INS_IN)
    engine.hook_add(unicorn.UC_HOOK_INSN, port_out, None, 1, 0, x86.UC_X86_INS_OUT)
    ended = "time-out, or stopped without a mark"
    try:
        engine.emu_start(elf.entry, 0, timeout=int(wanted.timeout * 1e6))
    except unicorn.UcError as error:
        ended = f"the bare engine cannot: {error}"
    shown = serial.decode("latin-1")
    return wrong(shown) or (marks.sample(count_in(shown)) if marks.ended else Sample(ended))
