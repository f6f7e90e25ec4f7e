"""Model FLOPs of a training step: the operations it needs at least, used to compute utilisation.

Counted: multiplications and additions of matrix products. Not counted: norms, activations, the optimiser, anything
computed twice, and avoidable work of a method (prompts as queries, logits that no loss uses, an adapter's own small
products). Causal attention counts as a triangle.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2pt_cli.families.geometry import Geometry


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a batch.

    Attributes:
        forward: the forward pass.
        input_gradients: the backward pass through the frozen weights of language model and projector.
        vision_gradients: the same through the vision tower, needed when visual prompts are trained.
        weight_gradients: gradients of all weights of language model and projector, needed for full fine-tuning.
    """

    forward: float
    input_gradients: float
    vision_gradients: float
    weight_gradients: float


def step_flops(
    geometry: Geometry,
    *,
    rows: int,
    text_tokens: int,
    supervised: int,
    visual_prompts: int = 0,
    textual_prompts: int = 0,
) -> StepFlops:
    """Count the FLOPs of ``rows`` rows: one image, ``text_tokens`` tokens, ``supervised`` of them with a loss."""
    text, vision = geometry.text, geometry.vision
    patches = vision.num_patches
    length = patches + text_tokens
    linear = 2 * rows * length * text.num_layers * decoder_layer_weights(geometry)
    # A token sees the prompts, the tokens before it and itself: twice a product of head width, for scores and values.
    pairs = length * (length + 1) / 2 + length * textual_prompts
    attention = 4 * rows * text.num_layers * text.num_heads * text.head_dim * pairs
    head = 2 * rows * supervised * text.hidden_size * text.vocab_size

    run = geometry.feature_layers[0] % (vision.num_layers + 1)  # layers above influence nothing
    tokens = patches + 1 + visual_prompts
    width = vision.hidden_size
    seen = 4 * rows * run * width * (patches + 1) * tokens
    tower = 2 * rows * (patches + 1) * run * (4 * width**2 + 2 * width * vision.intermediate_size) + seen
    embedding = 2 * rows * patches * width * vision.num_channels * vision.patch_size**2
    inner = 0 if geometry.projector == "linear" else text.hidden_size**2
    projector = 2 * rows * patches * (width * text.hidden_size + inner)
    return StepFlops(
        forward=linear + attention + head + tower + embedding + projector,
        # An attention has two products forward and four back.
        input_gradients=linear + 2 * attention + head + projector,
        vision_gradients=tower + seen,
        weight_gradients=linear + head + projector,
    )


def decoder_layer_weights(geometry: Geometry) -> int:
    """Weights of the seven matrices of a decoder layer."""
    text = geometry.text
    queries, keys = text.num_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    return text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size)
