"""The guests' folder: what is there is found, what is not there is said in one line. Nothing is downloaded here."""

import shutil
from pathlib import Path

import pytest

from tools import fetch_guests
from tools.fetch_guests import GUESTS, extras, guest, main
from vmm.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that VMM_GUESTS names, on a machine without Debian's tools."""
    monkeypatch.setenv("VMM_GUESTS", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    return tmp_path


def unpack(folder: Path, name: str, extra: bool = True) -> Path:
    entry = GUESTS[name]
    paths = [folder / entry.folder / pattern for pattern in (entry.pattern, *(entry.extras if extra else ()))]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths[0]


def test_guest_is_found_where_it_was_unpacked(folder: Path) -> None:
    """None stands for a guest that has not been downloaded, for a test to skip on."""
    assert guest("gnumach") is None
    path = unpack(folder, "gnumach")
    assert guest("gnumach") == path


def test_unknown_guest() -> None:
    """A name that is not in the table is a mistake, not an absent guest."""
    with pytest.raises(InputError, match="^plan9: no such guest"):
        guest("plan9")


def test_everything_there_needs_no_tools(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call prints where each guest is and touches no network."""
    paths = [unpack(folder, name) for name in GUESTS]
    assert main([]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [str(path) for path in paths]


def test_extras_belong_to_a_guest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules lie beside their kernel; where one is missing there are none, and the guest is fetched again."""
    kernel = unpack(folder, "linux-pae", extra=False)
    assert guest("linux-pae") == kernel
    assert extras("linux-pae") == extras("gnumach") == []
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(FileNotFoundError):  # apt-cache, which is not there
        fetch_guests.fetch("linux-pae", folder)
    unpack(folder, "linux-pae")
    assert [path.name for path in extras("linux-pae")][:2] == ["8390p.ko", "ne.ko"]
    assert fetch_guests.fetch("linux-pae", folder) == kernel


def test_no_debian(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere than on Debian the reason is one line and the status 2."""
    assert main([str(folder)]) == 2
    assert capsys.readouterr().err == "apt-get: not installed: the guests are Debian packages, fetch them on a Debian machine\n"


def test_folder_that_cannot_be_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in the way is named."""
    (folder / "file").touch()
    assert main([str(folder / "file" / "guests")]) == 2
    assert capsys.readouterr().err.startswith(f"{folder}/file/guests: ")


def test_failing_tool_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What apt-get says last is the reason; nothing is left behind."""
    tool = tmp_path / "bin" / "apt-get"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho W: something else >&2\necho E: Unable to locate package >&2\nexit 100\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    (tmp_path / "guests").mkdir()
    with pytest.raises(InputError, match=r"^gnumach-image-1.8-486:i386: apt-get failed: E: Unable to locate package$"):
        fetch_guests.fetch("gnumach", tmp_path / "guests")
    assert list((tmp_path / "guests").iterdir()) == []
