"""The back-end that `auto` chooses for what a kernel's file says of itself."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.unit.boot.images import elf_file, multiboot_header
from tests.unit.boot.test_linux import KERNEL, LONG_KERNEL, bzimage
from tools.technique import Technique, options_of
from vmm.errors import InputError


@pytest.mark.parametrize(
    ("image", "backend"),
    ((bzimage(gzip.compress(KERNEL)), "hw"), (LONG_KERNEL, "hw"), (elf_file(header=multiboot_header()), "bt"), (b"no kernel at all", "bt")),
    ids=("bzImage", "vmlinux", "multiboot", "unknown"),
)
def test_auto(tmp_path: Path, image: bytes, backend: str) -> None:
    """A Linux image or a 64-bit kernel is run by hw, a multiboot kernel by bt, and what is no kernel is left to the loader to refuse."""
    file = tmp_path / "kernel"
    file.write_bytes(image)
    assert options_of(Technique(kernel=str(file))).backend == backend


def test_a_bios() -> None:
    """Runs under hw with nested paging, whether that is asked for or not, and under nothing else."""
    for words in ({}, {"backend": "hw"}, {"mmu": "nested"}):
        options = options_of(Technique(bios="bios", **words))
        assert options.backend == "hw"
        assert options.mmu == "nested"  # type: ignore[attr-defined]
    for words in ({"backend": "bt"}, {"backend": "native"}, {"mmu": "shadow"}):
        with pytest.raises(InputError, match="^--bios bios: a BIOS starts in real mode"):
            options_of(Technique(bios="bios", **words))


def test_words_of_another_technique(tmp_path: Path) -> None:
    """What was chosen by itself refuses what it cannot use, by name."""
    file = tmp_path / "kernel"
    file.write_bytes(bzimage(gzip.compress(KERNEL)))
    with pytest.raises(InputError, match=r"^--ring 1: --backend hw has no such choice"):
        options_of(Technique(kernel=str(file), ring="1"))
