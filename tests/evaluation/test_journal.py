"""The journal: flushed answers, torn lines, and keys that no other question, image or weights share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from m2pt_cli.evaluation.journal import Journal, answer_key, journal_run, read_records

from .stand_ins import Drawn, item

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
    ]
    assert len(set(changed)) == len(changed)
    assert answer_key("demo", base, dict(reversed(RUN.items()))) == changed[0]
    # The reference answer and the category decide the score, not the answer.
    assert answer_key("demo", dataclasses.replace(base, answer="no", category=None), RUN) == changed[0]
