"""Values of options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import options
from vmm.errors import InputError


def test_sizes() -> None:
    """Units, and what a number without one means."""
    assert [options.memory(text) for text in ("128", "128M", "1G", "2048K", "1g")] == [128, 128, 1024, 2, 1024]
    assert [options.cache_size(text) for text in ("256K", "16M", "65536")] == [256 << 10, 16 << 20, 65536]


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5", "1T", "0", "3073", "1025K", "9" * 30, "²", "1 "])
def test_bad_memory(text: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(InputError, match=r"^-m "):
        options.memory(text)


@pytest.mark.parametrize("text", ["63K", "17M", "65537", "x"])
def test_bad_cache_sizes(text: str) -> None:
    """Too small, too large, uneven, and no number."""
    with pytest.raises(InputError, match=r"^--cache-size "):
        options.cache_size(text)


def test_other_values() -> None:
    """Seconds, addresses and kinds of log."""
    assert (options.seconds("0.5"), options.address("0x7c00"), options.address("16")) == (0.5, 0x7C00, 16)
    assert options.logs("int,io") == {"int", "io"}
    for text in ("inf", "-1", "1s", ""):
        with pytest.raises(InputError, match=r"^--timeout "):
            options.seconds(text)
    for text in ("-1", "0x100000000", "start", ""):
        with pytest.raises(InputError, match=r"^--address "):
            options.address(text)
    with pytest.raises(InputError, match="^-d "):
        options.logs("")


def test_files_to_be_written(tmp_path: Path) -> None:
    """A new file in a folder that is there, or an old one; it is not touched."""
    path = str(tmp_path / "file")
    assert options.writable(path) == path and not os.path.exists(path)
    assert options.writable("/dev/null") == "/dev/null"
    for bad in ("", str(tmp_path), str(tmp_path / "gone" / "file")):
        with pytest.raises(InputError):
            options.writable(bad)
