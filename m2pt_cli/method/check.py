"""Checks that an adapter's prompts have an effect before the adapter is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

from m2pt_cli.errors import AdapterError
from m2pt_cli.method.architecture import Architecture, attentions_of, read_architecture
from m2pt_cli.method.calls import cache_argument
from m2pt_cli.method.prompts import PromptedAttention

_NUM_TOKENS = 8  # length of the test text, in tokens
# Tolerance for values that should be equal, as a fraction of the largest value.
_TOLERANCE = {torch.float32: 2e-4, torch.float64: 2e-4}
_HALF_TOLERANCE = 5e-2


@torch.inference_mode()
def check_prompts(model: PeftModel, name: str) -> None:
    """Compare a model with and without the prompts of its active adapter: logits of a short text, features of an image.

    Language model: the prompts must change the logits, and a cache must not. Vision tower: the prompts must change the
    features. Skipped for adapters without prompts, and with ``M2PT_SKIP_CHECK=1``.

    Args:
        model: in evaluation mode, with an M²PT or LoRA adapter.
        name: the adapter's name, for the error message.

    Raises:
        AdapterError: the prompts have no effect, or a different effect with a cache than without.
    """
    if os.environ.get("M2PT_SKIP_CHECK") == "1":
        return
    llava: Any = model.get_base_model()
    architecture = read_architecture(llava)
    family = architecture.family
    textual = _with_prompts(attentions_of(llava, family.text))
    if textual:
        logits = _logits(llava)
        with _muted(textual):
            _require_different(logits, _logits(llava), f"the textual prompts of {name}")
        _require_same(logits, _logits(llava, cached=True), name)
    visual = _with_prompts(attentions_of(llava, family.vision)[: architecture.layers_run])
    if visual:
        features = _features(llava, architecture)
        with _muted(visual):
            _require_different(features, _features(llava, architecture), f"the visual prompts of {name}")


def _with_prompts(attentions: list[Any]) -> list[PromptedAttention]:
    return [one for one in attentions if isinstance(one, PromptedAttention) and one.active_prompts is not None]


@contextmanager
def _muted(attentions: list[PromptedAttention]) -> Iterator[None]:
    for attention in attentions:
        attention.is_muted = True
    try:
        yield
    finally:
        for attention in attentions:
            attention.is_muted = False


def _logits(llava: Any, *, cached: bool = False) -> Tensor:
    """Logits ``(tokens, vocabulary)`` of tokens spread over the vocabulary; ``cached`` runs the last one on a cache."""
    text_config = llava.config.get_text_config()
    step = max(text_config.vocab_size // (_NUM_TOKENS + 2), 1)
    ids = [token for token in range(step, text_config.vocab_size, step) if token != llava.config.image_token_id][
        :_NUM_TOKENS
    ]
    tokens = torch.tensor([ids], device=llava.device)
    if not cached:
        logits: Tensor = llava(input_ids=tokens, use_cache=False).logits[0]
        return logits
    cache = {cache_argument(llava): DynamicCache(config=text_config)}
    parts = [llava(input_ids=part, use_cache=True, **cache).logits[0] for part in tokens.split([len(ids) - 1, 1], 1)]
    return torch.cat(parts)


def _features(llava: Any, architecture: Architecture) -> Tensor:
    """The last patch of a made-up image where image features are taken from."""
    size = llava.config.vision_config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.linspace(-1, 1, 3 * height * width, device=llava.device, dtype=llava.dtype)
    tower = llava.get_submodule(architecture.family.vision.path)
    if architecture.layers_run == architecture.vision_layers:
        features: Tensor = tower(pixel_values=pixels.view(1, 3, height, width)).last_hidden_state
    else:
        out = tower(pixel_values=pixels.view(1, 3, height, width), output_hidden_states=True)
        features = out.hidden_states[architecture.layers_run]
    return features[0, -1]


def _require_different(found: Tensor, without: Tensor, what: str) -> None:
    least = 1e-6 if found.dtype == torch.float32 else 0.0
    if not bool((found - without).abs().max() > least):
        raise AdapterError(f"{what} have no effect on this base", _hint())


def _require_same(found: Tensor, cached: Tensor, name: str) -> None:
    most = _TOLERANCE.get(found.dtype, _HALF_TOLERANCE) * max(float(found.abs().max()), 1.0)
    if not bool((found - cached).abs().max() <= most):
        raise AdapterError(f"the prompts of {name} act otherwise with a cache than without", _hint())


def _hint() -> str:
    return "see m2pt --version for versions that were never tested; M2PT_SKIP_CHECK=1 leaves this check out"
