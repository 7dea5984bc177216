"""The technique that a user asked for: which back-end is to run the guest, and how, as that back-end's options.

Knows every back-end's name and options, and which of the command line's words concern which. Knows no guest and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from tools import options
from vmm.backends import Options
from vmm.errors import InputError

_LARGEST = options.LARGEST_MEMORY * options.MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """The words of the command line, as typed; None where nothing was, and nothing where a flag was. kernel, bios: what "auto" decides by."""

    kernel: str | None = None
    bios: str | None = None
    backend: str = "auto"
    mmu: str | None = None
    ring: str | None = None
    stubs: str | None = None
    user: str | None = None
    cache_size: str | None = None
    exit_on: str | None = None
    break_: str | None = None
    no_adapt: str | None = None
    table_stores: str | None = None


def options_of(technique: Technique) -> Options:
    """The options of the back-end that is meant. Raises InputError for words that are unknown, or do not concern it."""
    backend = options.choice("--backend", technique.backend, ("auto", *_MAKERS))
    if backend == "auto":
        backend = _suited(technique.kernel) if technique.bios is None else "hw"
        technique = replace(technique, backend=backend)
    if technique.bios is not None:
        if backend != "hw" or technique.mmu not in (None, "nested"):
            raise InputError(f"--bios {technique.bios}: a BIOS starts in real mode, which takes --backend hw with --mmu nested")
        technique = replace(technique, mmu="nested")
    return _MAKERS[backend](technique)


def backend_of_snapshot(path: str) -> str:
    """The back-end that a snapshot was taken under. Raises InputError."""
    from vmm.snapshot.file import read

    return options.choice("--backend", read(path).backend, tuple(_MAKERS))


def _suited(kernel: str | None) -> str:
    """The back-end for a kernel that says itself what it is made for. One that cannot be read is refused where it is loaded."""
    from tools.guest import choose
    from vmm.boot.elf import is_elf, is_long
    from vmm.boot.image import read_image
    from vmm.boot.linux import is_linux
    from vmm.boot.xen_notes import has_xen_notes

    if kernel is not None:
        with suppress(InputError):
            guest = choose(kernel)
            if guest.platform == "pc64":
                return "hw"
            image = read_image(guest.path, _LARGEST)
            if has_xen_notes(image):
                return "pv"
            if is_linux(image) or is_elf(image) and is_long(image):
                return "hw"
    return "bt"


def _bt(technique: Technique) -> Options:
    from vmm.backends.bt.options import MISTAKES, BtOptions

    _only(technique, "mmu", "ring", "stubs", "user", "cache_size", "break_", "no_adapt")
    options.choice("--mmu", technique.mmu or "shadow", ("shadow",), ("nested",))
    return BtOptions(
        ring=int(options.choice("--ring", technique.ring or "1", ("1", "3"))),
        stubs_in_cache=options.choice("--stubs", technique.stubs or "cache", ("cache", "trap")) == "cache",
        translate_user=options.choice("--user", technique.user or "direct", ("direct", "translate")) == "translate",
        cache_size=options.cache_size(technique.cache_size or "16M"),
        adapt=technique.no_adapt is None,
        broken=frozenset(options.choice("--break", word, MISTAKES) for word in filter(None, (technique.break_ or "").split(","))),
    )


def _native(technique: Technique) -> Options:
    from vmm.backends.native import NativeOptions

    _only(technique)
    return NativeOptions()


def _hw(technique: Technique) -> Options:
    from vmm.backends.hw.options import NAMES, NUMBERED, HwOptions

    _only(technique, "mmu", "exit_on")
    return HwOptions(
        mmu="auto" if technique.mmu is None else options.choice("--mmu", technique.mmu, ("nested", "shadow")),
        exit_on=frozenset() if technique.exit_on is None else options.exits(technique.exit_on, NAMES, NUMBERED),
    )


def _trap(technique: Technique) -> Options:
    from vmm.backends.trap import TrapOptions

    _only(technique, "mmu", "ring")
    options.choice("--mmu", technique.mmu or "shadow", ("shadow",), ("nested", "direct"))
    return TrapOptions(ring=int(options.choice("--ring", technique.ring or "1", ("1", "3"))))


def _step(technique: Technique) -> Options:
    from vmm.backends.step import StepOptions

    _only(technique, "mmu")
    options.choice("--mmu", technique.mmu or "shadow", ("shadow",), ("nested", "direct"))
    return StepOptions()


def _only(technique: Technique, *concerned: str) -> None:
    """Refuses words that the back-end can do nothing with."""
    for name in ("mmu", "ring", "stubs", "user", "cache_size", "exit_on", "break_", "no_adapt", "table_stores"):
        value = getattr(technique, name)
        if value is not None and name not in concerned:
            raise InputError(f"--{name.rstrip('_').replace('_', '-')} {value}".rstrip() + f": --backend {technique.backend} has no such choice")


def _pv(technique: Technique) -> Options:
    from vmm.backends.pv.options import PvOptions

    _only(technique, "mmu", "ring", "table_stores")
    options.choice("--mmu", technique.mmu or "direct", ("direct",))
    options.choice("--ring", technique.ring or "1", ("1",))
    return PvOptions(strict=options.choice("--table-stores", technique.table_stores or "all", ("all", "lowest")) == "lowest")


_MAKERS: dict[str, Callable[[Technique], Options]] = {"bt": _bt, "native": _native, "hw": _hw, "pv": _pv, "trap": _trap, "step": _step}
