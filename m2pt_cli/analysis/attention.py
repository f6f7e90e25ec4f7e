"""Collects a LLaVA's attention weights, layer by layer, while it answers a question.

The method's attention function passes each layer's weights to a watcher, whichever attention implementation the model
uses. The watcher reduces them to means before the next layer runs, so that only one layer's map of
``heads x n x (k + n)`` weights is in memory at a time.

Means are over the queries of real tokens. Prompts have no queries: they are attended to, but attend to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m2pt_cli.method.architecture import attentions_of, model_family, original, read_architecture
from m2pt_cli.method.attention import WATCHER, Watcher, use_prompted_attention
from m2pt_cli.method.calls import bare

Array = NDArray[np.float32]


@dataclass(frozen=True)
class LanguageWeights:
    """Attention in the language model. Keys are the prompts, then the real tokens; they sum to 1.

    Attributes:
        received: ``(layers, heads, keys)``, mean over all real queries.
        answer: ``(layers, heads, answer tokens, keys)``: entry i is the query that produced answer
            token i, at the position before it.
        num_prompts: k_t; 0 without textual prompts.
    """

    received: Array
    answer: Array
    num_prompts: int


@dataclass(frozen=True)
class VisionWeights:
    """Attention in the vision tower, mean over tiles. Keys are prompts, class token, patches; they sum to 1.

    Contains only the layers that the image features depend on.

    Attributes:
        received: ``(layers, heads, keys)``, mean over the class token and the patches as queries.
        from_patches: ``(layers, heads, keys)``, mean over the patches as queries.
        num_prompts: k_v.
        has_class_token: whether a class token precedes the patches.
    """

    received: Array
    from_patches: Array
    num_prompts: int
    has_class_token: bool


@torch.inference_mode()
def collect_language(
    model: nn.Module,
    prompt: Sequence[int],
    answer: Sequence[int],
    image_inputs: Mapping[str, Tensor],
    *,
    heads: Sequence[int] = (),
    vision: bool = False,
    vision_heads: Sequence[int] = (),
) -> tuple[LanguageWeights, VisionWeights | None]:
    """Collect attention over a question and its answer, in one forward pass over both.

    Args:
        model: a LLaVA in eval mode, with or without PEFT (an M²PT adapter or LoRA).
        prompt: token ids of the question's whole prompt, with expanded image tokens.
        answer: token ids of the answer, at least one.
        image_inputs: the model's image arguments, on its device.
        heads: heads to return separately; if empty, the mean over all heads is returned as one head.
        vision: also collect the vision tower's attention.
        vision_heads: like ``heads``, for the vision tower.
    """
    llava = bare(model)
    queries = len(prompt) + len(answer) - 1  # no token is generated from the last one, so it is not a query
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=next(model.parameters()).device)
    received: list[Array] = []
    from_answer: list[Array] = []

    def reduce(attention: nn.Module, weights: Tensor) -> None:
        chosen = _heads(weights[0], heads)
        received.append(chosen.mean(1).cpu().numpy())  # (heads, keys)
        from_answer.append(chosen[:, -len(answer) :].cpu().numpy())  # (heads, answer tokens, keys)

    with ExitStack() as stack:
        stack.enter_context(_watched(attentions_of(llava, model_family(llava).text), reduce))
        tower = stack.enter_context(_tower_watched(llava, vision_heads)) if vision else None
        model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1, **dict(image_inputs)
        )
    weights = LanguageWeights(np.stack(received), np.stack(from_answer), received[0].shape[-1] - queries)
    return weights, None if tower is None else tower.weights()


@torch.inference_mode()
def collect_vision(model: nn.Module, image_inputs: Mapping[str, Tensor], *, heads: Sequence[int] = ()) -> VisionWeights:
    """Collect attention in the vision tower, without running the language model. ``heads`` as in `collect_language`."""
    llava = bare(model)
    with _tower_watched(llava, heads) as tower:
        llava.get_image_features(**dict(image_inputs))
    return tower.weights()


def _heads(weights: Tensor, heads: Sequence[int]) -> Tensor:
    """Select heads of ``(heads, queries, keys)`` in fp32; without a selection, return the mean of all as one head."""
    return weights[list(heads)].float() if heads else weights.mean(0, keepdim=True, dtype=torch.float32)


class _Tower:
    """Collects the mean attention of each layer of the vision tower as it runs."""

    def __init__(self, has_class_token: bool, heads: Sequence[int]) -> None:
        self.has_class_token = has_class_token
        self.heads = heads
        self.num_prompts = 0
        self.received: list[Array] = []
        self.from_patches: list[Array] = []

    def reduce(self, attention: nn.Module, weights: Tensor) -> None:
        self.num_prompts = weights.shape[-1] - weights.shape[-2]
        mean = _heads(weights.mean(0, dtype=torch.float32), self.heads)  # (heads, queries, prompts + keys)
        self.received.append(mean.mean(1).cpu().numpy())
        self.from_patches.append(mean[:, int(self.has_class_token) :].mean(1).cpu().numpy())

    def weights(self) -> VisionWeights:
        return VisionWeights(
            np.stack(self.received), np.stack(self.from_patches), self.num_prompts, self.has_class_token
        )


@contextmanager
def _tower_watched(llava: Any, heads: Sequence[int]) -> Iterator[_Tower]:
    """Collect the attention of the vision tower's forward passes inside the context."""
    architecture = read_architecture(llava)
    tower = _Tower(has_class_token=architecture.has_class_token, heads=heads)
    with _watched(attentions_of(llava, architecture.family.vision)[: architecture.layers_run], tower.reduce):
        yield tower


@contextmanager
def _watched(found: Sequence[Any], watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` with the attention weights of each layer inside the context; restores the layers afterwards."""
    attentions: list[Any] = [original(attention) for attention in found]
    names = [attention.config._attn_implementation for attention in attentions]
    try:
        for attention in attentions:
            use_prompted_attention(attention.config)
            attention.__dict__[WATCHER] = watcher
        yield
    finally:
        for attention, name in zip(attentions, names, strict=True):
            attention.__dict__.pop(WATCHER, None)
            attention.config._attn_implementation = name
