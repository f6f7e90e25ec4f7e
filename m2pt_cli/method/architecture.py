"""What the method must know of a base: its family, layers, widths and projector. Bases never tested are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from m2pt_cli.families.family import FAMILIES, LARGEST_INTERACTION, LLAVA, MODEL_CLASSES, Family, Stack
from m2pt_cli.method.config import M2PTConfig, MethodError
from m2pt_cli.method.parameters import adapter_of

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


@dataclass(frozen=True)
class Architecture:
    """Geometry of a model, read from its configuration (a quantised weight has another shape).

    Attributes:
        family: where layers and projector are.
        base, tower, decoder: the classes of model, vision tower and language model.
        vision_layers, vision_width: L_v and d_v of the vision tower.
        text_layers, text_width: L_t and d_t of the language model.
        feature_layers: indices, from 0, of the hidden states that become image features; i is the input of layer i.
        select: ``default`` drops the first feature (the class token), ``full`` keeps all.
        linear_projector: whether the projector is one linear layer.
        merged: how many patches become one token.
    """

    family: Family
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
    merged: int = 1

    @property
    def has_class_token(self) -> bool:
        """Whether a class token stands in front of the patches in the vision tower."""
        return self.tower in ("CLIPVisionModel", "InternVLVisionModel")

    @property
    def layers_run(self) -> int:
        """Number of vision layers that the features depend on; the layers above have no effect."""
        return max(self.feature_layers)

    @property
    def feature_width(self) -> int:
        """Width of the projector's input: d_v for each feature layer and each merged patch."""
        return self.vision_width * len(self.feature_layers) * self.merged

    def describe(self) -> str:
        return (
            f"{self.vision_layers} vision layers of width {self.vision_width}, "
            f"{self.text_layers} text layers of width {self.text_width}"
        )


def model_family(model: nn.Module) -> Family:
    """The family of a model, by its class.

    Raises:
        MethodError: it is of none.
    """
    known = {name: family for family in FAMILIES for name in family.classes.values()}
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in known:
            return known[ancestor.__name__]
    raise MethodError(
        f"M²PT was never tested on the base {type(model).__name__}, only on {', '.join(MODEL_CLASSES.values())}",
        "choose one of these",
    )


def layers_of(model: nn.Module, stack: Stack) -> Any:
    """The layers of a stack, in order."""
    return model.get_submodule(stack.layers_path)


def attentions_of(model: nn.Module, stack: Stack) -> list[Any]:
    """The attention of every layer of a stack, in order; in its wrapper where it has one."""
    return [getattr(layer, stack.attention) for layer in layers_of(model, stack)]


def read_architecture(model: nn.Module) -> Architecture:
    """The architecture of a model, bare or with adapters in it.

    Raises:
        MethodError: it is of no family, or its tower or decoder was never tested; the message names the class.
    """
    family = model_family(model)
    config: Any = model.config
    tower, decoder = model.get_submodule(family.vision.path), model.get_submodule(family.text.path)
    tower_class, decoder_class = (
        _tested(tower, family.vision, "vision tower"),
        _tested(decoder, family.text, "language model"),
    )
    vision, text = config.vision_config, config.text_config
    for part, stack, own in (("vision tower", family.vision, vision), ("text", family.text, text)):
        if len(layers_of(model, stack)) != own.num_hidden_layers:
            found = len(layers_of(model, stack))
            raise MethodError(f"the {part} has {found} layers, its config says {own.num_hidden_layers}")
    rope = text.rope_parameters["rope_type"]
    if rope not in ROPE_TYPES:
        raise MethodError(
            f"M²PT was never tested on {rope!r} rotary positions, only on {', '.join(ROPE_TYPES)}",
            "choose another base",
        )
    projector = original(model.get_submodule(family.projector))
    return Architecture(
        family=family,
        base=next(c.__name__ for c in type(model).__mro__ if c.__name__ in family.classes.values()),
        tower=tower_class,
        decoder=decoder_class,
        vision_layers=vision.num_hidden_layers,
        vision_width=vision.hidden_size,
        text_layers=text.num_hidden_layers,
        text_width=text.hidden_size,
        feature_layers=family.feature_layers(config, vision.num_hidden_layers),
        select=getattr(config, "vision_feature_select_strategy", "full"),
        linear_projector=sum(isinstance(module, nn.Linear) for module in projector.modules()) == 1,
        merged=family.merged(config),
    )


def original(module: nn.Module) -> nn.Module:
    """Return the base's own module, without PEFT's wrappers."""
    while True:
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if inner is None:
            return module
        module = inner


def resolve(config: M2PTConfig, architecture: Architecture, model: nn.Module) -> str:
    """The interaction layer that ``auto`` stands for on this base.

    A projector that is one linear layer is trained itself; any other gets a linear layer beside it. Where patches are
    merged and one linear layer from them would exceed 0.2 % of the base, it reads the mean of the merged patches.
    """
    if config.interaction != "auto":
        return config.interaction
    if architecture.merged > 1:
        size = architecture.feature_width * architecture.text_width
        if size > LARGEST_INTERACTION * base_size(model):
            return "mean"
    return "projector" if architecture.linear_projector else "residual"


def base_size(model: nn.Module) -> int:
    """Parameters of the base in ``model``, whatever adapters it holds and however it is quantised."""
    config: Any = model.config
    if getattr(config, "quantization_config", None) is not None:
        plain = type(config)(**{k: v for k, v in config.to_dict().items() if k != "quantization_config"})
        with torch.device("meta"):
            model = type(model)(plain)
    return sum(p.numel() for name, p in model.named_parameters() if adapter_of(name) is None)


def check_official_tokens(config: M2PTConfig, architecture: Architecture) -> None:
    """Refuse ``visual_tokens="official"`` on bases that M²PT's original code does not apply to.

    Raises:
        MethodError: the base is not a LLaVA v1 / 1.5 with a CLIP tower, a single ``vision_feature_layer`` of -2 or
            lower, and ``vision_feature_select_strategy="default"``.
    """
    if config.visual_tokens != "official":
        return
    reasons = []
    if architecture.base != LLAVA.classes["llava"]:
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


def _tested(module: nn.Module, stack: Stack, part: str) -> str:
    """The class of ``stack.classes`` that the module is; by name, since classes would mean importing every decoder."""
    for ancestor in type(module).__mro__:
        if ancestor.__name__ in stack.classes:
            return ancestor.__name__
    raise MethodError(
        f"M²PT was never tested on the {part} {type(module).__name__}, only on {', '.join(stack.classes)}",
        "choose another base",
    )
