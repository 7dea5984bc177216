"""Any file either loads or is refused: nothing else happens, and a refused one leaves memory as it was."""

import gzip
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.boot.images import MIB, RecordingMemory, boot, elf_file, multiboot_header
from vmm.errors import InputError

SYMBOLS = [("start", MIB + 12, 4, 0x12, 1), ("data", MIB + 16, 4, 0x11, 1)]
ELF = elf_file(header=multiboot_header(), symbols=SYMBOLS)
FLAT = multiboot_header(0x10003, [MIB, MIB, 0, MIB + 256, MIB + 32]) + bytes(32)
SEEDS = [ELF, FLAT, elf_file(symbols=SYMBOLS), gzip.compress(ELF)]

EDGES = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x1_0000, MIB, 2 * MIB, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]
words = st.sampled_from(EDGES).map(lambda word: word.to_bytes(4, "little"))
patches = st.lists(st.tuples(st.integers(0, 400), words | st.binary(min_size=1, max_size=8)), max_size=6)


@settings(max_examples=400)
@given(st.sampled_from(SEEDS), patches, st.none() | st.integers(0, 400), st.booleans())
@example(ELF, [], None, True)
def test_mutated_images_load_or_are_refused(image: bytes, changes: list[tuple[int, bytes]], cut: int | None, packed: bool) -> None:
    """RecordingMemory refuses writes outside; every name is asked for, since symbols are parsed late."""
    mutated = bytearray(image)
    for offset, data in changes:
        mutated[offset : offset + len(data)] = data
    mutated = mutated[:cut]
    memory = RecordingMemory()
    with tempfile.TemporaryDirectory() as folder:
        try:
            start, _ = boot(Path(folder), gzip.compress(mutated, 1) if packed else bytes(mutated), memory)
        except InputError as error:
            assert memory.writes == 0
            assert str(error).startswith(folder) and "\n" not in str(error)
            return
    assert 0 <= start.entry < memory.size
    assert start.symbols.name(start.entry)
    if start.kind == "multiboot":
        assert memory.words(start.ebx, 1)[0] & 0x24F == 0x24F
