"""Candidates that answer questions: adapters or the base model, checked without torch, and the engine of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2pt_cli.errors import AdapterError
from m2pt_cli.models.adapters import AdapterInfo, read_adapter, require_same_base
from m2pt_cli.models.catalog import BaseEntry, entry_of, resolve_base_name
from m2pt_cli.models.fingerprint import base_fingerprint

if TYPE_CHECKING:
    from m2pt_cli.generation.engine import AnswerEngine, Decoding
    from m2pt_cli.models.load import LoadedBase

# The value of --adapter that means the base model without an adapter.
BASE_MODEL = "none"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A model that answers: an adapter, by the name that the user gave, or the base model, whose fields are None."""

    name: str | None
    info: AdapterInfo | None


@dataclass(frozen=True)
class Candidates:
    """A base and its candidates, in the order of the command line."""

    base: str
    entry: BaseEntry
    members: tuple[Candidate, ...]


@dataclass(frozen=True)
class PromptFormat:
    """The chat template and image fit that turn a question into model inputs, with warnings about both."""

    template: str
    image_fit: str
    warnings: tuple[str, ...] = ()


def read_candidates(adapters: Sequence[str], base: str | None) -> Candidates:
    """Read the adapters and choose the base: ``base``, else the adapters' base, else ``$M2PT_BASE`` or the default.

    Args:
        adapters: folders or Hub ids, or ``none`` for the base model; if empty, the base model is the only candidate.
        base: alias, Hub id or folder; None to choose it automatically.

    Raises:
        AdapterError: an adapter is missing, damaged or of another base, or two were trained on different bases.
        UnavailableError: the base is unknown.
    """
    members = tuple(
        Candidate(None, None) if name == BASE_MODEL else Candidate(name, read_adapter(name))
        for name in adapters or (BASE_MODEL,)
    )
    infos = [member.info for member in members if member.info is not None and member.info.base is not None]
    for other in infos[1:] if base is None else ():
        if other.base != infos[0].base:
            raise AdapterError(
                f"{infos[0].name} was trained on {infos[0].base}, {other.name} on {other.base}",
                "ask adapters of one base together, or name the base with --base",
            )
    name = resolve_base_name(base, infos[0].base if infos else None)
    entry = entry_of(name)
    if entry.folder is not None:  # a base on the Hub is compared after its download
        fingerprint = base_fingerprint(entry.folder)
        for member in members:
            if member.info is not None:
                require_same_base(member.info, entry.name, fingerprint)
    return Candidates(name, entry, members)


def prompt_format(
    entry: BaseEntry, info: AdapterInfo | None, *, template: str | None = None, image_fit: str | None = None
) -> PromptFormat:
    """Choose template and image fit: the given ones, else those of the adapter's training, else the base's defaults."""
    given = {"template": template, "image_fit": image_fit}
    trained = {"template": info and info.chat_template, "image_fit": info and info.image_fit}
    default = {"template": entry.defaults.template, "image_fit": entry.defaults.image_fit}
    warnings = tuple(
        f"--{name.replace('_', '-')} {value} differs from {trained[name]}, with which the adapter "
        f"{info.name} was trained"
        for name, value in given.items()
        if info is not None and value is not None and trained[name] is not None and value != trained[name]
    )
    chosen = {name: given[name] or trained[name] or default[name] for name in given}
    return PromptFormat(chosen["template"], chosen["image_fit"], warnings)


def build_engine(
    loaded: LoadedBase,
    info: AdapterInfo | None,
    *,
    template: str | None = None,
    image_fit: str | None = None,
    decoding: Decoding | None = None,
    batch_tokens: int | None = None,
    report: Report | None = None,
) -> AnswerEngine:
    """Build the engine of an adapter, or of the base model if ``info`` is None.

    The adapter is attached to ``loaded`` unless it is attached already; `detach_adapter` removes it.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    from m2pt_cli.generation.engine import AnswerEngine
    from m2pt_cli.models.adapters import attach_adapter

    if info is not None and loaded.adapter is not info:
        loaded = dataclasses.replace(loaded, model=attach_adapter(loaded, info, report=report), adapter=info)
    chosen = prompt_format(loaded.entry, info, template=template, image_fit=image_fit)
    return AnswerEngine(
        loaded,
        template=chosen.template,
        image_fit=chosen.image_fit,
        decoding=decoding,
        batch_tokens=batch_tokens,
        report=report,
    )
