"""The configuration of a VM: what is written can be read, and what is wrong is named with its line."""

import pytest

from vmm.errors import InputError
from vmm.store.config import Config, parse, text_of


@pytest.mark.parametrize(
    "config",
    [
        Config(kernel="hello"),
        Config(kernel="/a b/k\\\"'\n\x01é", append='x="y" z', initrd="i", memory=64, backend="hw", mmu="nested", icount=True, disks=("a", '"b"')),
        Config(kernel="k", append=""),
    ],
)
def test_what_is_written_is_read(config: Config) -> None:
    """Each value, whatever stands in it; with a comment on each line."""
    assert parse("f", text_of(config)) == config
    assert text_of(config).count("#") >= 8


@pytest.mark.parametrize(
    "text, said",
    [
        ('kernel = "k"\n\ncolour = 1\n', "f:3: colour: no such key"),
        ('kernel = "k"\nmemory = "64"\n', "f:2: memory: must be a number"),
        ('kernel = "k"\nmemory = true\n', "f:2: memory: must be a number"),
        ('memory = 0\nkernel = "k"\n', "f:1: memory: must be 1 to"),
        ("kernel = 5\n", "f:1: kernel: must be a text"),
        ("memory = 5\n", "f:1: kernel: is missing"),
        ('kernel = "k"\nbackend = "kvm"\n', "f:2: backend: must be one of auto"),
        ('kernel = "k"\ndisks = [1]\n', "f:2: disks: must be a list of texts"),
        ('kernel = "k"\ndisks = ["a", "b", "c", "d", "e"]\n', "f:2: disks: there are only 4"),
        ('kernel = "k"\n[colour]\nx = 1\n', "f:2: colour: no such key"),
        ('kernel = "k\nmemory = 1\n', "f:1: "),
        ('kernel = "k"\nkernel = "l"\n', "f:2: "),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, said: str) -> None:
    """By key and line."""
    with pytest.raises(InputError) as error:
        parse("f", text)
    assert str(error.value).startswith(said)
