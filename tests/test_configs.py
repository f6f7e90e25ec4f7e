"""The example files for ``m2pt train --config``: each is valid, and those of the embedded base pass a dry run."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2pt_cli.cli.app import main

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert len(FILES) >= 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_is_a_setting(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in a file is met before its data is looked for, which is no file of this machine here."""
    broken = tmp_path / "broken.yaml"
    broken.write_text(file.read_text(encoding="utf-8") + "\nno_such_setting: 1\n")
    assert main(["train", "--config", str(broken)]) == 2
    error = capsys.readouterr().err
    assert "no_such_setting" in error and error.count("unknown") <= 1
    assert main(["train", "--config", str(file), "--data", "no/such.json", "--output-dir", str(tmp_path / "run")]) in (
        1,
        3,
    )
    error = capsys.readouterr().err
    assert "no/such.json" in error or "no GPU" in error


@pytest.mark.parametrize(
    "file", [file for file in FILES if "base: nano" in file.read_text()], ids=lambda file: file.stem
)
def test_those_of_the_embedded_base_run_dry(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", str(file), "--limit", "200", "--dry-run", "--json"]) == 0
    assert '"nano"' in capsys.readouterr().out
