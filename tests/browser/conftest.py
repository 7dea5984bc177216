"""A headless Chromium, driven through its own driver, and pages for it to open."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.require import require

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-dev-shm-usage", "--window-size=1600,1100",
)  # fmt: skip


class Browser:
    """What tests do with a page of a dump."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> float:
        """Opens a page; returns the seconds until it could be used."""
        self.driver.get("about:blank")
        began = time.monotonic()
        self.driver.get(path.as_uri())
        self.until("document.documentElement.dataset.ready")
        return time.monotonic() - began

    def until(self, expression: str) -> object:
        """Waits until an expression in the page is true, and returns it."""
        end = time.monotonic() + 30
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"never so: {expression}"
            time.sleep(0.02)
        return value

    def value(self, expression: str) -> object:
        """An expression in the page."""
        return self.driver.execute_script(f"return {expression}")

    def text(self, selector: str) -> str:
        """The text of the first element that a selector finds."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).textContent"))

    def count(self, selector: str) -> int:
        """How many elements a selector finds."""
        return int(str(self.value(f"document.querySelectorAll({json.dumps(selector)}).length")))

    def click(self, selector: str) -> None:
        """Clicks on the first element that a selector finds, where it stands."""
        element = self.driver.find_element("css selector", selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def search(self, text: str) -> str:
        """Types into the search field; returns what the page says that it found."""
        field = self.driver.find_element("id", "search")
        field.clear()
        field.send_keys(text)
        self.driver.execute_script("find()")  # what the page does a moment after the last key
        return self.text("#found")

    def prefer(self, scheme: str) -> None:
        """What the system is said to prefer: "light" or "dark"."""
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser, with a profile of its own."""
    options = ChromeOptions()
    options.binary_location = require("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(require("chromedriver")))
    try:
        yield Browser(driver)
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        driver.quit()
