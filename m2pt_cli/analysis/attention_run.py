"""Run ``m2pt attn-map``: from settings to attention maps, figure and values; cheap checks first."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, LanguageAttention, VisionAttention
from m2pt_cli.analysis.tokens import language_tokens, uniform_causal, vision_tokens
from m2pt_cli.data.chat import question_turn
from m2pt_cli.data.sample import ImageReference, image_reference
from m2pt_cli.errors import SettingsError
from m2pt_cli.families.family import family_of
from m2pt_cli.generation.adapter_switcher import AdapterSwitcher
from m2pt_cli.generation.candidates import BASE_MODEL, Candidate
from m2pt_cli.settings import AttnMapSettings, InferSettings

if TYPE_CHECKING:
    from torch import Tensor

    from m2pt_cli.analysis.attention import VisionWeights
    from m2pt_cli.families.geometry import Geometry
    from m2pt_cli.generation.engine import AnswerEngine

Report = Callable[[str], None]
# Approximate side in pixels of the image under an overlay.
_PICTURE_SIDE = 336


def run_attention(
    settings: AttnMapSettings, *, image: ImageReference | None = None, report: Report | None = None
) -> AttentionMaps:
    """Answer the question with every adapter, record its attention and write the requested files.

    Args:
        settings: adapters, image, question, selections and output files.
        image: the image, if it is not the file that the settings name.
        report: called with one-line progress messages and warnings.

    Raises:
        SettingsError: a layer, head or token does not exist, or an output file already exists.
        InputError: the image can't be read, or the question holds more than one ``<image>``.
        AdapterError, UnavailableError, DeviceError: an adapter, the base or the device is unavailable.
    """
    report = report or (lambda _: None)
    for flag, file in (("--output", settings.output), ("--values", settings.values)):
        if file is not None:
            _require_place(flag, file, overwrite=settings.overwrite)
    question_turn(settings.question, 1)  # checks its placeholders before the model is loaded
    reference = image or image_reference(settings.image, folder=Path(), allow_url=settings.allow_url)
    reference.open()
    switcher = AdapterSwitcher(_asking(settings), report=report)
    settings = _resolved(settings, switcher.entry.geometry, switcher.entry.name)
    if set(settings.part) == {"prompts"} and not any(_prompts(candidate) for candidate in switcher.candidates):
        raise SettingsError("--part prompts: none of what is looked at has prompts", "name an --adapter that has some")
    switcher.open()
    runs = tuple(_run(candidate, engine, reference, settings) for candidate, engine in switcher.engines())
    maps = AttentionMaps(
        image=settings.image,
        question=settings.question,
        base=switcher.entry.name,
        runs=runs,
        layers=settings.layer,
        heads=settings.head,
        tokens=settings.token,
        vision_layers=settings.vision_layer,
        vision_heads=settings.vision_head,
        output=None if settings.output is None else str(settings.output),
        values=None if settings.values is None else str(settings.values),
    )
    if settings.values is not None:
        from m2pt_cli.analysis.attention_maps import write_values

        write_values(maps, settings.values)
    if settings.output is not None:
        from m2pt_cli.analysis.attention_figure import draw_attention

        draw_attention(maps, settings.output, parts=settings.part, drop_sinks=settings.drop_sinks, title=settings.title)
    return maps


def _run(candidate: Candidate, engine: AnswerEngine, image: ImageReference, settings: AttnMapSettings) -> AttentionRun:
    from m2pt_cli.analysis.attention import collect_language, collect_vision
    from m2pt_cli.generation.engine import Question

    loaded = engine.loaded
    label = settings.labels().get(candidate.name or BASE_MODEL)
    question = Question("1", settings.question, (image,))
    picture = engine.images.picture(image, side=_PICTURE_SIDE)
    geometry, family = loaded.entry.geometry, family_of(loaded.entry.geometry.model_type)
    grid = geometry.vision.image_size // geometry.vision.patch_size
    text_grid = grid // math.isqrt(geometry.merged)
    has_visual_prompts = candidate.info is not None and candidate.info.num_visual_prompts > 0
    looks_at_vision = settings.looks_at("vision") or (settings.looks_at("prompts") and has_visual_prompts)

    def look(inputs: dict[str, Tensor]) -> VisionAttention:
        return _vision(collect_vision(loaded.model, inputs, heads=settings.vision_head), grid, settings.vision_head)

    if not settings.looks_at("language", "overlay", "prompts"):
        inputs = engine.inputs(question)
        return AttentionRun(candidate.name, None, (), picture, None, look(inputs), label)
    prompt, inputs, answer = engine.run_one(question)
    tokenizer = loaded.processor.tokenizer
    text = tokenizer.decode(answer, skip_special_tokens=True).strip()
    # A poorly trained model may generate the image token, which would require one more image.
    answer = list(itertools.takewhile(lambda token: token != loaded.model.config.image_token_id, answer))
    # An empty answer is represented by the end-of-sequence token.
    answer = answer or [min(engine.eos_ids)]
    _require_tokens(settings.token, len(answer), candidate)

    def word(token: int) -> str:
        return str(tokenizer.decode([token])).strip() or "␣"

    weights, tower = collect_language(
        loaded.model,
        prompt,
        answer,
        inputs,
        heads=settings.head,
        vision=looks_at_vision,
        vision_heads=settings.vision_head,
    )
    tokens = language_tokens(
        prompt,
        answer,
        word,
        num_prompts=weights.num_prompts,
        image_token_id=loaded.model.config.image_token_id,
        grid=text_grid,
        is_tiled=engine.images.is_tiled,
        overview=family.overview,
    )
    language = LanguageAttention(
        tokens=tokens,
        received=weights.received.mean(1),
        uniform=uniform_causal(weights.num_prompts, len(tokens) - weights.num_prompts),
        by_head=weights.received,
        answer=weights.answer,
        heads=settings.head or (None,),
        grid=text_grid,
    )
    words = tuple(word(token) for token in answer)
    vision = None if tower is None else _vision(tower, grid, settings.vision_head)
    return AttentionRun(candidate.name, text, words, picture, language, vision, label)


def _vision(weights: VisionWeights, grid: int, heads: tuple[int, ...]) -> VisionAttention:
    tokens = vision_tokens(num_prompts=weights.num_prompts, has_class_token=weights.has_class_token, grid=grid)
    return VisionAttention(
        tokens=tokens,
        received=weights.received.mean(1),
        uniform=np.full(len(tokens), 1 / len(tokens), np.float32),
        from_patches=weights.from_patches.mean(1),
        by_head=weights.received,
        heads=heads or (None,),
    )


def _prompts(candidate: Candidate) -> int:
    return 0 if candidate.info is None else candidate.info.num_visual_prompts + candidate.info.num_textual_prompts


def _asking(settings: AttnMapSettings) -> InferSettings:
    """Return the inference settings for the adapter switcher."""
    shared = {f.name for f in dataclasses.fields(InferSettings)} & {f.name for f in dataclasses.fields(settings)}
    values = {name: getattr(settings, name) for name in shared}
    if settings.base_only and settings.adapter:
        values["adapter"] = (*settings.adapter, BASE_MODEL)
    return InferSettings(**values)


def _resolved(settings: AttnMapSettings, geometry: Geometry, base: str) -> AttnMapSettings:
    """Return the settings with layers and heads counted from 0, after checking that they exist."""
    # Image features are the input of the selected layer: layers from it on are not run or do not affect the output.
    run, text, vision = max(geometry.feature_indices), geometry.text, geometry.vision
    layers = settings.vision_layer or (-1,)
    return dataclasses.replace(
        settings,
        layer=_counted("--layer", settings.layer, text.num_layers, f"the language model of {base} has layers"),
        head=_counted("--head", settings.head, text.num_heads, f"the language model of {base} has heads"),
        vision_layer=_counted("--vision-layer", layers, run, f"the image features of {base} come from layers"),
        vision_head=_counted(
            "--vision-head", settings.vision_head, vision.num_heads, f"the vision tower of {base} has heads"
        ),
    )


def _counted(flag: str, numbers: Sequence[int], count: int, what: str) -> tuple[int, ...]:
    for number in numbers:
        if not -count <= number < count:
            raise SettingsError(f"{flag} {number}: {what} 0 to {count - 1}", f"count from 0; {flag} -1 is the last")
    counted = tuple(number % count for number in numbers)
    if len(set(counted)) < len(counted):
        raise SettingsError(f"{flag} names one of {', '.join(map(str, numbers))} twice", f"give each {flag} once")
    return counted


def _require_tokens(tokens: Sequence[int], count: int, candidate: Candidate) -> None:
    for token in tokens:
        if not -count <= token < count:
            name = candidate.name or "the base"
            raise SettingsError(
                f"--token {token}: the answer of {name} has {count} token{'s' * (count > 1)}, 0 to {count - 1}",
                "leave --token out to see the answer's tokens, and the mean over them",
            )


def _require_place(flag: str, file: Path, *, overwrite: bool) -> None:
    if not file.parent.is_dir():
        raise SettingsError(f"{flag} {file}: there is no folder {file.parent}", f"mkdir -p {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise SettingsError(f"{flag} {file}: the folder {file.parent} can't be written to", "name another folder")
    if file.is_dir():
        raise SettingsError(f"{flag} {file} is a folder", "name a file in it")
    if file.exists() and not overwrite:
        raise SettingsError(f"{flag} {file} exists already", "name another file, or say --overwrite")
