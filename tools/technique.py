"""The technique that a user asked for: which back-end is to run the guest, and how, as that back-end's options.

Knows every back-end's name and options, and which of the command line's words concern which. Knows no guest and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools import options
from vmm.backends import Options
from vmm.errors import InputError

PLANNED = ("trap", "step", "pv", "hw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """The words of the command line, as typed; None where nothing was."""

    backend: str = "auto"
    mmu: str | None = None
    ring: str | None = None
    stubs: str | None = None
    user: str | None = None
    cache_size: str | None = None


def options_of(technique: Technique) -> Options:
    """The options of the back-end that is meant. Raises InputError for words that are unknown, or do not concern it."""
    backend = options.choice("--backend", technique.backend, ("auto", *_MAKERS), PLANNED)
    return _MAKERS["bt" if backend == "auto" else backend](technique)


def _bt(technique: Technique) -> Options:
    from vmm.backends.bt import BtOptions

    _only(technique, "mmu", "ring", "stubs", "user", "cache_size")
    options.choice("--mmu", technique.mmu or "shadow", ("shadow",), ("nested", "direct"))
    return BtOptions(
        ring=int(options.choice("--ring", technique.ring or "1", ("1", "3"))),
        stubs_in_cache=options.choice("--stubs", technique.stubs or "cache", ("cache", "trap")) == "cache",
        translate_user=options.choice("--user", technique.user or "direct", ("direct", "translate")) == "translate",
        cache_size=options.cache_size(technique.cache_size or "16M"),
    )


def _native(technique: Technique) -> Options:
    from vmm.backends.native import NativeOptions

    _only(technique)
    return NativeOptions()


def _only(technique: Technique, *concerned: str) -> None:
    """Refuses words that the back-end can do nothing with."""
    for name in ("mmu", "ring", "stubs", "user", "cache_size"):
        value = getattr(technique, name)
        if value is not None and name not in concerned:
            raise InputError(f"--{name.replace('_', '-')} {value}: --backend {technique.backend} has no such choice")


_MAKERS: dict[str, Callable[[Technique], Options]] = {"bt": _bt, "native": _native}
