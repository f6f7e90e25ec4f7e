"""Tiny LLaVAs of transformers' own classes with random weights, batches for them, and prompts that matter.

Every tower and decoder that the method knows, a few ten thousand parameters each.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

VOCABULARY = 96
IMAGE_TOKEN = 95
PAD = 0
PATCHES = 9
IMAGE_SIZE = 12


def tiny_llava(
    *,
    tower: str = "clip",
    decoder: str = "llama",
    projector: str = "mlp",
    feature_layer: int | list[int] = -2,
    tied: bool = False,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text_options: Any,
) -> LlavaForConditionalGeneration:
    """A LLaVA, frozen and in eval mode; the same weights for the same arguments.

    Args:
        tower: ``clip`` or ``siglip`` (without class token, features ``full``).
        decoder: ``llama`` (grouped queries), ``mistral`` or ``qwen2`` (bias on keys).
        projector: ``mlp`` (LLaVA-1.5) or ``linear`` (LLaVA v1).
        text_options: further settings of the decoder.
    """
    base = _llava(tower, decoder, projector, _frozen(feature_layer), tied, seed, tuple(sorted(text_options.items())))
    model = copy.deepcopy(base).to(dtype)
    model.set_attn_implementation(attention)
    return model


def tiny_llava_next(*, decoder: str = "mistral", seed: int = 0) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT (tiles, one newline embedding), frozen and in eval mode."""
    torch.manual_seed(seed)
    config = LlavaNextConfig(
        vision_config=_vision("clip"),
        text_config=_text(decoder, {}),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[12, 24], [24, 12], [24, 24]],
    )
    return _spread(LlavaNextForConditionalGeneration(config))


def batch_for(
    model: nn.Module,
    lengths: list[int],
    *,
    padding: str = "right",
    images: list[int] | None = None,
    image_tokens: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Ids, mask, labels (the last three tokens of each row) and pixels.

    Args:
        lengths: text tokens of each row.
        padding: side of the padding.
        images: images of each row, 1 by default; they stand behind the third text token, each before one more.
        image_tokens: tokens of an image, those of the bare base by default.
    """
    random = torch.Generator().manual_seed(seed)
    counts = images if images is not None else [1] * len(lengths)
    per_image = image_tokens if image_tokens is not None else PATCHES
    rows = []
    for length, count in zip(lengths, counts, strict=True):
        words = torch.randint(3, IMAGE_TOKEN, (length,), generator=random).tolist()
        row = [1, *words[1:3]]
        for word in words[3 : 3 + count]:
            row += [IMAGE_TOKEN] * per_image + [word]
        rows.append(row + words[3 + count :])
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if padding == "right" else slice(longest - len(row), longest)
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        end = len(row) if padding == "right" else longest
        labels[index, end - 3 : end] = ids[index, end - 3 : end]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if sum(counts):
        pixels = torch.randn(sum(counts), 3, IMAGE_SIZE, IMAGE_SIZE, generator=random)
        batch["pixel_values"] = pixels.to(model.dtype)
    return batch


@torch.no_grad()
def fill_adapter(model: nn.Module, *, scale: float = 0.5, seed: int = 1) -> None:
    """Give every trained parameter a value that matters, as if the adapter had been trained."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=random)
            if "modules_to_save" in name or "m2pt_interaction" in name:
                parameter += 0.1 * noise
            else:
                parameter.copy_(scale * noise)


def prompts_of(model: nn.Module, tower: bool, adapter: str = "default") -> list[nn.Parameter]:
    """The prompts of every layer of the vision tower or of the language model, in order."""
    part = ".vision_tower." if tower else ".language_model."
    end = f".m2pt_prompts.{adapter}"
    return [p for name, p in model.named_parameters() if part in name and name.endswith(end)]


def checkpoint(model: Any, *, reentrant: bool) -> None:
    """Have a model's layers computed again in the backward pass; the method's name differs between versions."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})


def _frozen(value: int | list[int]) -> int | tuple[int, ...]:
    return value if isinstance(value, int) else tuple(value)


@cache
def _llava(
    tower: str,
    decoder: str,
    projector: str,
    feature_layer: int | tuple[int, ...],
    tied: bool,
    seed: int,
    text_options: tuple[tuple[str, Any], ...],
) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=_vision(tower),
        text_config=_text(decoder, {**dict(text_options), "tie_word_embeddings": tied}),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=feature_layer if isinstance(feature_layer, int) else list(feature_layer),
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        tie_word_embeddings=tied,
    )
    model = LlavaForConditionalGeneration(config)
    if projector == "linear":
        model.model.multi_modal_projector = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
    return _spread(model)


def _vision(tower: str) -> CLIPVisionConfig | SiglipVisionConfig:
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 4,
    }
    return CLIPVisionConfig(**shape) if tower == "clip" else SiglipVisionConfig(**shape)


def _text(decoder: str, options: dict[str, Any]) -> LlamaConfig | MistralConfig | Qwen2Config:
    shape = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": None,
        **({"sliding_window": None} if decoder == "mistral" else {}),
        **options,
    }
    return {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[decoder](**shape)


@torch.no_grad()
def _spread(model: Any) -> Any:
    # transformers' own initialisation is so small that a wrong mask would hardly show.
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
    return model.requires_grad_(False).eval()
