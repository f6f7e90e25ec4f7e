"""``m2pt train --dry-run``: the number of steps and tokens and the memory of a run, without loading weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m2pt_cli.data.tokenize import UNSUPERVISED, EncodedSample
from m2pt_cli.families.geometry import Geometry
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.events import Events, Notice, ignore
from m2pt_cli.training.plan import base_name, make_plan
from m2pt_cli.training.run_dir import check_free, kept_settings
from m2pt_cli.training.setup import encode_data, total_steps

# Bytes per trained parameter with AdamW in fp32: the weight, its gradient and two moments.
_TRAINED_BYTES = 4 * 4
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated peak memory on the training device, in bytes.

    Attributes:
        dtype: the dtype in which the base computes.
        weights: the weights of the base.
        trained: trained weights, their gradients and the optimiser's two moments, in fp32; for full fine-tuning
            ``weights`` already holds the weights.
        activations: activations of one micro-batch that are kept for the backward pass.
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
    """Estimate the peak memory of one optimiser step.

    Args:
        settings: resolved settings.
        dtype: the dtype in which the base computes.
        trainable: number of trained parameters.
        tokens: tokens of the longest micro-batch in the language model, image tokens included.
        supervised: supervised tokens among them.
        images: images of that micro-batch.
        fused_norms: whether the device has a fused RMS norm, which keeps no fp32 copy of its input.
    """
    width = _WIDTHS[dtype]
    is_full = settings.method == "full"
    weights = geometry.total_parameters * (4 if is_full else width)
    text, vision = geometry.text, geometry.vision
    # Autograd keeps for each token of a decoder layer with frozen weights: the inputs of two norms (fp32 copies
    # without a fused kernel), queries, keys, values and the attention output, and three tensors of the gated MLP.
    norms = 2 * (width if fused_norms else 4)
    layer = text.hidden_size * (norms + 4 * width) + 3 * text.intermediate_size * width
    if is_full or settings.method == "lora":
        layer += (4 * text.hidden_size + text.intermediate_size) * width  # inputs of the trained linear layers
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
    kept += supervised * text.vocab_size * (width + 8)  # logits, their fp32 copy and its gradient
    # Full fine-tuning: `weights` already counts the trained weights; add only gradients and moments.
    trained = trainable * (12 if is_full else _TRAINED_BYTES)
    return MemoryEstimate(dtype=dtype, weights=weights, trained=trained, activations=kept)


@dataclass(frozen=True)
class Segment:
    """A run of consecutive tokens of one kind (image, text, supervised text); ``text`` is their decoded text."""

    text: str
    token_ids: list[int]
    is_supervised: bool
    is_image: bool


@dataclass(frozen=True)
class DryRun:
    """A planned run that was not started.

    Attributes:
        settings: resolved settings, as ``run.yaml`` would record them.
        dtype: the dtype in which the base computes.
        fused_norms: whether the device has a fused kernel for the language model's RMS norms.
        output_dir: the output directory the user gave; None means a new folder in ``runs``.
        data: description and counts of the samples.
        steps: optimiser steps.
        longest, mean: maximum and mean number of tokens per sample, image tokens included.
        supervised: supervised tokens of all samples together.
        cut: samples truncated to ``max_length``.
        most_images: largest number of images in one sample.
        sample_id, sample_images, sample: id, image names and segments of the first training sample.
    """

    settings: TrainSettings
    base: str
    geometry: Geometry
    dtype: str
    fused_norms: bool
    output_dir: str | None
    data: dict[str, Any]
    steps: int
    longest: int
    mean: float
    supervised: int
    cut: int
    most_images: int
    sample_id: str
    sample_images: list[str]
    sample: list[Segment]

    def settings_dict(self) -> dict[str, Any]:
        """The resolved settings as ``run.yaml`` would record them."""
        return kept_settings(self.settings)


def dry_run(settings: TrainSettings, *, events: Events = ignore) -> DryRun:
    """Plan a run and tokenise its data without loading the base's weights.

    Raises:
        SettingsError, InputError, UnavailableError, DeviceError: for the same reasons as `run_training`.
    """
    base = base_name(settings)
    check_free(settings)
    plan = make_plan(settings, base=base, events=events)

    from m2pt_cli.models.load import choose_device, choose_dtype, load_base_processor
    from m2pt_cli.training.norms import FUSED_DEVICES

    resolved = plan.settings
    device = choose_device(resolved.device)
    processor = load_base_processor(plan.entry, report=lambda text: events(Notice(text)))
    if resolved.visual_tokens == "official":
        processor.num_additional_image_tokens += resolved.visual_prompts or 0
    encoded = encode_data(plan, processor, events).train
    first = encoded[0]
    return DryRun(
        settings=resolved,
        base=plan.base,
        geometry=plan.entry.geometry,
        dtype=str(choose_dtype(resolved.dtype, device)).removeprefix("torch."),
        fused_norms=device.type in FUSED_DEVICES,
        output_dir=None if settings.output_dir is None else str(settings.output_dir),
        data=plan.data,
        steps=total_steps(resolved, len(encoded)),
        longest=max(encoded.lengths),
        mean=sum(encoded.lengths) / len(encoded),
        supervised=encoded.num_supervised,
        cut=encoded.num_cut,
        most_images=max(len(sample.images) for sample in encoded.samples),
        sample_id=first.sample.id,
        sample_images=[image.name for image in first.sample.images],
        sample=segments(first, processor.tokenizer, image_token_id=processor.image_token_id),
    )


def planned_memory(plan: DryRun, *, trainable: int) -> MemoryEstimate:
    """Estimate the memory of ``plan``: a micro-batch of its longest samples and ``trainable`` trained parameters."""
    batch = plan.settings.batch_size or 1
    supervised_fraction = plan.supervised / max(plan.mean * plan.data["samples"], 1)
    return estimate_memory(
        plan.settings,
        plan.geometry,
        dtype=plan.dtype,
        trainable=trainable,
        tokens=batch * plan.longest,
        supervised=round(batch * plan.longest * supervised_fraction),
        images=batch * plan.most_images,
        fused_norms=plan.fused_norms,
    )


def segments(sample: EncodedSample, tokenizer: Any, *, image_token_id: int) -> list[Segment]:
    """Split the tokens of a sample into runs of one kind: image, text, or supervised text."""
    found: list[tuple[list[int], bool, bool]] = []
    for token, label in zip(sample.encoded.input_ids, sample.encoded.labels, strict=True):
        kind = (label != UNSUPERVISED, token == image_token_id)
        if not found or found[-1][1:] != kind:
            found.append(([], *kind))
        found[-1][0].append(token)
    return [
        Segment("<image>" if is_image else tokenizer.decode(tokens), tokens, is_supervised, is_image)
        for tokens, is_supervised, is_image in found
    ]
