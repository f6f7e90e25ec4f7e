"""What a run would do, without loading a weight: ``m2pt train --dry-run``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m2pt_cli.bases.geometry import Geometry
from m2pt_cli.data.encode import UNSUPERVISED, EncodedSample
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.arguments import total_steps
from m2pt_cli.training.encoding import encode_data
from m2pt_cli.training.events import Events, Notice, ignore
from m2pt_cli.training.memory import MemoryEstimate, estimate_memory
from m2pt_cli.training.plan import base_name, make_plan
from m2pt_cli.training.run_folder import check_free, kept_settings


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens of a sample that are all supervised or all not; ``text`` as the tokenizer decodes them."""

    text: str
    token_ids: list[int]
    is_supervised: bool
    is_image: bool


@dataclass(frozen=True)
class DryRun:
    """A run that was planned and not started.

    Attributes:
        settings: resolved, as ``run.yaml`` would hold them.
        output_dir: where it would write; None: a new folder in ``runs``.
        data: description and counts of the samples read.
        steps: optimiser steps.
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
    longest: int
    mean: float
    supervised: int
    cut: int
    most_images: int
    sample_id: str
    sample_images: list[str]
    sample: list[Segment]

    def settings_dict(self) -> dict[str, Any]:
        """The resolved settings as ``run.yaml`` would hold them."""
        return kept_settings(self.settings)


def dry_run(settings: TrainSettings, *, events: Events = ignore) -> DryRun:
    """Do everything that comes before the weights are loaded.

    Raises:
        SettingsError, InputError, UnavailableError: what `run_training` would raise.
    """
    base = base_name(settings)
    check_free(settings)
    plan = make_plan(settings, base=base, events=events)

    from m2pt_cli.bases.loading import choose_device, choose_dtype, load_base_processor
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
    """What the longest micro-batch of ``plan`` will take; ``trainable`` parameters are trained."""
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
    """The tokens of a sample in runs: images, text, and supervised text."""
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
