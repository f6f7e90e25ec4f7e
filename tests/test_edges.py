"""Imports run one way, typer and rich stay in ``cli``, and files stay one idea long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "m2pt_cli"

# Each part may import itself and the parts listed for it, inside functions and under TYPE_CHECKING too.
_CORE = {"settings", "records", "errors", "version"}
_METHOD = _CORE | {"method"}
_GROUND = _METHOD | {"data", "bases"}
_ANSWERING = _GROUND | {"answering"}
ALLOWED = {
    "settings": {"errors"},
    "records": {"errors"},
    "errors": set(),
    "version": set(),
    "method": _CORE,
    "data": _GROUND,
    "bases": _GROUND,
    "answering": _GROUND,
    "training": _ANSWERING,
    "evaluation": _ANSWERING,
    "analysis": _ANSWERING,
    "api": _ANSWERING | {"training", "evaluation", "analysis"},
    "cli": _ANSWERING | {"training", "evaluation", "analysis"},
    "__main__": {"cli"},
    "__init__": {"api", "method", "settings", "version"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    for name in imported(path):
        words = name.split(".")
        if words[0] in ("typer", "rich", "click"):
            assert part == "cli", f"{name} belongs in cli"
            assert words[0] != "click", "Typer carries a Click of its own"
        if words[0] == "m2pt_cli" and len(words) > 1 and words[1] in ALLOWED:
            assert words[1] == part or words[1] in ALLOWED[part], f"{part} must not import {name}"


def test_only_the_output_prints() -> None:
    for path in MODULES:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert "print" not in names, path
        if part_of(path) not in ("cli", "__main__"):
            assert "exit" not in names, path


def test_files_stay_short() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 365} == {}


def test_datasets_is_never_imported_at_module_level() -> None:
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "datasets" not in [name.split(".")[0] for name in names], path
