"""MME: pairs of yes/no questions in 14 subtasks of perception and cognition (Fu et al. 2023, arXiv 2306.13394)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import answer_parsing as yes_no
from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.datasets import SharedImages, Table
from m2pt_cli.evaluation.metrics import mean
from m2pt_cli.evaluation.references import read_reference, require_category
from m2pt_cli.evaluation.task import SHORT_ANSWER, Example, Prediction, Score, TaskOptions, answered, unique_ids

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_STORED_REQUEST = " Please answer yes or no."
_READERS = {"official": yes_no.mme_official, "lmms-eval": yes_no.mme_lmms_eval}


class MME:
    """Score of a subtask = 100 x (accuracy of questions + fraction of images with both questions right)."""

    name = "mme"
    source = "lmms-lab/MME"
    size = 2374
    max_new_tokens = 16
    headline = "total"
    has_protocols = True
    table = Table(
        "lmms-lab/MME",
        ("data/test-*.parquet",),
        ("question_id", "image", "question", "answer", "category"),
        checks={
            "question_id": validators.identifier,
            "question": validators.text,
            "answer": validators.yes_or_no,
            "category": validators.one_of(*PERCEPTION, *COGNITION),
        },
    )
    patterns = table.patterns

    def items(self, request: TaskOptions) -> list[Example]:
        rows = self.table.rows(request)
        images = SharedImages()
        ids = unique_ids(str(row["question_id"]) for row in rows)
        return [
            Example(
                id=identity,
                question_id=str(row["question_id"]),
                category=str(row["category"]),
                image=images.one(str(row["question_id"]), row["image"]),
                question=self._ask(str(row["question"]), request.wording),
                answer=str(yes_no.exact_yes_or_no(row["answer"])),
            )
            for identity, row in zip(ids, rows, strict=True)
        ]

    def _ask(self, question: str, wording: str) -> str:
        return question if wording == "stored" else question.strip().replace(_STORED_REQUEST, "") + SHORT_ANSWER

    def reference(self, row: Prediction) -> str:
        require_category(row, (*PERCEPTION, *COGNITION))
        return read_reference(row, yes_no.exact_yes_or_no, "yes or no")

    def mark(self, row: Prediction, protocol: str) -> Score:
        parsed = _READERS[protocol](row.prediction or "")
        return Score(parsed, parsed == str(row.answer).lower())

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        """See `mme_scores`. Raises InputError if no prediction is of any subtask."""
        known = {*PERCEPTION, *COGNITION}
        if (good := answered(rows)) and not any(row.category in known for row in good):
            raise InputError("no row has a category of mme: existence, count, …", "is it another benchmark's?")
        return mme_scores(rows)


def mme_scores(rows: Sequence[Prediction]) -> dict[str, Any]:
    """Compute MME's results in points (100 x fractions), as the authors' calculator prints them.

    An image with only one question (due to ``--limit`` or a failure) counts in ``acc`` but not in ``acc_plus``. A
    category without a complete pair has no score. Sums are over the categories that have a score.
    """
    by_category: dict[str, list[Prediction]] = defaultdict(list)
    for row in answered(rows):
        by_category[row.category or ""].append(row)
    categories = {name: _category(members) for name, members in by_category.items()}
    perception = _sum(categories, PERCEPTION)
    cognition = _sum(categories, COGNITION)
    parts = [part for part in (perception, cognition) if part is not None]
    return {
        "perception": perception,
        "cognition": cognition,
        "total": sum(parts) if parts else None,
        "categories": {
            name: {key: scores[key] for key in ("score", "acc", "acc_plus")} for name, scores in categories.items()
        },
        "unparsed": sum(row.parsed is None for row in answered(rows)),
        "incomplete": sum(part["incomplete"] for part in categories.values()),
    }


def _category(rows: Sequence[Prediction]) -> dict[str, Any]:
    pairs: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        pairs[row.question_id].append(bool(row.correct))
    complete = [all(correct) for correct in pairs.values() if len(correct) >= 2]
    acc = mean(100.0 * bool(row.correct) for row in rows)
    acc_plus = mean(100.0 * both for both in complete)
    score = None if acc is None or acc_plus is None else acc + acc_plus
    return {"score": score, "acc": acc, "acc_plus": acc_plus, "incomplete": len(pairs) - len(complete)}


def _sum(categories: dict[str, dict[str, Any]], names: Sequence[str]) -> float | None:
    scores = [categories[name]["score"] for name in names if name in categories]
    known = [score for score in scores if score is not None]
    return sum(known) if known else None


BENCHMARK = MME()
