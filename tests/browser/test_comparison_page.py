"""The page of `vmm compare --html` in a headless Chromium: what it shows of a comparison, in light and dark, and that it needs nothing else."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest

from tests.browser.conftest import Browser
from tools.cli import status
from tools.compare import as_html
from tools.compare.results import CellResult, Comparison, RowResult


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small comparison, in which one cell cannot run."""
    path = tmp_path_factory.mktemp("page") / "compared.html"
    ways = "native,bt,bt-trap,pv,hw,hw-shadow,unicorn"
    assert status(["compare", "nano", "--rows", "cr3wr,divzero", "--backends", ways, "--rounds", "1", "--html", str(path)]) == 0
    return path


def test_each_row_has_its_charts(browser: Browser, page: Path) -> None:
    """A card for each row: a bar for each way that ran, exits broken down by reason, and an answer."""
    browser.open(page)
    assert browser.value("[...document.querySelectorAll('[data-row]')].map(card => card.dataset.row)") == ["cr3wr", "divzero"]
    for row in ("cr3wr", "divzero"):
        assert browser.value(f"document.querySelectorAll('[data-row={row}] svg').length") == 2
        assert browser.value(f"document.querySelectorAll('[data-row={row}] svg')[0].querySelectorAll('rect').length") == 7
    words = browser.text("[data-row=divzero]")
    assert "the bare engine cannot" in words and "exception 0" in words and "0 exits, in guest mode" in words
    widths = browser.value("[...document.querySelectorAll('[data-row=cr3wr] svg')[0].querySelectorAll('rect')].map(bar => bar.getBBox().width)")
    assert isinstance(widths, list) and all(width > 1 for width in widths)
    assert widths[5] > widths[4], "an exit for each load of CR3 is seen"


def test_published_figures_are_marked(browser: Browser, page: Path) -> None:
    """Two tables of others with their source, and ours between them; every price says where it is from."""
    browser.open(page)
    assert browser.count(".published") == 2 and browser.count(".ours") == 1
    assert "ASPLOS 2006" in browser.text(".published") and "Modelled" in browser.text(".ours")
    assert browser.count("#prices + .scroll tr") > 10


def test_it_needs_nothing_else(browser: Browser, page: Path) -> None:
    """No script, no address of anything outside, and nothing is fetched."""
    browser.open(page)
    assert browser.value("performance.getEntriesByType('resource').length") == 0
    assert not re.search(r"https?://|<script|\ssrc=|@import|<link", page.read_text())


def test_light_and_dark(browser: Browser, page: Path) -> None:
    """The page follows the system, its bars too."""
    seen = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        browser.open(page)
        seen[scheme] = (
            browser.value("getComputedStyle(document.body).backgroundColor"),
            browser.value("getComputedStyle(document.querySelector('[data-row] rect')).fill"),
        )
    browser.prefer("light")
    assert seen["light"][0] != seen["dark"][0] and seen["light"][1] != seen["dark"][1]


def test_nothing_from_outside_becomes_markup(browser: Browser, tmp_path: Path) -> None:
    """Reasons and names are text, whatever they look like; a comparison without rows is a page too."""
    bad = "</style><script>document.broken = 1</script>"
    rows = [RowResult(bad, bad, {"bt": CellResult(bad), "hw": CellResult(time_ns=5, architectural={bad: 1.0})})]
    for name, found in (("bad", Comparison(bad, 1, False, rows)), ("none", Comparison("", 1, True, []))):
        text = StringIO()
        as_html.write(found, text)
        path = tmp_path / f"{name}.html"
        path.write_text(text.getvalue())
        browser.open(path)
        assert browser.value("document.broken === undefined") and browser.text("h1")
