"""A language model as the judge of free-form answers, as in the paper.

The judge reads question, reference and prediction, and answers yes or no. Only the tokens it *generates* are parsed:
the official script also decoded the prompt, which contains "Yes", so it counted every answer as right. Verdicts are
written to the journal like answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2pt_cli.errors import UnavailableError
from m2pt_cli.evaluation.answer_parsing import first_yes_or_no
from m2pt_cli.evaluation.metrics import accuracy, mean
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions, answered
from m2pt_cli.families.family import MODEL_CLASSES
from m2pt_cli.models.catalog import find_base
from m2pt_cli.models.hub import fetch_config

_PROMPT = (
    "Question: {question}\nReference answer: {answer}\nPrediction: {prediction}\n"
    "Does the prediction give the same answer as the reference? Answer yes or no."
)
_MOST_TOKENS = 8


class Verdicts:
    """A `Task` whose questions ask the judge whether each answer is right."""

    source = "the judge"
    patterns = ()
    size = None
    max_new_tokens = _MOST_TOKENS
    headline = "accuracy"
    has_protocols = False

    def __init__(self, bench: str, rows: Sequence[Prediction]) -> None:
        self.name = f"{bench}-judge"
        self._rows = answered(rows)

    def items(self, request: TaskOptions) -> list[Example]:
        """Return one question to the judge per answered question."""
        return [Example(row.id, row.question_id, row.category, None, judge_prompt(row), "yes") for row in self._rows]

    def reference(self, row: Prediction) -> str | list[str]:
        return row.answer

    def mark(self, row: Prediction, protocol: str) -> Score:
        verdict = first_yes_or_no(row.prediction or "")
        return Score(verdict, verdict == "yes")

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        """``{"accuracy", "interval", "n", "unread", "agreement"}`` by the judge.

        ``unread`` counts verdicts that are neither yes nor no; they count as wrong. ``agreement`` is the fraction of
        answers on which the judge and the benchmark's own rule agree. POPE's accuracy is the mean over its splits, as
        under its own rule.
        """
        by_rule = {row.id: float(row.correct or 0) >= 0.5 for row in self._rows}
        good = answered(rows)
        total = accuracy(good)
        splits = sorted({row.category for row in good if row.category}) if self.name == "pope-judge" else []
        if splits:
            parts = (accuracy([row for row in good if row.category == split])["accuracy"] for split in splits)
            total["accuracy"] = mean(parts)
        return {
            **total,
            "unread": sum(row.parsed is None for row in good),
            "agreement": mean(float(bool(row.correct) == by_rule[row.id]) for row in good),
        }


def judge_prompt(row: Prediction) -> str:
    """Return the judge's prompt about one answer; it lists each distinct reference once."""
    answers = row.answer if isinstance(row.answer, str) else " / ".join(dict.fromkeys(row.answer))
    return _PROMPT.format(question=row.question, answer=answers, prediction=row.prediction)


def judged_accuracies(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the judge's results of the benchmarks that it has judged, as `mmavg` takes them."""
    return {name: dict(scores["judge"]) for name, scores in results.items() if scores.get("judge")}


def is_vision_language(judge: str) -> bool:
    """Return whether the judge is of a known family (by its ``config.json``), or else a text-only model. No torch.

    Raises:
        UnavailableError: no such base, folder or Hub repository, or its config can't be read.
    """
    if find_base(judge) is not None:
        return True
    folder = Path(judge).expanduser()
    folder = folder if folder.is_dir() else fetch_config(judge)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UnavailableError(
            f"the judge {judge} holds no readable config.json", "name a folder or a Hub id"
        ) from None
    return config.get("model_type") in MODEL_CLASSES
