"""What holds for the tests that build machines: each test gives its machines back."""

import gc
from collections.abc import Iterator

import pytest

gc.freeze()  # what pytest and its plug-ins hold is not looked through again after each test


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """A VM is a knot of references to itself, and each holds an engine: hundreds of them alive slow everything down."""
    yield
    gc.collect()
