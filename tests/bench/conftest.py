"""What `make bench` needs of pytest: the marker, the fixture that keeps figures, and the table at the end."""

from collections.abc import Callable

import pytest

from tests.bench.report import ROWS, Figure, table, write

_FIGURES = pytest.StashKey[dict[str, Figure]]()

Keep = Callable[[str, float, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """--write: put the table into docs/PERFORMANCE.md."""
    parser.addoption("--write", action="store_true", help="write the table of the benchmarks to docs/PERFORMANCE.md")


def pytest_configure(config: pytest.Config) -> None:
    """The marker `bench`, and nothing measured yet."""
    config.addinivalue_line("markers", "bench: asserts a bound on a measured time or size; run by `make bench` alone")
    config.stash[_FIGURES] = {}


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Keep:
    """keep(row, value, made_of): puts a figure into the table, then fails when it exceeds its bound."""

    def keep(key: str, value: float, made_of: str) -> None:
        request.config.stash[_FIGURES][key] = Figure(value, made_of)
        assert value <= ROWS[key].bound, f"{ROWS[key].what}: {value:.3g} where {ROWS[key].bound:g} is allowed: {made_of}"

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the table, and writes it where that is wanted: only a whole one, so that the file holds figures of one run."""
    figures = config.stash[_FIGURES]
    terminalreporter.write_line("\n" + table(figures))
    if config.getoption("--write"):
        if figures.keys() == ROWS.keys():
            write(figures)
        else:
            terminalreporter.write_line(f"docs/PERFORMANCE.md stays as it is: not measured: {', '.join(ROWS.keys() - figures.keys())}")
