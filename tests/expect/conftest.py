"""The flag that takes what the translator emits now as what it is to emit: `pytest tests/expect --accept`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write the golden files of tests/expect anew")
