"""Names for addresses and addresses for names."""

from pathlib import Path

import pytest

from tests.unit.boot.images import CODE, MIB, boot, elf_file, multiboot_header
from vmm.boot import Symbols
from vmm.errors import InputError

VIRTUAL = 0x8010_0000
FUNC, NOTYPE, GLOBAL_FUNC, GLOBAL_OBJECT = 0x02, 0x00, 0x12, 0x11


@pytest.fixture
def symbols(tmp_path: Path) -> Symbols:
    """A kernel linked at 80100000h and loaded at 1 MiB, as xv6 is."""
    image = elf_file(
        segments=[(VIRTUAL, MIB, multiboot_header() + CODE, 0x1000)],
        entry=MIB + 12,
        symbols=[
            ("entry", VIRTUAL + 12, 0, NOTYPE, 1),
            ("main", VIRTUAL + 0x100, 0x20, GLOBAL_FUNC, 1),
            (".Lmain", VIRTUAL + 0x100, 0, NOTYPE, 1),
            ("same", VIRTUAL + 0x200, 4, FUNC, 1),
            ("same", VIRTUAL + 0x300, 4, GLOBAL_FUNC, 1),
            ("data", VIRTUAL + 0x400, 4, GLOBAL_OBJECT, 1),
            ("length", VIRTUAL + 0x20, 0, NOTYPE, 0xFFF1),
            ("elsewhere", 0, 0, 0x10, 0),
            ("file.c", 0, 0, 0x04, 0xFFF1),
        ],
    )
    return boot(tmp_path, image)[0].symbols


def test_names(symbols: Symbols) -> None:
    """An address has the name of what it lies in; between functions and outside the image it has none."""
    assert symbols.name(VIRTUAL + 0x100) == "main"
    assert symbols.name(VIRTUAL + 0x11F) == "main+0x1f"
    assert symbols.name(VIRTUAL + 0x120) == "0x80100120"
    assert symbols.name(VIRTUAL + 0x40) == "entry+0x34"
    assert symbols.name(VIRTUAL + 0x402) == "data+0x2"
    assert symbols.name(VIRTUAL) == "0x80100000"
    assert symbols.name(VIRTUAL + 0x1000) == "0x80101000"
    assert symbols.name(0) == "0x0"


def test_physical_addresses_have_names_too(symbols: Symbols) -> None:
    """Before paging is on EIP is a physical address."""
    assert symbols.name(MIB + 12) == "entry"


def test_addresses(symbols: Symbols) -> None:
    """A global symbol goes before a local one, and a constant has its value."""
    assert symbols.address("main") == VIRTUAL + 0x100
    assert symbols.address("same") == VIRTUAL + 0x300
    assert symbols.address("length") == VIRTUAL + 0x20
    assert len(symbols) == 6


def test_unknown_names_suggest_near_ones(symbols: Symbols) -> None:
    """A typing mistake is answered with what was meant; undefined symbols do not count."""
    with pytest.raises(InputError, match=r"^mian: no such symbol in .*\(did you mean main"):
        symbols.address("mian")
    with pytest.raises(InputError, match=r"^elsewhere: no such symbol"):
        symbols.address("elsewhere")


def test_an_image_without_symbols(tmp_path: Path) -> None:
    """A flat binary names nothing and says so."""
    none = boot(tmp_path, CODE, address=MIB)[0].symbols
    assert none.name(MIB) == "0x100000"
    with pytest.raises(InputError, match="has no symbols"):
        none.address("main")


@pytest.mark.parametrize("table", [b"x", b"\xff" * 16, b"\xff" * 33])
def test_broken_tables_name_nothing(table: bytes) -> None:
    """Symbols are never a reason not to run a kernel."""
    assert Symbols("kernel", table, b"\0main").name(5) == "0x5"
