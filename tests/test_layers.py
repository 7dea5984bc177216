"""The import rules hold, and the checker sees what it should. The rules themselves: tests/layers.py."""

import sys
from pathlib import Path

import pytest

from tests.layers import LAYERS, OUTSIDE, ROOT, imports, sources, violations


def test_the_import_rules_hold() -> None:
    """No module knows more of the project than its layer may."""
    assert not violations(), "\n".join(["", *violations()])


def test_every_dependency_has_a_rule() -> None:
    """A third-party module that a source file imports is one of the table's: a new dependency needs a decision about who may use it."""
    known = {*LAYERS, *OUTSIDE, *sys.stdlib_module_names}
    strangers = {an_import.target.split(".")[0] for path in sources() for an_import in imports(path, ROOT)} - known
    assert not strangers


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("bt/emit.py", "import vmm.machine", "bt may not import vmm"),
        ("bt/emit.py", "from unicorn import Uc", "only tools.compare.bare, vmm.machine may import unicorn"),
        ("bt/emit.py", "from capstone import Cs", None),
        ("bt/emit.py", "from .decode import decode", None),
        ("vmm/monitor.py", "from bt import cache", None),
        ("vmm/monitor.py", "def f():\n    import tools.cli", "vmm may not import tools"),
        ("vmm/monitor.py", "import unicorn.unicorn", "only tools.compare.bare, vmm.machine may import unicorn"),
        ("vmm/machine.py", "import unicorn.unicorn", None),
        ("vmm/machines.py", "import unicorn", "only tools.compare.bare, vmm.machine may import unicorn"),
        ("vmm/devices/ide.py", "from vmm.board import Board", "told its lines and no addresses"),
        ("vmm/devices/ide.py", "from ..board import Board", "told its lines and no addresses"),
        ("vmm/devices/__init__.py", "from .. import board", "told its lines and no addresses"),
        ("vmm/devices/ide.py", "from .disk import Disk", None),
        ("vmm/devices/ide.py", "from vmm.errors import InputError", None),
        ("vmm/backends/bt.py", "from vmm.devices import pic", "never touches a device"),
        ("vmm/x86/paging.py", "from vmm import vcpu", "needs nothing of ours"),
        ("vmm/monitor.py", "import rich", "only tools may import rich"),
        ("tools/cli.py", "import rich, vmm, guest_kernels, bt.cache", None),
        ("guest_kernels/__init__.py", "import tomllib", None),
        ("guest_kernels/__init__.py", "import vmm", "guest_kernels may not import vmm"),
    ],
)
def test_the_checker(tmp_path: Path, path: str, text: str, reason: str | None) -> None:
    """Each kind of import statement is judged by each kind of rule."""
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text + "\n")
    found = violations(tmp_path)
    if reason is None:
        assert not found
    else:
        assert len(found) == 1 and reason in found[0]
