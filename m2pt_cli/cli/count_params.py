"""``m2pt count-params``: count parameters by part, from the configuration alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from m2pt_cli.cli import options
from m2pt_cli.cli.output import Output
from m2pt_cli.cli.tables import FittingTable
from m2pt_cli.errors import SettingsError
from m2pt_cli.records import ParameterCounts, format_bytes

_LABELS = {
    "visual_prompts": "visual prompts",
    "textual_prompts": "textual prompts",
    "interaction": "interaction layer",
    "lm_head": "lm_head",
    "vision_tower": "vision tower",
    "projector": "projector",
    "language_model": "language model",
}


def count_table(counts: ParameterCounts, base_sizes: Mapping[str, int]) -> RenderableType:
    """Return a table of trained parts with their share of the base, the base's parts, and the adapter's size.

    Args:
        base_sizes: parameters of the base by part; they sum to ``counts.total``.
    """
    table = FittingTable()
    table.add_column("part", left=True)
    table.add_column("parameters")
    table.add_column("of the base")
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
    table.add_row("saved" if counts.method == "full" else "saved adapter", format_bytes(counts.bytes), "")
    return Group(Text(f"{counts.method} on {counts.base}", style="italic"), table)


def share(part: int, total: int) -> str:
    """Format a percentage with as many digits as the paper: ``0.085 %``, ``1.95 %``."""
    percent = 100 * part / total
    return f"{percent:.3f} %" if percent < 1 else f"{percent:.2f} %"


HELP = "Count trained parameters by part, without loading any weights."
EPILOG = "\n\n".join(
    [
        "Examples:",
        "  m2pt count-params --base nano",
        "  m2pt count-params --base llava-v1-7b --visual-prompts 20 --textual-prompts 10",
        "  m2pt count-params --base llava-v1-7b --method lora --lora-rank 16",
        "  m2pt count-params --adapter runs/demo --json",
        "A share is of the base's own parameters. Frozen parts are listed for comparison.",
    ]
)

_METHOD = "Method"


def command(
    base: options.BaseOption = None,
    adapter: options.AdapterOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="M",
            help="m2pt (default), visual, textual, interaction, lora or full.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    visual_prompts: Annotated[
        int | None,
        typer.Option("--visual-prompts", metavar="K", help="Prompts per vision layer.", rich_help_panel=_METHOD),
    ] = None,
    textual_prompts: Annotated[
        int | None,
        typer.Option("--textual-prompts", metavar="K", help="Prompts per LLM layer.", rich_help_panel=_METHOD),
    ] = None,
    interaction: Annotated[
        str | None,
        typer.Option(
            "--interaction", metavar="I", help="auto, projector, residual, mean, none", rich_help_panel=_METHOD
        ),
    ] = None,
    visual_tokens: Annotated[
        str | None, typer.Option("--visual-tokens", metavar="V", help="patches or official.", rich_help_panel=_METHOD)
    ] = None,
    train_lm_head: Annotated[
        bool, typer.Option("--train-lm-head", help="Train lm_head as well.", rich_help_panel=_METHOD)
    ] = False,
    lora_rank: Annotated[
        int | None, typer.Option("--lora-rank", metavar="R", help="Rank of lora (16).", rich_help_panel=_METHOD)
    ] = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    output = Output.configure(json=json, quiet=quiet, verbose=verbose)
    said: dict[str, Any] = {
        "method": method,
        "visual_prompts": visual_prompts,
        "textual_prompts": textual_prompts,
        "interaction": interaction,
        "visual_tokens": visual_tokens,
        "train_lm_head": train_lm_head or None,
        "lora_rank": lora_rank,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if adapter is not None and said:
        flag = "--" + next(iter(said)).replace("_", "-")
        raise SettingsError(f"--adapter says itself what it trains, so {flag} means nothing", f"leave {flag} out")
    from m2pt_cli.models.adapters import read_adapter
    from m2pt_cli.models.catalog import entry_of, resolve_base_name
    from m2pt_cli.models.count import Recipe, count_adapter, count_parameters

    recipe = Recipe(**said)
    for kind, count in zip(("visual", "textual"), recipe.prompts, strict=True):
        # The same error as in train: a prompt number that is ignored would look as if it were counted.
        if said.get(f"{kind}_prompts", 0) != 0 and not count:
            raise SettingsError(
                f"--{kind}-prompts {said[f'{kind}_prompts']}: --method {recipe.method} has no {kind} prompts",
                f"leave --{kind}-prompts out, or choose another --method",
            )
    if adapter is None and not said and base is None:
        adapter = os.environ.get("M2PT_ADAPTER")
    info = None if adapter is None else read_adapter(adapter)
    entry = entry_of(resolve_base_name(base, None if info is None else info.base))
    if info is not None:
        counts = count_adapter(entry.name, entry.geometry, info)
    else:
        defaults = entry.defaults.for_method(recipe.method)
        counts = count_parameters(entry.name, entry.geometry, Recipe(**(_prompts(defaults) | said)))
    if output.is_json:
        output.json(counts)
        return

    output.table(count_table(counts, entry.geometry.group_sizes))
    if counts.without_effect:
        output.status(
            f"{counts.without_effect:,} of the visual prompts' parameters have no effect: the language model never "
            "sees what their layer returns. The paper counts them."
        )


def _prompts(defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: defaults[name] for name in ("visual_prompts", "textual_prompts")}
