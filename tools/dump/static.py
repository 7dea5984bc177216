"""Translation without a run: from the file as it is loaded, through the translator, and no CPU.

Knows how blocks are found from entry points on: along branches, jumps and calls, and past them. Code that is reached through
registers or memory is found only where a symbol leads to it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bt.block import Mode
from bt.cache import CacheFull, TranslationCache
from bt.discover import LONGEST, discover
from bt.emit import Options
from bt.sensitive import Treatment
from bt.window import CODE
from tools.guest import choose
from tools.session import Request
from vmm.boot import load
from vmm.boot.symbols import Symbols
from vmm.errors import InputError
from vmm.machine import MIB

_BASE: Final = 0xE8000000  # where the window lies in most runs
_PAGE: Final = 4096
_CALLS: Final = (Treatment.CALL, Treatment.INDIRECT_CALL)


@dataclass(frozen=True, slots=True)
class StaticCode:
    """What was found: the image's symbols and the translations."""

    symbols: Symbols
    cache: TranslationCache


class _Ram:
    """Guest memory for a loader."""

    def __init__(self, size: int) -> None:
        try:
            self._bytes = mmap.mmap(-1, size)
        except OSError as error:
            raise InputError(f"-m {size // MIB}: the host cannot give so much memory: {(error.strerror or str(error)).lower()}") from None

    @property
    def size(self) -> int:
        return len(self._bytes)

    def read(self, gpa: int, size: int) -> bytes:
        return self._bytes[gpa : gpa + size]

    def write(self, gpa: int, data: bytes) -> None:
        self._bytes[gpa : gpa + len(data)] = data


def translate(request: Request, options: Options, cache_size: int, roots: Callable[[Symbols], list[int] | None]) -> StaticCode:
    """Translates what can be reached from the guest addresses that `roots` gives: from the entry point and all functions when it gives None.

    At most what `cache_size` bytes hold. Raises InputError for a guest that cannot be loaded.
    """
    guest = choose(request.kernel, request.memory_mib, request.append)
    ram = _Ram(guest.memory_mib * MIB)
    start = load(guest.path, ram, append=guest.append, modules=request.modules, initrd=request.initrd, address=request.address)
    cache = TranslationCache(memoryview(bytearray(CODE)), memoryview(bytearray(cache_size)), _BASE, options, lambda gfn: None)
    symbols = start.symbols
    mode = cache.mode(0, 0, True)
    pending = roots(symbols) or [start.entry, *symbols.functions()]
    try:
        for eip in pending:
            at = symbols.loaded(eip)
            if at is not None and cache.lookup(eip, mode) is None:
                pending += _install(cache, mode, eip, at, ram)
    except CacheFull:
        pass
    for translation in cache.translations:
        for slot, (target, _) in translation.slots.items():
            cache.link(slot, target, mode)
    return StaticCode(symbols, cache)


def _install(cache: TranslationCache, mode: Mode, eip: int, at: int, ram: _Ram) -> list[int]:
    """Translates the block at `eip`, which is loaded at `at`; returns where it leads."""
    page = at & -_PAGE
    start = eip - (at - page)
    block = discover(ram.read(page, _PAGE), start, _PAGE, eip)
    if not block.instructions and not block.undecodable:
        block = discover(ram.read(page, _PAGE + LONGEST), start, _PAGE, eip, 1)
    if not block.instructions and not block.undecodable:
        return []
    cache.install(block, mode, [(at >> 12, 0, b"")])
    inside = {instruction.address for instruction in block.instructions}
    behind_calls = [
        instruction.next
        for instruction, row in zip(block.instructions, block.rows, strict=True)
        if row is not None and row.treatment in _CALLS and instruction.next not in inside
    ]
    return [target for target, _ in cache.translations[-1].slots.values()] + behind_calls
