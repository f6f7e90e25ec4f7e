"""The journal: answers are flushed, torn lines are ignored, and keys are unique to question, image and weights."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.stand_ins import Drawn, item

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.run_dir import EvaluationFolder, Journal, answer_key, journal_run, read_records
from m2pt_cli.evaluation.task import Prediction, Score

RUN = {"base": "nano", "adapter": "abc", "protocol": "official"}


def _append(journal: Journal, key: str, prediction: str | None, error: str | None = None) -> None:
    journal.append(key, bench="demo", id=key, prediction=prediction, error=error)


def test_answers_are_on_disk_before_the_journal_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path, RUN) as journal:
        _append(journal, "k1", "yes")
        assert [record.get("key") for record in read_records(journal.file)] == [None, "k1"]
    assert journal_run(tmp_path) == RUN


def test_answers_are_found_again_and_failures_are_asked_again(tmp_path: Path) -> None:
    with Journal(tmp_path, RUN) as journal:
        _append(journal, "k1", "yes")
        _append(journal, "k2", None, "broken image")
        _append(journal, "k3", "")
    with Journal(tmp_path, RUN) as journal:
        assert journal.answers == {"k1": "yes", "k3": ""}
    assert len(read_records(tmp_path / "journal.jsonl")) == 4


def test_a_torn_last_line_is_cut_at_every_byte(tmp_path: Path) -> None:
    with Journal(tmp_path, RUN) as journal:
        _append(journal, "k1", "first")
        _append(journal, "k2", "zweite Antwort é")
    file = tmp_path / "journal.jsonl"
    whole = file.read_bytes()
    header_end = whole.index(b"\n") + 1
    last_start = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for cut in range(header_end, len(whole) + 1):
        file.write_bytes(whole[:cut])
        with Journal(tmp_path, RUN) as journal:
            expected = {} if cut < last_start else {"k1": "first"}
            assert journal.answers == (expected if cut < len(whole) else {"k1": "first", "k2": "zweite Antwort é"})
            _append(journal, "k9", "after")
        assert [record["key"] for record in read_records(file)[1:]] == [*journal.answers]
        assert all(line.startswith(b"{") for line in file.read_bytes().splitlines())


def test_a_journal_torn_in_its_first_line_starts_again(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b'{"run": {"ba')
    with Journal(tmp_path, RUN) as journal:
        assert journal.answers == {}
    assert journal_run(tmp_path) == RUN


def test_journals_of_several_processes_are_read_together(tmp_path: Path) -> None:
    for rank in range(2):
        with Journal(tmp_path, RUN, rank=rank) as journal:
            _append(journal, f"k{rank}", str(rank))
    with Journal(tmp_path, RUN) as journal:
        assert journal.answers == {"k0": "0", "k1": "1"}


def test_the_key_depends_on_everything_that_decides_an_answer() -> None:
    base = item(1)
    changed = [
        answer_key("demo", base, RUN),
        answer_key("demo-shuffled", base, RUN),
        answer_key("demo", dataclasses.replace(base, id="q1#1"), RUN),
        answer_key("demo", dataclasses.replace(base, question="Is it 2?"), RUN),
        answer_key("demo", dataclasses.replace(base, image=Drawn("other.png")), RUN),
        answer_key("demo", base, {**RUN, "adapter": "retrained"}),
        answer_key("demo", base, {**RUN, "max_new_tokens": 3}),
        answer_key("demo", base, {**RUN, "protocol": "lmms-eval"}),
    ]
    assert len(set(changed)) == len(changed)
    assert answer_key("demo", base, dict(reversed(RUN.items()))) == changed[0]
    # How many questions are asked decides no answer.
    assert (
        answer_key("demo", base, {**RUN, "limit": 40}) == answer_key("demo", base, {**RUN, "limit": None}) == changed[0]
    )
    # The reference answer and the category decide the score, not the answer.
    assert answer_key("demo", dataclasses.replace(base, answer="no", category=None), RUN) == changed[0]


FOLDER_RUN = {"base": "nano", "adapter": "f1", "wording": "m2pt-1", "limit": None}
RESULTS: dict[str, Any] = {
    "base": "nano",
    "adapter": {"name": "a", "fingerprint": "f1"},
    "benchmarks": {},
    "settings": {"wording": "m2pt-1", "limit": None},
}


def test_a_missing_or_empty_folder_is_free(tmp_path: Path) -> None:
    EvaluationFolder(tmp_path / "new").claim(FOLDER_RUN, overwrite=False)
    EvaluationFolder(tmp_path).claim(FOLDER_RUN, overwrite=False)


def test_a_folder_of_other_things_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        EvaluationFolder(tmp_path).claim(FOLDER_RUN, overwrite=False)
    EvaluationFolder(tmp_path).claim(FOLDER_RUN, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SettingsError, match="is a file"):
        EvaluationFolder(file).claim(FOLDER_RUN, overwrite=True)


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_with_the_difference(tmp_path: Path, finished: bool) -> None:
    folder = EvaluationFolder(tmp_path)
    if finished:
        folder.write_results(RESULTS)
    else:
        with Journal(tmp_path, FOLDER_RUN):
            pass
    folder.claim(FOLDER_RUN, overwrite=False)
    folder.claim({"base": "nano"}, overwrite=False)
    with pytest.raises(SettingsError) as caught:
        folder.claim({**FOLDER_RUN, "adapter": "f2", "limit": 10}, overwrite=False)
    assert "adapter was f1, now f2" in caught.value.message
    assert "limit was none, now 10" in caught.value.message


def test_results_end_the_journal_and_keep_the_answers(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    rows = [
        Prediction.of(item(1), "yes").marked(Score("yes", True)),
        Prediction.of(item(2), None, "broken"),
    ]
    with Journal(tmp_path, FOLDER_RUN), Journal(tmp_path, FOLDER_RUN, rank=1):
        pass
    folder.write_predictions("demo", rows)
    folder.write_results(RESULTS)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predictions-demo.jsonl", "results.json"]
    assert folder.run() == FOLDER_RUN
    # A failed question is asked again by a rerun.
    assert list(folder.finished_rows("demo")) == ["q1#0"]
    assert folder.finished_rows("mme") == {}


def test_overwrite_removes_this_tools_files_alone(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    with Journal(tmp_path, FOLDER_RUN):
        pass
    folder.write_predictions("demo", [Prediction.of(item(1), "yes")])
    (tmp_path / "notes.md").write_text("keep")
    folder.claim({**FOLDER_RUN, "base": "other"}, overwrite=True)
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
    script = "import os, sys; from pathlib import Path; from m2pt_cli.evaluation.run_dir import EvaluationFolder"
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
    folder.claim(FOLDER_RUN, overwrite=False)
    with Journal(tmp_path, FOLDER_RUN):
        pass
    assert folder.run() == FOLDER_RUN
    (tmp_path / "journal.jsonl").write_bytes(torn)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        folder.claim(FOLDER_RUN, overwrite=False)


@pytest.mark.parametrize(
    ("earlier", "limit", "goes_on"),
    [(40, 80, True), (40, None, True), (40, 40, True), (None, None, True), (80, 40, False), (None, 40, False)],
)
def test_a_folder_takes_a_larger_limit(tmp_path: Path, earlier: int | None, limit: int | None, goes_on: bool) -> None:
    folder = EvaluationFolder(tmp_path)
    with Journal(tmp_path, {**FOLDER_RUN, "limit": earlier}):
        pass
    if goes_on:
        folder.claim({**FOLDER_RUN, "limit": limit}, overwrite=False)
    else:
        with pytest.raises(SettingsError, match=r"holds another evaluation: limit was \w+, now 40$"):
            folder.claim({**FOLDER_RUN, "limit": limit}, overwrite=False)


def test_a_journal_belongs_to_the_last_run_that_wrote_to_it(tmp_path: Path) -> None:
    for limit in (40, 40, 80):
        with Journal(tmp_path, {**FOLDER_RUN, "limit": limit}) as journal:
            _append(journal, f"k{limit}", "yes")
    assert journal_run(tmp_path) == {**FOLDER_RUN, "limit": 80} and set(journal.answers) == {"k40", "k80"}
    assert [record["run"]["limit"] for record in read_records(journal.file) if "run" in record] == [40, 80]


def test_a_folder_of_several_runs_is_told_from_a_folder_of_other_things(tmp_path: Path) -> None:
    for name in ("b", "a"):
        EvaluationFolder(tmp_path / name).create()
        EvaluationFolder(tmp_path / name).write_results(RESULTS)
    (tmp_path / "results.json").write_text('{"runs": []}')
    with pytest.raises(SettingsError, match="holds 2 evaluations, each in a folder of its own: a, b") as caught:
        EvaluationFolder(tmp_path).claim(FOLDER_RUN, overwrite=False)
    assert f"--output-dir {tmp_path / 'a'}" in str(caught.value.hint)
