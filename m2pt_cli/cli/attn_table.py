"""The tables of ``m2pt attn-map``: the share of attention on each group of tokens, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, PartAttention
from m2pt_cli.analysis.tokens import TEXTUAL, VISUAL
from m2pt_cli.cli.output import Output
from m2pt_cli.cli.tables import FittingTable


def attention_tables(maps: AttentionMaps) -> list[RenderableType]:
    """Build one table per run and model part: a row per layer, the mean over layers, and the uniform shares."""
    tables = []
    for run in maps.runs:
        parts: tuple[tuple[PartAttention | None, str], ...] = (
            (run.language, "language model" + _heads(maps.heads)),
            (run.vision, "vision tower"),
        )
        tables += [_table(run, part, name) for part, name in parts if part is not None]
    return tables


def _heads(heads: Sequence[int]) -> str:
    return f" (head{'s' * (len(heads) > 1)} {', '.join(map(str, heads))})" if heads else ""


def _table(run: AttentionRun, part: PartAttention, name: str) -> RenderableType:
    shares, uniform = part.shares(), part.uniform_shares()
    table = FittingTable()
    table.add_column("layer")
    for group in shares:
        table.add_column(f"{group.replace('_', ' ')} ({len(part.tokens.places(group))})")
    for layer in range(part.num_layers):
        table.add_row(str(layer), *(f"{100 * share[layer]:.2f}" for share in shares.values()))
    table.add_section()
    table.add_row("mean", *(f"{100 * share.mean():.2f}" for share in shares.values()), style="bold")
    table.add_row("if uniform", *(f"{100 * uniform[group]:.2f}" for group in shares))
    captions = [
        f"{group.replace('_', ' ')} receive {shares[group].mean() / uniform[group]:.2f} times their uniform share"
        for group in (TEXTUAL, VISUAL)
        if group in shares
    ]
    answer = "" if run.answer is None else f", answer: {Output.clean(run.answer)}"
    title = Text(f"{Output.clean(run.name)}, {name}: share of attention in percent{answer}", style="bold")
    return Group(title, table, *(Text(caption) for caption in captions))
