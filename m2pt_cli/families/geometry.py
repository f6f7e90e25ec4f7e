"""The geometry of a LLaVA: widths, depths, and every weight with its name and shape.

Imports no torch: parameters are counted and files checked by arithmetic. A test compares the results with the modules
that transformers builds.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Checkpoints name weights after the modules of their day; these rules bring any to transformers' current names.
_RENAMES = (
    (re.compile(r"^(model\.)?language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?"), "model.vision_tower."),
    (re.compile(r"^(multi_modal_projector\.|image_newline)"), r"model.\1"),
)


def current_name(name: str) -> str:
    """A checkpoint's name of a weight as transformers names it today."""
    for pattern, replacement in _RENAMES:
        name, changed = pattern.subn(replacement, name)
        if changed:
            break
    return name


@dataclass(frozen=True)
class Weight:
    """Name (as in transformers' module), shape and group of one weight of a base, without its values."""

    group: str
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class VisionGeometry:
    """A vision tower: ``num_layers`` layers of width ``hidden_size`` (``d_v`` in the paper)."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    has_head: bool

    @property
    def has_cls(self) -> bool:
        """Whether a class token precedes the patches."""
        return self.model_type == "clip_vision_model"

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def weights(self) -> Iterator[Weight]:
        width, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {}
        if self.has_cls:
            shapes["embeddings.class_embedding"] = (width,)
        shapes["embeddings.patch_embedding.weight"] = (width, self.num_channels, self.patch_size, self.patch_size)
        if not self.has_cls:
            shapes["embeddings.patch_embedding.bias"] = (width,)
        shapes["embeddings.position_embedding.weight"] = (self.num_patches + self.has_cls, width)
        if self.has_cls:
            shapes |= _norm("pre_layrnorm", width)  # transformers' own spelling
        for i in range(self.num_layers):
            layer = f"encoder.layers.{i}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= _linear(f"{layer}.self_attn.{name}", width, width, bias=True)
            shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
            shapes |= _linear(f"{layer}.mlp.fc1", width, inner, bias=True)
            shapes |= _linear(f"{layer}.mlp.fc2", inner, width, bias=True)
        shapes |= _norm("post_layernorm", width)
        if self.has_head:
            shapes["head.probe"] = (1, 1, width)
            shapes |= {"head.attention.in_proj_weight": (3 * width, width), "head.attention.in_proj_bias": (3 * width,)}
            shapes |= _linear("head.attention.out_proj", width, width, bias=True) | _norm("head.layernorm", width)
            shapes |= _linear("head.mlp.fc1", width, inner, bias=True) | _linear(
                "head.mlp.fc2", inner, width, bias=True
            )
        for name, shape in shapes.items():
            yield Weight("vision_tower", f"model.vision_tower.{name}", shape)


@dataclass(frozen=True)
class TextGeometry:
    """A language model: ``num_layers`` layers of width ``hidden_size`` (``d_t`` in the paper)."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool

    def weights(self) -> Iterator[Weight]:
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocab_size, width)}
        for i in range(self.num_layers):
            attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            shapes |= _linear(f"{attention}.q_proj", width, queries, bias=self.qkv_bias)
            shapes |= _linear(f"{attention}.k_proj", width, keys, bias=self.qkv_bias)
            shapes |= _linear(f"{attention}.v_proj", width, keys, bias=self.qkv_bias)
            shapes |= _linear(f"{attention}.o_proj", queries, width, bias=self.output_bias)
            shapes |= _linear(f"{mlp}.gate_proj", width, inner, bias=self.mlp_bias)
            shapes |= _linear(f"{mlp}.up_proj", width, inner, bias=self.mlp_bias)
            shapes |= _linear(f"{mlp}.down_proj", inner, width, bias=self.mlp_bias)
            shapes[f"layers.{i}.input_layernorm.weight"] = (width,)
            shapes[f"layers.{i}.post_attention_layernorm.weight"] = (width,)
        shapes["norm.weight"] = (width,)
        for name, shape in shapes.items():
            yield Weight("language_model", f"model.language_model.{name}", shape)


@dataclass(frozen=True)
class Geometry:
    """The geometry of a whole LLaVA.

    Attributes:
        model_type: ``llava`` or ``llava_next``.
        projector: ``linear`` (LLaVA v1) or ``mlp`` (two layers, LLaVA-1.5).
        feature_layers: the vision hidden states that the projector reads, as in the config; usually ``(-2,)``.
        feature_strategy: ``default`` drops the first token (CLS), ``full`` keeps it.
        tied_lm_head: whether the output layer shares the token embedding.
    """

    model_type: str
    vision: VisionGeometry
    text: TextGeometry
    projector: str
    projector_bias: bool
    feature_layers: tuple[int, ...]
    feature_strategy: str
    tied_lm_head: bool

    def weights(self) -> Iterator[Weight]:
        """Yield every weight of the base once; a tied ``lm_head`` is the embedding and is not listed."""
        yield from self.vision.weights()
        for name, shape in self._projector_shapes().items():
            yield Weight("projector", f"model.{name}", shape)
        if self.model_type == "llava_next":
            # An embedding appended to every row of an image; it is a token of the language model.
            yield Weight("language_model", "model.image_newline", (self.text.hidden_size,))
        yield from self.text.weights()
        if not self.tied_lm_head:
            yield Weight("lm_head", "lm_head.weight", (self.text.vocab_size, self.text.hidden_size))

    def _projector_shapes(self) -> dict[str, tuple[int, ...]]:
        text_width, bias = self.text.hidden_size, self.projector_bias
        name = "multi_modal_projector"
        if self.projector == "linear":
            return _linear(name, self.feature_size, text_width, bias=bias)
        first = _linear(f"{name}.linear_1", self.feature_size, text_width, bias=bias)
        return first | _linear(f"{name}.linear_2", text_width, text_width, bias=bias)

    @property
    def merged(self) -> int:
        """How many patches become one token; of LLaVA one."""
        return 1

    def identity(self) -> dict[str, Any]:
        """What decides whether an adapter of one base can be an adapter of another, as plain values."""
        return dataclasses.asdict(self)

    @property
    def feature_size(self) -> int:
        """Width of the projector's input: the hidden states of several layers are concatenated."""
        return self.vision.hidden_size * len(self.feature_layers) * self.merged

    @property
    def feature_indices(self) -> tuple[int, ...]:
        """`feature_layers` as non-negative indices: i is the input of vision layer i, L_v the last output."""
        return tuple(i if i >= 0 else self.vision.num_layers + 1 + i for i in self.feature_layers)

    @property
    def group_sizes(self) -> dict[str, int]:
        """Number of parameters by group: vision_tower, projector, language_model, lm_head."""
        sizes = dict.fromkeys(("vision_tower", "projector", "language_model", "lm_head"), 0)
        for weight in self.weights():
            sizes[weight.group] += weight.size
        return sizes

    @property
    def total_parameters(self) -> int:
        return sum(self.group_sizes.values())

    def image_tokens(self, visual_tokens: str, num_visual_prompts: int) -> int:
        """Return the number of tokens that one image takes in the language model.

        ``patches``: the base's own number. ``official``: only one token is dropped, so the prompts and CLS are passed
        too; without prompts this equals the base's own number.

        Raises:
            ValueError: the base is a LLaVA-NeXT, whose number depends on the size of the image.
        """
        if self.model_type == "llava_next":
            raise ValueError("the image tokens of a LLaVA-NeXT depend on the size of the image")
        own = self.vision.num_patches + self.vision.has_cls - (self.feature_strategy == "default")
        return own + num_visual_prompts if visual_tokens == "official" else own


def _linear(name: str, inputs: int, outputs: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
