"""A snapshot as a file: a versioned header, sections that are compressed and have a checksum each, and an end that says that all of it is there.

Knows the format. A file is written beside its place and renamed into it when it is on the medium, so that at each moment the old one or the new
one is whole. What cannot be read is refused with one line: damaged, cut off, of another kind, of a newer format. The parent of a snapshot that tells
changes is found by the name of its file, and checked by its identity.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, TypedDict, cast

import zstandard

from vmm.devices.disk import Point
from vmm.errors import InputError
from vmm.machine import FRAME
from vmm.snapshot import Snapshot
from vmm.snapshot.cpu import CpuState
from vmm.snapshot.devices import DeviceState

FORMAT = 1
_MAGIC = b"VMMSNAP\n"
_HEADER = struct.Struct("<8sI")
_SECTION = struct.Struct("<4sQQ16s")  # name, bytes, bytes as they stand here, checksum of name, bytes and what stands here
_CHUNK = 256  # frames in a section
_LARGEST = 16 << 20  # bytes of a section, and more than any has
_LONGEST_CHAIN = 1000


class _Meta(TypedDict):
    """The first section: what `Snapshot` says of them. sections: how many there are, the end not among them."""

    identity: str
    parent: str
    parent_file: str
    memory_size: int
    kind: str
    kernel: str
    now: int
    retired: int
    backend: str
    counted: bool
    disks: list[object]
    sections: int


def write(path: str, snapshot: Snapshot, parent_file: str = "") -> int:
    """Writes a snapshot, durable when this returns the size in bytes; parent_file: where its parent stands, in the same folder. Raises InputError."""
    beside = f"{path}.{os.getpid()}.part"
    try:
        with open(beside, "wb") as file:
            _write(file, snapshot, os.path.basename(parent_file), os.path.dirname(path))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.rename(beside, path)
        _sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    return size


def read(path: str) -> Snapshot:
    """The snapshot in a file, with its parents. Raises InputError("PATH: reason")."""
    chain = [_read(path)]
    while (parent := chain[-1][1]["parent_file"]) != "":
        if len(chain) > _LONGEST_CHAIN:
            raise InputError(f"{path}: its chain of parents has no end")
        chain.append(_read(os.path.join(os.path.dirname(path), os.path.basename(parent))))
        if chain[-1][1]["identity"] != chain[-2][1]["parent"]:
            raise InputError(f"{path}: {parent} is not the snapshot that it tells the changes from")
    snapshot: Snapshot | None = None
    for file, meta, sections in reversed(chain):
        snapshot = _made(file, meta, sections, snapshot)
    assert snapshot is not None
    return snapshot


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# -- writing -------------------------------------------------------------------------------------------------------------------------


def _write(file: BinaryIO, snapshot: Snapshot, parent_file: str, folder: str) -> None:
    frames = sorted(snapshot.frames)
    chunks = [frames[first : first + _CHUNK] for first in range(0, len(frames), _CHUNK)]
    meta: _Meta = {
        "identity": snapshot.identity,
        "parent": snapshot.parent.identity if snapshot.parent else "",
        "parent_file": parent_file,
        "memory_size": snapshot.memory_size,
        "kind": snapshot.kind,
        "kernel": snapshot.kernel,
        "now": snapshot.now,
        "retired": snapshot.retired,
        "backend": snapshot.backend,
        "counted": snapshot.counted,
        "disks": [[os.path.relpath(point.path, folder or "."), point.length] for point in snapshot.disks],
        "sections": 3 + len(chunks),
    }
    compressor = zstandard.ZstdCompressor(level=1)
    file.write(_HEADER.pack(_MAGIC, FORMAT))
    for name, part in ((b"META", meta), (b"CPU ", snapshot.cpu.plain()), (b"DEVS", snapshot.devices)):
        _section(file, compressor, name, json.dumps(part).encode())
    for chunk in chunks:
        numbers = struct.pack(f"<{len(chunk)}I", *chunk)
        _section(file, compressor, b"PAGE", numbers + b"".join([snapshot.frames[gfn] for gfn in chunk]))
    _section(file, compressor, b"END ", b"")


def _section(file: BinaryIO, compressor: zstandard.ZstdCompressor, name: bytes, data: bytes) -> None:
    packed = compressor.compress(data)
    file.write(_SECTION.pack(name, len(data), len(packed), _checksum(name, len(data), packed)))
    file.write(packed)


def _checksum(name: bytes, size: int, packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=16, salt=name + size.to_bytes(8, "little")).digest()


# -- reading -------------------------------------------------------------------------------------------------------------------------

Sections = list[tuple[bytes, bytes]]


def _read(path: str) -> tuple[str, _Meta, Sections]:
    """The file's name, what its first section says, and the others."""
    try:
        with open(path, "rb") as file:
            sections = list(_sections(path, file))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path or repr(path)}: {reason.lower()}") from None
    names = [name for name, _ in sections]
    if names[:3] != [b"META", b"CPU ", b"DEVS"] or set(names[3:]) - {b"PAGE"}:
        raise InputError(f"{path}: corrupt: its sections are not those of a snapshot")
    meta = _meta(path, _json(path, sections[0][1]))
    if meta["sections"] != len(sections) or meta["memory_size"] % (1 << 20) or not 1 <= meta["memory_size"] >> 20 <= 3072:
        raise InputError(f"{path}: corrupt: its description is not right")
    return path, meta, sections[1:]


def _meta(path: str, plain: object) -> _Meta:
    kinds = _Meta.__annotations__
    names = {name: str(kind.__forward_arg__).partition("[")[0] for name, kind in kinds.items()}
    if not isinstance(plain, dict) or plain.keys() != names.keys() or any(type(plain[name]).__name__ != kind for name, kind in names.items()):
        raise InputError(f"{path}: corrupt: its description is not one of a snapshot")
    return cast("_Meta", plain)


def _sections(path: str, file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[:8] != _MAGIC:
        raise InputError(f"{path}: not a snapshot")
    (version,) = struct.unpack_from("<I", head, 8)
    if version != FORMAT:
        newer = "a newer" if version > FORMAT else "an unknown"
        raise InputError(f"{path}: of {newer} format ({version}); this version reads {FORMAT}")
    decompressor = zstandard.ZstdDecompressor()
    while True:
        head = file.read(_SECTION.size)
        if len(head) < _SECTION.size:
            raise InputError(f"{path}: cut off: its end is missing")
        name, size, stored, checksum = _SECTION.unpack(head)
        if size > _LARGEST or stored > _LARGEST:
            raise InputError(f"{path}: corrupt: a section of {max(size, stored)} bytes")
        packed = file.read(stored)
        if len(packed) < stored:
            raise InputError(f"{path}: cut off: its end is missing")
        if _checksum(name, size, packed) != checksum:
            raise InputError(f"{path}: corrupt: a checksum is wrong")
        try:
            data = decompressor.decompress(packed, max_output_size=size) if size else b""
        except zstandard.ZstdError:
            raise InputError(f"{path}: corrupt: a section cannot be decompressed") from None
        if len(data) != size:
            raise InputError(f"{path}: corrupt: a section of another size")
        if name == b"END ":
            return
        yield name, data


def _json(path: str, data: bytes) -> object:
    try:
        return cast("object", json.loads(data))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: corrupt: a section cannot be read") from None


def _made(path: str, meta: _Meta, sections: Sections, parent: Snapshot | None) -> Snapshot:
    frames: dict[int, bytes] = {}
    count = meta["memory_size"] // FRAME
    for _, data in sections[2:]:
        number, rest = divmod(len(data), FRAME + 4)
        numbers = struct.unpack_from(f"<{number}I", data)
        if rest or any(gfn >= count for gfn in numbers):
            raise InputError(f"{path}: corrupt: frames that the guest has not")
        frames.update((gfn, data[4 * number + FRAME * n : 4 * number + FRAME * (n + 1)]) for n, gfn in enumerate(numbers))
    if parent is not None and parent.memory_size != meta["memory_size"]:
        raise InputError(f"{path}: its parent has memory of another size")
    devices = _json(path, sections[1][1])
    try:
        if not isinstance(devices, dict) or not all(isinstance(one, dict) for one in devices.values()):
            raise InputError("snapshot: its devices are none")
        cpu = CpuState.from_plain(_json(path, sections[0][1]))
        disks = tuple(_point(path, point) for point in meta["disks"])
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('snapshot: ')}") from None
    return Snapshot(
        parent=parent,
        cpu=cpu,
        devices=cast("DeviceState", devices),
        frames=frames,
        disks=disks,
        identity=meta["identity"],
        memory_size=meta["memory_size"],
        kind=meta["kind"],
        kernel=meta["kernel"],
        now=meta["now"],
        retired=meta["retired"],
        backend=meta["backend"],
        counted=meta["counted"],
    )


def _point(path: str, point: object) -> Point:
    match point:
        case [str(name), int(length)] if length >= 0 and "\0" not in name:
            return Point(os.path.normpath(os.path.join(os.path.dirname(path), name)), length)
        case _:
            raise InputError("corrupt: a disk is none")
