"""Keep one base in memory and attach several adapters in turn."""

from __future__ import annotations

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
    """Answers questions with several adapters of one base, one adapter attached at a time.

    The constructor checks base and adapters without importing torch; `open` loads them.

    Args:
        settings: base, adapters, template, image fit and decoding.
        report: called with a line of text about progress, or with a warning.

    Raises:
        AdapterError: an adapter is missing, damaged or of another base, or two were trained on different bases.
        UnavailableError: the base is not available.
    """

    def __init__(self, settings: InferSettings, *, report: Report) -> None:
        self.settings = settings
        self.report = report
        checked = read_candidates(settings.adapter, settings.base)
        self.base, self.entry, self.candidates = checked.base, checked.entry, checked.members
        self._loaded: LoadedBase | None = None
        self._engine: tuple[Candidate, AnswerEngine] | None = None

    def open(self) -> None:
        """Load the base and attach the first adapter. Raises AdapterError, DeviceError and UnavailableError."""
        from m2pt_cli.models.load import load_base, set_seed, set_threads

        set_threads(self.settings.threads, parameters=self.entry.geometry.total_parameters)
        set_seed(self.settings.seed)
        self._loaded = load_base(self.base, device=self.settings.device, dtype=self.settings.dtype, report=self.report)
        self._engine_of(self.candidates[0])

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Candidate, Reply]]:
        """Yield every candidate's reply to every question, ordered by question, then by candidate."""
        numbers = {id(question): number for number, question in enumerate(questions)}
        replies: dict[tuple[int, int], Reply] = {}
        for index, candidate in enumerate(self.candidates):
            for reply in self._engine_of(candidate).answer(questions):
                replies[numbers[id(reply.question)], index] = reply
        for number in range(len(questions)):
            for index, candidate in enumerate(self.candidates):
                yield candidate, replies[number, index]

    def stream(self, question: Question, write: Callable[[str], None]) -> Reply:
        """Answer with the first candidate, and call ``write`` with the text as it is generated."""
        return self._engine_of(self.candidates[0]).stream(question, write)

    def engines(self) -> Iterator[tuple[Candidate, AnswerEngine]]:
        """Yield every candidate with its engine. An engine is invalid once the iterator advances to the next one."""
        for candidate in self.candidates:
            yield candidate, self._engine_of(candidate)

    def _engine_of(self, candidate: Candidate) -> AnswerEngine:
        """The engine of a candidate, whose adapter stays attached until the engine of another one is requested."""
        assert self._loaded is not None, "open() comes first"
        if self._engine is not None and self._engine[0] is candidate:
            return self._engine[1]
        from m2pt_cli.generation.engine import Decoding

        if self._engine is not None and self._engine[0].info is not None:
            detach_adapter(self._loaded, self._engine[1].loaded.model)
        self._engine = None
        settings = self.settings
        chosen = prompt_format(self.entry, candidate.info, template=settings.template, image_fit=settings.image_fit)
        for text in chosen.warnings:
            self.report(f"warning: {text}")
        engine = build_engine(
            self._loaded,
            candidate.info,
            template=settings.template,
            image_fit=settings.image_fit,
            decoding=Decoding(settings.max_new_tokens, settings.temperature, settings.num_beams, settings.seed),
            report=self.report,
        )
        self._engine = (candidate, engine)
        return engine
