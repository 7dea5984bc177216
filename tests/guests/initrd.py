"""An initial RAM disk for Linux guests: BusyBox and a script that starts its shell on the console.

Knows the cpio format that the kernel unpacks (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Knows no VMM.
"""

from __future__ import annotations

READY = "ready for commands"
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
