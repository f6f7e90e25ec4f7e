"""Command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Model and device"
_OUTPUT = "Output"

BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="BASE",
        help="Base: nano, smolvlm-256m, llava-1.5-7b, another alias, a Hub id or a folder. "
        "Default: the adapter's own, then $M2PT_BASE, then llava-1.5-7b.",
        rich_help_panel=_MODEL,
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        "--adapter", metavar="A", help="Adapter: a folder or a Hub id. Default: $M2PT_ADAPTER.", rich_help_panel=_MODEL
    ),
]
AdaptersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="A",
        help="Adapter: a folder or a Hub id; repeatable, to compare several; 'none' is the base without an adapter. "
        "Default: $M2PT_ADAPTER.",
        rich_help_panel=_MODEL,
    ),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="NAME",
        help="Chat template: vicuna_v1, llava_v1, plain, or base (the base's own).",
        rich_help_panel=_MODEL,
    ),
]
ImageFitOption = Annotated[
    str | None,
    typer.Option(
        "--image-fit",
        metavar="FIT",
        help="How an image is made square: crop (resize shortest edge, crop centre), pad (with the mean colour) "
        "or base (the base's own way).",
        rich_help_panel=_MODEL,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:N or mps. Default: $M2PT_DEVICE, then the fastest available.",
        rich_help_panel=_MODEL,
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="auto, float32, bfloat16 or float16. auto: bfloat16 on CUDA, float32 on a CPU.",
        rich_help_panel=_MODEL,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Random seed.", rich_help_panel=_MODEL)]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Number of CPU threads.", rich_help_panel=_MODEL)
]
AllowUrlOption = Annotated[bool, typer.Option("--allow-url", help="Allow images from http(s) URLs.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, and errors as JSON on stderr.", rich_help_panel=_OUTPUT)
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print only errors on stderr.", rich_help_panel=_OUTPUT)]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print details on stderr.", rich_help_panel=_OUTPUT)
]
OutputDirOption = Annotated[
    Path | None, typer.Option("--output-dir", metavar="DIR", help="Folder to write to.", rich_help_panel=_OUTPUT)
]
