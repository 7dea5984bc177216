"""VMs in a folder of their own, for tests that start processes; and a conversation with the talker in one."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

import pytest

from tests.cli import talker
from tools.cli import status
from tools.vms.sockets import CONSOLE, connect
from vmm.store.directory import Directory, all_directories

LONG = 60.0


class Talk:
    """A conversation with the talker at a VM's console."""

    all: ClassVar[list[Self]] = []

    def __init__(self, name: str) -> None:
        self.console: socket.socket = connect(Directory(name).path, CONSOLE, name)
        self.console.settimeout(LONG)
        self.heard = b""
        self.all.append(self)

    def until(self, text: str) -> None:
        while text.encode() not in self.heard:
            data = self.console.recv(4096)
            assert data, f"{self.heard!r} and no {text!r}"
            self.heard += data

    def say(self, text: str, said: list[str]) -> None:
        """Says each byte, and hears what belongs to it."""
        for byte, answer in zip(text, said, strict=True):
            self.console.sendall(byte.encode())
            self.until(byte + answer)
            self.heard = b""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the VMs of one test, with the talker in it; processes that are left over are ended."""
    folder = tmp_path / "vms"
    monkeypatch.setenv("VMM_HOME", str(folder))
    talker.write(tmp_path)
    yield tmp_path
    while Talk.all:
        Talk.all.pop().console.close()
    for directory in all_directories():
        pid = directory.holder()
        if pid:
            os.kill(pid, signal.SIGKILL)
            directory.wait_until_free()


def started(home: Path, name: str = "one", *options: str) -> Talk:
    """A VM with the talker in it, ready to talk."""
    assert status(["create", name, str(home / "talker.bin"), "-m", "16", *options]) == 0
    assert status(["start", name]) == 0
    talk = Talk(name)
    talk.until(">")
    return talk
