"""Settings of the commands that ask a model: ``m2pt infer``, ``m2pt eval`` and ``m2pt attn-map``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m2pt_cli.settings.base import (
    ATTENTION_PARTS,
    FIGURE_SUFFIXES,
    IMAGE_FITS,
    MOST_NUMBER,
    PROTOCOLS,
    TEMPLATES,
    VALUES_SUFFIXES,
    WORDINGS,
    Settings,
    closest,
    flag,
    repeated,
    shown_number,
)

# Each beam needs a copy of the cache. Logits are divided by the temperature in 32-bit floats.
_MOST_BEAMS, _LEAST_TEMPERATURE = 1_024, 1e-6


@dataclass(frozen=True, kw_only=True)
class InferSettings(Settings):
    """Settings of ``m2pt infer``."""

    adapter: tuple[str, ...] = ()
    template: str | None = None
    image_fit: str | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0
    num_beams: int = 1
    allow_url: bool = False

    def faults(self) -> list[str]:
        faults = super().faults()
        faults += [f"--adapter {name!r} is given twice" for name in repeated(self.adapter)]
        self.one_of(faults, "template", TEMPLATES)
        self.one_of(faults, "image_fit", IMAGE_FITS)
        self.at_least(faults, 1, "max_new_tokens")
        self.at_least(faults, 1, "num_beams", most=_MOST_BEAMS)
        self.at_least(faults, 0, "temperature", most=MOST_NUMBER)
        if not faults and 0 < self.temperature < _LEAST_TEMPERATURE:
            faults.append(f"--temperature {self.temperature} is so low that numbers overflow: 0 is greedy")
        if not faults and self.temperature > 0 and self.num_beams > 1:
            faults.append("--temperature samples and --num-beams searches: use one of them")
        return faults


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Settings):
    """Settings of ``m2pt eval``."""

    bench: tuple[str, ...] = ()
    adapter: tuple[str, ...] = ()
    predictions: Path | None = None
    source: str | None = None
    images: tuple[Path, ...] = ()
    template: str | None = None
    image_fit: str | None = None
    wording: str = "m2pt-1"
    protocol: str = "official"
    ocr: bool = False
    limit: int | None = None
    shuffle_images: bool = False
    max_new_tokens: int | None = None
    batch_tokens: int | None = None
    allow_url: bool = False
    judge: str | None = None
    output_dir: Path | None = None
    overwrite: bool = False

    def faults(self) -> list[str]:
        faults = super().faults()
        if not self.bench:
            faults.append("--bench is missing: name a benchmark, such as --bench demo")
        self.one_of(faults, "template", TEMPLATES)
        self.one_of(faults, "image_fit", IMAGE_FITS)
        self.one_of(faults, "wording", WORDINGS)
        self.one_of(faults, "protocol", PROTOCOLS)
        self.at_least(faults, 1, "limit", "max_new_tokens", "batch_tokens")
        if self.predictions is not None and len(self.bench) > 1:
            faults.append("--predictions scores one benchmark: give --bench once")
        faults += [f"--adapter {name!r} is given twice" for name in repeated(self.adapter)]
        return faults


# The most panels of a figure; more would be unreadable.
MOST_OVERLAYS = 24
MOST_RUNS = 6


@dataclass(frozen=True, kw_only=True)
class AttnMapSettings(Settings):
    """Settings of ``m2pt attn-map``.

    Attributes:
        adapter: adapters to compare; ``none`` is the base without an adapter.
        base_only: add the base without an adapter.
        output: file of the figure, PNG, SVG or PDF by its suffix; None draws none.
        values: file of the values, ``.npz`` or ``.json``; None writes none.
        layer, head, token: layers and heads of the language model and tokens of the answer, from 0, -1 the last;
            empty is the mean of all.
        vision_layer: layers of the vision tower whose tokens are drawn one by one; empty is the last that is run.
        vision_head: heads of the vision tower; empty is the mean of all.
        part: the parts to compute (`ATTENTION_PARTS`); empty is all of them.
        drop_sinks: exclude the first token, an attention sink, from the figure's scales.
        title: title of the figure; None is the question and the base, an empty text none.
        label: ``ADAPTER=TEXT``: name of an adapter (as it is given), or of the base (``none``), in figure and tables.
        max_new_tokens: longest answer in tokens.
    """

    image: str = ""
    question: str = ""
    adapter: tuple[str, ...] = ()
    base_only: bool = False
    output: Path | None = None
    values: Path | None = None
    layer: tuple[int, ...] = ()
    head: tuple[int, ...] = ()
    token: tuple[int, ...] = ()
    vision_layer: tuple[int, ...] = ()
    vision_head: tuple[int, ...] = ()
    part: tuple[str, ...] = ()
    drop_sinks: bool = False
    title: str | None = None
    label: tuple[str, ...] = ()
    max_new_tokens: int = 32
    template: str | None = None
    image_fit: str | None = None
    allow_url: bool = False
    overwrite: bool = False

    def faults(self) -> list[str]:
        faults = super().faults()
        if not self.image:
            faults.append("no image to look at")
        if not self.question.strip():
            faults.append("the question is empty")
        faults += [f"--adapter {name!r} is given twice" for name in repeated(self.adapter)]
        if self.base_only and "none" in self.adapter:
            faults.append("--base-only and --adapter none are the same row")
        if (rows := len(self.adapter) + self.base_only) > MOST_RUNS:
            faults.append(f"{rows} adapters are more than the {MOST_RUNS} that fit side by side")
        faults += self._label_faults()
        for name, suffixes in (("output", FIGURE_SUFFIXES), ("values", VALUES_SUFFIXES)):
            file: Path | None = getattr(self, name)
            if file is not None and file.suffix.lower() not in suffixes:
                said = f"ends in {file.suffix!r}" if file.suffix else "has no suffix"
                faults.append(f"{flag(name)} {file} {said}, not in {', '.join(suffixes)}")
        for name in self.part:
            if name not in ATTENTION_PARTS:
                choices = ", ".join(ATTENTION_PARTS)
                faults.append(f"--part {name!r} is not one of {choices}{closest(name, ATTENTION_PARTS)}")
        for name in ("layer", "head", "token", "vision_layer", "vision_head"):
            faults += [f"{flag(name)} {number} is given twice" for number in repeated(getattr(self, name))]
        self.one_of(faults, "template", TEMPLATES)
        self.one_of(faults, "image_fit", IMAGE_FITS)
        earlier = len(faults)
        self.at_least(faults, 1, "max_new_tokens")
        faults += [
            f"--token {shown_number(token)}: an answer of --max-new-tokens {self.max_new_tokens} has no such token"
            for token in self.token
            if len(faults) == earlier and not -self.max_new_tokens <= token < self.max_new_tokens
        ]
        overlays = max(len(self.layer), 1) * max(len(self.head), 1) * max(len(self.token), 1)
        if overlays > MOST_OVERLAYS:
            faults.append(
                f"--layer, --head and --token together ask for {overlays} overlays, more than {MOST_OVERLAYS}"
            )
        return faults

    def labels(self) -> dict[str, str]:
        """Return the labels by adapter as it is given, ``none`` for the base."""
        split = [self._split_label(given) for given in self.label]
        return {name: text for name, text in split if name is not None}

    def _rows(self) -> list[str]:
        """Return the adapters and the base by the names that labels use."""
        return [*self.adapter, *(["none"] if self.base_only or not self.adapter else [])]

    def _split_label(self, given: str) -> tuple[str | None, str]:
        """Return adapter and text of a label; the adapter is None if none matches. A path may contain ``=`` itself."""
        name = max((name for name in self._rows() if given.startswith(f"{name}=")), key=len, default=None)
        return name, "" if name is None else given.removeprefix(f"{name}=").strip()

    def _label_faults(self) -> list[str]:
        faults = []
        for given in self.label:
            name, text = self._split_label(given)
            if "=" not in given:
                faults.append(f"--label {given!r} is not ADAPTER=TEXT, such as --label none=Base")
            elif name is None:
                faults.append(f"--label {given!r} begins with no adapter of this figure: {', '.join(self._rows())}")
            elif not text:
                faults.append(f"--label {given!r} has no text")
        names = [name for name, _ in map(self._split_label, self.label) if name is not None]
        faults += [f"--label names {name!r} twice" for name in repeated(names)]
        return faults + [f"--label calls two adapters {text!r}" for text in repeated(self.labels().values()) if text]

    def looks_at(self, *parts: str) -> bool:
        """Return whether any of these parts is requested."""
        return not self.part or any(part in self.part for part in parts)
