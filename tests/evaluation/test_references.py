"""References of answers made elsewhere: one form each, and rows of other benchmarks refused by their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.references import with_references
from m2pt_cli.evaluation.task import Prediction, Task
from m2pt_cli.evaluation.tasks import find_tasks
from m2pt_cli.evaluation.tasks.own_file import OwnBenchmark


def _bench(name: str) -> Task:
    return OwnBenchmark(Path("own.jsonl")) if name == "own" else find_tasks([name])[0]


def _row(answer: Any, category: str | None = None) -> Prediction:
    return Prediction("1#0", "1", category, None, "Is it?", answer, "Yes")


_CATEGORIES = {"mme": "existence", "pope": "random", "demo": "color-yesno"}


@pytest.mark.parametrize(
    ("name", "forms", "normal"),
    [
        ("mme", ["Yes", "yes", " YES. ", ["yes"]], "yes"),
        ("pope", ["No", "NO.", ["no", "no"]], "no"),
        ("vsr", ["yes", "True", "1", "TRUE."], "yes"),
        ("vsr", ["False", "0", "No."], "no"),
        ("snli-ve", ["Entailment", " entailment."], "entailment"),
        ("cifar10", ["Airplane", "airplane.", "airplanes"], "airplane"),
        ("cifar100", ["aquarium fish", "Aquarium_Fish", "aquariumfish"], "aquarium_fish"),
        ("mnist", ["7", "seven", " 7. "], "7"),
        ("own", ["Yes."], "Yes."),
    ],
)
def test_references_have_one_form(name: str, forms: list[Any], normal: str) -> None:
    rows = {f"line {n}": _row(form, _CATEGORIES.get(name)) for n, form in enumerate(forms, start=1)}
    assert {row.answer for row in with_references(_bench(name), rows, Path("x.jsonl")).values()} == {normal}


@pytest.mark.parametrize(
    ("name", "answer", "category", "words"),
    [
        ("mme", "maybe", "existence", r"answer is 'maybe', yes or no was expected"),
        ("mme", ["yes", "no"], "existence", r"one text was expected"),
        ("mme", "yes", "adversarial", r"category is 'adversarial', one of existence, count"),
        ("pope", "true", "random", r"answer is 'true', yes or no was expected"),
        ("pope", "yes", None, r"category is None, one of random, popular, adversarial"),
        ("vsr", "yes", "random", r"category is 'random', a relation in space"),
        ("vsr", "entailment", None, r"yes or no \(true or false"),
        ("snli-ve", "yes", None, r"one of entailment, neutral, contradiction"),
        ("cifar10", "7", None, r"one of its 10 classes"),
        ("cifar100", "airplane", None, r"one of its 100 classes"),
        ("mnist", "17", None, r"a digit was expected"),
        ("textvqa", "nokia", None, r"a list of 10 texts, the annotators' answers"),
        ("textvqa", ["nokia"], None, r"a list of 10 texts"),
        ("textvqa", ["nokia"] * 11, None, r"a list of 10 texts"),
        ("textvqa", [""] * 10, None, r"an answer that is not blank"),
        ("demo", "perhaps", "color-yesno", r"an answer of color-yesno"),
        ("demo", "yes", "existence", r"category is 'existence'"),
        ("own", "", None, r"an answer that is not blank"),
        ("own", ["cat", "\u200b "], None, r"an answer that is not blank"),
        ("own", [], None, r"a text, or a list of accepted ones"),
    ],
)
def test_what_fits_no_vocabulary_is_refused_by_its_place(
    name: str, answer: Any, category: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=rf"x\.jsonl does not hold answers to {name}: line 2: .*{words}"):
        with_references(_bench(name), {"line 2": _row(answer, category)}, Path("x.jsonl"))


def test_textvqa_keeps_its_ten_answers() -> None:
    answers = ["nokia"] * 9 + ["Nokia."]
    rows = with_references(_bench("textvqa"), {"line 1": _row(answers)}, Path("x.jsonl"))
    assert rows["line 1"].answer == answers


def test_a_fault_of_many_rows_is_said_once() -> None:
    rows = {f"line {n}": _row("yes", "random") for n in range(1, 3001)}
    with pytest.raises(InputError, match=r"mme: line 1, line 2, line 3 and 2,997 more: category is 'random'") as caught:
        with_references(_bench("mme"), rows, Path("x.jsonl"))
    assert len(caught.value.message) < 250
