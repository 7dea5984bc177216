"""The configuration of a VM: a commented TOML file that a person edits.

Knows which keys there are and what each may be; a wrong one is named with its line. Runs nothing and opens no other file.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass

from vmm.errors import InputError

LARGEST_MEMORY = 3072
BACKENDS = ("auto", "bt", "hw", "trap", "step", "native", "pv")
MMUS = ("auto", "shadow", "nested", "direct")

TEMPLATE = """\
# A virtual machine. Changes take effect when it is started next.

kernel = {kernel}       # a bundled kernel's name (vmm kernels) or a file
bios = {bios}           # whether that file is a BIOS image instead, which boots a disk
append = {append}       # the kernel's command line; a bundled kernel that is given none has its own
initrd = {initrd}       # Linux's RAM disk, or boot modules
memory = {memory}       # MiB of guest memory
backend = {backend}     # auto, bt, hw, trap, step, native or pv (vmm run --help)
mmu = {mmu}             # auto, shadow, nested or direct
icount = {icount}       # whether virtual time is the number of instructions

# Raw images, up to four; relative names are in this folder. They are only read: what the guest writes goes to overlays beside the snapshots.
disks = {disks}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a VM is made of. append: None: a bundled kernel has its own. initrd: "" for none. memory: MiB."""

    kernel: str
    bios: bool = False
    append: str | None = None
    initrd: str = ""
    memory: int = 128
    backend: str = "auto"
    mmu: str = "auto"
    icount: bool = False
    disks: tuple[str, ...] = ()


_KINDS: dict[str, type] = {
    "kernel": str, "bios": bool, "append": str, "initrd": str, "memory": int, "backend": str, "mmu": str, "icount": bool, "disks": list,
}  # fmt: skip
_NAMES = {str: "a text in quotes", int: "a number", bool: "true or false", list: "a list of texts"}


def text_of(config: Config) -> str:
    """The file for a configuration, with its comments."""
    values = {name: _toml(getattr(config, name)) for name in _KINDS if name != "append"}
    lines = TEMPLATE.format(append=_toml(config.append or ""), **values)
    return lines if config.append is not None else re.sub(r"^append = ", "# append = ", lines, flags=re.MULTILINE)


def parse(path: str, text: str) -> Config:
    """The configuration in a file's text. Raises InputError("PATH:LINE: reason")."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+)", str(error))
        line = found[1] if found else str(text.count("\n") + 1)
        raise InputError(f"{path}:{line}: {str(error).partition(' (at ')[0].lower()}") from None
    for key, value in table.items():
        kind = _KINDS.get(key)
        if kind is None:
            raise InputError(f"{path}:{_line(text, key)}: {key}: no such key (there are {', '.join(_KINDS)})")
        if type(value) is not kind or isinstance(value, list) and not all(isinstance(one, str) for one in value):
            raise InputError(f"{path}:{_line(text, key)}: {key}: must be {_NAMES[kind]}")
    if not table.get("kernel"):
        raise InputError(f"{path}:1: kernel: is missing")
    table["disks"] = tuple(map(str, table.get("disks") or ()))
    config = Config(**table)
    for key, wrong, reason in (
        ("memory", not 1 <= config.memory <= LARGEST_MEMORY, f"must be 1 to {LARGEST_MEMORY} MiB"),
        ("backend", config.backend not in BACKENDS, f"must be one of {', '.join(BACKENDS)}"),
        ("mmu", config.mmu not in MMUS, f"must be one of {', '.join(MMUS)}"),
        ("disks", len(config.disks) > 4, "there are only 4 drives"),
    ):
        if wrong:
            raise InputError(f"{path}:{_line(text, key)}: {key}: {reason}")
    return config


def _line(text: str, key: str) -> int:
    """The line at which a key is set."""
    found = re.search(rf"^[ \t]*\[*[\"']?{re.escape(key)}\b", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _toml(value: str | int | bool | tuple[str, ...]) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in quoted) + '"'
