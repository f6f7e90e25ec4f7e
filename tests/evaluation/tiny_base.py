"""A base folder with random weights and a tokenizer of words, for tests that need answers but not good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import IMAGE_SIZE, IMAGE_TOKEN, VOCABULARY, tiny_llava

_TEXT = "yes no not sure is it a the dog cat red blue one two three left right what which image answer with"


def write_tiny_base(folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny LLaVA with tokenizer and processor, as ``save_pretrained`` writes them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *_TEXT.split()]
    words += [f"w{number}" for number in range(len(words), IMAGE_TOKEN)] + ["<image>"]
    assert len(words) == VOCABULARY
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    processor = LlavaProcessor(
        images, fast, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    model = tiny_llava(seed=seed)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_tiny_adapter(folder: Path, base: Path, *, method: str = "m2pt", seed: int = 1, **options: Any) -> Path:
    """Save an adapter of a tiny base whose every weight matters, as training would."""
    import peft
    from tiny_models import fill_adapter

    from m2pt_cli.bases.loading import load_base
    from m2pt_cli.method import preset

    loaded = load_base(str(base), device="cpu")
    config = preset(method, loaded.model.config, **{"num_visual_prompts": 2, "num_textual_prompts": 3, **options})
    if method != "lora":
        config.base_fingerprint, config.chat_template, config.image_fit = loaded.fingerprint, "plain", "crop"
    model = peft.get_peft_model(loaded.model, config)
    fill_adapter(model, seed=seed)
    model.save_pretrained(folder)
    return folder
