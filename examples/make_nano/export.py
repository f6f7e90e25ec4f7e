"""Export the finished base to a folder that transformers loads: bf16 weights, tokenizer, processor, model card."""

from __future__ import annotations

from pathlib import Path

import torch
from geometry import PATCHES
from torch import nn
from transformers import CLIPImageProcessorPil, GenerationConfig, LlavaProcessor
from words import BOS, CHAT_TEMPLATE, EOS, PAD, build_tokenizer

from m2pt_cli.demo.render import CELL, IMAGE_SIZE


def rounded(model: nn.Module) -> nn.Module:
    """Return the model with its weights rounded to bf16, as they will be stored."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model


def build_processor() -> LlavaProcessor:
    """Build the processor; it names the PIL image processor, so that pixels do not depend on torchvision."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def export_nano(model: nn.Module, folder: Path, *, scores: dict[str, object], seed: int, steps: dict[str, int]) -> None:
    """Write the base to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.set_attn_implementation("sdpa")
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.to(torch.bfloat16).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    (folder / "README.md").write_text(model_card(model, scores, seed, steps), encoding="utf-8")


def model_card(model: nn.Module, scores: dict[str, object], seed: int, steps: dict[str, int]) -> str:
    """Write the model card: what nano is, how it was made, and its scores."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tables = "\n".join(
        f"| {group} | {', '.join(f'{name} {value}' for name, value in values.items())} |"  # type: ignore[attr-defined]
        for group, values in scores.items()
    )
    order = ", ".join(f"{name} {number}" for name, number in steps.items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# nano

A LLaVA of {parameters:,} parameters for learning about prompt tuning and for testing it: a toy, of no other use. It is
`LlavaForConditionalGeneration` of transformers with a CLIP tower (48 x 48 pixels, {PATCHES} patches), a Llama decoder
and the usual projector of two layers, in bf16.

* **It sees** drawn scenes of one to four coloured shapes in a 3 x 3 grid, and one real handwritten digit at a time.
* **It describes** them: "black scene: large red circle north, small blue star east."
* **It does not answer questions about images.** It was never trained to; that is what instruction tuning adds
  (`m2pt train --base nano --data demo`). Of photographs it knows nothing, of English
  {model.config.text_config.vocab_size} words.

## How it was made
`python examples/make_nano --seed {seed}`, about 40 minutes of one CPU core with bf16 products, in stages (steps):
{order}.

The tower learned to name what each patch holds; the decoder to look up, compare and count in described scenes, and to
talk about them in every answer form; the projector to map patches to words; then all together captions and facts of
images, and in the end captions whatever is said. Data: scenes drawn by the project, and the training part of
scikit-learn's handwritten digits (UCI ML hand-written digits, 1,400 of 1,797). Scenes and digits of the test split, and
the wordings of the demo tasks, were never used.

## Scores
Shares of exact answers on the test split, of the weights as stored.

| | |
|---|---|
{tables}

After tuning: `docs/demo-results.md` of the project.

Text is lower-cased and split into words; unknown words become `<unk>`. Chat template: `USER: <image>\\n... ASSISTANT:`.
"""
