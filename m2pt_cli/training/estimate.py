"""Estimate a run before it starts: memory, steps, and supervised tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2pt_cli.data.tokenize import UNSUPERVISED, EncodedSample
from m2pt_cli.families.geometry import Geometry
from m2pt_cli.settings import TrainSettings
from m2pt_cli.settings.paths import shortened_settings
from m2pt_cli.training.events import Events, Notice, ignore
from m2pt_cli.training.plan import base_name, make_plan, passes
from m2pt_cli.training.run_dir import check_free, kept_settings
from m2pt_cli.training.setup import encode_data, total_steps

# AdamW on fp32 weights: the weight, its gradient and two moments.
_TRAINED_BYTES = 4 * 4
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the training device.

    Attributes:
        dtype: the base's dtype.
        weights: the frozen base.
        trained: trained weights, their gradients and the optimiser's two moments, in fp32.
        activations: tensors of one micro-batch that the forward pass keeps for the backward pass.
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
        settings: resolved.
        dtype: the base's dtype.
        trainable: number of trained parameters.
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
    # The weights of a fully tuned base are counted above; only gradients and moments are added.
    trained = trainable * (12 if is_full else _TRAINED_BYTES)
    return MemoryEstimate(dtype=dtype, weights=weights, trained=trained, activations=kept)


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens of a sample that are all supervised or all not; ``text`` as the tokenizer decodes them."""

    text: str
    token_ids: list[int]
    is_supervised: bool
    is_image: bool


@dataclass(frozen=True)
class DryRun:
    """A planned run that was not started.

    Attributes:
        settings: resolved, as ``run.yaml`` would hold them.
        output_dir: its output directory; None: a new folder in ``runs``.
        data: description and counts of the samples read.
        steps: optimiser steps; passes: epochs over the samples.
        longest, mean: tokens of a sample, images included; supervised: of all samples together; cut: samples cut.
        most_images: images of one sample at most.
        fused_norms: whether the device has a kernel for the language model's norms.
        sample: the first training sample, as its segments; sample_id names it.
    """

    settings: TrainSettings
    base: str
    geometry: Geometry
    dtype: str
    fused_norms: bool
    output_dir: str | None
    data: dict[str, Any]
    steps: int
    passes: float
    longest: int
    mean: float
    supervised: int
    cut: int
    most_images: int
    sample_id: str
    sample_images: list[str]
    sample: list[Segment]

    def settings_dict(self) -> dict[str, Any]:
        """Return the resolved settings as ``run.yaml`` would hold them."""
        return shortened_settings(kept_settings(self.settings), Path.cwd())


def dry_run(settings: TrainSettings, *, events: Events = ignore) -> DryRun:
    """Do every step of a run up to the loading of the weights.

    Raises:
        SettingsError, InputError, UnavailableError: as `run_training`.
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
    steps = total_steps(resolved, len(encoded))
    return DryRun(
        settings=resolved,
        base=plan.base,
        geometry=plan.entry.geometry,
        dtype=str(choose_dtype(resolved.dtype, device)).removeprefix("torch."),
        fused_norms=device.type in FUSED_DEVICES,
        output_dir=None if settings.output_dir is None else str(settings.output_dir),
        data=plan.data,
        steps=steps,
        passes=passes(resolved, steps, len(encoded)) or 0.0,
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
    """Estimate the memory of the longest micro-batch of ``plan`` with ``trainable`` trained parameters."""
    batch = plan.settings.batch_size or 1
    share = plan.supervised / max(plan.mean * plan.data["samples"], 1)
    return estimate_memory(
        plan.settings,
        plan.geometry,
        dtype=plan.dtype,
        trainable=trainable,
        tokens=batch * plan.longest,
        supervised=round(batch * plan.longest * share),
        images=batch * plan.most_images,
        fused_norms=plan.fused_norms,
    )


def segments(sample: EncodedSample, tokenizer: Any, *, image_token_id: int) -> list[Segment]:
    """Split the tokens of a sample into segments: images, text, and supervised text."""
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
