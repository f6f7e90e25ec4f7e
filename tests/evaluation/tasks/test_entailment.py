"""VSR and SNLI-VE: the data sets' real columns, labels, and parsing of free-form answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.parquet_sets import png, write_parquet
from PIL import Image

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Prediction, TaskOptions
from m2pt_cli.evaluation.tasks.snli_ve import BENCHMARK as SNLI_VE
from m2pt_cli.evaluation.tasks.snli_ve import LABELS, read_label
from m2pt_cli.evaluation.tasks.vsr import BENCHMARK as VSR

_VSR = {
    "image": "000000050403.jpg",
    "image_link": "http://images.cocodataset.org/train2017/000000050403.jpg",
    "caption": "The teddy bear is in front of the person.",
    "label": 1,
    "relation": "in front of",
    "annotator_id": 31,
    "vote_true_validator_id": [2, 6],
    "vote_false_validator_id": [],
}


def test_vsr_items(tmp_path: Path) -> None:
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "coco" / "train2017" / _VSR["image"])
    other = {**_VSR, "label": 0, "image": "../../etc/missing.jpg", "image_link": "file:///etc/hostname"}
    (tmp_path / "test.jsonl").write_text(json.dumps(_VSR) + "\n" + json.dumps(other) + "\n")
    request = TaskOptions(source=str(tmp_path), images=(tmp_path / "coco",), allow_url=True)
    first, second = VSR.items(request)
    assert first.question == (
        'Does the image agree with this statement: "The teddy bear is in front of the person."?\nAnswer yes or no.'
    )
    assert (first.answer, second.answer, first.category) == ("yes", "no", "in front of")
    assert first.image.open().size == (8, 8)
    # A path out of the folders and a link that is no URL lead nowhere; the question fails, not the run.
    with pytest.raises(InputError, match=r"missing\.jpg lies outside"):
        second.image.open()


def test_vsr_needs_a_place_for_its_images(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(_VSR) + "\n")
    with pytest.raises(InputError) as caught:
        VSR.items(TaskOptions(source=str(tmp_path)))
    assert caught.value.hint is not None and "--allow-url" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no test\.jsonl"):
        VSR.items(TaskOptions(source=str(tmp_path / "empty"), images=(tmp_path,)))
    with pytest.raises(InputError, match="does not exist"):
        VSR.items(TaskOptions(source=str(tmp_path), images=(tmp_path / "none",)))


def test_vsr_scores() -> None:
    said = [("yes", "Yes"), ("yes", "no"), ("no", "yes."), ("no", "No"), ("no", "what?")]
    rows = [Prediction(f"{n}#0", str(n), "under", None, "?", answer, text) for n, (answer, text) in enumerate(said)]
    scores = VSR.scores([row.marked(VSR.mark(row, "official")) for row in rows], "official")
    assert scores["accuracy"] == pytest.approx(2 / 5) and scores["unparsed"] == 1
    assert scores["precision"] == scores["recall"] == scores["f1"] == 0.5
    assert scores["yes_ratio"] == pytest.approx(2 / 5)
    assert scores["relations"]["under"]["n"] == 5


@pytest.mark.parametrize("with_names", [True, False])
def test_snli_ve_items(tmp_path: Path, with_names: bool) -> None:
    rows = [
        {"image": png((5, 5, 5)), "filename": "1.jpg", "hypothesis": "A dog runs.", "label": label}
        for label in range(3)
    ]
    write_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        rows,
        images=("image",),
        labels={"label": LABELS} if with_names else None,
    )
    items = SNLI_VE.items(TaskOptions(source=str(tmp_path)))
    assert [item.answer for item in items] == ["entailment", "neutral", "contradiction"]
    assert items[0].image is items[2].image
    assert items[0].question == ('Does the image support this statement: "A dog runs."?\nAnswer yes, no or not sure.')


def test_snli_ve_refuses_unknown_labels(tmp_path: Path) -> None:
    rows = [{"image": png((5, 5, 5)), "hypothesis": "A dog runs.", "label": "-"}]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows, images=("image",))
    with pytest.raises(
        InputError, match=r"test-00000-of-00001\.parquet holds .*row 1: label is '-', one of entailment"
    ):
        SNLI_VE.items(TaskOptions(source=str(tmp_path)))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Yes", "entailment"),
        ("no.", "contradiction"),
        ("Not sure", "neutral"),
        ("No, I am not sure", "neutral"),
        ("It is impossible to tell", "neutral"),
        ("I can't say", "neutral"),
        ("entailment", "entailment"),
        ("This contradicts it", "contradiction"),
        ("Neutral", "neutral"),
        ("a dog", None),
        *(
            (answer, "neutral")
            for answer in ("not certain", "not sure.", "**Not sure**", "uncertain", "unsure", "maybe")
        ),
        *((answer, "neutral") for answer in ("can't tell", "can’t tell", "cannot be determined", "Cannot determine")),
        *((answer, "neutral") for answer in ("It is not clear", "It isn't clear", "I don't know", "not necessarily")),
        *((answer, "neutral") for answer in ("unable to tell", "not enough information", "neither", "It might be")),
        *((answer, "neutral") for answer in ("not completely certain", "no way to know", "It is possible")),
        *((answer, "contradiction") for answer in ("no", "not at all", "certainly not", "not true", "contradiction")),
        *((answer, "contradiction") for answer in ("does not entail", "I can't see a dog", "It's not possible")),
        *((answer, "contradiction") for answer in ("Yes, it contradicts", "No, he might be asleep")),
        *((answer, "entailment") for answer in ("Sure", "true", "It is entailed", "no contradiction, so yes")),
        *((answer, None) for answer in ("yes, no or not sure", "entailment, neutral or contradiction")),
        *((answer, None) for answer in ("It does not contradict", "no contradiction", "")),
    ],
)
def test_the_three_sides_of_an_answer(answer: str, label: str | None) -> None:
    assert read_label(answer) == label


def test_snli_ve_confusion() -> None:
    said = [("entailment", "yes"), ("entailment", "maybe"), ("neutral", "no"), ("contradiction", "dog")]
    rows = [Prediction(f"{n}#0", str(n), None, None, "?", label, text) for n, (label, text) in enumerate(said)]
    scores = SNLI_VE.scores([row.marked(SNLI_VE.mark(row, "official")) for row in rows], "official")
    assert scores["accuracy"] == 0.25
    assert scores["confusion"]["entailment"] == {"entailment": 1, "neutral": 1, "contradiction": 0, "unparsed": 0}
    assert scores["confusion"]["neutral"]["contradiction"] == 1
    assert scores["confusion"]["contradiction"]["unparsed"] == 1


def test_a_vsr_line_that_can_not_be_asked_is_named(tmp_path: Path) -> None:
    lines = [_VSR, {**_VSR, "label": None}, {**_VSR, "label": 2, "caption": ""}, {**_VSR, "image_link": 5}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"test\.jsonl holds 2 bad lines: line 2: label is None, a number from 0 to 1"):
        VSR.items(TaskOptions(source=str(tmp_path), images=(tmp_path,)))
    # A link that is no text leads nowhere, and only where it is needed.
    (tmp_path / "test.jsonl").write_text(json.dumps(lines[3]) + "\n")
    (item,) = VSR.items(TaskOptions(source=str(tmp_path), allow_url=True))
    with pytest.raises(InputError, match="is in none of"):
        item.image.open()


def test_labels_in_other_cases_are_read(tmp_path: Path) -> None:
    rows = [
        {"image": png((5, 5, 5)), "hypothesis": "A dog runs.", "label": label} for label in ("Neutral", "ENTAILMENT")
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows, images=("image",))
    assert [item.answer for item in SNLI_VE.items(TaskOptions(source=str(tmp_path)))] == ["neutral", "entailment"]
