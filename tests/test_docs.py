"""The documents say what is so: modules, links, commands and tests that they name exist.

Knows the documents' forms (one bullet per module in the tour, commands in code spans and fences), and nothing of what the modules do.
"""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from guest_kernels import kernels
from tests.layers import ROOT, sources

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def only_a_docstring(path: Path) -> bool:
    """Whether the file holds at most a docstring: such an `__init__.py` needs no place in the tour."""
    body = ast.parse(path.read_text()).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def first_sentence(path: Path) -> str:
    """The first line of the module's docstring: what the tour may say about it."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def test_the_tour_has_each_module_once() -> None:
    """docs/TOUR.md has exactly one bullet "- `path/of/module.py`: ..." for each module, and none for what is not there."""
    listed = Counter(re.findall(r"^- `([^`]+\.py)`: \S", (ROOT / "docs/TOUR.md").read_text(), re.MULTILINE))
    expected = {str(path.relative_to(ROOT)): path for path in sources() if not (path.name == "__init__.py" and only_a_docstring(path))}
    absent = [f"- `{name}`: {first_sentence(path)}" for name, path in expected.items() if name not in listed]
    assert not absent, "to be put where they belong in docs/TOUR.md:\n" + "\n".join(absent)
    gone = sorted(name for name in listed if not (ROOT / name).is_file())
    assert not gone, f"in docs/TOUR.md, but not there: {gone}"
    assert not [name for name, count in listed.items() if count > 1]


def test_the_glossary_has_each_term_once_in_order() -> None:
    """Terms of docs/GLOSSARY.md are unique and in alphabetical order, so that a reader finds them."""
    terms = [term.lower() for term in re.findall(r"^\*\*(.+?)\*\*:", (ROOT / "docs/GLOSSARY.md").read_text(), re.MULTILINE)]
    assert terms == sorted(set(terms))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link leads to a file or folder of the repository."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert not [target for target in targets if not (document.parent / target).exists()]


def test_quirks_name_tests_that_exist() -> None:
    """The last column of each row of docs/QUIRKS.md is "none yet", or `file::test` in code quotes, and that test is there."""
    rows = re.findall(r"^\| \d+ \|.*\| ([^|]+) \|$", (ROOT / "docs/QUIRKS.md").read_text(), re.MULTILINE)
    assert rows
    for cell in rows:
        if cell == "none yet":
            continue
        file, _, test = cell.strip("`").partition("::")
        assert re.search(rf"^def {re.escape(test)}\(", (ROOT / file).read_text(), re.MULTILINE), cell


def commands(program: str) -> list[str]:
    """All distinct uses of `program` in the documents: lines of ```sh fences and code spans that begin with it, comments cut off."""
    found: dict[str, None] = {}
    for document in DOCUMENTS:
        fences = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", document.read_text())
        for line in [*"\n".join(fences).splitlines(), *spans]:
            if line.startswith(program + " "):
                found[line.partition(" # ")[0].strip()] = None
    return list(found)


@pytest.mark.parametrize("command", commands("make"))
def test_make_commands_exist(command: str) -> None:
    """Every make command of the documents names targets that the Makefile has (tried with --dry-run)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@cache
def usage(subcommand: str) -> str:
    """The help text of `vmm SUBCOMMAND`, empty when there is no such subcommand."""
    if importlib.util.find_spec("tools") is None or importlib.util.find_spec("tools.cli") is None:
        pytest.skip("tools/cli is not written yet")
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    call = [sys.executable, "-c", "from tools.cli import main; main()", subcommand, "--help"]
    result = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else ""


PLANNED: set[str] = set()
"""Subcommands that the README's list of plans names; an entry leaves when its subcommand is there."""


@pytest.mark.parametrize("command", commands("vmm"))
def test_vmm_commands_exist(command: str) -> None:
    """Every vmm command of the documents is one that the command line has, with options that it knows and bundled kernels that are there."""
    subcommand, *arguments = shlex.split(command)[1:]
    help_text = usage(subcommand)
    if subcommand in PLANNED:
        assert not help_text, f"vmm {subcommand} exists: take it off the README's plans and off PLANNED"
        return
    assert help_text, f"there is no vmm {subcommand}"
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    assert not [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text)]
    if subcommand == "run" and arguments and re.fullmatch(r"[a-z]+", arguments[0]):
        assert arguments[0] in kernels("any")


def test_decisions_are_numbered() -> None:
    """Each decision has a number of its own, which its title begins with."""
    decisions = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [path.name[:4] for path in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
    for path in decisions:
        assert path.read_text().startswith(f"# {path.name[:4]}: "), path.name
