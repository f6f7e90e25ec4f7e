"""The commands as Python functions, for notebooks and scripts; all are importable from ``m2pt_cli``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from m2pt_cli.errors import GenerationError, SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image

    from m2pt_cli.analysis.attention_maps import AttentionMaps
    from m2pt_cli.evaluation.results import EvalResult
    from m2pt_cli.models.load import LoadedBase
    from m2pt_cli.records import TrainResult
    from m2pt_cli.settings import AttnMapSettings, EvalSettings, TrainSettings

# What `load` knows about each model, so that `answer` needs only the model.
_LOADED: WeakKeyDictionary[Any, LoadedBase] = WeakKeyDictionary()


def load(
    base: str | None = None, adapter: str | None = None, *, device: str | None = None, dtype: str = "auto"
) -> tuple[Any, Any]:
    """Load a base onto a device, attach an adapter, and return the model with its processor.

    Args:
        base: alias, Hub id or folder; by default the adapter's base, then ``$M2PT_BASE``, then ``llava-1.5-7b``.
        adapter: folder or Hub id of an M²PT or LoRA adapter; None loads the base alone.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; by default the best available.
        dtype: ``auto`` (bfloat16 on CUDA, else float32), ``float32``, ``bfloat16`` or ``float16``.

    Returns:
        The model (transformers' LLaVA, or a PeftModel of it, in eval mode) and transformers' processor.

    Raises:
        AdapterError: the adapter is missing, damaged, or was trained on another base.
        UnavailableError, DeviceError: the base or the device is not available.

    Example:
        >>> model, processor = load(base="nano", adapter="runs/demo")
    """
    from m2pt_cli.generation.candidates import read_candidates
    from m2pt_cli.models.adapters import attach_adapter
    from m2pt_cli.models.load import load_base

    candidates = read_candidates(() if adapter is None else (adapter,), base)
    info = candidates.members[0].info
    loaded = load_base(candidates.base, device=device, dtype=dtype)
    model = loaded.model if info is None else attach_adapter(loaded, info)
    # Stored without the model: a value that refers to its weak key would keep it alive.
    _LOADED[model] = dataclasses.replace(loaded, model=None, adapter=info)
    return model, loaded.processor


def answer(
    model: Any,
    images: Sequence[str | Path | Image],
    questions: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    num_beams: int = 1,
) -> list[str]:
    """Answer question i about image i; a single image, or a single question, is used for all.

    Args:
        model: the model that `load` returned.
        images: paths or PIL images.
        questions: one per image, or one for all.

    Raises:
        SettingsError: the numbers of images and questions do not match, or the model is not from `load`.
        InputError: an image can't be read.
        GenerationError: a question could not be answered.
    """
    from m2pt_cli.data.sample import image_reference
    from m2pt_cli.generation.candidates import build_engine
    from m2pt_cli.generation.engine import Decoding, Question

    if model not in _LOADED:
        raise SettingsError(f"this {type(model).__name__} was not loaded by m2pt", "model, processor = load(base=...)")
    loaded = dataclasses.replace(_LOADED[model], model=model)
    count = max(len(images), len(questions))
    if not images or not questions or len({len(images), len(questions), count} - {1}) > 1:
        raise SettingsError(
            f"{len(images)} images and {len(questions)} questions", "give as many of both, or one of either"
        )
    references = [image_reference(image, folder=Path()) for image in images]
    references *= count if len(references) == 1 else 1
    texts = list(questions) * (count if len(questions) == 1 else 1)
    engine = build_engine(loaded, loaded.adapter, decoding=Decoding(max_new_tokens, temperature, num_beams))
    batch = [
        Question(str(i), text, (reference,)) for i, (text, reference) in enumerate(zip(texts, references, strict=True))
    ]
    replies = {reply.question.id: reply for reply in engine.answer(batch)}
    answers = []
    for question in batch:
        reply = replies[question.id]
        if reply.text is None:
            raise GenerationError(f"question {int(question.id) + 1} failed: {reply.error}")
        answers.append(reply.text)
    return answers


def train(settings: TrainSettings) -> TrainResult:
    """Train as ``m2pt train`` does, without printing; the result names the folder with the adapter.

    Example:
        >>> train(TrainSettings(base="nano", data=("demo",), output_dir=Path("runs/demo"))).output_dir
        'runs/demo'
    """
    from m2pt_cli.training.run import run_training

    return run_training(settings)


def evaluate(settings: EvalSettings) -> EvalResult:
    """Evaluate as ``m2pt eval`` does, without printing; the result holds the content of ``results.json``."""
    from m2pt_cli.evaluation.run import run_evaluation

    return run_evaluation(settings)


def attention_map(settings: AttnMapSettings) -> AttentionMaps:
    """Analyse attention as ``m2pt attn-map`` does, without printing; writes the files that the settings name.

    Example:
        >>> maps = attention_map(AttnMapSettings(image="photo.jpg", question="Is there a chair?", adapter=("runs/a",)))
        >>> maps.runs[0].language.shares()["textual_prompts"]  # one share per layer
    """
    from m2pt_cli.analysis.attention_run import run_attention

    return run_attention(settings)
