"""Training methods by name; each is a PEFT config, so that all share one trainer and one parameter counter."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftConfig

from m2pt_cli.method.config import PROJECTOR, M2PTConfig, MethodError

# Model types of the bases that `architecture` supports.
MODEL_TYPES = ("llava", "llava_next")
# The seven linear layers of every Llama, Mistral and Qwen2 block; layers of the vision tower do not match.
LLM_LINEARS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


def preset(
    method: str,
    base_config: Any,
    *,
    num_visual_prompts: int = 20,
    num_textual_prompts: int = 10,
    interaction: str = "auto",
    visual_tokens: str = "patches",
    train_lm_head: bool = False,
    init: str = "xavier",
    lora_rank: int = 16,
) -> PeftConfig | None:
    """Return the PEFT config of a training method, None for full fine-tuning (see `parameters.select_full`).

    Args:
        method: ``m2pt``, the whole method; ``visual``, VPT-deep: visual prompts and interaction layer; ``textual``,
            PTUM: textual prompts and interaction layer; ``interaction``, only that layer; ``lora``, LoRA on all seven
            linear layers of the language model's blocks, and the projector trained whole (the paper's baseline:
            0.63 % of LLaVA v1 7B; with ``interaction="none"`` the projector stays frozen); ``full``, projector and
            language model as in LLaVA's own recipe, tower frozen.
        base_config: transformers' config of the base.
        num_visual_prompts, num_textual_prompts, interaction, visual_tokens, train_lm_head, init: see `M2PTConfig`;
            a method ignores those that it does not use.
        lora_rank: rank of ``lora``; its alpha is twice that.

    Raises:
        MethodError: the method does not exist, a value is invalid, or the base is not a LLaVA.
    """
    if base_config.model_type not in MODEL_TYPES:
        raise MethodError(
            f"M²PT was never tested on a base of type {base_config.model_type!r}, only on {', '.join(MODEL_TYPES)}",
            "choose a base of the LLaVA family",
        )
    if method == "full":
        return None
    if method == "lora":
        return LoraConfig(
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            target_modules=LLM_LINEARS,
            modules_to_save=None if interaction == "none" else [PROJECTOR],
        )
    prompts = {
        "m2pt": (num_visual_prompts, num_textual_prompts),
        "visual": (num_visual_prompts, 0),
        "textual": (0, num_textual_prompts),
        "interaction": (0, 0),
    }
    if method not in prompts:
        raise MethodError(f"there is no method {method!r}", f"choose one of {', '.join(prompts)}, lora, full")
    visual, textual = prompts[method]
    return M2PTConfig(
        num_visual_prompts=visual,
        num_textual_prompts=textual,
        interaction=interaction,
        visual_tokens=visual_tokens,
        train_lm_head=train_lm_head,
        init=init,
    )
