"""`vmm dump` from what was asked for to the file: runs the guest or only looks at it, chooses blocks, and writes them.

Knows how the parts are put together. Prints how the run ended on standard error, and nothing of the guest's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, TextIO

from bt.emit import Options
from tools.dump import as_html, as_json, as_text
from tools.dump.build import Builder
from tools.dump.heat import Heat
from tools.dump.model import Block, Dump
from tools.dump.static import translate
from tools.report import record, whereabouts, write_file
from tools.session import Ended, Request, run
from tools.signals import Interruption
from vmm.backends.bt import BtOptions
from vmm.boot.symbols import Symbols
from vmm.errors import InputError
from vmm.exits import End
from vmm.vm import Vm

BROKEN_PIPE: Final = 141


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be dumped. at: an address or a symbol, or None for everything. blocks: at most so many. output: a file's name, or
    None for standard output."""

    at: str | None
    blocks: int | None
    hot: bool
    static: bool
    form: str
    output: str | None


def dump_kernel(request: Request, wanted: Wanted) -> int:
    """Dumps a guest and returns the exit status: 0, or what a signal makes it. Raises InputError."""
    if not isinstance(request.options, BtOptions):
        raise InputError(f"--backend {request.options.backend}: translates nothing: there is nothing to dump")
    if wanted.static:
        builder, dump, chosen = _static(request, request.options, wanted)
        signal = None
    else:
        builder, dump, chosen, signal = _run(request, request.options, wanted)
    try:
        _write(dump, (builder.block(number) for number in chosen), wanted)
    except BrokenPipeError:  # typer would make it status 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered has nowhere to go
        return BROKEN_PIPE
    return 0 if signal is None else 128 + signal


def _static(request: Request, options: BtOptions, wanted: Wanted) -> tuple[Builder, Dump, list[int]]:
    if wanted.hot:
        raise InputError("--hot: nothing is run with --static")
    emit = Options(options.ring == 1, options.stubs_in_cache)
    address: int | None = None

    def roots(symbols: Symbols) -> list[int] | None:
        nonlocal address
        address = None if wanted.at is None else place(wanted.at, symbols)
        return None if address is None else [_inside(wanted.at or "", address, symbols)]

    code = translate(request, emit, options.cache_size, roots)
    builder = Builder({"kernel": code.cache}, code.symbols)
    dump = Dump(request.kernel, "static", "", False, builder.totals(0), {})
    return builder, dump, _choose(builder, wanted, address, code.symbols, "not translated")


def _run(request: Request, options: BtOptions, wanted: Wanted) -> tuple[Builder, Dump, list[int], int | None]:
    heat = Heat() if wanted.hot else None
    address: int | None = None
    with Interruption() as interruption:

        def ready(vm: Vm) -> None:
            nonlocal address
            assert vm.start is not None
            if wanted.at is not None:
                address = place(wanted.at, vm.start.symbols)
            if heat is not None:
                heat.attach(vm)
            interruption.watch(vm)

        ended = run(replace(request, options=replace(options, counted=wanted.hot), reboot=False), _Silent(), ready)
        builder, dump = dump_of(ended, request.kernel, heat)
        assert ended.vm.start is not None
        chosen = _choose(builder, wanted, address, ended.vm.start.symbols, "not translated in this run")
        print(f"vmm: {request.kernel}: {dump.end}", file=sys.stderr)
        return builder, dump, chosen, interruption.number


def dump_of(ended: Ended, kernel: str, heat: Heat | None) -> tuple[Builder, Dump]:
    """What a run has left, as far as it is not blocks, and the builder of these. heat: what was attached before the run, if anything was."""
    vm = ended.vm
    assert vm.start is not None
    builder = Builder(vm.backend.caches, vm.start.symbols, heat)
    values = record(ended, kernel, 0)
    return builder, Dump(kernel, "run", _end(ended), heat is not None, builder.totals(vm.stats.callouts.total()), values)


def _end(ended: Ended) -> str:
    """How a run ended, in a phrase."""
    vm, stop = ended.vm, ended.stop
    value = f" ({stop.value})" if stop.why is End.REPORTED else ""
    where = f", {whereabouts(vm)}" if stop.why in (End.TIMEOUT, End.QUIT, End.DIED, End.UNSUPPORTED) else ""
    return f"ran {vm.stats.seconds:.2f} s: {stop.reason}{value}{where}"


# -- which blocks ------------------------------------------------------------------------------------------------------------------


def place(text: str, symbols: Symbols) -> int:
    """The guest address that "0xc0101234", "main" or "main+0x12" means. Raises InputError, with near matches."""
    name, plus, offset = text.partition("+")
    try:
        value = int(text, 0)
    except ValueError:
        try:
            value = symbols.address(name) + (int(offset, 0) if plus else 0)
        except ValueError:
            raise InputError(f"--at {text}: must be an address such as 0xc0101234, or a symbol") from None
        except InputError as error:
            raise InputError(f"--at {error}") from None
    if not 0 <= value < 1 << 32:
        raise InputError(f"--at {text}: not an address of 32 bits")
    return value


def _inside(text: str, address: int, symbols: Symbols) -> int:
    if symbols.loaded(address) is None:
        near = symbols.nearest(address)
        raise InputError(f"--at {text}: outside the image, which has {symbols.extent()}" + (f" (nearest: {near})" if near else ""))
    return address


def _choose(builder: Builder, wanted: Wanted, address: int | None, symbols: Symbols, absent: str) -> list[int]:
    """The numbers of the blocks to show. Raises InputError when the address that was asked for is in none."""
    if address is None:
        numbers = list(range(len(builder)))
        if wanted.hot:
            numbers.sort(key=lambda number: -builder.executed(number))
        return numbers[: wanted.blocks]
    found = builder.holding(address) or builder.holding(symbols.loaded(address) or address)
    if not found:
        _inside(wanted.at or "", address, symbols)
        near = builder.nearest(address)
        name = symbols.name(near)
        shown = f"{near:#x}" if name.startswith("0x") else f"{near:#x} <{name}>"
        raise InputError(f"--at {wanted.at}: {absent} (the nearest begins at {shown}; --static translates what is not run, too)")
    if wanted.blocks is None:
        return found
    for number in found:  # grows while it is walked: breadth first
        if len(found) >= wanted.blocks:
            break
        found += [to for to in dict.fromkeys(builder.following(number)) if to not in found]
    return found[: wanted.blocks]


# -- the file ----------------------------------------------------------------------------------------------------------------------


def _write(dump: Dump, blocks: Iterable[Block], wanted: Wanted) -> None:
    writers: dict[str, Callable[[Dump, TextIO, Iterable[Block]], None]] = {
        "text": as_text.write,
        "json": as_json.write,
        "html": as_html.write,
    }
    if wanted.output is None:
        writers[wanted.form](dump, sys.stdout, blocks)
        sys.stdout.flush()
    else:
        write_file(wanted.output, lambda file: writers[wanted.form](dump, file, blocks))


class _Silent:
    """A console for a guest that nobody listens to."""

    def write(self, data: bytes) -> None: ...

    def poll(self) -> bytes | None:
        return b""

    def fileno(self) -> int | None:
        return None
