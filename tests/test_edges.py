"""Imports have no cycles and go in one direction; only ``cli`` imports typer and rich; only its output prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "m2pt_cli"

# Low to high: a part may import those of lower levels, of its own level, and itself; inside functions too.
LEVELS = (
    ("settings", "errors", "records", "version"),
    ("files", "runtime"),
    ("method", "families"),
    ("models", "data", "demo", "convert"),
    ("generation",),
    ("training", "evaluation", "analysis"),
    ("api",),
    ("cli",),
    ("__main__", "__init__"),
)
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}
# Of one level, what may import what.
BESIDE = {
    "settings": {"errors"},
    "records": {"errors"},
    "method": {"families"},
    "convert": {"models"},
    "models": {"convert"},  # inside functions: a base is assembled when it is asked for
    "data": {"demo"},
    "demo": {"data"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Names that a file imports, and whether they are for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", id(node) in typing) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    for name, _ in imported(path):
        words = name.split(".")
        if words[0] in ("typer", "rich", "click"):
            assert part == "cli", f"{name} belongs in cli"
            assert words[0] != "click", "Typer carries a Click of its own"
        if words[0] == "m2pt_cli" and len(words) > 1 and words[1] in LEVEL and words[1] != part:
            is_lower = LEVEL[words[1]] < LEVEL[part]
            assert is_lower or words[1] in BESIDE.get(part, ()), f"{part} must not import {name}"


def test_there_is_no_circle() -> None:
    """Of modules, imports inside functions included; what only type checkers see is no import."""
    graph = {}
    for path in MODULES:
        own = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        found = set()
        for name, is_for_types in imported(path):
            if not is_for_types and name.startswith("m2pt_cli."):
                found.add(name if name in NAMES else name.rpartition(".")[0])
        graph[own] = (found & NAMES) - {own}
    while True:  # take away what imports nothing that is left, until nothing is or a circle remains
        free = {name for name, others in graph.items() if not others & graph.keys()}
        if not free:
            break
        graph = {name: others for name, others in graph.items() if name not in free}
    assert graph == {}, f"in a circle: {sorted(graph)}"


def test_few_files_share_a_name() -> None:
    """A maintainer opens a file by its name; those that stand twice are clear from their folder."""
    names = [path.stem for path in MODULES if path.stem != "__init__"]
    assert len({name for name in names if names.count(name) > 1}) <= 8


def test_only_the_output_prints() -> None:
    for path in MODULES:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert "print" not in names, path
        if part_of(path) not in ("cli", "__main__"):
            assert "exit" not in names, path


def test_datasets_is_never_imported_at_module_level() -> None:
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "datasets" not in [name.split(".")[0] for name in names], path
