"""The cells of the experiment: methods, prompt lengths and seeds, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m2pt_cli.families.geometry import Geometry
from m2pt_cli.models.count import Recipe, count_parameters

# Prompt lengths of the paper: the three M²PT rows of table 1, VPT-deep (visual alone), PTUM (textual alone).
M2PT_LENGTHS = ((10, 10), (20, 10), (10, 20))
VISUAL_ALONE, TEXTUAL_ALONE = 10, 30
# Prompt lengths of the variant that the ablations remove parts from and that LoRA's size is compared with.
WHOLE_LENGTHS = (10, 10)
GRID_LENGTHS = (5, 10, 20)
# The paper trains LoRA of rank 16, 7 to 8 times M²PT. On a base where rank 16 is not that: the rank nearest to 7 times.
PAPER_RANK, LARGE_LORA = 16, 7


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A trained configuration, without a seed.

    Attributes:
        name: unique; the name of its files.
        label: its name in tables and figures.
        rates: key of the learning rates it uses; ablations and prompt lengths use M²PT's.
    """

    name: str
    label: str
    method: str
    rates: str
    visual_prompts: int | None = None
    textual_prompts: int | None = None
    interaction: str = "auto"
    lora_rank: int = 16

    def recipe(self) -> Recipe:
        """Return the settings for counting its parameters."""
        return Recipe(
            method=self.method,
            visual_prompts=self.visual_prompts or 0,
            textual_prompts=self.textual_prompts or 0,
            interaction=self.interaction,
            lora_rank=self.lora_rank,
        )


@dataclass(frozen=True)
class Cell:
    """One training run and its evaluation."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant.name}-seed{self.seed}"


@dataclass(frozen=True)
class Experiment:
    """All variants that are trained on one base.

    Attributes:
        rows: the rows of table 1 without the first, the untuned base.
        whole: the variant that the ablations remove parts from.
        ablations: ``whole`` without one of its parts.
        grid: M²PT at every pair of prompt lengths.
    """

    rows: tuple[Variant, ...]
    whole: Variant
    ablations: tuple[Variant, ...]
    grid: tuple[Variant, ...]

    def cells(self, seeds: int, ablation_seeds: int, grid_seeds: int) -> list[Cell]:
        """Return every cell once, in rounds by seed: rows, ablations, grid. An early end leaves complete rounds."""
        found: dict[str, Cell] = {}
        for seed in range(max(seeds, ablation_seeds, grid_seeds)):
            for part, most in ((self.rows, seeds), (self.ablations, ablation_seeds), (self.grid, grid_seeds)):
                for variant in part if seed < most else ():
                    cell = Cell(variant, seed)
                    found.setdefault(cell.name, cell)
        return list(found.values())


def m2pt(visual: int, textual: int, *, interaction: str = "auto", label: str = "") -> Variant:
    """Return M²PT with these prompt lengths; 0 removes the prompts."""
    return Variant(
        name=f"m2pt-{visual}-{textual}" + ("" if interaction == "auto" else "-no-interaction"),
        label=label or f"M²PT {visual}/{textual}",
        method="m2pt",
        rates="m2pt",
        visual_prompts=visual,
        textual_prompts=textual,
        interaction=interaction,
    )


def experiment(base: str, geometry: Geometry) -> Experiment:
    """Return the experiment on a base; LoRA's ranks depend on M²PT's number of parameters there."""
    visual, textual = WHOLE_LENGTHS
    whole = m2pt(visual, textual)
    size = count_parameters(base, geometry, whole.recipe()).trainable
    large, small = lora_ranks(base, geometry, size)
    rows = (
        Variant(name="full", label="full fine-tuning", method="full", rates="full"),
        Variant(name="lora", label=f"LoRA r={large}", method="lora", rates="lora", lora_rank=large),
        Variant(
            name="lora-small",
            label=f"LoRA r={small}, projector frozen",
            method="lora",
            rates="lora-small",
            lora_rank=small,
            interaction="none",
        ),
        Variant(name="interaction", label="interaction layer", method="interaction", rates="interaction"),
        Variant(
            name="visual",
            label=f"visual prompts {VISUAL_ALONE}",
            method="visual",
            rates="visual",
            visual_prompts=VISUAL_ALONE,
        ),
        Variant(
            name="textual",
            label=f"textual prompts {TEXTUAL_ALONE}",
            method="textual",
            rates="textual",
            textual_prompts=TEXTUAL_ALONE,
        ),
        *(m2pt(*lengths) for lengths in M2PT_LENGTHS),
    )
    return Experiment(
        rows=rows,
        whole=whole,
        ablations=(
            m2pt(0, textual, label="without visual prompts"),
            m2pt(visual, 0, label="without textual prompts"),
            m2pt(visual, textual, interaction="none", label="without interaction"),
        ),
        grid=tuple(m2pt(first, second) for first in GRID_LENGTHS for second in GRID_LENGTHS),
    )


def lora_ranks(base: str, geometry: Geometry, size: int) -> tuple[int, int]:
    """``(large, small)``: `PAPER_RANK` or the rank nearest to `LARGE_LORA` times ``size``, projector trained; and the
    largest rank with at most ``size`` parameters, projector frozen (trained whole it alone may be larger than M²PT)."""

    def lora_size(rank: int, interaction: str) -> int:
        return count_parameters(
            base, geometry, Recipe(method="lora", lora_rank=rank, interaction=interaction)
        ).trainable

    ranks = range(1, 129)
    large = min(ranks, key=lambda rank: abs(lora_size(rank, "auto") - LARGE_LORA * size))
    if LARGE_LORA * size <= lora_size(PAPER_RANK, "auto") < (LARGE_LORA + 1) * size:
        large = PAPER_RANK
    small = max((rank for rank in ranks if lora_size(rank, "none") <= size), default=1)
    return large, small


def rate_variants(found: Experiment) -> dict[str, Variant]:
    """Return the variant with which each key's learning rates are chosen; for M²PT it is ``whole``."""
    chosen: dict[str, Variant] = {}
    for variant in (found.whole, *found.rows):
        chosen.setdefault(variant.rates, variant)
    return chosen


def named(variants: Sequence[Variant], name: str) -> Variant:
    """Return the variant with this name."""
    return next(variant for variant in variants if variant.name == name)
