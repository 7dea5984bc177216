"""The cost of translating an instruction, against what an empty callback of the CPU costs: both are Python's work per event."""

from __future__ import annotations

import gc
import gzip
import io

import pytest
import unicorn
from elftools.elf.elffile import ELFFile
from unicorn import x86_const as x86

from bt.cache import TranslationCache
from bt.discover import discover
from bt.emit import Options
from bt.window import CODE
from tests.bench.conftest import Keep
from tests.bench.timing import cpu_seconds, in_turns
from tests.guests.test_gnumach import kernel
from tests.machine.flat import ENTRY, assemble
from vmm.machine import FRAME

pytestmark = pytest.mark.bench

PAGES = 16
CALLBACKS = 100_000


def text() -> tuple[int, bytes]:
    """Address and bytes of some pages of GNU Mach's code."""
    section = ELFFile(io.BytesIO(gzip.decompress(kernel().read_bytes()))).get_section_by_name(".text")
    start = -(-section["sh_addr"] // FRAME) * FRAME
    skip = start - section["sh_addr"]
    return start, bytes(section.data()[skip : skip + PAGES * FRAME])


def translate(cache: TranslationCache, address: int, code: bytes) -> int:
    """Translates all of it from an empty cache; returns the number of instructions."""
    cache.flush()
    mode, before = cache.mode(0, 0, True), cache.instructions
    for offset in range(0, len(code), FRAME):
        page, base, at = code[offset : offset + FRAME], address + offset, address + offset
        while at < base + FRAME:
            block = discover(page, base, FRAME, at)
            if not block.instructions:
                break
            if cache.lookup(at, mode) is None:
                cache.install(block, mode, [(base >> 12, 0, page)])
            at = max(instruction.next for instruction in block.instructions)
    return cache.instructions - before


def loop_seconds(body: str) -> float:
    """CPU seconds of a loop on a bare engine whose interrupts call an empty function."""
    code = assemble(f"l: {body}; dec ecx; jnz l")
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.mem_map(0, 4 << 20)
    uc.mem_write(ENTRY, code)
    uc.reg_write(x86.UC_X86_REG_ECX, CALLBACKS)
    uc.hook_add(unicorn.UC_HOOK_INTR, _nothing)
    return cpu_seconds(lambda: uc.emu_start(ENTRY, ENTRY + len(code)))


def _nothing(uc: unicorn.Uc, number: int, data: object) -> None:
    """The empty callback."""


def callback_seconds() -> float:
    """CPU seconds of one empty interrupt callback, the loop around it taken off."""
    return (loop_seconds("int 0x80") - loop_seconds("nop")) / CALLBACKS


def test_translation(keep: Keep) -> None:
    """An instruction of GNU Mach, from bytes to linked code in the cache, costs at most ten empty callbacks."""
    address, code = text()
    window = memoryview(bytearray(CODE)), memoryview(bytearray(16 << 20))
    cache = TranslationCache(*window, 0xE8000000, Options(), lambda gfn: None)
    instructions = translate(cache, address, code)
    gc.disable()  # as during a run
    try:
        pair = in_turns(lambda: cpu_seconds(lambda: translate(cache, address, code)) / instructions, callback_seconds, rounds=9)
    finally:
        gc.enable()
    keep("translate", pair.ratio, f"{pair.ours * 1e6:.1f} µs an instruction ({instructions:,} of them), {pair.theirs * 1e6:.2f} µs a callback")
