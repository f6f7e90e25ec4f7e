"""Descriptions of model families: where a model's layers are and how an image becomes tokens.

A family holds no code of the method: prompts act inside the attention function (see `method.attention`), so only
names and shapes differ between models. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from m2pt_cli.errors import UnavailableError


@dataclass(frozen=True)
class Stack:
    """A stack of transformer layers that takes prompts.

    Attributes:
        path: path of the module in the whole model.
        layers: path of the list of its layers in that module.
        attention: name of the attention module in a layer.
        norm: name of the norm before the attention, which is applied to prompts as to every token.
        classes: transformers classes that tests have compared with explicit concatenation.
        mlp: name of the MLP in a layer, if layers that no image feature depends on are skipped; else None.
    """

    path: str
    layers: str
    attention: str
    norm: str
    classes: tuple[str, ...]
    mlp: str | None = None

    @property
    def layers_path(self) -> str:
        """The path of the list of layers in the whole model."""
        return f"{self.path}.{self.layers}"


def _selected_layers(config: Any, count: int) -> tuple[int, ...]:
    selected = getattr(config, "vision_feature_layer", -1)
    return tuple(i % (count + 1) for i in ([selected] if isinstance(selected, int) else selected))


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of vision-language model.

    Attributes:
        name: the name in documentation and messages.
        classes: ``model_type`` of config.json -> class of transformers.
        processors: ``model_type`` -> class of the processor.
        vision, text: the vision tower and the language model.
        projector: path of the module that maps image features to the language model's width. Where patches are merged
            into fewer tokens, its input is the merged patches, side by side with the feature index innermost.
        projector_norm: name of a norm inside the projector that comes before its first linear layer.
        projector_is_linear: whether the projector is one linear layer.
        merged: how many patches become one token, computed from the model's config.
        feature_layers: indices of the vision hidden states that become image features, from the config and the number
            of layers L_v; index i is the input of layer i, L_v the output of the last.
        packages: ``model_type`` -> distributions beside m2pt's own that the processor needs.
        overview: for an image that is cut into tiles, whether the tokens of the downscaled whole image come ``first``
            or ``last``.
        has_own_template: whether its checkpoints include a chat template, which is then the default.
    """

    name: str
    classes: Mapping[str, str]
    processors: Mapping[str, str]
    vision: Stack
    text: Stack
    projector: str
    projector_norm: str | None = None
    projector_is_linear: bool = False
    merged: Callable[[Any], int] = field(default=lambda config: 1)
    feature_layers: Callable[[Any, int], tuple[int, ...]] = field(default=_selected_layers)
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    overview: str = "first"
    has_own_template: bool = True

    @property
    def projector_name(self) -> str:
        """The last part of the projector's path, by which PEFT finds fully trained modules (``modules_to_save``)."""
        return self.projector.rpartition(".")[2]

    @property
    def linears(self) -> str:
        """A regular expression for the seven linear layers of every decoder layer, for LoRA."""
        layers = self.text.layers_path.replace(".", r"\.")
        return rf".*{layers}\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"

    @property
    def targets(self) -> str:
        """A regular expression for all modules that M²PT may wrap."""
        vision, text = self.vision, self.text
        inner = "|".join(filter(None, (vision.attention, vision.mlp)))
        parts = (
            rf"{vision.layers_path}.\d+.({inner})".replace(".", r"\."),
            rf"{text.layers_path}.\d+.{text.attention}".replace(".", r"\."),
            self.projector.replace(".", r"\."),
        )
        return rf"({'|'.join(parts)})"


# Above this fraction of the base, one linear layer from merged patches to the language model is too large an adapter.
LARGEST_INTERACTION = 0.002

# Decoders whose layers are `layers.{i}` with `input_layernorm`, `self_attn` and rotary positions.
_DECODERS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")


def _decoder(path: str) -> Stack:
    return Stack(path, "layers", "self_attn", "input_layernorm", _DECODERS)


LLAVA = Family(
    name="LLaVA",
    classes={"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"},
    processors={"llava": "LlavaProcessor", "llava_next": "LlavaNextProcessor"},
    vision=Stack(
        "model.vision_tower",
        "encoder.layers",
        "self_attn",
        "layer_norm1",
        ("CLIPVisionModel", "SiglipVisionModel"),
        mlp="mlp",
    ),
    text=_decoder("model.language_model"),
    projector="model.multi_modal_projector",
    has_own_template=False,
)
LLAVA_ONEVISION = Family(
    name="LLaVA-OneVision",
    classes={"llava_onevision": "LlavaOnevisionForConditionalGeneration"},
    processors={"llava_onevision": "LlavaOnevisionProcessor"},
    vision=LLAVA.vision,
    text=LLAVA.text,
    projector=LLAVA.projector,
    packages={"llava_onevision": ("torchvision",)},
)
SMOLVLM = Family(
    name="SmolVLM",
    classes={"idefics3": "Idefics3ForConditionalGeneration", "smolvlm": "SmolVLMForConditionalGeneration"},
    processors={"idefics3": "Idefics3Processor", "smolvlm": "SmolVLMProcessor"},
    vision=Stack(
        "model.vision_model",
        "encoder.layers",
        "self_attn",
        "layer_norm1",
        ("Idefics3VisionTransformer", "SmolVLMVisionTransformer"),
    ),
    text=_decoder("model.text_model"),
    projector="model.connector.modality_projection",
    projector_is_linear=True,
    merged=lambda config: int(config.scale_factor) ** 2,
    feature_layers=lambda config, count: (count,),
    packages={"smolvlm": ("torchvision", "num2words")},
    overview="last",
)
INTERNVL = Family(
    name="InternVL",
    classes={"internvl": "InternVLForConditionalGeneration"},
    processors={"internvl": "InternVLProcessor"},
    vision=Stack("model.vision_tower", "encoder.layer", "attention", "layernorm_before", ("InternVLVisionModel",)),
    text=_decoder("model.language_model"),
    projector="model.multi_modal_projector",
    projector_norm="layer_norm",
    merged=lambda config: round(1 / config.downsample_ratio) ** 2,
    packages={"internvl": ("torchvision",)},
    overview="last",
)

FAMILIES = (LLAVA, LLAVA_ONEVISION, SMOLVLM, INTERNVL)
# model_type -> family, and -> class of transformers.
BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.classes}
MODEL_CLASSES = {model_type: name for family in FAMILIES for model_type, name in family.classes.items()}


def family_of(model_type: Any) -> Family:
    """Return the family of a ``model_type``.

    Raises:
        UnavailableError: m2pt supports none of this type.
    """
    if not isinstance(model_type, str) or model_type not in BY_TYPE:
        raise untested(model_type)
    return BY_TYPE[model_type]


def untested(named: Any) -> UnavailableError:
    """Return the error for a model of no supported family; it lists the supported ones."""
    return UnavailableError(
        f"the base is {named or 'a model without a model_type'}, which m2pt was never tested with",
        "use one of " + ", ".join(MODEL_CLASSES.values()) + ", or --base nano",
    )
