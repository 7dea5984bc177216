"""What a user typed behind an option, as a value: the checks that come before anything is opened or run.

Knows the options' forms and limits. Each function raises InputError("OPTION VALUE: reason"); knows no guest and no machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from vmm.errors import InputError

MIB: Final = 1 << 20
LARGEST_MEMORY: Final = 3072
SMALLEST_CACHE: Final = 64 << 10
LARGEST_CACHE: Final = 16 * MIB
MOST_DISKS: Final = 4
LOGS: Final = ("int", "exec", "mmu", "io", "bios")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": MIB, "G": 1 << 30}


def choice(option: str, value: str, existing: Sequence[str], planned: Sequence[str] = ()) -> str:
    """`value` when it is one of `existing`; those of `planned` are refused as not available yet."""
    if value in existing:
        return value
    if value in planned:
        raise InputError(f"{option} {value}: not available yet")
    raise InputError(f"{option} {value}: must be {' or '.join(existing)}")


def memory(text: str) -> int:
    """MiB from "128", "128M" or "1G"."""
    size = _size("-m", text, "M")
    if size % MIB or not MIB <= size <= LARGEST_MEMORY * MIB:
        raise InputError(f"-m {text}: guest memory must be 1 to {LARGEST_MEMORY} MiB")
    return size // MIB


def cache_size(text: str) -> int:
    """Bytes from "256K", "16M" or a plain number of bytes, a multiple of 4096."""
    size = _size("--cache-size", text, "")
    if size % 4096 or not SMALLEST_CACHE <= size <= LARGEST_CACHE:
        raise InputError(f"--cache-size {text}: must be {SMALLEST_CACHE >> 10}K to {LARGEST_CACHE >> 20}M in steps of 4K")
    return size


def seconds(text: str, option: str = "--timeout") -> float:
    """Seconds from "10" or "0.5"."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{option} {text}: must be a number of seconds above 0")
    return value


def address(text: str) -> int:
    """A guest-physical address from "0x7c00" or "31744"."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 32:
        raise InputError(f"--address {text}: must be an address of 32 bits, such as 0x7c00")
    return value


def count(option: str, text: str) -> int:
    """A number above 0."""
    if not text.isascii() or not text.isdigit() or not 0 < len(text) <= 9 or not int(text):
        raise InputError(f"{option} {text}: must be a number above 0")
    return int(text)


def seed(text: str) -> int:
    """Where chance begins: a number of up to nine digits."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InputError(f"--seed {text}: must be a number")
    return int(text)


def share(text: str) -> float:
    """A VM's part of the CPU's time beside the others': a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.001 <= value <= 1_000_000:
        raise InputError(f"--share {text}: must be a number from 0.001 to 1000000")
    return value


def exits(text: str, names: Collection[str], numbered: Mapping[str, int]) -> frozenset[tuple[str, int]]:
    """(name, number) of each exit in "cpuid,io:0x60": one of `names`, with number 0, or of `numbered`, with a number below its limit."""
    found = set()
    for word in text.split(","):
        name, colon, number = word.partition(":")
        if colon and name in numbered:
            found.add((name, _number(number, numbered[name], f"--exit-on {word}")))
        elif word in names:
            found.add((word, 0))
        else:
            raise InputError(f"--exit-on {word}: must be of {', '.join((*names, *(f'{name}:N' for name in numbered)))}")
    return frozenset(found)


def _number(text: str, limit: int, option: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < limit:
        raise InputError(f"{option}: the number must be below {limit:#x}")
    return value


def logs(text: str) -> frozenset[str]:
    """The kinds of log in "int,io"."""
    kinds = frozenset(text.split(","))
    for kind in sorted(kinds - set(LOGS)):
        raise InputError(f"-d {kind}: must be of {', '.join(LOGS)}")
    return kinds


def disks(paths: Sequence[str]) -> tuple[str, ...]:
    """At most as many images as there are drives, each once."""
    if len(paths) > MOST_DISKS:
        raise InputError(f"--disk {paths[MOST_DISKS]}: there are only {MOST_DISKS} drives")
    return tuple(paths)


def writable(path: str) -> str:
    """`path` when it can be written at the end of the run; it is not touched now."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not path:
        raise InputError(f"{path or repr(path)}: is a directory" if path else "'': names no file")
    if os.path.exists(path):
        if not os.access(path, os.W_OK):
            raise InputError(f"{path}: permission denied")
    elif not os.path.isdir(folder):
        raise InputError(f"{path}: no such directory: {folder}")
    elif not os.access(folder, os.W_OK):
        raise InputError(f"{path}: permission denied")
    return path


def size(option: str, text: str) -> int:
    """Bytes from "64M", "1G" or a plain number of bytes."""
    return _size(option, text, "")


def _size(option: str, text: str, plain: str) -> int:
    """Bytes; a number without a unit has unit `plain`."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M", "G") else (text, plain)
    if not number.isascii() or not number.isdigit() or len(number) > 12:
        raise InputError(f"{option} {text}: not a size")
    return int(number) * _UNITS[unit]


def for_each(option: str, text: str | None, count: int) -> list[str | None]:
    """The values of "a,b,c" for so many guests in their order; one value is everybody's, and an empty one stands as the default."""
    if count == 1:
        return [text]
    values = [value or None for value in (text or "").split(",")]
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise InputError(f"{option} {text}: {len(values)} values for {count} kernels")
    return values


def for_one(option: str, texts: Sequence[str], count: int) -> list[list[str]]:
    """The values for each guest out of "2:FILE": what is behind the number of the kernel, counted from 1. A single guest's are as they stand."""
    if count == 1:
        return [list(texts)]
    values: list[list[str]] = [[] for _ in range(count)]
    for text in texts:
        number, colon, value = text.partition(":")
        if not colon or not number.isascii() or not number.isdigit() or not 1 <= int(number[:4]) <= count:
            raise InputError(f"{option} {text}: of several kernels, say which: {option} 1:{text if not colon else value}")
        values[int(number) - 1].append(value)
    return values


def refuse(given: Mapping[str, object], why: str = "goes with one kernel") -> None:
    """Raises InputError for an option that was given and does not go here."""
    for option, value in given.items():
        if value:
            raise InputError(f"{option}: {why}")
