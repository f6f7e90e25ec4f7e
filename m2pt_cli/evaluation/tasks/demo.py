"""demo: drawn scenes and real handwritten digits, questions of seen and unseen task families; built in, no network."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from m2pt_cli.demo.dataset import EVAL_COUNT, DemoQuestion, demo_eval_questions, majority_guess, parse_demo_answer
from m2pt_cli.demo.questions import FAMILIES
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.metrics import accuracy
from m2pt_cli.evaluation.references import one_text, read_reference, require_category
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions, answered, unique_ids
from m2pt_cli.evaluation.tasks.mme import BENCHMARK as MME
from m2pt_cli.evaluation.tasks.mme import mme_scores
from m2pt_cli.evaluation.tasks.pope import BENCHMARK as POPE
from m2pt_cli.evaluation.tasks.pope import SPLITS, pope_scores


class Demo:
    """Accuracy per task, over the families that training shows and over those it never shows."""

    name = "demo"
    source = "built in"
    patterns = ()
    size = 2 * EVAL_COUNT
    max_new_tokens = 16
    headline = "accuracy"
    has_protocols = False

    def items(self, request: TaskOptions) -> list[Example]:
        questions = _questions()
        if request.limit is not None and request.limit < len(questions):
            questions = _spread_questions()[: request.limit]
        ids = unique_ids(question.question_id for question in questions)
        return [
            Example(identity, question.question_id, question.family, question.image, question.question, question.answer)
            for identity, question in zip(ids, questions, strict=True)
        ]

    def reference(self, row: Prediction) -> str:
        require_category(row, FAMILIES)
        family = str(row.category)
        read_reference(row, lambda text: parse_demo_answer(family, text), f"an answer of {family}")
        return one_text(row)  # in a sentence where the family asks for one

    def mark(self, row: Prediction, protocol: str) -> Score:
        family = _family(row)
        parsed = parse_demo_answer(family, row.prediction or "")
        return Score(parsed, parsed is not None and parsed == parse_demo_answer(family, str(row.answer)))

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        """Return the block of ``results.json``, with intervals, and MME and POPE scores of the families like them.

        ``majority`` is what guessing scores: always the commonest answer, or any choice.
        """
        good = answered(rows)
        guesses = _guesses()
        sizes = Counter(_family(row) for row in good)
        kinds = {kind: [row for row in good if FAMILIES[_family(row)].seen is (kind == "seen")] for kind in _KINDS}
        parts = {kind: accuracy(members) for kind, members in kinds.items()}
        total = accuracy(good)
        return {
            "accuracy": total["accuracy"],
            "seen": parts["seen"]["accuracy"],
            "unseen": parts["unseen"]["accuracy"],
            "majority": {kind: _weighted(guesses, sizes, kind == "seen") for kind in _KINDS},
            "intervals": {"accuracy": total["interval"], **{kind: part["interval"] for kind, part in parts.items()}},
            "tasks": {
                name: {
                    **accuracy([row for row in good if row.category == name]),
                    "majority": guesses[name],
                    "seen": family.seen,
                }
                for name, family in FAMILIES.items()
                if sizes[name]
            },
            "unparsed": sum(row.parsed is None for row in good),
            "mme": _as_mme(good),
            "pope": _as_pope(good),
        }


_KINDS = ("seen", "unseen")


def _interleaved(questions: Iterable[DemoQuestion], *, spread: bool = False) -> list[DemoQuestion]:
    """Interleave the families, pairs kept together, so that ``--limit`` keeps questions of each family.

    Args:
        spread: seen and unseen families alternate in each turn, in proportion; else the seen ones come first.
    """
    by_family: dict[str, dict[str, list[DemoQuestion]]] = {}
    for question in questions:
        by_family.setdefault(question.family, {}).setdefault(question.question_id, []).append(question)
    families = list(by_family)
    if spread:
        kinds = [[name for name in families if FAMILIES[name].seen is seen] for seen in (True, False)]
        places = {name: (place + 0.5) / len(kind) for kind in kinds for place, name in enumerate(kind)}
        families.sort(key=lambda name: places[name])
    rounds = zip_longest(*(by_family[name].values() for name in families), fillvalue=[])
    return [question for turn in rounds for group in turn for question in group]


def _family(row: Prediction) -> str:
    if row.category not in FAMILIES:
        raise InputError(
            f"row {row.id} is of the task {row.category!r}, which demo does not have", "is it another benchmark's?"
        )
    return row.category


@lru_cache(maxsize=1)
def _questions() -> list[DemoQuestion]:
    """All questions, interleaved; the same in every process."""
    return _interleaved(demo_eval_questions())


@lru_cache(maxsize=1)
def _spread_questions() -> list[DemoQuestion]:
    """The order from which ``--limit`` takes: a few questions are already of both kinds."""
    return _interleaved(demo_eval_questions(), spread=True)


@lru_cache(maxsize=1)
def _guesses() -> dict[str, float]:
    """Return the majority baseline per family over all questions: on a few it would be too high."""
    return majority_guess(_questions())


def _weighted(guesses: dict[str, float], sizes: Counter[str], seen: bool) -> float | None:
    """What guessing scores over the questions of a kind, families counted as often as they were asked."""
    names = [name for name in sizes if FAMILIES[name].seen is seen]
    n = sum(sizes[name] for name in names)
    return sum(guesses[name] * sizes[name] for name in names) / n if n else None


def _as_mme(rows: Sequence[Prediction]) -> dict[str, Any] | None:
    """Score the paired families as MME does, as its subtasks of the same names."""
    pairs = [
        dataclasses.replace(row, category=str(row.category).removeprefix("mme-"))
        for row in rows
        if FAMILIES[_family(row)].paired
    ]
    return mme_scores([row.marked(MME.mark(row, "official")) for row in pairs]) if pairs else None


@lru_cache(maxsize=1)
def _splits() -> dict[str, str]:
    """The split of each POPE-like question by its id, over all questions.

    A question about an absent thing is of the split that the thing was chosen by. POPE asks about present things in
    every split; here they are dealt out in turn, so that each split has about as many of both.
    """
    asked = [question for question in _questions() if FAMILIES[question.family].imitates == "POPE"]
    turns = itertools.cycle(SPLITS)
    return {question.question_id: question.absence or next(turns) for question in asked}


def _as_pope(rows: Sequence[Prediction]) -> dict[str, Any] | None:
    """Score the POPE-like family as POPE does, split by split."""
    asked = [
        dataclasses.replace(row, category=_splits().get(row.question_id))
        for row in rows
        if FAMILIES[_family(row)].imitates == "POPE"
    ]
    known = [row.marked(POPE.mark(row, "official")) for row in asked if row.category is not None]
    return pope_scores(known, "official") if known else None


BENCHMARK = Demo()
