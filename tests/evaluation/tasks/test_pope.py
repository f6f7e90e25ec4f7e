"""POPE equals the reference scores of the authors and of lmms-eval; its two file formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.parquet_sets import png, write_parquet
from fixtures.scored import assert_close, expected, marked_rows
from PIL import Image

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Prediction, TaskOptions
from m2pt_cli.evaluation.tasks.pope import BENCHMARK, SPLITS


def test_the_official_protocol_agrees_with_the_authors_script() -> None:
    reference = expected("pope_expected.json")["official_script"]
    scores = BENCHMARK.scores(marked_rows(BENCHMARK, "pope_predictions.jsonl", "official"), "official")
    assert list(scores["splits"]) == list(SPLITS)
    for split in SPLITS:
        for key, theirs in [
            ("accuracy",) * 2,
            ("precision",) * 2,
            ("recall",) * 2,
            ("f1", "f1_score"),
            ("yes_ratio",) * 2,
        ]:
            assert_close(scores["splits"][split][key], reference[split][theirs])
    assert_close(scores["f1"], reference["mean_f1_of_three"])
    assert_close(scores["accuracy"], sum(reference[split]["accuracy"] for split in SPLITS) / 3)


def test_the_lmms_eval_protocol_agrees_with_lmms_eval() -> None:
    reference = expected("pope_expected.json")["lmms_eval"]
    scores = BENCHMARK.scores(marked_rows(BENCHMARK, "pope_predictions.jsonl", "lmms-eval"), "lmms-eval")
    for split in SPLITS:
        for key, theirs in [("accuracy",) * 2, ("precision",) * 2, ("recall",) * 2, ("f1", "f1_score")]:
            assert_close(scores["splits"][split][key], reference[split][f"pope_{theirs}"])


@pytest.mark.parametrize(("protocol", "key"), [("official", "official"), ("lmms-eval", "lmms_eval")])
def test_every_answer_is_read_as_the_tool_reads_it(protocol: str, key: str) -> None:
    rows = marked_rows(BENCHMARK, "pope_predictions.jsonl", protocol)
    parses = expected("pope_expected.json")["all_parses"]
    assert {row.prediction for row in rows} == set(parses)
    assert {row.prediction: row.parsed for row in rows} == {answer: by[key] for answer, by in parses.items()}


def test_failed_questions_are_left_out_and_missing_splits_too() -> None:
    rows = [row for row in marked_rows(BENCHMARK, "pope_predictions.jsonl", "official") if row.category == "random"]
    whole = BENCHMARK.scores(rows, "official")
    broken = Prediction("x#0", "x", "popular", None, "?", "yes", None, error="image can't be read")
    assert BENCHMARK.scores([*rows, broken], "official") == whole
    assert list(whole["splits"]) == ["random"] and whole["f1"] == whole["splits"]["random"]["f1"]


def test_items_of_the_true_columns(tmp_path: Path) -> None:
    for split in ("adversarial", "popular", "random"):
        rows = [
            {
                "id": str(number),
                "question_id": str(number + 1),
                "question": f"Is there a {split} in the image?",
                "answer": "yes" if number else "no",
                "image_source": "COCO_val2014_000000310196",
                "image": png((number, 0, 0)),
                "category": split,
            }
            for number in range(2)
        ]
        write_parquet(tmp_path / "Full" / f"{split}-00000-of-00001.parquet", rows, images=("image",))
    items = BENCHMARK.items(TaskOptions(source=str(tmp_path)))
    assert len(items) == 6 and len({item.id for item in items}) == 6
    # The three splits ask about the same images: one reference, one prefix.
    assert len({id(item.image) for item in items}) == 1
    assert items[0].question == ("Is there a random in the image?\nAnswer the question using a single word or phrase.")


def test_the_original_files_and_a_coco_folder(tmp_path: Path) -> None:
    images = tmp_path / "coco" / "val2014"
    images.mkdir(parents=True)
    name = "COCO_val2014_000000000001.jpg"
    Image.new("RGB", (8, 8), (0, 0, 250)).save(images / name)
    line = {"question_id": 1, "image": name, "text": "Is there a cat in the image?", "label": "yes"}
    for split in SPLITS:
        (tmp_path / f"coco_pope_{split}.json").write_text(json.dumps(line) + "\n")
    items = BENCHMARK.items(TaskOptions(source=str(tmp_path), images=(tmp_path / "coco",)))
    assert [item.category for item in items] == list(SPLITS)
    assert items[0].image.open().size == (8, 8)
    with pytest.raises(InputError, match="no --images was given"):
        BENCHMARK.items(TaskOptions(source=str(tmp_path)))


def test_bad_lines_of_an_original_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "coco_pope_random.json").write_text('{"question_id": 1}\nnot json\n')
    with pytest.raises(InputError, match="2 bad lines: line 1 has no image, text, label; line 2 is not valid JSON"):
        BENCHMARK.items(TaskOptions(source=str(tmp_path), images=(tmp_path,)))


def test_rows_of_another_benchmark_are_refused() -> None:
    row = Prediction("1#0", "1", "existence", None, "Is it?", "yes", "yes")
    with pytest.raises(InputError, match="no row has a category of pope"):
        BENCHMARK.scores([row], "official")
