"""Training methods by name; each is a PEFT config, so that all share one trainer and one parameter counter."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftConfig

from m2pt_cli.families.family import BY_TYPE
from m2pt_cli.method.config import M2PTConfig, MethodError


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
        MethodError: no such method, a bad value, or a base of no known family.
    """
    if base_config.model_type not in BY_TYPE:
        raise MethodError(
            f"M²PT was never tested on a base of type {base_config.model_type!r}, only on {', '.join(BY_TYPE)}",
            "choose a base of one of these types",
        )
    family = BY_TYPE[base_config.model_type]
    if method == "full":
        return None
    if method == "lora":
        return LoraConfig(
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            target_modules=family.linears,
            modules_to_save=None if interaction == "none" else [family.projector_name],
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
