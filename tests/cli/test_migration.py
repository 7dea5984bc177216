"""Migration between two processes: the guest goes on at the target as if nothing had been, or where it was when anything fails."""

import contextlib
import os
import re
import socket
import threading
from pathlib import Path

import pytest

from tests.cli import talker
from tests.cli.vms import LONG, Talk, home, started
from tools.cli import status
from tools.vms.commands import request
from vmm.snapshot.sections import pack
from vmm.store.directory import Directory

__all__ = ["home"]


def waiting(capfd: pytest.CaptureFixture[str], home: Path, *options: str) -> str:
    """Starts VM "two", which waits for a guest; returns where."""
    assert status(["create", "two", str(home / "talker.bin"), "-m", "16", *options]) == 0
    assert status(["start", "two", "--incoming", "tcp:127.0.0.1:0"]) == 0
    found = re.search(r"waits at port (\d+)", capfd.readouterr().out)
    assert found
    return f"tcp:127.0.0.1:{found[1]}"


@pytest.mark.parametrize("source, target", [("bt", "bt"), ("bt", "hw"), ("hw", "native"), ("native", "bt")])
def test_a_guest_moves(home: Path, capfd: pytest.CaptureFixture[str], source: str, target: str) -> None:
    """What it knew it knows at the target; the source's process has ended; how long it stood still is said; the disk goes along."""
    talk = started(home, "one", "--backend", source, "--disk-size", "1M")
    talk.say("abc", talker.answers(3))
    where = waiting(capfd, home, "--backend", target)
    there = Talk("two")
    assert status(["migrate", "one", where]) == 0
    said = capfd.readouterr().out
    assert re.search(r"round 1: \d+ frames, [\d.]+ s", said) and re.search(r"it stood still for [\d.]+ s", said)
    assert Directory("one").holder() is None
    there.say("de", talker.answers(2, 3))
    assert request("two", {"do": "stats"})["backend"] == target
    assert status(["snapshot", "two"]) == 0
    assert "whole" in capfd.readouterr().out
    assert "disk0.1.overlay" in os.listdir(Directory("two").path)


def test_a_guest_moves_in_the_midst_of_its_work(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Which goes on over 4 MiB of memory all the time: the checksum at the end is right."""
    kernel = talker.write_worker(home, 1000)
    assert status(["run", kernel, "-m", "16", "--backend", "native"]) == 0
    said = capfd.readouterr().out.strip()
    where = waiting(capfd, home)
    there = Talk("two")
    assert status(["create", "one", kernel, "-m", "16"]) == 0
    assert status(["start", "one"]) == 0
    here = Talk("one")
    here.until(">")
    assert status(["migrate", "one", where]) == 0
    there.until(".")
    assert len(said) == 10 and here.heard + there.heard == said.encode()
    Directory("two").wait_until_free()


def peer(act: str) -> tuple[str, threading.Thread]:
    """A target that goes wrong in some way; returns where it is."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.settimeout(LONG)
            connection.recv(10)
            if act == "other":
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return
            if act == "refuses":
                connection.sendall(b"error no room\n")
                return
            connection.sendall(b"ok\n")
            if act == "dies":
                connection.recv(100_000)
                return
            while connection.recv(1 << 20).find(b"END ") < 0:  # the last section is a small one, sent by itself
                pass
            connection.sendall(b"ready\n" if act == "dies late" else b"error it does not fit\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return f"tcp:127.0.0.1:{server.getsockname()[1]}", thread


@pytest.mark.parametrize(
    "act, said", [("other", "not a VM that waits"), ("refuses", "no room"), ("dies", ""), ("dies late", ""), ("cannot", "it does not fit")]
)
def test_the_source_goes_on_when_the_target_fails(home: Path, capfd: pytest.CaptureFixture[str], act: str, said: str) -> None:
    """At whatever moment; and the next migration succeeds."""
    talk = started(home)
    talk.say("a", talker.answers(1))
    where, thread = peer(act)
    assert status(["migrate", "one", where]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"vmm: {where}: ") and said in error
    thread.join(LONG)
    talk.say("b", talker.answers(1, 1))
    where = waiting(capfd, home)
    assert status(["migrate", "one", where]) == 0
    Talk("two").say("c", talker.answers(1, 2))


def test_what_is_refused_at_once(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody there, no address, a port in use."""
    talk = started(home)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert status(["create", "two", "hello"]) == 0
        assert status(["start", "two", "--incoming", f"tcp:127.0.0.1:{port}"]) == 2
        assert "address already in use" in capfd.readouterr().err
    assert status(["migrate", "one", f"tcp:127.0.0.1:{port}"]) == 2
    assert "connection refused" in capfd.readouterr().err
    for wrong in ("127.0.0.1:5", "tcp:127.0.0.1", "tcp::5", "tcp:127.0.0.1:99999"):
        assert status(["migrate", "one", wrong]) == 2
        assert capfd.readouterr().err == f"vmm: {wrong}: must be tcp:HOST:PORT\n"
    assert status(["migrate", "none", "tcp:127.0.0.1:5"]) == 2
    talk.say("a", talker.answers(1))


NONSENSE = {
    "http": b"GET / HTTP/1.1\r\n" * 9,
    "hello": pack(b"HELO", b"{}"),
    "newer": pack(b"HELO", b'{"format": 3}'),
    "disk": pack(b"HELO", b'{"format": 2, "memory_size": 4096, "disks": ["/nowhere"]}'),
    "meta": pack(b"HELO", b'{"format": 2, "memory_size": 4096, "disks": []}') + pack(b"META", b"{}") + pack(b"END ", b""),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_the_target_goes_on_waiting(home: Path, capfd: pytest.CaptureFixture[str], nonsense: bytes) -> None:
    """Whatever somebody else says to it: the guest that comes then is welcome. It can be stopped while it waits, too."""
    where = waiting(capfd, home)
    port = int(where.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(LONG)
        with contextlib.suppress(OSError):  # it hangs up without having read all of it
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    started(home).say("a", talker.answers(1))
    assert status(["migrate", "one", where]) == 0
    Talk("two").say("b", talker.answers(1, 1))
    assert status(["stop", "two"]) == 0
    assert status(["start", "two", "--incoming", "tcp:127.0.0.1:0"]) == 0
    assert status(["snapshot", "two"]) == 2
    assert "two: waits for a guest" in capfd.readouterr().err
    assert status(["stop", "two"]) == 0


def test_a_source_that_is_killed(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the midst of it: the target waits for another guest."""
    where = waiting(capfd, home)
    with socket.create_connection(("127.0.0.1", int(where.rpartition(":")[2]))) as connection:
        connection.settimeout(LONG)
        connection.sendall(pack(b"HELO", b'{"format": 2, "memory_size": 16777216, "disks": []}'))
        assert connection.recv(100) == b"ok\n"
        connection.sendall(pack(b"PAGE", bytes(4100))[:50])
    started(home).say("a", talker.answers(1))
    assert status(["migrate", "one", where]) == 0
    Talk("two").say("b", talker.answers(1, 1))
