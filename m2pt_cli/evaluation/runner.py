"""One adapter asked the questions of one task, every answer journalled."""

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
    """What asks questions: `AnswerEngine`, or `TextEngine` for a language model without eyes."""

    def answer(
        self, questions: Iterable[Question], *, known: Callable[[Question], bool] | None = None
    ) -> Iterator[Reply]: ...


class Session:
    """Answers benchmarks with one model.

    Args:
        engine: answers the questions.
        folder: the run's own directory, claimed already.
        name: what events call the run.
        identity: what decides the answers; part of every answer's key.
        share: this process's part of the questions.
        events: told of every answer.
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
        self._share = share
        self._events = events
        self.resumed = 0
        self.seconds = 0.0

    def rows(self, bench: Task, items: Sequence[Example], *, label: str, max_new_tokens: int) -> list[Prediction]:
        """Marked rows of all items in their order, asked or taken over from an earlier start.

        In a shared run every process answers its part; the first one gets all rows, the others their own.

        Args:
            bench: marks the answers.
            items: the questions.
            label: the benchmark and its pass; names the predictions file.
            max_new_tokens: the longest answer.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; what was answered is kept.
        """
        started = time.monotonic()
        keys = {item.id: answer_key(label, item, self._identity) for item in items}
        with Journal(self._folder.path, self._identity, rank=self._share.rank) as journal:
            rows = self._answer(bench, self._share.of(items), keys, journal, label, max_new_tokens)
            if self._share.world > 1:
                self._share.wait()
                rows |= self._rows_of_others(bench, [item for item in items if item.id not in rows], keys, journal)
        self.seconds += time.monotonic() - started
        ordered = [rows[item.id] for item in items if item.id in rows]
        if self._share.is_first:
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
        """Marked rows by id: those an earlier start left, and those asked now, which go to the journal."""
        finished = self._folder.finished_rows(label)
        known = [_known_row(item, journal.answers.get(keys[item.id]), finished.get(item.id)) for item in items]
        rows = {row.id: self._marked(bench, row) for row in known if row is not None}
        tally = _Tally(self._name, label, len(items), rows.values())
        self.resumed += tally.resumed
        self._events(tally.progress())
        try:
            for row in self._asked(items, known=set(rows), max_new_tokens=max_new_tokens):
                journal.append(keys[row.id], bench=label, id=row.id, prediction=row.prediction, error=row.error)
                rows[row.id] = self._marked(bench, row)
                tally.add(rows[row.id])
                self._events(tally.progress())
        except KeyboardInterrupt as stop:
            word, number = how_stopped(stop)
            raise Interrupted(
                f"{word}; {tally.done} of {tally.total} answers of {label} are kept in {self._folder.path}",
                "run the same command again to go on",
                signal_number=number,
            ) from None
        return rows

    def _rows_of_others(
        self, bench: Task, items: Sequence[Example], keys: Mapping[str, str], journal: Journal
    ) -> dict[str, Prediction]:
        """What the other processes of a shared run have answered, out of their journals."""
        journal.read()
        rows = {}
        for item in items:
            key = keys[item.id]
            if key in journal.answers:
                rows[item.id] = self._marked(bench, Prediction.of(item, journal.answers[key]))
            elif key in journal.errors:
                rows[item.id] = Prediction.of(item, None, journal.errors[key])
        return rows

    def _marked(self, bench: Task, row: Prediction) -> Prediction:
        return row if row.failed else row.marked(bench.mark(row, self._identity["protocol"]))

    def _asked(self, items: Sequence[Example], *, known: set[str], max_new_tokens: int) -> Iterator[Prediction]:
        """Rows of the questions that are not known; all are handed over, so that batches are planned alike."""
        by_id = {item.id: item for item in items}
        questions = [
            Question(item.id, item.question, () if item.image is None else (item.image,), max_new_tokens)
            for item in items
        ]
        for reply in self._engine.answer(questions, known=lambda question: question.id in known):
            if reply.question.id not in known:
                yield Prediction.of(by_id[reply.question.id], reply.text, reply.error)


def require_answers(rows: Mapping[str, Sequence[Prediction]], folder: EvaluationFolder) -> None:
    """Check that some question was answered; a benchmark that failed as a whole does not stop the others.

    Args:
        rows: a run's rows by benchmark.
        folder: where they have been written.

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


def _known_row(item: Example, answer: str | None, finished: Prediction | None) -> Prediction | None:
    """The row of a question that an earlier start of this run answered, by its journal or its predictions file."""
    if answer is None and finished is not None:
        is_same = (finished.question, finished.image) == (item.question, item.image_name)
        answer = finished.prediction if is_same else None
    return None if answer is None else Prediction.of(item, answer)


class _Tally:
    """Running counts of one benchmark."""

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
        marked = self.done - self.failed
        score = self._sum / marked if marked else None
        return Progress(self.run, self.bench, self.done, self.total, self.resumed, self.failed, score)
