"""What a Xen kernel says of itself, in both forms; what is wrong with it is one line that says what was found."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen_kernel import BASE, CODE, HYPERCALLS, elf, kernel, note, notes
from vmm.boot.xen import load_domain
from vmm.boot.xen_notes import XenNotes, has_xen_notes, read_xen_notes
from vmm.errors import InputError

CONTENTS = bytes(0x2000)


def with_section(text: bytes) -> bytes:
    """An ELF file without notes and with a `__xen_guest` section."""
    image = bytearray(elf(CONTENTS, b""))
    names = b"\0__xen_guest\0.shstrtab\0"
    sections = [struct.pack("<10I", *[0] * 10)]
    sections.append(struct.pack("<10I", 1, 1, 0, 0, len(image), len(text), 0, 0, 1, 0))
    sections.append(struct.pack("<10I", 13, 3, 0, 0, len(image) + len(text), len(names), 0, 0, 1, 0))
    struct.pack_into("<I", image, 32, len(image) + len(text) + len(names))
    struct.pack_into("<3H", image, 46, 40, 3, 2)
    return bytes(image) + text + names + b"".join(sections)


def test_notes() -> None:
    """ELF notes of owner Xen."""
    assert read_xen_notes("k", elf(CONTENTS, notes())) == XenNotes(BASE, BASE, CODE, HYPERCALLS)
    assert read_xen_notes("k", elf(CONTENTS, notes(entry=None, hypercall=None, base=None, offset=None))) == XenNotes(0, 0, None, None)


def test_the_older_section() -> None:
    """Keys and values; the hypercall page is a page number; a missing physical offset is the virtual base."""
    image = with_section(b"GUEST_OS=x,VIRT_BASE=0xC0000000,HYPERCALL_PAGE=0x2,PAE=yes[extended-cr3],LOADER=generic\0")
    assert read_xen_notes("k", image) == XenNotes(BASE, BASE, None, BASE + 0x2000)
    assert has_xen_notes(image)


def test_who_is_a_guest() -> None:
    """`auto` chooses pv for paravirtual kernels, sound or not; not for those that know Xen in another way."""
    assert has_xen_notes(elf(CONTENTS, notes(pae=None)))
    assert not has_xen_notes(elf(CONTENTS, note(18, bytes(4)) + note(9, b"yes\0")))
    assert not has_xen_notes(elf(CONTENTS, b""))
    assert not has_xen_notes(b"\x7fELF\2" + elf(CONTENTS, notes())[5:])


def test_a_last_note_without_its_padding() -> None:
    """GRUB's counts padding that the file does not have."""
    assert read_xen_notes("k", elf(CONTENTS, notes(pae=None) + struct.pack("<3I", 4, 12, 9) + b"Xen\0yes\0")).virt_base == BASE


@pytest.mark.parametrize(("image", "text"), [
    (elf(CONTENTS, b""), "neither Xen notes nor"),
    (elf(CONTENTS, note(9, b"yes\0", b"GNU\0")), "neither Xen notes nor"),
    (elf(CONTENTS, note(18, bytes(4)) + note(9, b"yes\0")), "for Xen's PVH mode only"),
    (elf(CONTENTS, notes(pae=None)), "without PAE (its notes say 'no')"),
    (elf(CONTENTS, notes(pae=b"no\0")), "without PAE"),
    (elf(CONTENTS, notes(base=b"\1\2")), "the virtual base is 0102"),
    (elf(CONTENTS, notes(base=struct.pack("<I", 0xC0000010))), "no page"),
    (elf(CONTENTS, notes(base=struct.pack("<I", 0xF6000000))), "no page below"),
    (elf(CONTENTS, notes(hypercall=struct.pack("<I", 0x1000))), "the hypercall page 0x1000 is no page above"),
    (with_section(b"VIRT_BASE=what,PAE=yes"), "VIRT_BASE='what' is not a 32-bit number"),
    (with_section(b"HYPERCALL_PAGE=0xFFFFFFF,PAE=yes"), "above 4 GiB"),
    (with_section(b"VIRT_BASE=0"), "without PAE"),
])  # fmt: skip
def test_bad_notes(image: bytes, text: str) -> None:
    """Each is refused in one line."""
    with pytest.raises(InputError) as caught:
        read_xen_notes("k", image)
    assert str(caught.value).startswith("k: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


class _Memory:
    """Memory that only keeps what is written."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.written: dict[int, bytes] = {}

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(size)

    def write(self, gpa: int, data: bytes) -> None:
        self.written[gpa] = data


@given(st.binary(max_size=200), st.integers(0, 250))
def test_any_notes(data: bytes, at: int) -> None:
    """Random bytes over a sound kernel's notes and headers are accepted or refused, never a traceback."""
    image = bytearray(elf(CONTENTS[:64], notes()))
    image[at : at + len(data)] = data
    for read in (lambda: read_xen_notes("k", bytes(image)), lambda: has_xen_notes(bytes(image))):
        try:
            read()
        except InputError:
            pass


@pytest.mark.parametrize(("image", "memory", "how", "text"), [
    (b"\x7fELF\2" + kernel({CODE: "nop"})[5:], 8, {}, "64-bit kernel"),
    (b"no ELF at all", 8, {}, "not an ELF file"),
    (elf(CONTENTS, notes(hypercall=struct.pack("<I", BASE + 0x100000))), 8, {}, "lies outside the kernel"),
    (elf(CONTENTS, notes(entry=struct.pack("<I", BASE + 0x100000))), 8, {}, "the entry 0xc0100000 lies outside the kernel"),
    (elf(CONTENTS, notes(entry=struct.pack("<I", BASE - 4))), 8, {}, "the entry 0xbffffffc lies outside the kernel"),
    (elf(CONTENTS, notes(), address=0x1000), 8, {}, "lies outside the guest's memory"),
    (elf(CONTENTS, notes(), size=16 << 20), 8, {}, "lies outside the guest's memory"),
    (elf(CONTENTS, notes(), size=(8 << 20) - 0x4000), 8, {}, "too little memory"),
    (kernel({CODE: "nop"}), 8, {"append": "x" * 1024}, "1023 bytes"),
    (kernel({CODE: "nop"}), 8, {"modules": ("a",), "initrd": "b"}, "either --initrd or --module"),
    (kernel({CODE: "nop"}), 8, {"initrd": "gone"}, "gone: "),
    (kernel({CODE: "nop"}), 8, {"modules": ("gone",)}, "gone: "),
])  # fmt: skip
def test_what_is_not_built(tmp_path: object, image: bytes, memory: int, how: dict[str, object], text: str) -> None:
    """Refused in one line, and nothing is written."""
    from pathlib import Path

    path = Path(str(tmp_path)) / "kernel"
    path.write_bytes(image)
    target = _Memory(memory << 20)
    with pytest.raises(InputError) as caught:
        load_domain(str(path), target, range(1, 1 + (memory << 8)), 0, **how)  # type: ignore[arg-type]
    assert text in str(caught.value)
    assert not target.written
