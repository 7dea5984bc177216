"""What a test may need from its surroundings: a program, or a guest that is not bundled.

Knows the environment, and no guest's contents. A missing thing skips the test and prints why; where environment CI is set it
fails the test, because CI installs everything.
"""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

IN_CI: bool = bool(os.environ.get("CI"))


def missing(reason: str) -> NoReturn:
    """Skip the calling test for `reason`, or fail it under CI."""
    if IN_CI:
        pytest.fail(f"{reason} (CI must have it)", pytrace=False)
    pytest.skip(reason)


def require(tool: str) -> str:
    """The path of program `tool`, found on PATH; without it the calling test skips, or fails under CI."""
    path = shutil.which(tool)
    if path is None:
        missing(f"{tool} is not installed")
    return path


def require_file(path: Path | None, what: str) -> Path:
    """`path` when it is an existing file; otherwise (None included) the calling test skips for want of `what`, or fails under CI."""
    if path is None or not path.is_file():
        missing(f"{what} is not here")
    return path


def require_xv6(name: str) -> Path:
    """File `name` of the built xv6-public tree that environment XV6 points to.

    xv6 is never part of CI, so without XV6 the calling test skips there too; an XV6 without the file fails.
    """
    tree = os.environ.get("XV6")
    if not tree:
        pytest.skip("XV6 is not set (a built xv6-public tree: make test XV6=DIR)")
    path = Path(tree) / name
    if not path.is_file():
        pytest.fail(f"{path}: not there; build it with make {name}", pytrace=False)
    return path
