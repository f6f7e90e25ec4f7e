"""Keep one base in memory and attach several adapters to it in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from m2pt_cli.generation.candidates import Candidate, build_engine, prompt_format, read_candidates
from m2pt_cli.models.adapters import detach_adapter
from m2pt_cli.settings import InferSettings

if TYPE_CHECKING:
    from m2pt_cli.generation.engine import AnswerEngine, Question, Reply
    from m2pt_cli.models.load import LoadedBase

Report = Callable[[str], None]


class AdapterSwitcher:
    """A base and its adapters: checked at construction without importing torch, loaded by `open`.

    Args:
        settings: base, adapters, template, image fit and decoding.
        report: called with lines of progress and warnings.
        detail: called with a line about the device and the loading time.

    Raises:
        AdapterError: an adapter is missing, damaged or for another base, or two were trained on different bases.
        UnavailableError: the base is not available.
    """

    def __init__(self, settings: InferSettings, *, report: Report, detail: Report = lambda _: None) -> None:
        self.settings = settings
        self.report = report
        self.detail = detail
        found = read_candidates(settings.adapter, settings.base)
        self.base, self.entry, self.candidates = found.base, found.entry, found.members
        self._loaded: LoadedBase | None = None
        self._engine: tuple[Candidate, AnswerEngine] | None = None

    def open(self) -> None:
        """Load the base and the first adapter. Raises AdapterError, DeviceError and UnavailableError."""
        from m2pt_cli.models.load import load_base, set_seed, set_threads

        set_threads(self.settings.threads, parameters=self.entry.geometry.total_parameters)
        set_seed(self.settings.seed)
        started = time.monotonic()
        self._loaded = load_base(self.base, device=self.settings.device, dtype=self.settings.dtype, report=self.report)
        self._engine_of(self.candidates[0])
        self.detail(f"{self._loaded.description()}, ready in {time.monotonic() - started:.1f} s")

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Candidate, Reply]]:
        """Yield every candidate's reply to every question, ordered by question, then by candidate."""
        places = {id(question): place for place, question in enumerate(questions)}
        replies: dict[tuple[int, int], Reply] = {}
        for number, candidate in enumerate(self.candidates):
            for reply in self._engine_of(candidate).answer(questions):
                replies[places[id(reply.question)], number] = reply
        for place in range(len(questions)):
            for number, candidate in enumerate(self.candidates):
                yield candidate, replies[place, number]

    def stream(self, question: Question, write: Callable[[str], None]) -> Reply:
        """Return the first candidate's answer and write it as it is produced."""
        return self._engine_of(self.candidates[0]).stream(question, write)

    def engines(self) -> Iterator[tuple[Candidate, AnswerEngine]]:
        """Yield every candidate with its engine; an engine must not be used after the next one is requested."""
        for candidate in self.candidates:
            yield candidate, self._engine_of(candidate)

    def _engine_of(self, candidate: Candidate) -> AnswerEngine:
        """Return the engine of a candidate. Its adapter stays attached until another engine is requested."""
        assert self._loaded is not None, "open() comes first"
        if self._engine is not None and self._engine[0] is candidate:
            return self._engine[1]
        from m2pt_cli.generation.engine import Decoding

        if self._engine is not None and self._engine[0].info is not None:
            detach_adapter(self._loaded, self._engine[1].loaded.model)
        self._engine = None
        given = self.settings
        chosen = prompt_format(self.entry, candidate.info, template=given.template, image_fit=given.image_fit)
        for text in chosen.warnings:
            self.report(f"warning: {text}")
        engine = build_engine(
            self._loaded,
            candidate.info,
            template=given.template,
            image_fit=given.image_fit,
            decoding=Decoding(given.max_new_tokens, given.temperature, given.num_beams, given.seed),
            report=self.report,
        )
        self._engine = (candidate, engine)
        self.detail(f"{candidate.name or 'the bare base'}: template {chosen.template}, image fit {chosen.image_fit}")
        return engine
