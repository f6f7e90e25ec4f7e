"""What a benchmark is: questions, how an answer is marked, and how marks become scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from m2pt_cli.evaluation.rows import Item, Mark, Row

# The LLaVA-1.5 protocol's request, put behind a question (wording "m2pt-1").
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Request:
    """Which questions are wanted, and where their data is.

    Attributes:
        limit: the first so many questions; None for all.
        wording: ``m2pt-1``, or ``stored``: exactly what the data set holds.
        source: a Hub id or a folder in place of the benchmark's own source.
        images: folders with images, for benchmarks whose data set holds only names.
        allow_url: fetch images that are named by an http(s) URL.
        ocr: add the data set's OCR tokens to the question.
        report: told what is downloaded, before it is, and what else a user should know.
    """

    limit: int | None = None
    wording: str = "m2pt-1"
    source: str | None = None
    images: tuple[Path, ...] = ()
    allow_url: bool = False
    ocr: bool = False
    report: Callable[[str], None] = lambda _: None

    def says_nothing_is_stored(self, bench: str) -> None:
        """Report that ``--wording stored`` changes nothing for a data set without questions."""
        if self.wording == "stored":
            self.report(f"the data set of {bench} stores no questions: --wording stored changes nothing")


class Benchmark(Protocol):
    """One benchmark. Loading, marking and scoring need no model and no torch.

    Attributes:
        name: what ``--bench`` calls it.
        source: where its questions come from, for people: a Hub id, or "built in".
        patterns: its files there, as globs; none where it is no data set of the Hub.
        size: how many questions it has.
        max_new_tokens: the longest answer that is read.
        headline: the key of its main score.
        has_protocols: whether ``--protocol`` means something to it.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def patterns(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> int | None: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def headline(self) -> str: ...
    @property
    def has_protocols(self) -> bool: ...

    def items(self, request: Request) -> list[Item]:
        """The questions in the data set's order.

        Raises:
            UnavailableError: the data set can't be had.
            InputError: it can't be read, or lacks columns.
        """

    def mark(self, row: Row, protocol: str) -> Mark:
        """What an answered row's prediction says, and whether it is right."""

    def scores(self, rows: Sequence[Row], protocol: str) -> dict[str, Any]:
        """The benchmark's block of ``results.json`` from marked rows; failed ones are passed over."""
