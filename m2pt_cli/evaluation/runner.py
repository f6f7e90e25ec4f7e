"""Asks one model the questions of tasks; every answer is written to the journal at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from m2pt_cli.errors import GenerationError, Interrupted
from m2pt_cli.evaluation.events import Events, Progress
from m2pt_cli.evaluation.run_dir import EvaluationFolder, Journal, answer_key
from m2pt_cli.evaluation.task import Example, Prediction, Task
from m2pt_cli.generation.engine import Question, Reply
from m2pt_cli.runtime.distributed import Sharding
from m2pt_cli.runtime.signals import how_stopped


class Engine(Protocol):
    """Answers questions: `AnswerEngine`, or `TextEngine` for a text-only model."""

    def answer(
        self, questions: Iterable[Question], *, known: Callable[[Question], bool] | None = None
    ) -> Iterator[Reply]: ...


class Session:
    """Answers benchmarks with one model.

    Args:
        engine: answers the questions.
        folder: the run's output directory, already claimed.
        name: name of the run in events.
        identity: everything that decides the answers; part of every answer's key.
        share: selects this process's part of the questions.
        events: called with the progress after every answer.

    Attributes:
        resumed: number of answers reused from an earlier start.
        seconds: wall time of all calls of `rows`.
    """

    def __init__(
        self,
        engine: Engine,
        folder: EvaluationFolder,
        *,
        name: str,
        identity: Mapping[str, Any],
        share: Sharding,
        events: Events,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._name = name
        self._identity = dict(identity)
        self._sharding = share
        self._events = events
        self.resumed = 0
        self.seconds = 0.0

    def rows(self, bench: Task, items: Sequence[Example], *, label: str, max_new_tokens: int) -> list[Prediction]:
        """Answer all questions that no earlier start answered, and return the scored predictions in order.

        In a distributed run every process answers its part of the questions, then reads the answers of the others from
        their journals. The first process writes the predictions file.

        Args:
            bench: scores the answers.
            items: the questions.
            label: the benchmark, with ``-shuffled`` for the blind baseline; part of the predictions file's name.
            max_new_tokens: limit of each answer.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the answers so far are kept.
        """
        started = time.monotonic()
        keys = {item.id: answer_key(label, item, self._identity) for item in items}
        with Journal(self._folder.path, self._identity, rank=self._sharding.rank) as journal:
            rows = self._answer(bench, self._sharding.of(items), keys, journal, label, max_new_tokens)
            if self._sharding.world > 1:
                self._sharding.wait()
                unanswered = [item for item in items if item.id not in rows]
                rows |= self._predictions_of_others(bench, unanswered, keys, journal)
        self.seconds += time.monotonic() - started
        ordered = [rows[item.id] for item in items if item.id in rows]
        if self._sharding.is_first:
            self._folder.write_predictions(label, ordered)
        return ordered

    def _answer(
        self,
        bench: Task,
        items: Sequence[Example],
        keys: Mapping[str, str],
        journal: Journal,
        label: str,
        max_new_tokens: int,
    ) -> dict[str, Prediction]:
        """Return scored predictions by id: reused ones, and new ones, which are appended to the journal."""
        finished = self._folder.finished_rows(label)
        known = [_known_prediction(item, journal.answers.get(keys[item.id]), finished.get(item.id)) for item in items]
        rows = {row.id: self._scored(bench, row) for row in known if row is not None}
        counts = _Counts(self._name, label, len(items), rows.values())
        self.resumed += counts.resumed
        self._events(counts.progress())
        try:
            for row in self._ask_unknown(items, known=set(rows), max_new_tokens=max_new_tokens):
                journal.append(keys[row.id], bench=label, id=row.id, prediction=row.prediction, error=row.error)
                rows[row.id] = self._scored(bench, row)
                counts.add(rows[row.id])
                self._events(counts.progress())
        except KeyboardInterrupt as stop:
            word, number = how_stopped(stop)
            raise Interrupted(
                f"{word}; {counts.done} of {counts.total} answers of {label} are kept in {self._folder.path}",
                "run the same command again to go on",
                signal_number=number,
            ) from None
        return rows

    def _predictions_of_others(
        self, bench: Task, items: Sequence[Example], keys: Mapping[str, str], journal: Journal
    ) -> dict[str, Prediction]:
        """Read the predictions of the other processes of a distributed run from their journals."""
        journal.read()
        rows = {}
        for item in items:
            key = keys[item.id]
            if key in journal.answers:
                rows[item.id] = self._scored(bench, Prediction.of(item, journal.answers[key]))
            elif key in journal.errors:
                rows[item.id] = Prediction.of(item, None, journal.errors[key])
        return rows

    def _scored(self, bench: Task, row: Prediction) -> Prediction:
        return row if row.failed else row.marked(bench.mark(row, self._identity["protocol"]))

    def _ask_unknown(self, items: Sequence[Example], *, known: set[str], max_new_tokens: int) -> Iterator[Prediction]:
        """Yield predictions for the questions that are not known.

        The engine gets all questions, so that a resumed run has the same batches as an uninterrupted one.
        """
        by_id = {item.id: item for item in items}
        questions = [
            Question(item.id, item.question, () if item.image is None else (item.image,), max_new_tokens)
            for item in items
        ]
        for reply in self._engine.answer(questions, known=lambda question: question.id in known):
            if reply.question.id not in known:
                yield Prediction.of(by_id[reply.question.id], reply.text, reply.error)


def require_answers(rows: Mapping[str, Sequence[Prediction]], folder: EvaluationFolder) -> None:
    """Check that at least one question of all benchmarks was answered.

    Args:
        rows: a run's predictions by benchmark.
        folder: where they have been written, for the message.

    Raises:
        GenerationError: every question of every benchmark failed.
    """
    failed = [(label, row) for label, members in rows.items() for row in members]
    if not failed or not all(row.failed for _, row in failed):
        return
    label, first = failed[0]
    raise GenerationError(
        f"all {len(failed)} questions of {', '.join(rows)} failed, the first with: {first.error}",
        f"the errors are in {folder.predictions_file(label)}",
    )


def _known_prediction(item: Example, answer: str | None, finished: Prediction | None) -> Prediction | None:
    """Return the unscored prediction of an earlier start, from its journal or predictions file, or None."""
    if answer is None and finished is not None:
        is_same = (finished.question, finished.image) == (item.question, item.image_name)
        answer = finished.prediction if is_same else None
    return None if answer is None else Prediction.of(item, answer)


class _Counts:
    """Counts answers, failures and the score of one benchmark as it runs."""

    def __init__(self, run: str, bench: str, total: int, rows: Iterable[Prediction]) -> None:
        self.run, self.bench, self.total = run, bench, total
        self.done = self.failed = 0
        self._sum = 0.0
        for row in rows:
            self.add(row)
        self.resumed = self.done

    def add(self, row: Prediction) -> None:
        self.done += 1
        self.failed += row.failed
        self._sum += float(row.correct or 0)

    def progress(self) -> Progress:
        scored = self.done - self.failed
        score = self._sum / scored if scored else None
        return Progress(self.run, self.bench, self.done, self.total, self.resumed, self.failed, score)
