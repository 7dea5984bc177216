"""`vmm new`: writes a starter kernel into a new folder.

Knows the list of files in tools/starter and nothing of what is in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vmm.errors import InputError

STARTER: Final = Path(__file__).resolve().parent / "starter"
FILES: Final = ("README.md", "Makefile", "boot.S", "kernel.c", "kernel.ld", "test_kernel.py")


def write_starter(folder: str) -> list[Path]:
    """Writes the starter into `folder`, made if need be; returns the files. Raises InputError unless the folder is new or empty."""
    target = Path(folder)
    try:
        if target.is_dir():
            if any(target.iterdir()):
                raise InputError(f"{folder}: is not empty")
        elif target.exists():
            raise InputError(f"{folder}: is not a folder")
        target.mkdir(parents=True, exist_ok=True)
        return [_write(target / name, (STARTER / f"{name}.in").read_bytes()) for name in FILES]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{folder or repr(folder)}: {reason.lower()}") from None


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
