"""``m2pt import``: convert the authors' checkpoints to adapters, or Vicuna, CLIP and a projector to a base."""

from __future__ import annotations

from typing import Annotated

import typer

from m2pt_cli.cli import options
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import SettingsError

HELP = "Convert a checkpoint of the authors' code to an adapter, or the parts of a LLaVA v1 to a base."
EPILOG = "\n\n".join(
    [
        "Examples:",
        "  m2pt import checkpoints/best_checkpoint --output-dir runs/official",
        '  m2pt infer image.jpg "Is there a chair?" --adapter runs/official',
        "  m2pt import --vicuna models/vicuna-7b-v1.3 --clip models/clip-vit-large-patch14 "
        "--projector models/mm_projector.bin --output-dir models/llava-v1",
        "  m2pt import checkpoints/best_checkpoint --base models/llava-v1 --output-dir runs/official",
        "OFFICIAL is a folder, a weights file or a Hub id; no code in it is run. Its base, llava-v1-7b, is "
        "downloaded and assembled once (a download of about 15 GB, 15 GB in $HF_HOME/m2pt).",
    ]
)

_PARTS = "A base from its parts"


def command(
    official: Annotated[
        str | None, typer.Argument(metavar="OFFICIAL", help="Checkpoint of the authors' code.", show_default=False)
    ] = None,
    output_dir: options.OutputDirOption = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Base the checkpoint was trained on. Default: llava-v1-7b."),
    ] = None,
    vicuna: Annotated[
        str | None,
        typer.Option("--vicuna", metavar="V", help="Language model: a folder or a Hub id.", rich_help_panel=_PARTS),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option("--clip", metavar="C", help="Vision tower: a folder or a Hub id.", rich_help_panel=_PARTS),
    ] = None,
    projector: Annotated[
        str | None,
        typer.Option(
            "--projector",
            metavar="P",
            help="mm_projector.bin, its folder or a Hub id. A part that is not given is that of llava-v1-7b.",
            rich_help_panel=_PARTS,
        ),
    ] = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    output = Output.configure(json=json, quiet=quiet, verbose=verbose)
    parts = (vicuna, clip, projector)
    is_base = any(part is not None for part in parts)
    if official is None and not is_base:
        raise SettingsError("nothing to import", "m2pt import OFFICIAL --output-dir DIR")
    if is_base and (official is not None or base is not None):
        raise SettingsError(
            f"--vicuna, --clip and --projector make a base, {'OFFICIAL' if official else '--base'} is for an adapter",
            "first make the base, then import with --base",
        )
    if output_dir is None:
        raise SettingsError("--output-dir is missing", "name a folder that is empty or does not exist")
    from m2pt_cli.convert.official import OFFICIAL_BASE, find_official
    from m2pt_cli.files.io import check_new_folder
    from m2pt_cli.models.catalog import entry_of

    check_new_folder(output_dir)
    if official is not None:
        place = find_official(official, report=output.status)
        entry = entry_of(base or OFFICIAL_BASE)
        from m2pt_cli.convert.official_adapter import import_official

        result = import_official(place, output_dir, entry, report=output.status)
    else:
        from m2pt_cli.convert.llava_v1 import import_base

        defaults = entry_of(OFFICIAL_BASE).parts
        vicuna, clip, projector = (part or default for part, default in zip(parts, defaults, strict=True))
        result = import_base(vicuna, clip, projector, output_dir, report=output.status)
    if output.is_json:
        output.json(result)
    else:
        output.text(str(output_dir))
