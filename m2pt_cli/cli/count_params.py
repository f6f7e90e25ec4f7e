"""``m2pt count-params``: trained parameters by part, from the config alone."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from m2pt_cli.cli import options
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import SettingsError

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
        typer.Option("--interaction", metavar="I", help="auto, projector, residual, none.", rich_help_panel=_METHOD),
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
    from m2pt_cli.analysis.parameters import Recipe, count_adapter, count_parameters
    from m2pt_cli.bases.adapters import read_adapter
    from m2pt_cli.bases.catalog import entry_of, resolve_base_name

    recipe = Recipe(**said)
    for kind, count in zip(("visual", "textual"), recipe.prompts, strict=True):
        # As train says it: a number that is not counted would look as if it were.
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
    from m2pt_cli.cli.count_table import count_table

    output.table(count_table(counts, entry.geometry.group_sizes))
    if counts.without_effect:
        output.status(
            f"{counts.without_effect:,} of the visual prompts' parameters have no effect: the language model never "
            "sees what their layer returns. The paper counts them."
        )


def _prompts(defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: defaults[name] for name in ("visual_prompts", "textual_prompts")}
