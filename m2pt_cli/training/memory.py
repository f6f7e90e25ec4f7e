"""How much memory a training step will need: an estimate from the geometry, before anything is loaded. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from m2pt_cli.bases.geometry import Geometry
from m2pt_cli.settings import TrainSettings

# AdamW on fp32 weights: the weight, its gradient and two moments.
_TRAINED_BYTES = 4 * 4
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the training device.

    Attributes:
        dtype: what the base computes in.
        weights: the frozen base.
        trained: trained weights, their gradients and the optimiser's two moments, in fp32.
        activations: what the backward pass needs of the forward pass of one micro-batch.
    """

    dtype: str
    weights: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations


def estimate_memory(
    settings: TrainSettings,
    geometry: Geometry,
    *,
    dtype: str,
    trainable: int,
    tokens: int,
    supervised: int,
    images: int,
    fused_norms: bool = False,
) -> MemoryEstimate:
    """The peak of one optimiser step.

    Args:
        settings: resolved.
        dtype: what the base computes in.
        trainable: trained parameters.
        tokens: positions of the longest micro-batch in the language model, images included.
        supervised: supervised tokens among them; images: how many images it holds.
        fused_norms: whether the device has a kernel for norms, which keeps their inputs as they are.
    """
    width = _WIDTHS[dtype]
    is_full = settings.method == "full"
    weights = geometry.total_parameters * (4 if is_full else width)
    text, vision = geometry.text, geometry.vision
    # What autograd keeps of a decoder layer with frozen weights: the inputs of two norms (fp32 copies where there
    # is no kernel), queries, keys, values and the attention's output, and three widths of the gated MLP.
    norms = 2 * (width if fused_norms else 4)
    layer = text.hidden_size * (norms + 4 * width) + 3 * text.intermediate_size * width
    if is_full or settings.method == "lora":
        layer += (4 * text.hidden_size + text.intermediate_size) * width  # inputs of the trained linears
    if settings.gradient_checkpointing:
        kept = tokens * (text.num_layers * text.hidden_size * width + layer)
    else:
        kept = tokens * text.num_layers * layer
    if is_full or (settings.method in ("m2pt", "visual") and settings.visual_prompts):
        positions = images * (vision.num_patches + (settings.visual_prompts or 0) + 1)
        layer = vision.hidden_size * 8 * width + 3 * vision.intermediate_size * width
        if settings.gradient_checkpointing:
            kept += positions * (vision.num_layers * vision.hidden_size * width + layer)
        else:
            kept += positions * vision.num_layers * layer
    kept += supervised * text.vocab_size * (width + 8)  # logits, and their fp32 copy and gradient
    # A fully tuned base is counted once, as weights; what it adds is gradients and moments.
    trained = trainable * (12 if is_full else _TRAINED_BYTES)
    return MemoryEstimate(dtype=dtype, weights=weights, trained=trained, activations=kept)
