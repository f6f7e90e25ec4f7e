"""The commands as functions, for notebooks and scripts; every name is importable from ``m2pt_cli`` itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from m2pt_cli.errors import GenerationError, SettingsError

if TYPE_CHECKING:
    from peft import PeftModel
    from PIL.Image import Image
    from transformers import PreTrainedModel, ProcessorMixin

    from m2pt_cli.analysis.attention_maps import AttentionMaps
    from m2pt_cli.evaluation.events import Notice, Progress
    from m2pt_cli.evaluation.results import EvalResult
    from m2pt_cli.models.load import LoadedBase
    from m2pt_cli.records import TrainResult
    from m2pt_cli.settings import AttnMapSettings, EvalSettings, TrainSettings
    from m2pt_cli.training.events import Event

# The processor, device and names of each model that `load` returned, so that `answer` needs only the model.
_LOADED: WeakKeyDictionary[Any, LoadedBase] = WeakKeyDictionary()


def load(
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str = "auto",
) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin]:
    """Load a base onto a device, attach an adapter, and return the model with its processor.

    Args:
        base: alias, Hub id or folder; by default the adapter's own, then ``$M2PT_BASE``, then ``llava-1.5-7b``.
        adapter: folder or Hub id of an M²PT or LoRA adapter; None loads the bare base.
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

    found = read_candidates(() if adapter is None else (str(adapter),), None if base is None else str(base))
    info = found.members[0].info
    loaded = load_base(found.base, device=device, dtype=dtype)
    model = loaded.model if info is None else attach_adapter(loaded, info)
    # Stored without the model: a reference to it would keep the entry of the weak dictionary alive.
    _LOADED[model] = dataclasses.replace(loaded, model=None, adapter=info)
    return model, loaded.processor


def answer(
    model: Any,
    images: str | Path | Image | Sequence[str | Path | Image],
    questions: str | Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    num_beams: int = 1,
) -> list[str]:
    """Answer question i about image i; a single image is used for all questions, a single question for all images.

    Args:
        model: the model that `load` returned.
        images: a path or PIL image, or a sequence of them.
        questions: a question, or a sequence of them.

    Returns:
        A list of answers, even for one image and one question.

    Raises:
        SettingsError: the numbers of images and questions do not fit, or the model is not from `load`.
        InputError: an image can't be read.
        GenerationError: a question failed.

    Example:
        >>> answer(model, "photo.jpg", ["What is this?", "Where is it?"])
        ['a circle', 'at the top']
    """
    from m2pt_cli.data.sample import image_reference
    from m2pt_cli.generation.candidates import build_engine
    from m2pt_cli.generation.engine import Decoding, Question

    if model not in _LOADED:
        raise SettingsError(f"this {type(model).__name__} was not loaded by m2pt", "model, processor = load(base=...)")
    if isinstance(questions, str):
        questions = [questions]
    if isinstance(images, (str, Path)) or not isinstance(images, Sequence):  # a PIL image is not a sequence
        images = [images]
    loaded = dataclasses.replace(_LOADED[model], model=model)
    most = max(len(images), len(questions))
    if not images or not questions or len({len(images), len(questions), most} - {1}) > 1:
        raise SettingsError(
            f"{len(images)} images and {len(questions)} questions", "give as many of both, or one of either"
        )
    pictures = [image_reference(image, folder=Path()) for image in images]
    pictures *= most if len(pictures) == 1 else 1
    texts = list(questions) * (most if len(questions) == 1 else 1)
    engine = build_engine(loaded, loaded.adapter, decoding=Decoding(max_new_tokens, temperature, num_beams))
    asked = [Question(str(i), text, (picture,)) for i, (text, picture) in enumerate(zip(texts, pictures, strict=True))]
    replies = {reply.question.id: reply for reply in engine.answer(asked)}
    answers = []
    for question in asked:
        reply = replies[question.id]
        if reply.text is None:
            raise GenerationError(f"question {int(question.id) + 1} failed: {reply.error}")
        answers.append(reply.text)
    return answers


def train(
    settings: TrainSettings,
    *,
    progress: Callable[[Event], None] | AbstractContextManager[Callable[[Event], None]] | None = None,
) -> TrainResult:
    """Train as ``m2pt train`` does and return the result, which names the adapter's folder.

    Args:
        progress: called with every event (`m2pt_cli.training.events`); ``show_progress()`` prints them, None is silent.

    Example:
        >>> train(TrainSettings(base="nano", data="demo", output_dir="runs/demo")).output_dir
        'runs/demo'
    """
    from m2pt_cli.training.events import ignore
    from m2pt_cli.training.run import run_training

    with _entered(progress) as events:
        return run_training(settings, events=events or ignore)


def evaluate(
    settings: EvalSettings,
    *,
    progress: Callable[[Notice | Progress], None]
    | AbstractContextManager[Callable[[Notice | Progress], None]]
    | None = None,
) -> EvalResult:
    """Evaluate as ``m2pt eval`` does and return the result, which holds the content of ``results.json``.

    Args:
        progress: called with every event (`m2pt_cli.evaluation.events`); ``show_progress()`` prints them, None is
            silent.

    Example:
        >>> evaluate(EvalSettings(bench="demo", adapter="runs/demo")).runs[0].benchmarks["demo"]["accuracy"]
    """
    from m2pt_cli.evaluation.events import ignore
    from m2pt_cli.evaluation.run import run_evaluation

    with _entered(progress) as events:
        return run_evaluation(settings, events=events or ignore)


def attention_map(
    settings: AttnMapSettings,
    *,
    progress: Callable[[str], None] | AbstractContextManager[Callable[[str], None]] | None = None,
) -> AttentionMaps:
    """Compute and return attention maps as ``m2pt attn-map`` does, and write the files that the settings name.

    Args:
        progress: called with lines of progress and warnings; ``show_progress()`` prints them, None is silent.

    Example:
        >>> maps = attention_map(AttnMapSettings(image="photo.jpg", question="Is there a chair?", adapter="runs/a"))
        >>> maps.runs[0].language.shares()["textual_prompts"]  # a share per layer
    """
    from m2pt_cli.analysis.attention_run import run_attention

    with _entered(progress) as report:
        return run_attention(settings, report=report)


def _entered(progress: Any) -> AbstractContextManager[Any]:
    """Return ``progress`` as a context manager: a display is opened and always closed, a function is left as is."""
    return progress if isinstance(progress, AbstractContextManager) else nullcontext(progress)
