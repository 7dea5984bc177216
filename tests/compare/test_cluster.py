"""Rows spread over a cluster of two workers on this machine: the results are those of one process, and an address without a cluster is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layers import ROOT
from tools.cli import status

_CLUSTER = """
import sys
from distributed import LocalCluster
from tools.cli import status
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        sys.exit(status(["compare", *sys.argv[1:], "--cluster", cluster.scheduler_address]))
"""


def test_two_workers(tmp_path: Path) -> None:
    """Exits under --icount are the same wherever a row is measured."""
    script = tmp_path / "cluster.py"
    script.write_text(_CLUSTER)
    words = ["nano", "--rows", "iret,cr3wr,null", "--backends", "bt,bt-trap", "--rounds", "1", "--icount"]
    far, near = tmp_path / "far.json", tmp_path / "near.json"
    run = subprocess.run(
        [sys.executable, str(script), *words, "--json", str(far)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert status(["compare", *words, "--json", str(near)]) == 0
    counts = [
        {(row["row"], way): cell["architectural"] for row in json.loads(path.read_text())["rows"] for way, cell in row["cells"].items()}
        for path in (far, near)
    ]
    assert counts[0] == counts[1]
    assert counts[0]["iret", "bt-trap"] == {"callout": 2.0}


def test_no_scheduler(capfd: pytest.CaptureFixture[str]) -> None:
    """One line, status 2."""
    assert status(["compare", "nano", "--rows", "null", "--cluster", "nowhere"]) == 2
    assert capfd.readouterr().err == "vmm: --cluster nowhere: no scheduler there (ValueError)\n"
