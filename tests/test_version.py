"""Versions are shown, recorded, and warned about outside the tested range."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from m2pt_cli import version
from m2pt_cli.cli.app import main
from m2pt_cli.version import LIBRARIES, TESTED, __version__, library_versions, untested_versions

ROOT = Path(__file__).parents[1]


def test_the_installed_versions_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"m2pt {__version__} (python {sys.version.split()[0]}, torch ")
    for name in ("transformers", "peft"):
        assert f"{name} {metadata.version(name)}" in out


def test_libraries_that_are_not_installed_are_left_out() -> None:
    assert set(library_versions("torch", "no-such-library")) == {"m2pt", "python", "torch"}


@pytest.mark.parametrize(
    ("found", "is_tested"),
    [("5.17.0", True), ("5.24.3", True), ("5.24.0.dev0", True), ("5.16.9", False), ("5.25.0", False), ("6.0", False)],
)
def test_versions_outside_the_range(found: str, is_tested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version.metadata, "version", lambda name: found if name == "transformers" else "0.21")
    sentences = untested_versions()
    assert len(sentences) == (0 if is_tested else 1)
    assert is_tested or f"transformers {found} is outside the versions that were tested, 5.17 to" in sentences[0]


def test_it_is_one_warning_and_the_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(version.metadata, "version", lambda name: "99.0" if name == "peft" else "5.20")
    assert main(["count-params", "--base", "nano", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("warning: peft 99.0 is outside") == 1 and captured.out.startswith("{")
    assert main(["count-params", "--base", "nano", "--quiet"]) == 0
    assert not capsys.readouterr().err


def test_the_bounds_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(re.match(r"([\w-]+)(.*)", one).groups() for one in project["dependencies"])  # type: ignore[union-attr]
    for name, (oldest, first_unknown) in TESTED.items():
        assert bounds[name] == f">={oldest},<{first_unknown}"
    named = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert set(named) >= set(LIBRARIES)
    assert "://" not in (ROOT / "constraints.txt").read_text()
    for name, (oldest, first_unknown) in TESTED.items():
        assert version._numbers(oldest) <= version._numbers(named[name]) < version._numbers(first_unknown)


def test_packaging_reads_it_without_importing_anything() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, m2pt_cli.version; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
