"""``m2pt attn-map``: show what an adapter, or the base model, attends to while it answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from m2pt_cli.cli import options
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import SettingsError
from m2pt_cli.settings import AttnMapSettings

HELP = "Draw what an adapter attends to while it answers: prompts, image, question, layer by layer."
EPILOG = "\n\n".join(
    [
        "Examples:",
        '  m2pt attn-map examples/images/shapes.png "What color is the circle?" --base nano -o map.png',
        '  m2pt attn-map image.jpg "Is there a chair?" --adapter runs/demo --base-only -o both.pdf --drop-sinks',
        '  m2pt attn-map image.jpg "Is there a chair?" --adapter A --part overlay --layer 3 --layer -1 -o a.svg',
        '  m2pt attn-map image.jpg "Is there a chair?" --adapter runs/demo --base-only --part overlay -o a.pdf '
        '--label runs/demo=Adapter --label none=Base --title ""',
        '  m2pt attn-map image.jpg "Is there a chair?" --adapter runs/demo --values map.npz --json',
        "Layers, heads and tokens count from 0; -1 is the last. Means are over real tokens as queries: prompts ask "
        "nothing. In an answer's row each token is the one produced: what the model looked at to say it.",
        "A figure is at most 7 inches wide, the text of a paper in two columns; --part chooses what is in it.",
    ]
)

_LISTS = ("adapter", "label", "part", "layer", "head", "token", "vision_layer", "vision_head")
_LOOK = "What is looked at"
_WRITE = "Output"
# Parameters of `command` that are not settings.
_NOT_SETTINGS = ("words", "json", "quiet", "verbose")


def command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE QUESTION", help="An image (- is stdin) and a question.")
    ] = None,
    adapter: options.AdaptersOption = None,
    base_only: Annotated[
        bool,
        typer.Option(
            "--base-only",
            help="The bare base; beside the adapters, if any (as --adapter none).",
            rich_help_panel="Model and device",
        ),
    ] = False,
    base: options.BaseOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Figure: .png, .svg or .pdf.", rich_help_panel=_WRITE),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(
            "--title",
            metavar="TEXT",
            help="Title of the figure; '' for none. Default: question and base.",
            rich_help_panel=_WRITE,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="A=TEXT",
            help="Name of adapter A in figure and tables, none=TEXT of the bare base; repeatable.",
            rich_help_panel=_WRITE,
        ),
    ] = None,
    values: Annotated[
        Path | None,
        typer.Option(
            "--values", metavar="FILE", help="All numbers, axes named: .npz or .json.", rich_help_panel=_WRITE
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.", rich_help_panel=_WRITE)
    ] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="PART",
            help="language, vision, overlay (the answer on the image) or prompts; repeatable. Default: all.",
            rich_help_panel=_LOOK,
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            metavar="N",
            help="Layer of the language model; repeatable. Default: mean; for the curve, the middle.",
            rich_help_panel=_LOOK,
        ),
    ] = None,
    head: Annotated[
        list[int] | None,
        typer.Option("--head", metavar="N", help="Attention head of it; repeatable.", rich_help_panel=_LOOK),
    ] = None,
    token: Annotated[
        list[int] | None,
        typer.Option("--token", metavar="N", help="Token of the answer; repeatable.", rich_help_panel=_LOOK),
    ] = None,
    vision_layer: Annotated[
        list[int] | None,
        typer.Option(
            "--vision-layer",
            metavar="N",
            help="Layer of the vision tower drawn token by token; repeatable. Default: the last that is used.",
            rich_help_panel=_LOOK,
        ),
    ] = None,
    vision_head: Annotated[
        list[int] | None,
        typer.Option("--vision-head", metavar="N", help="Attention head of it; repeatable.", rich_help_panel=_LOOK),
    ] = None,
    drop_sinks: Annotated[
        bool,
        typer.Option("--drop-sinks", help="Leave the first token out of the figure's scales.", rich_help_panel=_LOOK),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer.", rich_help_panel=_LOOK)
    ] = 32,
    allow_url: options.AllowUrlOption = False,
    template: options.TemplateOption = None,
    image_fit: options.ImageFitOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "auto",
    seed: options.SeedOption = 0,
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    flags: dict[str, Any] = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    printer = Output.configure(json=json, quiet=quiet, verbose=verbose)
    if len(words or ()) != 2:
        said = "an image without a question" if words and len(words) == 1 else f"{len(words or ())} words"
        raise SettingsError(f"{said} where IMAGE QUESTION is meant", 'm2pt attn-map image.jpg "Is there a chair?"')
    assert words is not None
    image, question = words
    if not adapter and not base_only and os.environ.get("M2PT_ADAPTER"):
        flags["adapter"] = [os.environ["M2PT_ADAPTER"]]
    flags |= {name: tuple(flags[name] or ()) for name in _LISTS}
    settings = AttnMapSettings(image=image, question=question, **flags)

    from m2pt_cli.analysis.attention_run import run_attention
    from m2pt_cli.analysis.preview import preview_lines
    from m2pt_cli.cli.attn_table import attention_tables
    from m2pt_cli.cli.infer import named_image

    maps = run_attention(settings, image=named_image(image, Path(), allow_url=allow_url), report=printer.status)
    if printer.live:
        for line in preview_lines(maps, overlay=settings.looks_at("overlay")):
            printer.status(line)
    for file in (maps.output, maps.values):
        if file is not None:
            printer.status(f"written: {file}")
    if printer.is_json:
        printer.json(maps.to_dict())
        return
    for table in attention_tables(maps):
        printer.table(table)
