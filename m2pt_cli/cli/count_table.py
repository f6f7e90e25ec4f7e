"""The table of ``m2pt count-params``."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from m2pt_cli.records import ParameterCounts

_LABELS = {
    "visual_prompts": "visual prompts",
    "textual_prompts": "textual prompts",
    "interaction": "interaction layer",
    "lm_head": "lm_head",
    "vision_tower": "vision tower",
    "projector": "projector",
    "language_model": "language model",
}


def count_table(counts: ParameterCounts, base_sizes: Mapping[str, int]) -> Table:
    """Trained parts with their share of the base, then the base's own parts, then the size of the adapter.

    Args:
        base_sizes: parameters of the base by part; they sum to ``counts.total``.
    """
    table = Table(title=f"{counts.method} on {counts.base}", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("of the base", justify="right")
    for group, label in _LABELS.items():
        if counts.groups[group] or group in ("visual_prompts", "textual_prompts", "interaction"):
            table.add_row(label, f"{counts.groups[group]:,}", share(counts.groups[group], counts.total))
    table.add_row("trained", f"{counts.trainable:,}", share(counts.trainable, counts.total), style="bold")
    table.add_section()
    for group, size in base_sizes.items():
        if size:
            table.add_row(f"base: {_LABELS[group]}", f"{size:,}", share(size, counts.total))
    table.add_row("base", f"{counts.total:,}", "")
    table.add_section()
    table.add_row("saved" if counts.method == "full" else "saved adapter", f"{counts.bytes:,} bytes", "")
    return table


def share(part: int, total: int) -> str:
    """Percent with as many digits as the paper prints: ``0.085 %``, ``1.95 %``."""
    percent = 100 * part / total
    return f"{percent:.3f} %" if percent < 1 else f"{percent:.2f} %"
