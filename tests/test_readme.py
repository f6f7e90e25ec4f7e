"""README's commands run as they are written, and the tree of docs/architecture.md names every module."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(mark: str, text: str = README) -> str:
    """The fenced block behind ``<!-- mark -->``."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found is not None, f"there is no block {mark}"
    return found[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples, ``m2pt`` on the path, and an adapter of a few steps at runs/demo."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples" / "images", folder / "examples" / "images")
    shutil.copy(ROOT / "examples" / "questions.jsonl", folder / "examples")
    script = folder / "bin" / "m2pt"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m m2pt_cli "$@"\n')
    script.chmod(0o755)
    (script.parent / "python").symlink_to(sys.executable)
    train = block("ci:install").strip().partition(" && ")[2]
    done = run(train + " --max-steps 4 --limit 300", folder)
    assert done.stdout.strip() == "runs/demo"
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done


@pytest.mark.parametrize("command", block("test:commands").strip().splitlines())
def test_a_command_of_the_readme_runs(command: str, place: Path) -> None:
    assert run(command, place).stdout.strip()


def test_the_python_of_the_readme_runs(place: Path) -> None:
    (place / "readme.py").write_text(block("test:python"))
    assert run(f'"{sys.executable}" readme.py', place).stdout.strip()


def test_the_pipe_of_the_readme_names_images_that_are_there() -> None:
    """The pipe is read from the working directory: what jq puts in front must lead to the shipped images."""
    (put_in_front,) = re.findall(r"""jq -c '\.image \|= "([^"]*)" \+ \.' examples/questions\.jsonl""", README)
    lines = (ROOT / "examples" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines and all((ROOT / (put_in_front + json.loads(line)["image"])).is_file() for line in lines)


def test_the_settings_of_the_python_page_run(place: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    quick = block("test:python-settings", page).replace("output_dir=", "max_steps=2, limit=100, output_dir=")
    (place / "page.py").write_text(quick.replace("limit=200", "limit=20"))
    assert len(run(f'"{sys.executable}" page.py', place).stdout.splitlines()) == 2


def test_the_tree_names_every_module_and_nothing_else() -> None:
    tree = block("test:tree", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w./-]+\.py", tree))
    modules = {path.name for path in (ROOT / "m2pt_cli").rglob("*.py") if path.name != "__init__.py"}
    assert {name.rpartition("/")[2] for name in named} >= modules, "the tree lacks modules"
    everything = {
        path.name for folder in ("m2pt_cli", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    }
    assert {name.rpartition("/")[2] for name in named} <= everything, "the tree names what is not there"
