"""The teaching switches: the commands of docs/EXERCISES.md print what stands there, in every way of translating, and nothing ends the process.

Knows the document's form: a command in a fence, what it prints in the next one.
"""

from __future__ import annotations

import re
import shlex

import pytest

from guest_kernels import kernels
from tests.guests.hostile import run_all
from tests.guests.hostile_guests import written_guests
from tests.guests.test_bt import run
from tests.layers import ROOT
from vmm.backends.bt import BtOptions
from vmm.backends.bt.options import MISTAKES
from vmm.exits import End

_EXERCISE = re.compile(r"^```sh\n(vmm run [^\n]*--break [^\n]*)\n```\n```text\n(.*?)```", re.MULTILINE | re.DOTALL)
EXERCISES: dict[str, str] = dict(_EXERCISE.findall((ROOT / "docs/EXERCISES.md").read_text()))


def test_each_mistake_has_an_exercise_and_a_kernel() -> None:
    """One exercise for each mistake, with a kernel of its own, and a kernel for each exercise."""
    taken = [shlex.split(command) for command in EXERCISES]
    assert [(words[3], words[4]) for words in taken] == [("--break", mistake) for mistake in MISTAKES]
    assert sorted(words[2] for words in taken) == sorted(name for name, guest in kernels().items() if "exercise" in guest.groups)


@pytest.mark.parametrize("ring", (1, 3))
@pytest.mark.parametrize(("cached", "translated"), ((True, False), (False, False), (True, True)))
@pytest.mark.parametrize("command", EXERCISES)
def test_prints_what_the_document_says(command: str, ring: int, cached: bool, translated: bool) -> None:
    """The console is, to the byte, the one in the document."""
    _, _, name, _, mistake = shlex.split(command)
    options = BtOptions(ring=ring, stubs_in_cache=cached, translate_user=translated, broken=frozenset((mistake,)))
    status, printed, _ = run(kernels()[name], options, None)
    assert status == 1
    assert printed.replace("\r\n", "\n") == EXERCISES[command]


@pytest.mark.parametrize("ring", (1, 3))
@pytest.mark.parametrize("name", ("rings", "faults", "faults-pae", "smc"))
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_vmm_ends_cleanly(mistake: str, name: str, ring: int) -> None:
    """Whatever a kernel meets under a broken VMM, the run ends with a reason."""
    _, _, vm = run(kernels()[name], BtOptions(ring=ring, broken=frozenset((mistake,))), None, timeout=1)
    assert vm.stopped is not None
    assert vm.stopped.reason
    assert vm.stopped.why in (End.REPORTED, End.DIED, End.TIMEOUT, End.UNSUPPORTED, End.RESET)


def test_hostile_guests_under_all_mistakes() -> None:
    """Guests that run wild under a VMM with every mistake at once: each ends with a reason, and the process lives."""
    ended, complaint = run_all(list(written_guests())[::9], ring="broken", cached=True, timeout=0.05)
    assert not complaint, complaint
    assert not [name for name, end in ended.items() if not end.reason]
