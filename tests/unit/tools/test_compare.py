"""The comparison's own arithmetic: medians, ratios, prices, winners, and which names go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import guest_kernels
from tools.compare.answers import answer, mechanism
from tools.compare.cell import count_in, wrong
from tools.compare.costs import costs
from tools.compare.model import NANO, SHORT, WAYS, WORK, Sample, chosen_cells, chosen_ways
from tools.compare.results import CellResult, Comparison, RowResult, comparison, from_dict
from tools.compare.runner import RowJob, RowSamples, jobs_of
from tools.compare.saved import changes, read, save
from vmm.errors import InputError


def sample(cpu_ns: int, count: int = 10, **exits: int) -> Sample:
    """A sample with exits of kinds given."""
    return Sample("", count, cpu_ns, cpu_ns, exits)


def compared(**samples: list[Sample]) -> RowResult:
    """The results of one row."""
    job = RowJob("nano", "cr3wr", tuple(samples), 3, 10)
    return comparison([RowSamples(job, samples)], 3, False).rows[0]


def test_a_cell_is_the_median_of_its_rounds() -> None:
    """Time, exits and ratio are for one time of the work; the ratio is that of a round, whatever the machine did between rounds."""
    ours = [sample(3000, callout=10), sample(12000, callout=10), sample(6000, callout=20)]
    row = compared(native=[sample(1000), sample(4000), sample(2000)], bt=ours)
    cell = row.cells["bt"]
    assert (cell.time_ns, cell.ratio, cell.architectural) == (600.0, 3.0, {"callout": 1.0})
    assert cell.spread == pytest.approx((1200 - 300) / 2 / 600)
    assert row.cells["native"].ratio == 1.0


def test_a_cell_without_a_result_says_why() -> None:
    """The reason stands there, and the other cells are as they were; without the reference there are no ratios."""
    row = compared(native=[Sample("time-out after 1 s")], hw=[sample(1000)])
    assert row.cells["native"].reason == "time-out after 1 s"
    assert row.cells["hw"].ratio is None and row.cells["hw"].time_ns == 100.0


def test_exits_are_priced_by_how_the_vmm_is_entered() -> None:
    """Hardware assist pays for an exit, deprivileged code for a change of rings, a callout for a call; others are not priced."""
    prices = costs()
    machine = prices.machines["prescott"]
    other = prices.work["other"]
    assert prices.cycles("hw-shadow", {"invlpg": 2.0})["prescott"] == 2 * (machine["vm_exit"]["cycles"] + other)
    assert prices.cycles("bt", {"callout": 1.0})["prescott"] == machine["callout"]["cycles"] + prices.work["callout"]
    assert prices.cycles("bt", {"exception 0": 1.0})["prescott"] == machine["ring_crossing"]["cycles"] + other
    assert prices.cycles("bt", {}) == dict.fromkeys(prices.machines, 0.0)
    assert prices.cycles("qemu", {}) == {}


def test_each_price_has_a_standing() -> None:
    """What is not assumed names its source; each published row is one of ours, with a figure for each column."""
    for machine in costs().machines.values():
        for price in (machine["vm_exit"], machine["ring_crossing"], machine["callout"]):
            assert price["standing"] in ("published", "recalled", "assumed")
            assert bool(price["source"]) == (price["standing"] != "assumed")
    published = costs().published
    assert set(published["rows"]) <= set(NANO)
    assert all(len(row) == len(published["columns"]) for row in published["rows"].values())


def test_winners_are_found_in_each_reading() -> None:
    """Fewest exits, least time and fewest cycles are three questions; ties are named together; empty cells win nothing."""
    row = RowResult("nano", "cr3wr", {
        "bt": CellResult(time_ns=100, architectural={"callout": 1.0}, cycles={"prescott": 1454.0}),
        "hw": CellResult(time_ns=400, cycles={"prescott": 0.0}),
        "pv": CellResult(time_ns=102, architectural={"hypercall": 1.0}, cycles={"prescott": 1300.0}),
        "hw-shadow": CellResult("time-out"),
    })  # fmt: skip
    said = answer(row)
    assert (said.exits, said.time, said.cycles["prescott"]) == (("hw",), ("bt", "pv"), ("hw",))


def test_mechanisms_are_said_from_the_counts() -> None:
    """How many exits, of which kind, and what was emulated; engine assists are no exits."""
    one = CellResult(architectural={"control register": 1.0}, callouts={"mov cr3,r": 1.0})
    assert mechanism("hw", one) == "1 exit: control register (mov cr3,r)"
    several = CellResult(architectural={"callout": 2.0, "chain": 0.001}, callouts={"cli": 1.0, "sti": 1.0})
    assert mechanism("bt-trap", several) == "2 exits: callout (cli, sti)"
    assert mechanism("bt", CellResult()) == "0 exits, as it is or emulated in the cache"
    assert mechanism("hw", CellResult(engine={"int": 1.0})).startswith("0 exits, in guest mode; 1 engine assist")
    assert mechanism("qemu", CellResult()) == "not counted"


def test_the_json_form_comes_back() -> None:
    """What was saved is what is read; what is none is refused."""
    job = RowJob("nano", "null", ("native", "bt"), 1, 10)
    made = comparison([RowSamples(job, {"native": [sample(10)], "bt": [sample(20, port=5)]})], 1, True)
    assert from_dict("it", json.loads(json.dumps(made.as_dict()))) == made
    for damaged in ([], {}, {"schema": 99}, {**made.as_dict(), "rows": [{"kernel": "nano"}]}, {**made.as_dict(), "rows": 3}):
        with pytest.raises(InputError, match=r"^it: "):
            from_dict("it", damaged)


def test_rows_are_those_of_the_kernels() -> None:
    """The names here are those that guests.toml expects of the kernels, and the short set is part of them."""
    for kernel, rows in (("nano", NANO), ("work", WORK), ("nano-pv", NANO), ("work-pv", WORK)):
        lines = guest_kernels.kernels("any")[kernel].console[:-1]
        assert tuple(line.split()[1].rstrip(":") for line in lines) == rows
    assert set(SHORT) <= {*NANO, *WORK}


def test_cells_of_a_row_follow_one_another() -> None:
    """A job is a row under all ways."""
    cells = chosen_cells(["nano"], "syscall,null", chosen_ways("hw,bt", False), False)
    assert [(cell.row, cell.way) for cell in cells] == [("null", "hw"), ("null", "bt"), ("syscall", "hw"), ("syscall", "bt")]
    assert [(job.row, job.ways) for job in jobs_of(cells, 3, 10, False)] == [("null", ("hw", "bt")), ("syscall", ("hw", "bt"))]


@pytest.mark.parametrize(
    ("kernels", "rows", "ways", "names"),
    [(["nono"], None, None, "nano"), (["nano"], "sycall", None, "syscall"), (["nano"], "compute", None, "null"), ([], None, "bt,kvm", "hw-shadow")],
)
def test_what_is_not_there_is_refused_with_what_is(kernels: list[str], rows: str | None, ways: str | None, names: str) -> None:
    """An unknown kernel, row or way: the list of valid ones."""
    with pytest.raises(InputError, match=rf".*\b{names}\b"):
        chosen_cells(kernels, rows, chosen_ways(ways, False), False)


def test_what_the_guest_says() -> None:
    """Its count and its complaints are found wherever they stand."""
    assert count_in("\x01PASS: cli_sti: 10000\r\n1 passed, 0 failed\r\n") == 10000
    failed = wrong("PASS: null: 1\r\nFAIL: in: 3\r\n")
    assert failed is not None and failed.reason == "wrong result: the guest says 'FAIL: in: 3'"
    assert wrong("PASS: null: 1\r\n") is None


def test_every_way_of_ours_names_a_back_end() -> None:
    """And the reference is among them."""
    assert "native" in WAYS and all(way.words is None or "backend" in way.words for way in WAYS.values())


def cell(time_ns: float, exits: float = 1.0, ratio: float | None = None) -> Comparison:
    """A comparison of one cell."""
    found = CellResult(time_ns=time_ns, architectural={"callout": exits}, ratio=ratio)
    return Comparison("here", 3, False, [RowResult("nano", "cr3wr", {"bt": found})])


@pytest.mark.parametrize(
    ("before", "now", "worse"),
    [
        (cell(100), cell(105), False),
        (cell(100), cell(150), True),
        (cell(100), cell(60), False),
        (cell(100, 1.0), cell(100, 2.0), True),
        (cell(100, ratio=2.0), cell(200, ratio=2.0), False),  # a slower machine
        (cell(100, ratio=2.0), cell(100, ratio=3.0), True),
        (Comparison("", 3, False, [RowResult("nano", "cr3wr", {"bt": CellResult("time-out")})]), cell(100), False),
        (cell(100), Comparison("", 3, False, [RowResult("nano", "cr3wr", {"bt": CellResult("time-out")})]), True),
    ],
)
def test_what_is_worse(before: Comparison, now: Comparison, worse: bool) -> None:
    """More exits, more time than chance explains, or no result where there was one."""
    (change,) = changes(before, now)
    assert change.worse == worse


def test_results_are_kept_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's own data; a name that is none, unknown or damaged is refused with what there is."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    save("monday", cell(100))
    assert read("monday") == cell(100)
    with pytest.raises(InputError, match=r"there are monday\)"):
        read("tuesday")
    for name in ("", "../x", "a/b", ".hidden", "x" * 99):
        with pytest.raises(InputError, match="a name is"):
            save(name, cell(100))
    (tmp_path / "vmm/compare/bad.json").write_text("{")
    with pytest.raises(InputError, match=r"^--against bad: "):
        read("bad")
