"""One base and the adapters that are asked side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2pt_cli.errors import AdapterError
from m2pt_cli.models.adapters import AdapterInfo, detach_adapter, read_adapter
from m2pt_cli.models.catalog import entry_of, resolve_base_name
from m2pt_cli.settings import InferSettings

if TYPE_CHECKING:
    from m2pt_cli.generation.engine import AnswerEngine, Question, Reply
    from m2pt_cli.models.load import LoadedBase

# The name under which the bare base is asked.
BASE_MODEL = "none"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """One voice of a panel: an adapter, or the bare base where ``info`` is None."""

    name: str | None
    info: AdapterInfo | None


class AdapterSwitcher:
    """A base and its adapters, checked before torch is imported, loaded by `open`.

    Args:
        settings: base, adapters, template, image fit and decoding.
        report: told in one line what is done or doubtful.

    Raises:
        AdapterError: an adapter is missing or damaged, or two were trained on different bases.
        UnavailableError: the base can't be had.
    """

    def __init__(self, settings: InferSettings, *, report: Report) -> None:
        self.settings = settings
        self.report = report
        self.seats = [_seat(name) for name in settings.adapter] or [Candidate(None, None)]
        self.base = resolve_base_name(settings.base, self._own_base())
        self.entry = entry_of(self.base)
        self._loaded: LoadedBase | None = None
        self._engine: tuple[Candidate, AnswerEngine] | None = None

    def open(self) -> None:
        """Load the base. Raises DeviceError and UnavailableError."""
        from m2pt_cli.models.load import load_base, set_seed, set_threads

        set_threads(self.settings.threads)
        set_seed(self.settings.seed)
        self._loaded = load_base(self.base, device=self.settings.device, dtype=self.settings.dtype, report=self.report)
        # The first adapter now, so that a fault of it is met before the first question.
        with self._seated(self.seats[0]):
            pass

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Candidate, Reply]]:
        """Replies of every seat to every question, in the questions' order, seat by seat within one."""
        replies: dict[tuple[int, int], Reply] = {}
        for number, seat in enumerate(self.seats):
            with self._seated(seat) as engine:
                places = {id(question): place for place, question in enumerate(questions)}
                for reply in engine.answer(questions):
                    replies[places[id(reply.question)], number] = reply
        for place in range(len(questions)):
            for number, seat in enumerate(self.seats):
                yield seat, replies[place, number]

    def stream(self, question: Question, write: Callable[[str], None]) -> Reply:
        """The first seat's answer, piece by piece."""
        with self._seated(self.seats[0]) as engine:
            return engine.stream(question, write)

    def engines(self) -> Iterator[tuple[Candidate, AnswerEngine]]:
        """Every seat with its engine, in turn; one's model is the next one's afterwards."""
        for seat in self.seats:
            with self._seated(seat) as engine:
                yield seat, engine

    @contextmanager
    def _seated(self, seat: Candidate) -> Iterator[AnswerEngine]:
        """The engine of a seat. An adapter stays attached until another seat is asked."""
        if self._engine is None or self._engine[0] is not seat:
            self._leave()
            self._engine = (seat, self._engine_of(seat))
        yield self._engine[1]

    def _leave(self) -> None:
        if self._engine is not None and self._engine[0].info is not None:
            assert self._loaded is not None
            detach_adapter(self._loaded, self._engine[1].loaded.model)
        self._engine = None

    def _engine_of(self, seat: Candidate) -> AnswerEngine:
        from m2pt_cli.generation.engine import AnswerEngine, Decoding
        from m2pt_cli.models.adapters import attach_adapter

        assert self._loaded is not None, "open() comes first"
        loaded, said = self._loaded, self.settings
        if seat.info is not None:
            loaded = dataclasses.replace(loaded, model=attach_adapter(loaded, seat.info), adapter=seat.info)
        return AnswerEngine(
            loaded,
            template=self._choose(seat, "template", said.template, seat.info.chat_template if seat.info else None),
            image_fit=self._choose(seat, "image_fit", said.image_fit, seat.info.image_fit if seat.info else None),
            decoding=Decoding(said.max_new_tokens, said.temperature, said.num_beams, said.seed),
            report=self.report,
        )

    def _choose(self, seat: Candidate, name: str, said: str | None, own: str | None) -> str:
        if said is not None and own is not None and said != own:
            flag = "--" + name.replace("_", "-")
            self.report(f"warning: {flag} {said} differs from {own}, with which {seat.name} was trained")
        default: str = getattr(self.entry.defaults, name)
        return said or own or default

    def _own_base(self) -> str | None:
        infos = [seat.info for seat in self.seats if seat.info is not None and seat.info.base is not None]
        if self.settings.base is None:
            for other in infos[1:]:
                if other.base != infos[0].base:
                    raise AdapterError(
                        f"{infos[0].name} was trained on {infos[0].base}, {other.name} on {other.base}",
                        "ask adapters of one base together, or name the base with --base",
                    )
        return infos[0].base if infos else None


def _seat(name: str) -> Candidate:
    return Candidate(None, None) if name == BASE_MODEL else Candidate(name, read_adapter(name))
