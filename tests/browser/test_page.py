"""The page of `vmm dump --format html` in a headless Chromium: what it says, how one gets about in it, how fast it opens."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from guest_kernels import kernels
from tests.browser.conftest import Browser
from tests.guests.dialogue import FINISHED, Dialogue, Step
from tests.guests.linux import OLD_PC
from tests.guests.test_gnumach import COMMAND_LINE, LAST_LINE, kernel
from tests.require import require_file
from tools.cli import status
from tools.dump import as_html
from tools.dump.command import dump_of
from tools.dump.heat import Heat
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from tools.report import record, show_statistics
from tools.session import Ended
from vmm.backends.bt import BtOptions
from vmm.vm import Vm, machine_for


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a bundled kernel, with counts."""
    path = tmp_path_factory.mktemp("page") / "rings.html"
    assert status(["dump", "rings", "--hot", "--format", "html", "-o", str(path)]) == 0
    return path


def data(path: Path) -> dict[str, object]:
    """The JSON in a page."""
    (text,) = re.findall(r'<script type="application/json" id="dump">\n(.*?)</script>', path.read_text(), re.DOTALL)
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def blocks(path: Path) -> list[dict[str, object]]:
    """The blocks in a page, by number."""
    found = data(path)["blocks"]
    assert isinstance(found, list)
    return sorted(found, key=lambda block: block["number"])


def test_gnumach_after_its_boot(browser: Browser, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The page opens in less than three seconds, and its totals are those of `--stats` and `--json` of the same run."""
    console = Dialogue([Step(LAST_LINE)])
    vm = Vm(machine_for(128), memory_mib=128, options=BtOptions(counted=True), console=console)
    console.attach(vm)
    vm.load(str(kernel()), append=COMMAND_LINE)
    heat = Heat()
    heat.attach(vm)
    stop = vm.run(60)
    assert stop.reason == FINISHED
    ended = Ended(vm, stop, 0)
    builder, dump = dump_of(ended, "gnumach", heat)
    path = tmp_path / "gnumach.html"
    with path.open("w") as file:
        as_html.write(dump, file, builder.blocks())
    assert min(browser.open(path) for _ in range(2)) < 3

    keys = ("blocks", "instructions", "identity_share", "growth", "in_cache", "callouts", "callout_exits")
    shown = {key: browser.text(f"#total-{key}") for key in keys}
    values = record(ended, "gnumach", 0)
    assert shown["blocks"] == f"{values['blocks']:,}" and shown["instructions"] == f"{values['instructions']:,}"
    assert values["translated"]["in_cache"] == int(shown["in_cache"].replace(",", ""))  # type: ignore[index]
    show_statistics(ended, {})
    printed = capfd.readouterr().err
    for name, expected in (
        ("blocks translated", shown["blocks"]),
        ("instructions in them", shown["instructions"]),
        ("identity share of their instructions", shown["identity_share"].replace(" %", "%")),
        ("in-cache emulations, callouts in them", f"{shown['in_cache']}, {shown['callouts']}"),
        ("growth: bytes for a byte of the guest's", shown["growth"].replace(" ×", "")),
    ):
        assert re.search(rf"{re.escape(name)} +{re.escape(expected)} ", printed), (name, expected, printed)
    assert shown["callout_exits"] == f"{sum(vm.stats.callouts.values()):,}"
    assert int(browser.text("#total-saved").replace(",", "")) > 1000
    assert browser.text("#found") == f"{values['blocks']:,} blocks"


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_linux_after_its_boot(browser: Browser, tmp_path: Path) -> None:
    """A third of a million instructions: the page opens in less than ten seconds, is searched in less than two, and shows each block at once."""
    console = Dialogue([Step(READY), Step("# ")])
    options = BtOptions()
    vm = Vm(machine_for(256, options), memory_mib=256, options=options, console=console)
    console.attach(vm)
    initrd = tmp_path / "initrd.cpio"
    initrd.write_bytes(make_initrd(require_file(guest("busybox"), "BusyBox (python -m tools.fetch_guests)").read_bytes()))
    vm.load(str(require_file(guest("linux-pae"), "Linux (python -m tools.fetch_guests)")), append=f"{OLD_PC} pti=off", initrd=str(initrd))
    stop = vm.run(400)
    assert stop.reason == FINISHED, console.text[-2000:]
    builder, dump = dump_of(Ended(vm, stop, 0), "linux", None)
    path = tmp_path / "linux.html"
    with path.open("w") as file:
        as_html.write(dump, file, builder.blocks())
    assert dump.totals.instructions > 300_000
    assert browser.open(path) < 10
    assert browser.text("#found") == f"{dump.totals.blocks:,} blocks"
    assert 0 < browser.count(".row") < 60
    began = time.monotonic()
    assert not browser.search("mov cr3").startswith("0 of")
    assert time.monotonic() - began < 10
    last = dump.totals.blocks - 1
    browser.driver.execute_script(f"go({last})")
    browser.until(f"chosen.number === {last} && document.querySelectorAll('tr.line').length > 0")


def test_it_needs_nothing_else(browser: Browser, rings: Path) -> None:
    """No address of anything outside stands in it, and nothing is fetched."""
    browser.open(rings)
    assert browser.value("performance.getEntriesByType('resource').length") == 0
    page = re.sub(r'<script type="application/json".*?</script>', "", rings.read_text(), flags=re.DOTALL)
    assert set(re.findall(r"https?://[^\s\"']+", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\ssrc=|@import|<link", page)


def test_search(browser: Browser, rings: Path) -> None:
    """By symbol, address and text, in guest code and in words; the first hit is opened by Enter, and its lines are marked."""
    browser.open(rings)
    every = len(blocks(rings))
    assert browser.search("") == f"{every} blocks"
    assert browser.search("tick") != f"{every} blocks"
    assert any("tick" in str(browser.value(f"listed[{at}].name")) for at in range(int(str(browser.value("listed.length")))))
    found = browser.search("0x100131")
    assert not found.startswith("0 of")
    assert browser.value("listed.every(block => block.entry <= 0x100131 && 0x100131 < block.last)")
    for words in ("clear virtual IF", "iret"):
        browser.search(words)
        numbers = browser.value("listed.map(block => block.number)")
        assert isinstance(numbers, list)
        assert sorted(numbers) == [block["number"] for block in blocks(rings) if words.lower() in json.dumps(block).lower()] != []
    browser.search("clear virtual IF")
    browser.driver.find_element("id", "search").send_keys("\n")
    browser.until("document.querySelector('tr.hit') !== null")
    assert "clear virtual IF" in browser.text("tr.hit")
    assert browser.search("no such thing <b>") == f"0 of {every} blocks" and browser.count(".row") == 0
    assert browser.search("") == f"{every} blocks"


def test_a_block_has_all_its_lines(browser: Browser, rings: Path) -> None:
    """The table of a block has a row for each instruction, with its text, class and count."""
    browser.open(rings)
    for block in blocks(rings)[::7]:
        browser.driver.execute_script(f"go({block['number']})")
        browser.until(f"chosen.number === {block['number']}")
        lines = block["lines"]
        assert isinstance(lines, list)
        assert browser.count("tr.line") == len(lines)
        assert browser.value("[...document.querySelectorAll('tr.line td.text')].map(cell => cell.textContent)") == [line["text"] for line in lines]
        assert browser.value("[...document.querySelectorAll('tr.line td.class')].map(cell => cell.textContent)") == [line["class"] for line in lines]
        counts = browser.value("[...document.querySelectorAll('tr.line td.count:first-child')].map(cell => cell.textContent)")
        assert counts == [f"{line.get('count', 0):,}" for line in lines]


def test_links_lead_to_blocks(browser: Browser, rings: Path) -> None:
    """A click on a node of the graph, or on the words of a jump, goes to the chained block; the browser's own way back leads back."""
    browser.open(rings)
    block = next(block for block in blocks(rings) if any(link.get("chained") and "block" in link for link in block.get("links", ())))  # type: ignore[attr-defined]
    links = {link["block"] for link in block["links"] if link.get("chained") and link["block"] != block["number"]}  # type: ignore[attr-defined]
    browser.driver.execute_script(f"go({block['number']})")
    browser.until(f"chosen.number === {block['number']}")
    target = int(str(browser.value("document.querySelectorAll('svg .node.go')[document.querySelectorAll('svg .node.go').length - 1].dataset.number")))
    assert target in links or links == set()
    browser.click(f"svg .node.go[data-number='{target}']")
    browser.until(f"location.hash === '#{target}' && chosen.number === {target}")
    assert blocks(rings)[target].get("name", "") in browser.text("#block h2")
    browser.driver.back()
    browser.until(f"chosen.number === {block['number']}")
    assert browser.count("svg path.chained") >= 1
    browser.click("td.words a.link")
    browser.until(f"chosen.number !== {block['number']}")
    assert browser.count(".row[aria-selected='true']") == 1


def test_light_and_dark(browser: Browser, rings: Path) -> None:
    """The page follows the system, until its switch is pressed; what was chosen stays."""
    grounds = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        browser.open(rings)
        browser.driver.execute_script("localStorage.clear()")
        browser.open(rings)
        grounds[scheme] = browser.value("getComputedStyle(document.body).backgroundColor")
    assert grounds["light"] != grounds["dark"]
    browser.click("#theme")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == grounds["light"]
    browser.open(rings)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == grounds["light"]
    browser.driver.execute_script("localStorage.clear()")
    browser.prefer("light")


def test_keys(browser: Browser, rings: Path) -> None:
    """A slash goes to the search field, j and k to the next block and the one before."""
    browser.open(rings)
    body = browser.driver.find_element("tag name", "body")
    first = browser.value("chosen.number")
    body.send_keys("j")
    browser.until(f"chosen.number !== {first}")
    body.send_keys("k")
    browser.until(f"chosen.number === {first}")
    body.send_keys("/")
    assert browser.value("document.activeElement.id") == "search"


def test_thousands_of_blocks(browser: Browser, tmp_path: Path) -> None:
    """Only the rows that are seen are there; 20,000 blocks open, scroll and search at once."""
    guest = kernels()["hello"]
    vm = Vm(machine_for(guest.memory_mib), memory_mib=guest.memory_mib)
    vm.load(str(guest.file))
    ended = Ended(vm, vm.run(10), 0)
    builder, dump = dump_of(ended, "many", None)
    small = min(builder.blocks(), key=lambda block: len(block.lines))
    many = [replace(small, number=number, name=f"block_{number}") for number in range(20_000)]
    path = tmp_path / "many.html"
    with path.open("w") as file:
        as_html.write(dump, file, many)
    assert browser.open(path) < 10
    assert browser.text("#found").startswith("20,000 blocks")
    assert 0 < browser.count(".row") < 60
    browser.driver.execute_script("document.getElementById('list').scrollTop = 1e9")
    browser.until("document.querySelector('.row:last-child .name').textContent === 'block_19999'")
    assert browser.search("block_12345") == "1 of 20,000 blocks"


def test_what_a_guest_calls_itself_is_text(browser: Browser, tmp_path: Path) -> None:
    """A symbol or a file's name that looks like HTML stays what it is."""
    guest = kernels()["hello"]
    vm = Vm(machine_for(guest.memory_mib), memory_mib=guest.memory_mib)
    vm.load(str(guest.file))
    builder, dump = dump_of(Ended(vm, vm.run(10), 0), "</title><script>document.broken = 1</script>", None)
    path = tmp_path / "odd.html"
    with path.open("w") as file:
        as_html.write(dump, file, [replace(builder.block(0), name="</script><script>document.broken = 1</script>")])
    browser.open(path)
    assert browser.value("document.broken === undefined")
    assert browser.text(".row .name") == "</script><script>document.broken = 1</script>"


def test_no_blocks(browser: Browser, tmp_path: Path) -> None:
    """A dump without blocks is a page all the same."""
    guest = kernels()["hello"]
    vm = Vm(machine_for(guest.memory_mib), memory_mib=guest.memory_mib)
    vm.load(str(guest.file))
    _, dump = dump_of(Ended(vm, vm.run(10), 0), "none", None)
    path = tmp_path / "none.html"
    with path.open("w") as file:
        as_html.write(dump, file, [])
    browser.open(path)
    assert browser.text("#found").startswith("0 blocks") and browser.count(".row") == 0
    assert browser.text("#total-saved") == "–"  # nothing was counted
