"""Questions that stand in a file several times."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.repeats import check_repeats
from m2pt_cli.evaluation.task import Prediction
from m2pt_cli.evaluation.tasks.demo import BENCHMARK as DEMO
from m2pt_cli.evaluation.tasks.mme import BENCHMARK as MME
from m2pt_cli.evaluation.tasks.own_file import OwnBenchmark
from m2pt_cli.evaluation.tasks.pope import BENCHMARK as POPE
from m2pt_cli.evaluation.tasks.snli_ve import BENCHMARK as SNLI_VE

OWN = OwnBenchmark(Path("own.jsonl"))


def _row(
    question_id: str, question: str, answer: str = "yes", said: str | None = "Yes", *, category: str | None = "random",
    image: str | None = None,
) -> Prediction:  # fmt: skip
    return Prediction(f"{question_id}#0", question_id, category, image, question, answer, said)


def _check(bench: object, *rows: Prediction, is_data: bool = False) -> str | None:
    by_place = {f"line {number}": row for number, row in enumerate(rows, start=1)}
    return check_repeats(bench, by_place, source="x.jsonl", is_data=is_data)  # type: ignore[arg-type]


def test_the_same_row_three_times_is_named_and_counted() -> None:
    said = _check(POPE, *[_row("7", "Is there a dog?")] * 3, _row("8", "Is there a cat?"))
    assert said == (
        "x.jsonl holds 1 question more than once: 7 'Is there a dog?' (3 times); "
        "every row is counted, 2 of them repeat another"
    )


@pytest.mark.parametrize(
    "second",
    [
        _row("7", "Is there a dog?", "no"),
        _row("7", "Is there a  dog?", "yes", "No"),
        _row("7", "Is there a dog?", "yes", None),
    ],
    ids=["reference", "prediction", "failed"],
)
def test_different_answers_are_refused_with_their_places(second: Prediction) -> None:
    with pytest.raises(
        InputError, match=r"different references or predictions: 7 'Is there a dog\?' \(line 1, line 3\)"
    ):
        _check(POPE, _row("7", "Is there a dog?"), _row("8", "?"), second)


def test_what_benchmarks_repeat_rightly_is_no_repeat() -> None:
    pair = [_row("1.png", "Is it a dog?"), _row("1.png", "Is it a cat?", "no", "No")]
    assert _check(MME, *pair) is None
    # A file without the words of its questions still tells a pair by its references.
    assert _check(MME, _row("1.png", ""), _row("1.png", "", "no", "No")) is None
    assert _check(MME, *[_row("1.png", "")] * 2) is not None
    splits = [_row("1", "Is there a dog?", category=split) for split in ("random", "popular", "adversarial")]
    assert _check(POPE, *splits) is None


def test_a_file_of_ones_own_needs_no_ids() -> None:
    first, second = (_row(str(n), "What?", answer, None, image="a.png") for n, answer in enumerate(("cat", "dog")))
    with pytest.raises(InputError, match="with different references") as caught:
        _check(OWN, first, second, is_data=True)
    assert "list of its accepted answers" in str(caught.value.hint)
    assert _check(OWN, first, _row("9", "What?", "dog", None, image="b.png"), is_data=True) is None
    assert "(2 times)" in str(_check(OWN, first, _row("9", "What?", "cat", None, image="a.png"), is_data=True))


def test_published_data_with_two_references_is_named_and_kept() -> None:
    labels = ("neutral", "entailment")
    rows = [_row(str(n), "A dog runs.", label, None, category=None, image="1.jpg") for n, label in enumerate(labels)]
    assert "1 with different references" in str(_check(SNLI_VE, *rows, is_data=True))
    demo = [_row(str(n), "Is it red?", "yes", None, image="1") for n in range(2)]
    assert _check(DEMO, *demo, is_data=True) is None
