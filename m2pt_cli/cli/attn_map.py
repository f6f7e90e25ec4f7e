"""``m2pt attn-map``: show what a model attends to while it answers a question about an image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from m2pt_cli.cli import options
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import SettingsError
from m2pt_cli.settings import AttnMapSettings

HELP = "Answer a question and draw its attention to prompts, image and question in every layer."
EPILOG = "\n\n".join(
    [
        "Examples:",
        '  m2pt attn-map examples/images/shapes.png "What color is the circle?" --base nano -o map.png',
        '  m2pt attn-map image.jpg "Is there a chair?" --adapter runs/demo --base-only -o both.pdf --drop-sinks',
        '  m2pt attn-map image.jpg "Is there a chair?" --adapter A --part overlay --layer 3 --layer -1 -o a.svg',
        '  m2pt attn-map image.jpg "Is there a chair?" --adapter runs/demo --values map.npz --json',
        "Layers, heads and tokens are numbered from 0; -1 is the last. Means are over the tokens of the input and the "
        "answer as queries; prompts have no queries. The row of an answer token shows the attention that produced it.",
    ]
)

_LISTS = ("adapter", "part", "layer", "head", "token", "vision_layer", "vision_head")
_LOOK = "What is shown"
_WRITE = "Output"
# Local names in `command` that are not settings.
_NOT_SETTINGS = ("arguments", "json", "quiet", "verbose")


def command(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE QUESTION", help="An image file (- is stdin) and a question.")
    ] = None,
    adapter: options.AdaptersOption = None,
    base_only: Annotated[
        bool,
        typer.Option(
            "--base-only", help="Show the base without an adapter too, or alone.", rich_help_panel="Model and device"
        ),
    ] = False,
    base: options.BaseOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Figure to write: .png, .svg, .pdf.", rich_help_panel=_WRITE
        ),
    ] = None,
    values: Annotated[
        Path | None,
        typer.Option(
            "--values",
            metavar="FILE",
            help="File for all values, with named axes: .npz or .json.",
            rich_help_panel=_WRITE,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files.", rich_help_panel=_WRITE)
    ] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="PART",
            help="Part of the figure: language, vision, overlay (attention on the image) or prompts; repeatable. "
            "Default: all.",
            rich_help_panel=_LOOK,
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            metavar="N",
            help="Layer of the language model; repeatable. Default: mean of all; for the curve, the middle layer.",
            rich_help_panel=_LOOK,
        ),
    ] = None,
    head: Annotated[
        list[int] | None,
        typer.Option(
            "--head", metavar="N", help="Attention head of the language model; repeatable.", rich_help_panel=_LOOK
        ),
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
            help="Layer of the vision tower, token by token; repeatable. Default: the last one used.",
            rich_help_panel=_LOOK,
        ),
    ] = None,
    vision_head: Annotated[
        list[int] | None,
        typer.Option(
            "--vision-head", metavar="N", help="Attention head of the vision tower; repeatable.", rich_help_panel=_LOOK
        ),
    ] = None,
    drop_sinks: Annotated[
        bool,
        typer.Option(
            "--drop-sinks", help="Exclude the first token from the scales of the figure.", rich_help_panel=_LOOK
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Maximum tokens of the answer.", rich_help_panel=_LOOK)
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
    if len(arguments or ()) != 2:
        given = (
            "an image without a question" if arguments and len(arguments) == 1 else f"{len(arguments or ())} arguments"
        )
        raise SettingsError(f"expected IMAGE QUESTION, got {given}", 'm2pt attn-map image.jpg "Is there a chair?"')
    assert arguments is not None
    image, question = arguments
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
