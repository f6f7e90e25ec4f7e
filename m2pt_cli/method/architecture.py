"""Reads from a base what the method needs: class, layers, widths and projector. Untested bases are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from m2pt_cli.method.config import M2PTConfig, MethodError

BASES = ("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration")
TOWERS = ("CLIPVisionModel", "SiglipVisionModel")
DECODERS = ("LlamaModel", "MistralModel", "Qwen2Model")
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


@dataclass(frozen=True)
class Architecture:
    """Geometry of a LLaVA, read from its configuration (quantised weights have other shapes).

    Attributes:
        base, tower, decoder: class names, from `BASES`, `TOWERS` and `DECODERS`.
        vision_layers, vision_width: L_v and d_v of the vision tower.
        text_layers, text_width: L_t and d_t of the language model.
        feature_layers: indices, from 0, of the hidden states that become image features; i is the input of layer i.
        select: ``default`` drops the first feature (the class token), ``full`` keeps all.
        linear_projector: whether the projector is one linear layer.
    """

    base: str
    tower: str
    decoder: str
    vision_layers: int
    vision_width: int
    text_layers: int
    text_width: int
    feature_layers: tuple[int, ...]
    select: str
    linear_projector: bool

    @property
    def layers_run(self) -> int:
        """Number of vision layers that the features depend on; the layers above have no effect."""
        return max(self.feature_layers)

    @property
    def feature_width(self) -> int:
        """Width of the projector's input: d_v for each feature layer."""
        return self.vision_width * len(self.feature_layers)

    def describe(self) -> str:
        return (
            f"{self.vision_layers} vision layers of width {self.vision_width}, "
            f"{self.text_layers} text layers of width {self.text_width}"
        )


def read_architecture(model: nn.Module) -> Architecture:
    """Read the architecture of a LLaVA, with or without adapters.

    Raises:
        MethodError: a class is not in `BASES`, `TOWERS` or `DECODERS` (the message names it), the rotary type is
            untested, or the number of layers differs from the config's.
    """
    base = _known(model, BASES, "base")
    # `Any`: from here on the class is known, but torch types every submodule as Tensor | Module.
    llava: Any = model
    tower, decoder, projector = llava.model.vision_tower, llava.model.language_model, llava.model.multi_modal_projector
    tower_class, decoder_class = _known(tower, TOWERS, "vision tower"), _known(decoder, DECODERS, "language model")
    vision, text = llava.config.vision_config, llava.config.text_config
    for part, layers, config in (("vision tower", tower.encoder.layers, vision), ("text", decoder.layers, text)):
        if len(layers) != config.num_hidden_layers:
            raise MethodError(f"the {part} has {len(layers)} layers, its config says {config.num_hidden_layers}")
    rope = text.rope_parameters["rope_type"]
    if rope not in ROPE_TYPES:
        raise MethodError(
            f"M²PT was never tested on {rope!r} rotary positions, only on {', '.join(ROPE_TYPES)}",
            "choose another base",
        )
    selected = llava.config.vision_feature_layer
    states = vision.num_hidden_layers + 1  # the input of every layer and the output of the last
    return Architecture(
        base=base,
        tower=tower_class,
        decoder=decoder_class,
        vision_layers=vision.num_hidden_layers,
        vision_width=vision.hidden_size,
        text_layers=text.num_hidden_layers,
        text_width=text.hidden_size,
        feature_layers=tuple(i % states for i in ([selected] if isinstance(selected, int) else selected)),
        select=llava.config.vision_feature_select_strategy,
        linear_projector=isinstance(original(projector), nn.Linear),
    )


def original(module: nn.Module) -> nn.Module:
    """Return the base's own module, without PEFT's wrappers."""
    while True:
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if inner is None:
            return module
        module = inner


def resolve(config: M2PTConfig, architecture: Architecture) -> str:
    """Return the configured interaction, with ``auto`` resolved for this base."""
    if config.interaction != "auto":
        return config.interaction
    return "projector" if architecture.linear_projector else "residual"


def check_official_tokens(config: M2PTConfig, architecture: Architecture) -> None:
    """Refuse ``visual_tokens="official"`` on bases that the authors' code does not apply to.

    Raises:
        MethodError: the base is not a LLaVA v1 / 1.5 with class token, one feature layer <= -2, strategy ``default``.
    """
    if config.visual_tokens != "official":
        return
    reasons = []
    if architecture.base != "LlavaForConditionalGeneration":
        reasons.append(f"the base is a {architecture.base}")
    if architecture.tower != "CLIPVisionModel":
        reasons.append(f"{architecture.tower} has no class token")
    if len(architecture.feature_layers) != 1:
        reasons.append(f"there are {len(architecture.feature_layers)} feature layers")
    elif architecture.layers_run == architecture.vision_layers:
        reasons.append("the feature layer is the last one")
    if architecture.select != "default":
        reasons.append(f"the feature selection is {architecture.select!r}")
    if reasons:
        raise MethodError(
            "visual_tokens='official' needs a LLaVA v1 / 1.5 with a class token, one feature layer <= -2 and selection "
            f"'default', but {', '.join(reasons)}",
            "use visual_tokens='patches'",
        )


def longest_text(text_config: Any) -> int | None:
    """Return the longest text length with the rotary frequencies of short texts, None if they never change.

    Types ``dynamic`` and ``longrope`` use other frequencies for longer texts, which would not match the prompts' keys.
    """
    rope = text_config.rope_parameters
    if rope["rope_type"] == "dynamic":
        # At exactly the original length transformers keeps the frequencies that an earlier, longer text has set.
        return int(text_config.max_position_embeddings) - 1
    if rope["rope_type"] == "longrope":
        return int(rope.get("original_max_position_embeddings") or text_config.max_position_embeddings)
    return None


def _known(module: nn.Module, classes: tuple[str, ...], part: str) -> str:
    """Return which of ``classes`` the module is, compared by name to avoid importing every decoder."""
    for ancestor in type(module).__mro__:
        if ancestor.__name__ in classes:
            return ancestor.__name__
    raise MethodError(
        f"M²PT was never tested on the {part} {type(module).__name__}, only on {', '.join(classes)}",
        "choose a base of the LLaVA family with a CLIP or SigLIP tower and a Llama, Mistral or Qwen2 decoder",
    )
