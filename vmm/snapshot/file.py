"""A snapshot as a file: a versioned header, sections that are compressed and have a checksum each, and an end that says that all of it is there.

Knows the format. A file is written beside its place and renamed into it when it is on the medium, so that at each moment the old one or the new
one is whole. What cannot be read is refused with one line: damaged, cut off, of another kind, of a newer format. The parent of a snapshot that tells
changes is found by the name of its file, and checked by its identity.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, TypedDict, cast

from vmm.boot.bios import LARGEST_OPTION_ROM, Bios, is_image
from vmm.devices.disk import Point
from vmm.errors import InputError
from vmm.machine import FRAME
from vmm.snapshot import Snapshot
from vmm.snapshot.cpu import CpuState
from vmm.snapshot.devices import DeviceState
from vmm.snapshot.domain import DomainState
from vmm.snapshot.sections import HEADER, Damaged, pack, stored, unpack

FORMAT = 2
_READABLE = (1, FORMAT)  # the first knew PCs without firmware only
_MAGIC = b"VMMSNAP\n"
_HEADER = struct.Struct("<8sI")
CHUNK = 256
"""Frames in a section."""
_LONGEST_CHAIN = 1000
_BIOS = struct.Struct("<I")  # bytes of the image, behind which the VGA's stands


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
        snapshot = made(file, meta, sections, snapshot)
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
    file.write(_HEADER.pack(_MAGIC, FORMAT))
    for section in packed(snapshot, parent_file, folder):
        file.write(section)


def packed(snapshot: Snapshot, parent_file: str, folder: str) -> Iterator[bytes]:
    """The sections of a snapshot, with names of files as they are from a folder."""
    frames = sorted(snapshot.frames)
    chunks = [frames[first : first + CHUNK] for first in range(0, len(frames), CHUNK)]
    extra: dict[bytes, bytes] = {}
    if snapshot.domain is not None:
        extra[b"DOMN"] = json.dumps(snapshot.domain).encode()
    if snapshot.bios is not None:
        extra[b"BIOS"] = _BIOS.pack(len(snapshot.bios.image)) + snapshot.bios.image + snapshot.bios.vga_bios
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
        "sections": 3 + len(extra) + len(chunks),
    }
    for name, part in ((b"META", meta), (b"CPU ", snapshot.cpu.plain()), (b"DEVS", snapshot.devices)):
        yield pack(name, json.dumps(part).encode())
    for name, data in extra.items():
        yield pack(name, data)
    for chunk in chunks:
        yield pack(b"PAGE", pages(snapshot.frames, chunk))
    yield pack(b"END ", b"")


def pages(frames: Mapping[int, bytes], chosen: Sequence[int]) -> bytes:
    """The data of a section with some frames."""
    return struct.pack(f"<{len(chosen)}I", *chosen) + b"".join([frames[gfn] for gfn in chosen])


def frames_of(data: bytes, count: int) -> dict[int, bytes]:
    """The frames in such a section, of a memory of so many. Raises Damaged."""
    number, rest = divmod(len(data), FRAME + 4)
    numbers = struct.unpack_from(f"<{number}I", data)
    if rest or any(gfn >= count for gfn in numbers):
        raise Damaged("frames that the guest has not")
    return {gfn: data[4 * number + FRAME * n : 4 * number + FRAME * (n + 1)] for n, gfn in enumerate(numbers)}


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
    return path, *checked(path, sections)


def checked(path: str, sections: Sections) -> tuple[_Meta, Sections]:
    """What the first of the sections says, and the others. Raises InputError when they are not those of a snapshot."""
    names = [name for name, _ in sections]
    if names[:3] != [b"META", b"CPU ", b"DEVS"] or set(names[3:]) - {b"DOMN", b"BIOS", b"PAGE"}:
        raise InputError(f"{path}: corrupt: its sections are not those of a snapshot")
    meta = _meta(path, _json(path, sections[0][1]))
    if meta["sections"] != len(sections) or meta["memory_size"] % (1 << 20) or not 1 <= meta["memory_size"] >> 20 <= 3072:
        raise InputError(f"{path}: corrupt: its description is not right")
    return meta, sections[1:]


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
    if version not in _READABLE:
        newer = "a newer" if version > FORMAT else "an unknown"
        raise InputError(f"{path}: of {newer} format ({version}); this version reads {FORMAT}")
    while True:
        head = file.read(HEADER.size)
        try:
            packed = file.read(stored(head)) if len(head) == HEADER.size else b""
            if len(head) < HEADER.size or len(packed) < stored(head):
                raise InputError(f"{path}: cut off: its end is missing")
            name, data = unpack(head, packed)
        except Damaged as damage:
            raise InputError(f"{path}: corrupt: {damage}") from None
        if name == b"END ":
            return
        yield name, data


def _json(path: str, data: bytes) -> object:
    try:
        return cast("object", json.loads(data))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: corrupt: a section cannot be read") from None


def made(path: str, meta: _Meta, sections: Sections, parent: Snapshot | None) -> Snapshot:
    """The snapshot that checked sections tell of. path: where names of files count from. Raises InputError."""
    frames: dict[int, bytes] = {}
    count = meta["memory_size"] // FRAME
    domain: object = None
    bios: Bios | None = None
    for name, data in sections[2:]:
        try:
            if name == b"PAGE":
                frames.update(frames_of(data, count))
            elif name == b"DOMN":
                domain = _json(path, data)
            else:
                bios = _bios(meta["kernel"], data)
        except Damaged as damage:
            raise InputError(f"{path}: corrupt: {damage}") from None
    if domain is not None and not isinstance(domain, dict):
        raise InputError(f"{path}: its domain is none")
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
        domain=cast("DomainState | None", domain),
        bios=bios,
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


def _bios(name: str, data: bytes) -> Bios:
    """Raises Damaged."""
    size = _BIOS.unpack_from(data)[0] if len(data) > _BIOS.size else 0
    image, vga_bios = data[_BIOS.size : _BIOS.size + size], data[_BIOS.size + size :]
    if not is_image(image) or len(image) != size or len(vga_bios) > LARGEST_OPTION_ROM:
        raise Damaged("a BIOS that is none")
    return Bios(name, image, vga_bios)


def _point(path: str, point: object) -> Point:
    match point:
        case [str(name), int(length)] if length >= 0 and "\0" not in name:
            return Point(os.path.normpath(os.path.join(os.path.dirname(path), name)), length)
        case _:
            raise InputError("corrupt: a disk is none")
