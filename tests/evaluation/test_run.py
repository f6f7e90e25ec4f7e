"""Whole evaluations on a tiny base: files, resuming, kills, failures, several processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import forked

from m2pt_cli.errors import GenerationError, InputError, Interrupted, SettingsError, UnavailableError
from m2pt_cli.evaluation import run_dir as folder_module
from m2pt_cli.evaluation.events import Notice, Progress
from m2pt_cli.evaluation.run import run_evaluation
from m2pt_cli.evaluation.run_dir import read_records
from m2pt_cli.generation.engine import AnswerEngine
from m2pt_cli.runtime.signals import stop_on_sigterm
from m2pt_cli.settings import EvalSettings


@pytest.fixture
def settings(tiny_base: Path, questions: Path) -> Callable[..., EvalSettings]:
    def make(output_dir: Path, **changes: Any) -> EvalSettings:
        values: dict[str, Any] = {
            "base": str(tiny_base),
            "bench": (str(questions),),
            "template": "plain",
            "output_dir": output_dir,
            "max_new_tokens": 4,
            "batch_tokens": 64,
            "device": "cpu",
        }
        return EvalSettings(**{**values, **changes})

    return make


def _predictions(folder: Path, name: str = "noise") -> bytes:
    return (folder / f"predictions-{name}.jsonl").read_bytes()


def _results(folder: Path) -> dict[str, Any]:
    """results.json without what may differ between two runs of the same thing."""
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in content.items() if key not in ("seconds", "resumed")}


def _resumed(folder: Path) -> int:
    return int(json.loads((folder / "results.json").read_text())["resumed"])


def test_a_run_writes_its_files_and_reports(settings: Callable[..., EvalSettings], tmp_path: Path) -> None:
    events: list[Notice | Progress] = []
    result = run_evaluation(settings(tmp_path / "out"), events=events.append)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["predictions-noise.jsonl", "results.json"]
    rows = [json.loads(line) for line in _predictions(tmp_path / "out").splitlines()]
    assert len(rows) == 36 and [row["id"] for row in rows] == [f"{n}#0" for n in range(1, 37)]
    assert len({row["prediction"] for row in rows}) >= 12
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"base", "adapter", "benchmarks", "settings", "versions", "seconds"} <= content.keys()
    assert content == json.loads(json.dumps(result.to_dict()))
    assert content["adapter"] is None and content["settings"]["template"] == "plain"
    block = content["benchmarks"]["noise"]
    assert block["n"] == 36 and block["failed"] == 0 and block["shuffled"] is None
    assert block["accuracy"] == sum(row["correct"] for row in rows) / 36
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(37)) and progress[-1].total == 36


def test_a_rerun_asks_nothing_and_another_run_is_refused(
    settings: Callable[..., EvalSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_evaluation(settings(out))
    before = _predictions(out), _results(out)
    events: list[Notice | Progress] = []
    with monkeypatch.context() as patched:
        patched.setattr(AnswerEngine, "_run", lambda *arguments: pytest.fail("a question was asked again"))
        run_evaluation(settings(out), events=events.append)
    assert (_predictions(out), _results(out)) == before and _resumed(out) == 36
    assert [event.done for event in events if isinstance(event, Progress)] == [36]
    with pytest.raises(SettingsError, match="max_new_tokens was 4, now 3"):
        run_evaluation(settings(out, max_new_tokens=3))
    assert (_predictions(out), _results(out)) == before
    run_evaluation(settings(out, max_new_tokens=3, overwrite=True))
    assert _resumed(out) == 0


def test_a_rerun_needs_no_images(settings: Callable[..., EvalSettings], questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_evaluation(settings(out))
    expected = _results(out)
    (tmp_path / "gone").mkdir()
    run_evaluation(settings(out, images=(tmp_path / "gone",)))
    assert _resumed(out) == 36 and _results(out) == expected


def test_questions_that_changed_under_the_same_ids_are_asked_again(
    settings: Callable[..., EvalSettings], questions: Path, tmp_path: Path
) -> None:
    lines = questions.read_text().splitlines(keepends=True)
    file = tmp_path / "noise.jsonl"
    file.write_text("".join(lines))
    make = {"bench": (str(file),), "images": (questions.parent,)}
    run_evaluation(settings(tmp_path / "out", **make))
    changed = [line.replace("Is it a dog", "Is it a red cat") for line in lines]
    file.write_text("".join(changed))
    run_evaluation(settings(tmp_path / "out", **make))
    assert _resumed(tmp_path / "out") == 24
    run_evaluation(settings(tmp_path / "fresh", **make))
    assert _predictions(tmp_path / "out") == _predictions(tmp_path / "fresh")


def test_shuffled_images_change_the_answers_and_stand_beside(
    settings: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_evaluation(settings(out))
    plain = _predictions(out)
    run_evaluation(settings(out, shuffle_images=True))
    assert _predictions(out) == plain and _resumed(out) == 36
    rows, blind = (
        [json.loads(line) for line in _predictions(out, name).splitlines()] for name in ("noise", "noise-shuffled")
    )
    assert all(a["image"] != b["image"] and a["question"] == b["question"] for a, b in zip(rows, blind, strict=True))
    assert sum(a["prediction"] != b["prediction"] for a, b in zip(rows, blind, strict=True)) > 18
    assert _results(out)["benchmarks"]["noise"]["shuffled"]["accuracy"] is not None
    # Without the flag the blind score stays.
    run_evaluation(settings(out))
    assert _results(out)["benchmarks"]["noise"]["shuffled"] is not None


def test_a_judges_verdicts_outlive_a_blind_baseline_that_is_added_later(
    settings: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_evaluation(settings(out))
    held = json.loads((out / "results.json").read_text())
    held["benchmarks"]["noise"]["judge"] = {"name": "somebody", "accuracy": 0.5}
    (out / "results.json").write_text(json.dumps(held), encoding="utf-8")
    run_evaluation(settings(out, shuffle_images=True))
    assert _results(out)["benchmarks"]["noise"]["judge"] == {"name": "somebody", "accuracy": 0.5}


def test_a_broken_image_fails_alone_and_is_asked_again(
    settings: Callable[..., EvalSettings], questions: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in questions.parent.glob("*.png"):
        (images / file.name).write_bytes(file.read_bytes())
    good = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(good[:60])
    out = tmp_path / "out"
    result = run_evaluation(settings(out, images=(images,)))
    block = result.runs[0].benchmarks["noise"]
    assert (block["n"], block["failed"]) == (33, 3) and "3 questions failed" in block["notes"][0]
    failed = [json.loads(line) for line in _predictions(out).splitlines() if json.loads(line)["error"]]
    assert [row["image"] for row in failed] == ["3.png"] * 3
    assert all(row["correct"] is None and row["prediction"] is None for row in failed)
    (images / "3.png").write_bytes(good)
    mended = run_evaluation(settings(out, images=(images,))).runs[0]
    assert mended.resumed == 33 and mended.benchmarks["noise"]["failed"] == 0


def test_every_question_failing_is_an_error(
    settings: Callable[..., EvalSettings], questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for file in questions.parent.glob("*.png"):
        (tmp_path / "images" / file.name).write_bytes(file.read_bytes()[:60])
    with pytest.raises(GenerationError, match=r"all 36 questions of noise failed, the first with: image 0\.png"):
        run_evaluation(settings(tmp_path / "out", images=(tmp_path / "images",)))
    assert len(_predictions(tmp_path / "out").splitlines()) == 36


def test_a_benchmark_that_fails_as_a_whole_does_not_stop_the_others(
    settings: Callable[..., EvalSettings], questions: Path, tmp_path: Path
) -> None:
    other = tmp_path / "gone.jsonl"
    lines = [{"image": f"gone-{n}.png", "question": "what is it", "answer": "yes"} for n in range(3)]
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    events: list[object] = []
    run_evaluation(settings(out, bench=(str(other), str(questions))), events=events.append)
    said = [event.text for event in events if isinstance(event, Notice) and event.is_warning]
    assert said[0].startswith("gone: 3 of 3 questions can't be asked: image gone-0.png is in none of")
    blocks = _results(out)["benchmarks"]
    assert blocks["gone"]["accuracy"] is None and blocks["gone"]["failed"] == 3
    assert blocks["noise"]["n"] == 36
    assert len(_predictions(out, "gone").splitlines()) == 3


def test_out_of_memory_is_reported(
    settings: Callable[..., EvalSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, events = AnswerEngine._run, list[Notice | Progress]()

    def small(self: AnswerEngine, rows: Any, *rest: Any) -> Any:
        if sum(len(row.members) for row in rows) > 1:
            raise torch.OutOfMemoryError("too much")
        return run(self, rows, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerEngine, "_run", small)
        run_evaluation(settings(tmp_path / "out"), events=events.append)
    assert any(isinstance(event, Notice) and "out of memory" in event.text for event in events)
    run_evaluation(settings(tmp_path / "whole"))
    assert _predictions(tmp_path / "out") == _predictions(tmp_path / "whole")


def test_sigterm_keeps_the_answers_and_says_what_to_do(settings: Callable[..., EvalSettings], tmp_path: Path) -> None:
    def stop(event: Notice | Progress) -> None:
        if isinstance(event, Progress) and event.done == 10:
            signal.raise_signal(signal.SIGTERM)

    out, before = tmp_path / "out", signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="terminated; 10 of 36 answers") as caught, stop_on_sigterm():
        run_evaluation(settings(out), events=stop)
    assert caught.value.exit_code == 143 and "run the same command again" in str(caught.value.hint)
    assert signal.getsignal(signal.SIGTERM) is before
    assert run_evaluation(settings(out)).runs[0].resumed == 10
    # Where no question is being asked, while a base is loaded say, it is an error of the same kind; so is Ctrl-C.
    for number, word, code in [(signal.SIGTERM, "terminated", 143), (signal.SIGINT, "interrupted", 130)]:
        with pytest.raises(Interrupted, match=word) as caught, stop_on_sigterm():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.raise_signal(number)
        assert caught.value.exit_code == code and "run the same command again" in str(caught.value.hint)


def test_ctrl_c_keeps_the_answers(settings: Callable[..., EvalSettings], tmp_path: Path) -> None:
    def stop(event: Notice | Progress) -> None:
        if isinstance(event, Progress) and event.done == 10:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="10 of 36 answers") as caught:
        run_evaluation(settings(out), events=stop)
    assert caught.value.exit_code == 130
    assert len(read_records(out / "journal.jsonl")) == 11
    assert run_evaluation(settings(out)).runs[0].resumed == 10


def test_what_is_wrong_without_a_model_leaves_nothing_behind(
    settings: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    for error, changes in [
        (SettingsError, {"bench": ("dmo",)}),
        (SettingsError, {"protocol": "lmms-eval"}),
        (SettingsError, {"ocr": True}),
        (InputError, {"bench": (str(tmp_path / "none.jsonl"),)}),
        (InputError, {"images": (tmp_path / "none",)}),
        (InputError, {"images": (empty,)}),
        (SettingsError, {"source": "owner/name"}),
        (UnavailableError, {"base": str(tmp_path / "no-base")}),
        (UnavailableError, {"judge": "nobody/no-judge"}),
    ]:
        with pytest.raises(error):
            run_evaluation(settings(out, **changes))
    assert not out.exists()


def test_kill_minus_nine_anywhere_loses_and_repeats_nothing(
    settings: Callable[..., EvalSettings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed at sizes of the journal that are spread evenly, and at each step of the writing at the end."""
    whole = tmp_path / "whole"
    run_evaluation(settings(whole, shuffle_images=True))
    expected = _predictions(whole), _predictions(whole, "noise-shuffled"), _results(whole)
    size = _journal_size(settings(tmp_path / "sizing", shuffle_images=True))
    phases: dict[str, int] = {}
    points = 12
    for point in range(points):
        out = tmp_path / f"at-{point}"
        journal = out / "journal.jsonl"
        least = size * point // points + 1

        def ready(journal: Path = journal, least: int = least) -> bool:
            return journal.is_file() and journal.stat().st_size >= least

        child = forked.start(lambda out=out: run_evaluation(settings(out, shuffle_images=True)))
        assert forked.kill_when(child, ready)
        found = [record for record in read_records(journal) if "key" in record]
        keys = {record["key"] for record in found}
        torn = not journal.read_bytes().endswith(b"\n")
        phase = "before the first answer" if not keys else "while a line was written" if torn else "between two answers"
        phases[phase] = phases.get(phase, 0) + 1
        assert len(keys) == len(found)
        run_evaluation(settings(out, shuffle_images=True))
        assert _resumed(out) == len(keys)
        assert (_predictions(out), _predictions(out, "noise-shuffled"), _results(out)) == expected
    for step in ("write_predictions", "write_json", "journal_files"):
        for moment in ("before", "after"):
            out = tmp_path / f"{step}-{moment}"
            child = forked.start(lambda: _die_at(step, moment, settings(out, shuffle_images=True)))  # noqa: B023
            assert forked.finish(child) == -9
            run_evaluation(settings(out, shuffle_images=True))
            assert (_predictions(out), _predictions(out, "noise-shuffled"), _results(out)) == expected
            assert _resumed(out) >= 36
            phases["at the end"] = phases.get("at the end", 0) + 1
    with capsys.disabled():
        print(f"\nkilled {sum(phases.values())} times: " + ", ".join(f"{n} {phase}" for phase, n in phases.items()))
    assert phases["between two answers"] >= 4


def _journal_size(settings: EvalSettings) -> int:
    """Bytes of the whole journal: a child is stopped before it removes it."""
    child = forked.start(lambda: _die_at("write_json", "before", settings))
    assert forked.finish(child) == -9
    assert settings.output_dir is not None
    return (settings.output_dir / "journal.jsonl").stat().st_size


def _die_at(step: str, moment: str, settings: EvalSettings) -> None:
    """Run, and die before or after the first call of one step of the writing; only ever called in a child."""
    work = getattr(folder_module, step)

    def deadly(*arguments: Any) -> Any:
        if step == "journal_files" and not (settings.output_dir or Path()).joinpath("results.json").is_file():
            return work(*arguments)
        if moment == "before":
            forked.die()
        work(*arguments)
        forked.die()

    setattr(folder_module, step, deadly)
    run_evaluation(settings)


def test_a_process_that_fails_does_not_leave_the_others_waiting(
    settings: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    """The first process fails after its answers, while the second one waits for it to merge them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

        def fail(event: Notice | Progress) -> None:
            if rank == 0 and isinstance(event, Progress) and event.done == event.total:
                time.sleep(1)
                raise OSError("the disk is full")

        expected = (OSError, "disk is full") if rank == 0 else (GenerationError, "process 1 of 2 lost the others")
        with pytest.raises(expected[0], match=expected[1]):
            run_evaluation(settings(tmp_path / "out"), events=fail)

    children = [forked.start(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [forked.finish(child, seconds=60) for child in children] == [0, 0]


def test_two_processes_give_what_one_gives(settings: Callable[..., EvalSettings], tmp_path: Path) -> None:
    run_evaluation(settings(tmp_path / "one", shuffle_images=True))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "two"

    def work(rank: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        counts: list[Progress] = []

        def note(event: Notice | Progress) -> None:
            if isinstance(event, Progress):
                counts.append(event)
                # The second process is late: the first one has to wait for it.
                time.sleep(0.4 if rank == 1 and event.done == event.total else 0)

        run_evaluation(settings(out, shuffle_images=True), events=note)
        (tmp_path / f"asked-{rank}").write_text(str(counts[-1].done))

    children = [forked.start(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [forked.finish(child) for child in children] == [0, 0]
    asked = [int((tmp_path / f"asked-{rank}").read_text()) for rank in range(2)]
    assert asked == [18, 18]
    assert _predictions(out) == _predictions(tmp_path / "one")
    assert _predictions(out, "noise-shuffled") == _predictions(tmp_path / "one", "noise-shuffled")
    assert _results(out) == _results(tmp_path / "one")
    assert sorted(file.name for file in out.iterdir()) == [
        "predictions-noise-shuffled.jsonl",
        "predictions-noise.jsonl",
        "results.json",
    ]


def test_a_larger_limit_goes_on_and_equals_a_fresh_run(
    settings: Callable[..., EvalSettings], questions: Path, tmp_path: Path
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    run_evaluation(settings(out, limit=11))
    run_evaluation(settings(out, limit=25))
    run_evaluation(settings(fresh, limit=25))
    assert _resumed(out) == 11 and _resumed(fresh) == 0
    assert _predictions(out) == _predictions(fresh) and _results(out) == _results(fresh)
    assert _results(out)["settings"]["limit"] == 25 and _results(out)["benchmarks"]["noise"]["n"] == 25
    before = _predictions(out), _results(out)
    with pytest.raises(SettingsError, match="limit was 25, now 11"):
        run_evaluation(settings(out, limit=11))
    assert (_predictions(out), _results(out)) == before
    # No limit is the largest one, and there is no way back from it.
    run_evaluation(settings(out))
    assert _resumed(out) == 25 and len(_predictions(out).splitlines()) == 36
    with pytest.raises(SettingsError, match="limit was none, now 36"):
        run_evaluation(settings(out, limit=36))


def test_a_larger_limit_after_a_kill_keeps_both_journals(
    settings: Callable[..., EvalSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"

    def stop_after(count: int) -> Callable[[Notice | Progress], None]:
        def stop(event: Notice | Progress) -> None:
            if isinstance(event, Progress) and event.done == count:
                raise KeyboardInterrupt

        return stop

    for limit, count in ((12, 7), (24, 17)):
        with pytest.raises(Interrupted):
            run_evaluation(settings(out, limit=limit), events=stop_after(count))
    # The journal is that of 24 questions now: 12 would lose the answers behind them.
    with pytest.raises(SettingsError, match="limit was 24, now 12"):
        run_evaluation(settings(out, limit=12))
    run_evaluation(settings(out, limit=24))
    run_evaluation(settings(fresh, limit=24))
    assert _resumed(out) == 17 and _predictions(out) == _predictions(fresh) and _results(out) == _results(fresh)


def test_a_larger_limit_is_one_for_all_benchmarks_of_a_folder(
    settings: Callable[..., EvalSettings], questions: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(questions.read_text())
    both = {"bench": (str(questions), str(other)), "images": (questions.parent,)}
    out = tmp_path / "out"
    run_evaluation(settings(out, limit=4, shuffle_images=True, **both))
    with pytest.raises(SettingsError, match="holds other as well, with another --limit"):
        run_evaluation(settings(out, limit=8, images=both["images"]))
    events: list[Notice | Progress] = []
    run_evaluation(settings(out, limit=8, **both), events=events.append)
    blocks = _results(out)["benchmarks"]
    # A blind score of four questions does not stand beside one of eight.
    assert [(block["n"], block["shuffled"]) for block in blocks.values()] == [(8, None), (8, None)]
    assert any("--shuffle-images were those of fewer questions" in e.text for e in events if isinstance(e, Notice))


def test_a_question_with_two_references_is_refused_and_a_repeated_one_named(
    settings: Callable[..., EvalSettings], questions: Path, tmp_path: Path
) -> None:
    lines = questions.read_text().splitlines(keepends=True)
    file = tmp_path / "noise.jsonl"
    make = {"bench": (str(file),), "images": (questions.parent,)}
    file.write_text("".join([*lines[:3], lines[0].replace('"answer": "yes"', '"answer": "no"')]))
    with pytest.raises(InputError, match=r"same question with different references: 1 .* \(row 1, row 4\)"):
        run_evaluation(settings(tmp_path / "out", **make))
    assert not (tmp_path / "out").exists()
    file.write_text("".join([*lines[:3], lines[0]]))
    events: list[Notice | Progress] = []
    run_evaluation(settings(tmp_path / "out", **make), events=events.append)
    notices = [event.text for event in events if isinstance(event, Notice) and event.is_warning]
    assert len(notices) == 1 and "the data of noise holds 1 question more than once" in notices[0]
