"""Linux under binary translation for a long time: fork, exec, pipes of gzip and md5sum, and ftrace on and off, with right results and flat memory.

    python -m tests.guests.soak SECONDS

Knows what a person would type and see, and how much memory this process has.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from tests.guests.dialogue import Dialogue, Step
from tests.guests.linux import MEMORY_MIB, OLD_PC
from tests.require import require_file
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from vmm.backends.bt import BtOptions
from vmm.vm import Vm, machine_for

_SCRIPT = """
mount -t tracefs t /sys/kernel/tracing
now() { cut -d. -f1 /proc/uptime; }
right=$(md5sum </bin/busybox); until=$(($(now) + $1)); n=0
while [ $(now) -lt $until ]; do
    [ "$(gzip -c /bin/busybox | gzip -dc | md5sum)" = "$right" ] || echo WRONG sum
    (exit 3); [ $? = 3 ] || echo WRONG status
    n=$((n+1))
    if [ $((n % 8)) = 1 ]; then
        echo function >/sys/kernel/tracing/current_tracer; md5sum /bin/busybox >/dev/null; echo nop >/sys/kernel/tracing/current_tracer
    fi
    echo round $n
done
echo behind $n rounds
"""
GROWTH = 1.10  # of this process's memory from the middle of the run to its end
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Rounds(Dialogue):
    """A dialogue that notes how much memory this process has behind each round."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__(steps)
        self.memory: list[int] = []

    def write(self, data: bytes) -> None:
        super().write(data)
        if data == b"\n" and self.output.endswith(b"\r\n") and b"\nround " in self.output[-24:]:
            self.memory.append(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE)


def soak(seconds: int, folder: Path) -> tuple[int, list[int], str]:
    """Runs the guest; returns how many rounds it did, the memory in bytes behind each, and its console. Raises AssertionError."""
    image, busybox = (require_file(guest(name), f"{name} (python -m tools.fetch_guests)") for name in ("linux-pae", "busybox"))
    initrd = folder / "initrd.cpio"
    initrd.write_bytes(make_initrd(busybox.read_bytes(), {"soak": _SCRIPT.encode()}))
    console = _Rounds((Step(READY), Step("# ", f"sh /soak {seconds}\n"), Step("rounds\r\n")))
    vm = Vm(machine_for(MEMORY_MIB, BtOptions()), memory_mib=MEMORY_MIB, options=BtOptions(), console=console)
    vm.load(str(image), append=f"{OLD_PC} nosoftlockup", initrd=str(initrd))
    console.attach(vm)
    vm.run(240 + 3 * seconds)
    found = re.search(r"behind (\d+) rounds", console.text)
    assert console.progress.finished and found is not None, console.text[-2000:]
    assert not re.search(r"WRONG|segfault|BUG:|WARNING:|Oops", console.text), console.text[-3000:]
    assert not vm.stats.outside
    return int(found[1]), console.memory, console.text


def main(arguments: list[str]) -> int:
    """The exit status is 0 when all was right and memory did not grow."""
    with tempfile.TemporaryDirectory() as folder:
        rounds, memory, _ = soak(int(arguments[0]) if arguments else 1800, Path(folder))
    middle, last = memory[len(memory) // 2] if memory else 0, memory[-1] if memory else 0
    print(f"{rounds} rounds, all right; {middle >> 20} MiB in the middle, {last >> 20} MiB at the end")
    return int(last > GROWTH * middle)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
