"""An initial RAM disk for Linux guests: BusyBox, a script that starts its shell on the console, and files of one's own.

Knows the downloaded guests, and the cpio format that the kernel unpacks (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
Knows no VMM.

    python -m tools.initrd [--for GUEST] OUT [FILE...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.fetch_guests import extras, guest

READY: Final = "ready for commands"
BUSYBOX: Final[Mapping[str, str]] = {"linux-pae": "busybox", "linux": "busybox", "linux-amd64": "busybox-amd64"}
"""Which BusyBox each downloaded kernel can run."""
_INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
/bin/busybox --install -s /bin
export PATH=/bin PS1='# '
mount -t proc proc /proc
mount -t sysfs sys /sys
echo {READY}
exec sh -i
"""
_FOLDER, _PROGRAM, _FILE = 0o040755, 0o100755, 0o100644


def make_initrd(busybox: bytes, files: dict[str, bytes] | None = None) -> bytes:
    """The archive, with `files` by their paths."""
    entries = [(name, b"", _FOLDER) for name in ("bin", "dev", "proc", "sys", "tmp")]
    entries += [("bin/busybox", busybox, _PROGRAM), ("init", _INIT.encode(), _PROGRAM)]
    entries += [(name, data, _FILE) for name, data in (files or {}).items()]
    archive = b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1)) + _entry(0, "TRAILER!!!", b"", 0)
    return archive + bytes(-len(archive) % 512)


def _entry(number: int, name: str, data: bytes, mode: int) -> bytes:
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + path
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0 when the RAM disk was written, else 2 after one line."""
    parser = argparse.ArgumentParser(prog="python -m tools.initrd", description="Make a RAM disk with a shell for a downloaded Linux.")
    parser.add_argument("--for", dest="kernel", default="linux-pae", choices=BUSYBOX, help="whose programs and drivers (default: %(default)s)")
    parser.add_argument("out", type=Path, metavar="OUT", help="the RAM disk's file")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="what lies in its root folder beside the drivers, such as modules")
    given = parser.parse_args(arguments)
    busybox = guest(BUSYBOX[given.kernel])
    if busybox is None:
        print(f"{BUSYBOX[given.kernel]}: not there (python -m tools.fetch_guests)", file=sys.stderr)
        return 2
    try:
        files = {path.name: path.read_bytes() for path in (*extras(given.kernel), *given.files)}
        given.out.write_bytes(make_initrd(busybox.read_bytes(), files))
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
