"""Small processors with the habits of real ones: Llama's tokenizer, a byte-level one, and a word-level one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from m2pt_cli.data.samples import FileImage

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What color is the red circle? ASSISTANT: It is red. Is there a chair in the image? Yes. No.",
    "How many dogs are there? There are 12 dogs, two cats and 3 birds; the image shows a naïve café.\n",
] * 3
# The chat template of llava-hf/llava-1.5-7b-hf, shortened: it writes no end after an answer.
LLAVA_JINJA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# A template in ChatML, as Qwen's: every turn has an end of its own.
CHATML_JINJA = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '</s>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """``llama`` (spaces as ▁, byte fallback), ``bytes`` (byte-level BPE) or ``words``."""
    if kind == "words":
        words = sorted(
            {w for line in CORPUS for w in pre_tokenizers.Whitespace().pre_tokenize_str(line) for w in w[:1]}
        )
        raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIALS, *words])}, unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "bytes":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        raw.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
            ),
        )
    else:
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        # As in Llama's merges, a space opens a word and digits stand alone: " 12" is the tokens ▁, 1, 2.
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Digits(individual_digits=True)]
        )
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
        raw.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIALS, *byte_tokens], show_progress=False),
        )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def processor(kind: str = "llama", *, jinja: str | None = None, image: int = 48, patch: int = 16) -> LlavaProcessor:
    """A LLaVA processor: 9 image tokens for an image of 48 pixels."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": image}, crop_size={"height": image, "width": image}
        ),
        tokenizer=tokenizer(kind),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=jinja,
    )


def next_processor() -> LlavaNextProcessor:
    """A LLaVA-NeXT processor with tiles of 32 pixels."""
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        ),
        tokenizer=tokenizer("llama"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def picture_file(file: Path, width: int = 60, height: int = 40, seed: int = 0, **options: Any) -> FileImage:
    """Random pixels in a file."""
    picture(width, height, seed).save(file, **options)
    return FileImage(str(file), file)
