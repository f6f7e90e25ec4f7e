"""The authors' tiny model and its numbers, from `tests/golden` (made by running their code)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import prompts_of
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from m2pt_cli.method import M2PTConfig

FOLDER = Path(__file__).parents[1] / "golden"
IMAGE_TOKEN = 85  # an id that no text of the goldens holds
PATCHES = 16
VISUAL, TEXTUAL = 3, 5


@cache
def outputs(variant: str) -> dict[str, Tensor]:
    """``official``, ``drop`` (patches alone) or ``baseline``."""
    return load_file(FOLDER / f"outputs_{variant}.safetensors")


@cache
def weights() -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(FOLDER / "weights.safetensors").items()}


def base() -> LlavaForConditionalGeneration:
    """The authors' model without prompts, with its linear projector."""
    vision = json.loads((FOLDER / "vision_config.json").read_text())
    text = json.loads((FOLDER / "llm_config.json").read_text())
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{k: v for k, v in vision.items() if k != "model_type"}),
        text_config=LlamaConfig(**{k: v for k, v in text.items() if k != "model_type"}),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.multi_modal_projector = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
    places = {
        "vision.": "model.vision_tower.",
        "projector.": "model.multi_modal_projector.",
        "llm.": "model.language_model.",
        "lm_head.": "lm_head.",
    }
    state = {
        place + name.removeprefix(start): tensor
        for name, tensor in weights().items()
        for start, place in places.items()
        if name.startswith(start)
    }
    state["model.vision_tower.embeddings.position_ids"] = model.model.vision_tower.embeddings.position_ids
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model.eval()


def adapted(variant: str) -> PeftModel | LlavaForConditionalGeneration:
    """The base with the authors' prompts; the bare base for ``baseline``."""
    if variant == "baseline":
        return base()
    config = M2PTConfig(
        num_visual_prompts=VISUAL,
        num_textual_prompts=TEXTUAL,
        visual_tokens="official" if variant == "official" else "patches",
        train_lm_head=True,
    )
    model = get_peft_model(base(), config)
    with torch.no_grad():
        for kind, is_tower in (("visual", True), ("textual", False)):
            for index, prompts in enumerate(prompts_of(model, is_tower)):
                prompts.copy_(weights()[f"{kind}_prompts.{index}"])
    return model.eval()


def image_tokens(variant: str) -> int:
    return PATCHES + (VISUAL if variant == "official" else 0)


def inputs(sample: str, variant: str) -> dict[str, Tensor]:
    """A sample's inputs with the image's one token replaced by as many as the variant hands to the language model."""
    stored = {
        name.removeprefix(f"{sample}."): tensor
        for name, tensor in load_file(FOLDER / "inputs.safetensors").items()
        if name.startswith(f"{sample}.")
    }
    count = image_tokens(variant)
    rows: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for index, ids in enumerate(stored["input_ids"]):
        place = int((ids == -200).nonzero())
        for name, fill in (("input_ids", IMAGE_TOKEN), ("attention_mask", 1), ("labels", -100)):
            row = stored[name][index]
            rows[name].append(torch.cat([row[:place], torch.full((count,), fill), row[place + 1 :]]))
    return {"pixel_values": stored["pixel_values"], **{name: torch.stack(tensors) for name, tensors in rows.items()}}


def joined(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Features of all images, one after the other ``(tokens, width)``; from transformers 5.24 on a tensor an image."""
    return torch.cat(list(features)).reshape(-1, features[0].shape[-1])
