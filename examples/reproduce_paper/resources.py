"""An estimate of the experiment's cost on a 7B base, by arithmetic only; no GPU run is behind these numbers.

Scale the numbers if your machine differs from the assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator

from cells import Experiment, Variant

from m2pt_cli.families.geometry import Geometry
from m2pt_cli.models.catalog import BaseEntry
from m2pt_cli.models.count import GROUPS, count_parameters

SAMPLES, EPOCHS, TEXT_TOKENS = 186_000, 3, 160
SUSTAINED_FLOPS = 0.4 * 312e12
BATCH = 16
GIGABYTE = 1e9
VISION_FLAN_ZIP, BENCHMARK_IMAGES = 36e9, 25e9
ASSUMED = (
    "Vision-Flan's 186,000 samples three times, 160 text tokens each beside the image's, batches of 16, gradient "
    "checkpointing, a GPU that sustains 40 % of an A100's 312 bf16 TFLOP/s. Nothing of it was measured."
)
OPTIMISER_BYTES = 16  # per trained parameter in fp32: weight, gradient, two moments of AdamW


def group_sizes(geometry: Geometry) -> dict[str, int]:
    """Return the parameters of the base by group."""
    sizes = dict.fromkeys(GROUPS, 0)
    for weight in geometry.weights():
        sizes[weight.group] += weight.size
    return sizes


def image_tokens(geometry: Geometry) -> int:
    return (geometry.vision.image_size // geometry.vision.patch_size) ** 2


def training_hours(geometry: Geometry, variant: Variant) -> float:
    """Estimate the hours of one training run.

    Two operations per parameter and token for a forward pass, as many for its recomputation under checkpointing and for
    the gradients of activations, and again for those of weights where all are trained.
    """
    sizes = group_sizes(geometry)
    patches = image_tokens(geometry)
    language = 2 * sizes["language_model"] * (patches + TEXT_TOKENS)
    vision = 2 * sizes["vision_tower"] * patches
    reaches_vision = bool(variant.visual_prompts)
    passes = 4 if variant.method == "full" else 3
    return SAMPLES * EPOCHS * (passes * language + (3 if reaches_vision else 1) * vision) / SUSTAINED_FLOPS / 3600


def training_memory(geometry: Geometry, variant: Variant, trainable: int) -> float:
    """Estimate the bytes on the GPU.

    Weights in bf16 (fp32 where all are trained), optimiser, one kept activation per layer, and the largest layer's
    activations during its recomputation.
    """
    tokens = BATCH * (image_tokens(geometry) + TEXT_TOKENS)
    text = geometry.text
    weights = 0 if variant.method == "full" else 2 * geometry.total_parameters
    kept = 2 * tokens * text.hidden_size * text.num_layers
    layer = 2 * tokens * (8 * text.hidden_size + 4 * text.intermediate_size)
    return weights + OPTIMISER_BYTES * trainable + kept + layer


def estimates(entry: BaseEntry, found: Experiment) -> Iterator[str]:
    """Return the estimate as Markdown."""
    geometry = entry.geometry
    yield "| row | trained | % | saved | GPU memory | hours for one seed |"
    yield "|---|---:|---:|---:|---:|---:|"
    total = 0.0
    for variant in found.rows:
        counts = count_parameters(entry.name, geometry, variant.recipe())
        hours = training_hours(geometry, variant)
        total += hours
        memory = training_memory(geometry, variant, counts.trainable) / GIGABYTE
        yield (
            f"| {variant.label} | {counts.trainable:,} | {counts.percent:.3f} | {counts.bytes / 1e6:,.0f} MB "
            f"| {memory:.0f} GB | {hours:.0f} |"
        )
    yield ""
    yield f"An estimate: {ASSUMED}"
    disk = 2 * geometry.total_parameters + 2 * VISION_FLAN_ZIP + BENCHMARK_IMAGES
    yield ""
    yield (
        f"All rows once: {total:.0f} GPU-hours of training. Disk: about {disk / GIGABYTE:.0f} GB for weights, "
        "Vision-Flan (zip and unpacked) and the benchmarks' images, beside the rows' own."
    )
