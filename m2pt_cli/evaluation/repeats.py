"""Find questions that data or predictions hold several times: they are counted several times in a score."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Prediction, Task

_MOST_NAMED = 5


def check_repeats(bench: Task, rows: Mapping[str, Prediction], *, source: str, is_data: bool) -> str | None:
    """Look for one question in several rows: it has one id and the same words, category and image.

    The two questions of an MME image share an id and differ in words; POPE's splits use the same ids again. A file
    of one's own needs no ids: the image and the words make the question. The data sets of benchmarks hold some
    questions under several ids, at times with different references (SNLI-VE); their tools count each row.

    Args:
        bench: the benchmark of the rows.
        rows: rows by their place (``line 3``), references in normal form; ``prediction`` is None in data.
        source: the file or data set, for messages.
        is_data: whether the rows are a data set, and no predictions.

    Returns:
        A notice that names and counts the repeated questions; None if there are none.

    Raises:
        InputError: a question has different references or different predictions.
    """
    is_own = bench.size is None  # the other benchmarks have a published size
    groups = _groups(rows, _by_image if is_own else _by_id)
    different = [group for group in groups if len({_answers(row) for row in group.values()}) > 1]
    if different:
        word = "references" if is_data else "references or predictions"
        raise InputError(
            f"{source} holds the same question with different {word}: {_listed(different, _with_places)}",
            "keep one row of each question, with a list of its accepted answers"
            if is_own
            else "keep one row of each question",
        )
    if is_data and bench.patterns:
        groups = _groups(rows, lambda row: (row.category, _by_image(row)))
    if not groups:
        return None
    extra = sum(len(group) - 1 for group in groups)
    text = f"{source} holds {_several(len(groups), 'question')} more than once: {_listed(groups, _with_count)}"
    text += f"; every row is counted, {extra:,} of them {'repeats' if extra == 1 else 'repeat'} another"
    unlike = sum(len({row.answer for row in group.values() if isinstance(row.answer, str)}) > 1 for group in groups)
    return f"{text}; {unlike} with different references" if unlike else text


def _groups(rows: Mapping[str, Prediction], key: Callable[[Prediction], Hashable]) -> list[dict[str, Prediction]]:
    """Rows with an equal key, where there are two or more."""
    found: dict[Hashable, dict[str, Prediction]] = {}
    for place, row in rows.items():
        found.setdefault(key(row), {})[place] = row
    return [group for group in found.values() if len(group) > 1]


def _by_id(row: Prediction) -> Hashable:
    # Where a file leaves the questions out, the two of an MME image differ in their references.
    return row.category, row.question_id, row.image, " ".join(row.question.split()) or _reference(row)


def _by_image(row: Prediction) -> Hashable:
    return _by_id(row) if row.image is None else (row.image, " ".join(row.question.split()))


def _reference(row: Prediction) -> str | tuple[str, ...]:
    return row.answer if isinstance(row.answer, str) else tuple(row.answer)


def _answers(row: Prediction) -> Hashable:
    """What must be equal in every row of a question."""
    return _reference(row), None if row.prediction is None else row.prediction.strip()


def _listed(groups: Sequence[Mapping[str, Prediction]], name: Callable[[Mapping[str, Prediction]], str]) -> str:
    more = len(groups) - _MOST_NAMED
    return "; ".join(name(group) for group in groups[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _with_count(group: Mapping[str, Prediction]) -> str:
    return f"{_name(group)} ({len(group)} times)"


def _with_places(group: Mapping[str, Prediction]) -> str:
    return f"{_name(group)} ({', '.join(list(group)[:_MOST_NAMED])})"


def _name(group: Mapping[str, Prediction]) -> str:
    row = next(iter(group.values()))
    words = " ".join(row.question.split())
    return f"{row.question_id} {(words if len(words) <= 40 else words[:39] + '…')!r}"


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
