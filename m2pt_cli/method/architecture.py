"""What the method must know of a base: its class, layers, widths and projector. Bases never tested are refused."""

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
    """Geometry of a LLaVA, read from its configuration (a quantised weight has another shape).

    Attributes:
        base, tower, decoder: which of `BASES`, `TOWERS` and `DECODERS` they are.
        vision_layers, vision_width: L_v and d_v of the vision tower.
        text_layers, text_width: L_t and d_t of the language model.
        feature_layers: indices, from 0, of the hidden states that become image features; i is the input of layer i.
        select: ``default`` drops the first of the features (the class token), ``full`` keeps all.
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
        """How many of the vision layers the features depend on; those above influence nothing."""
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
    """The architecture of a LLaVA, bare or with adapters in it.

    Raises:
        MethodError: it is none of `BASES`, `TOWERS`, `DECODERS`; the message names the class.
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
    """The base's own module, out of whatever PEFT has put around it."""
    while True:
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if inner is None:
            return module
        module = inner


def resolve(config: M2PTConfig, architecture: Architecture) -> str:
    """The interaction layer that ``auto`` stands for on this base."""
    if config.interaction != "auto":
        return config.interaction
    return "projector" if architecture.linear_projector else "residual"


def check_official_tokens(config: M2PTConfig, architecture: Architecture) -> None:
    """Refuse ``visual_tokens="official"`` where the authors' code has no meaning.

    Raises:
        MethodError: the base is no LLaVA v1 / 1.5 with a class token, one feature layer <= -2 and strategy ``default``.
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
    """The longest text whose rotary frequencies are those of short ones, None where they never change.

    Types ``dynamic`` and ``longrope`` have others for longer texts, to which the keys of prompts would not belong.
    """
    rope = text_config.rope_parameters
    if rope["rope_type"] == "dynamic":
        # At exactly the original length transformers leaves the frequencies of a longer text before.
        return int(text_config.max_position_embeddings) - 1
    if rope["rope_type"] == "longrope":
        return int(rope.get("original_max_position_embeddings") or text_config.max_position_embeddings)
    return None


def _known(module: nn.Module, classes: tuple[str, ...], part: str) -> str:
    """The one of ``classes`` that the module is; by name, since the classes would mean importing every decoder."""
    for ancestor in type(module).__mro__:
        if ancestor.__name__ in classes:
            return ancestor.__name__
    raise MethodError(
        f"M²PT was never tested on the {part} {type(module).__name__}, only on {', '.join(classes)}",
        "choose a base of the LLaVA family with a CLIP or SigLIP tower and a Llama, Mistral or Qwen2 decoder",
    )
