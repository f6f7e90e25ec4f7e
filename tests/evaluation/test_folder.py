"""The evaluation directory: free, its own run's, or refused with the difference named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.folder import EvaluationFolder
from m2pt_cli.evaluation.journal import Journal
from m2pt_cli.evaluation.rows import Mark, Row

from .stand_ins import item

RUN = {"base": "nano", "adapter": "f1", "wording": "m2pt-1", "limit": None}
RESULTS: dict[str, Any] = {
    "base": "nano",
    "adapter": {"name": "a", "fingerprint": "f1"},
    "benchmarks": {},
    "settings": {"wording": "m2pt-1", "limit": None},
}


def test_a_missing_or_empty_folder_is_free(tmp_path: Path) -> None:
    EvaluationFolder(tmp_path / "new").claim(RUN, overwrite=False)
    EvaluationFolder(tmp_path).claim(RUN, overwrite=False)


def test_a_folder_of_other_things_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        EvaluationFolder(tmp_path).claim(RUN, overwrite=False)
    EvaluationFolder(tmp_path).claim(RUN, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SettingsError, match="is a file"):
        EvaluationFolder(file).claim(RUN, overwrite=True)


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_with_the_difference(tmp_path: Path, finished: bool) -> None:
    folder = EvaluationFolder(tmp_path)
    if finished:
        folder.write_results(RESULTS)
    else:
        with Journal(tmp_path, RUN):
            pass
    folder.claim(RUN, overwrite=False)
    folder.claim({"base": "nano"}, overwrite=False)
    with pytest.raises(SettingsError) as caught:
        folder.claim({**RUN, "adapter": "f2", "limit": 10}, overwrite=False)
    assert "adapter was f1, now f2" in caught.value.message
    assert "limit was none, now 10" in caught.value.message


def test_results_end_the_journal_and_keep_the_answers(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    rows = [
        Row.of(item(1), "yes").marked(Mark("yes", True)),
        Row.of(item(2), None, "broken"),
    ]
    with Journal(tmp_path, RUN), Journal(tmp_path, RUN, rank=1):
        pass
    folder.write_predictions("demo", rows)
    folder.write_results(RESULTS)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predictions-demo.jsonl", "results.json"]
    assert folder.run() == RUN
    # A failed question is asked again by a rerun.
    assert list(folder.finished_rows("demo")) == ["q1#0"]
    assert folder.finished_rows("mme") == {}


def test_overwrite_removes_this_tools_files_alone(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    with Journal(tmp_path, RUN):
        pass
    folder.write_predictions("demo", [Row.of(item(1), "yes")])
    (tmp_path / "notes.md").write_text("keep")
    folder.claim({**RUN, "base": "other"}, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.md"]


def test_an_unwritable_place_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for check in (EvaluationFolder.require_writable, EvaluationFolder.create):
        with pytest.raises(SettingsError, match="can't be written"):
            check(EvaluationFolder(tmp_path / "file" / "below"))
    EvaluationFolder(tmp_path / "a" / "b").require_writable()
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where root can't write either")
def test_root_is_told_as_well_before_anything_is_asked() -> None:
    with pytest.raises(SettingsError, match="--output-dir /proc/m2pt can't be written: "):
        EvaluationFolder(Path("/proc/m2pt")).require_writable()


def test_one_evaluation_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    first, second = EvaluationFolder(tmp_path), EvaluationFolder(tmp_path)
    first.hold()
    first.hold()
    for attempt in (second.hold, second.require_writable):
        with pytest.raises(SettingsError, match="another m2pt eval is writing to"):
            attempt()
    first.release()
    second.require_writable()
    second.hold()
    second.release()
    EvaluationFolder(tmp_path / "none").hold()
    assert not list(tmp_path.iterdir())


def test_a_killed_evaluation_holds_nothing(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path; from m2pt_cli.evaluation.folder import EvaluationFolder"
    script += "; EvaluationFolder(Path(sys.argv[1])).hold(); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(SettingsError, match="another m2pt eval"):
        EvaluationFolder(tmp_path).hold()
    holder.kill()
    holder.communicate()
    folder = EvaluationFolder(tmp_path)
    folder.hold()
    folder.release()


@pytest.mark.parametrize("torn", [b"", b'{"run": {"ba'])
def test_a_run_killed_before_its_first_whole_line_goes_on(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(torn)
    folder = EvaluationFolder(tmp_path)
    folder.claim(RUN, overwrite=False)
    with Journal(tmp_path, RUN):
        pass
    assert folder.run() == RUN
    (tmp_path / "journal.jsonl").write_bytes(torn)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        folder.claim(RUN, overwrite=False)
