"""The import rules between the project's parts, checked on the syntax tree without running anything.

Knows the tables below and Python's import statements, and nothing of what the modules do. An import inside a function or under
TYPE_CHECKING counts like any other: a layer is what a module knows, not when it learns it.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

LAYERS: Mapping[str, frozenset[str]] = {
    # package: the project's packages that it may import beside itself (bt <- vmm <- tools)
    "bt": frozenset(),
    "guest_kernels": frozenset(),
    "vmm": frozenset({"bt"}),
    "tools": frozenset({"bt", "vmm", "guest_kernels"}),
}

OUTSIDE: Mapping[str, frozenset[str]] = {
    # third-party package: the modules (with all that lies below them) that may import it; anything not listed here is the standard library's
    "unicorn": frozenset({"vmm.machine", "tools.compare.bare"}),  # the latter measures the engine without us
    "capstone": frozenset({"bt"}),
    "keystone": frozenset(),  # only tests and probes assemble text
    "elftools": frozenset({"vmm.boot", "tools"}),
    "typer": frozenset({"tools"}),
    "click": frozenset({"tools"}),
    "rich": frozenset({"tools"}),
    "distributed": frozenset({"tools.compare.cluster"}),
    "pytest": frozenset({"tools.pytest_plugin"}),
    "zstandard": frozenset({"vmm.snapshot"}),
    "setproctitle": frozenset({"tools"}),
    "hypothesis": frozenset(),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of vmm that sees only some of the rest: each name stands for the module and all that lies below it."""

    name: str
    sees: frozenset[str]
    why: str


PARTS: tuple[Part, ...] = (
    Part("vmm.x86", frozenset(), "what the manual says needs nothing of ours"),
    Part("vmm.errors", frozenset(), "every part may raise it"),
    Part(
        "vmm.devices",
        frozenset({"vmm.bus", "vmm.clock", "vmm.errors", "vmm.x86"}),
        "a device is told its lines and no addresses, and knows neither the CPU nor the board",
    ),
    Part(
        "vmm.board",
        frozenset({"vmm.bus", "vmm.clock", "vmm.devices", "vmm.errors", "vmm.x86"}),
        "the board is devices and wires",
    ),
    Part("vmm.boot", frozenset({"vmm.bus", "vmm.errors", "vmm.start", "vmm.x86"}), "a loader fills memory and leaves a start state; it runs nothing"),
)

FORBIDDEN: tuple[tuple[str, str, str], ...] = (
    # (importer, imported, why)
    ("vmm.backends", "vmm.devices", "a back-end never touches a device"),
    ("vmm.backends", "vmm.board", "a back-end never touches a device"),
    ("vmm.backends", "vmm.boot", "a back-end runs what is in memory, whoever put it there"),
    ("vmm.mmu", "vmm.backends", "memory serves every back-end and knows none"),
)


@dataclass(frozen=True, slots=True)
class Import:
    """One import: the importing module, the imported dotted name (a module, or a name in one), and the line that says so."""

    module: str
    target: str
    path: Path
    line: int


def module_name(path: Path, root: Path) -> str:
    """The dotted name of the file `path` below `root`; a package's `__init__.py` has the package's name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def below(name: str, prefix: str) -> bool:
    """Whether dotted `name` is `prefix` or lies below it."""
    return name == prefix or name.startswith(prefix + ".")


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Every import statement in the file, anywhere in it, with relative ones made absolute. `from a import b` gives `a.b`: b may be a module.

    Raises SyntaxError when the file is not Python.
    """
    module = module_name(path, root)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, path, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin = [*origin, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield Import(module, ".".join([*origin, alias.name]), path, node.lineno)


def objection(an_import: Import) -> str | None:
    """Why the rules forbid this import, or None when they allow it."""
    module, target = an_import.module, an_import.target
    package, top = module.split(".")[0], target.split(".")[0]
    if top in OUTSIDE:
        allowed = OUTSIDE[top]
        return None if any(below(module, name) for name in allowed) else f"only {', '.join(sorted(allowed)) or 'tests'} may import {top}"
    if top in LAYERS and top != package and top not in LAYERS[package]:
        return f"{package} may not import {top} (bt <- vmm <- tools)"
    for importer, imported, why in FORBIDDEN:
        if below(module, importer) and below(target, imported):
            return why
    for part in PARTS:
        inside = any(below(target, name) for name in (part.name, *part.sees))
        if below(module, part.name) and below(target, "vmm") and not inside:
            return part.why
    return None


def sources(root: Path = ROOT) -> list[Path]:
    """The Python files of all packages below `root`, sorted."""
    return sorted(path for package in LAYERS for path in (root / package).rglob("*.py"))


def violations(root: Path = ROOT) -> list[str]:
    """One line "FILE:LINE: MODULE imports TARGET: REASON" for each forbidden import below `root`."""
    found = []
    for path in sources(root):
        for an_import in imports(path, root):
            reason = objection(an_import)
            if reason is not None:
                found.append(f"{path.relative_to(root)}:{an_import.line}: {an_import.module} imports {an_import.target}: {reason}")
    return found
