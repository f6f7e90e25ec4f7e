"""``m2pt train``: tune an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from m2pt_cli.cli import options
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import Interrupted
from m2pt_cli.settings import TrainSettings

_DATA = "Data"
_METHOD = "Method"
_OPTIMISER = "Optimisation"
_RUN = "Run"
_MODEL = "Model and device"


def _option(flag: str, panel: str, metavar: str | None, help: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


Data = Annotated[
    list[str] | None,
    _option(
        "--data",
        _DATA,
        "SRC",
        "demo, vision-flan, a JSON(L) file, a folder or a Hub data set; repeatable, to mix them.",
    ),
]
Base = Annotated[
    str | None,
    _option(
        "--base",
        _MODEL,
        "BASE",
        "Base: nano, smolvlm-256m, llava-1.5-7b, another alias, a Hub id or a folder. "
        "Default: $M2PT_BASE, then llava-1.5-7b.",
    ),
]
Images = Annotated[
    list[Path] | None,
    _option("--images", _DATA, "DIR", "Folder of the images; repeatable. Default: the folder of the data file."),
]
Limit = Annotated[int | None, _option("--limit", _DATA, "N", "Use at most N samples, chosen by --seed.")]
Validation = Annotated[
    str | None,
    _option(
        "--validation",
        _DATA,
        "SHARE|FILE",
        "Validation samples: a fraction of the data such as 0.05, or a file. The best checkpoint is kept.",
    ),
]
MaxLength = Annotated[
    int | None, _option("--max-length", _DATA, "N", "Maximum tokens of a sample; longer ones are cut.")
]
Template = Annotated[
    str | None, _option("--template", _DATA, "NAME", "Chat template: vicuna_v1, llava_v1, plain or base.")
]
ImageFit = Annotated[
    str | None,
    _option(
        "--image-fit",
        _DATA,
        "FIT",
        "How an image is made square: crop (centre), pad (mean colour) or base (its own way).",
    ),
]
SkipBad = Annotated[
    bool | None,
    typer.Option(
        "--skip-bad/--refuse-bad", help="Skip and count faulty samples instead of failing.", rich_help_panel=_DATA
    ),
]
AllowUrl = Annotated[
    bool | None,
    typer.Option("--allow-url/--refuse-url", help="Allow images from http(s) URLs.", rich_help_panel=_DATA),
]
Workers = Annotated[int | None, _option("--workers", _DATA, "N", "Processes that prepare images.")]

Method = Annotated[
    str | None, _option("--method", _METHOD, "M", "m2pt, visual, textual, interaction, lora or full. Default: m2pt.")
]
VisualPrompts = Annotated[int | None, _option("--visual-prompts", _METHOD, "K", "Prompts in each vision layer.")]
TextualPrompts = Annotated[int | None, _option("--textual-prompts", _METHOD, "K", "Prompts in each LLM layer.")]
Interaction = Annotated[
    str | None,
    _option("--interaction", _METHOD, "KIND", "Interaction: auto, projector, residual, mean or none. Default: auto."),
]
VisualTokens = Annotated[
    str | None,
    _option(
        "--visual-tokens",
        _METHOD,
        "KIND",
        "Vision tokens that the LLM gets: patches, or official (patches and prompts). Default: patches.",
    ),
]
TrainLmHead = Annotated[
    bool | None,
    typer.Option("--train-lm-head/--freeze-lm-head", help="Train lm_head as well.", rich_help_panel=_METHOD),
]
Init = Annotated[
    str | None, _option("--init", _METHOD, "KIND", "Initial prompts: xavier (the default), normal or zeros.")
]
LoraRank = Annotated[int | None, _option("--lora-rank", _METHOD, "R", "LoRA rank. Default: 16.")]

Epochs = Annotated[float | None, _option("--epochs", _OPTIMISER, "X", "Passes over the data.")]
MaxSteps = Annotated[
    int | None, _option("--max-steps", _OPTIMISER, "N", "Number of optimiser steps, instead of --epochs.")
]
BatchSize = Annotated[int | None, _option("--batch-size", _OPTIMISER, "N", "Samples per device and micro-batch.")]
Accumulation = Annotated[int | None, _option("--accumulation", _OPTIMISER, "N", "Micro-batches per optimiser step.")]
LearningRate = Annotated[float | None, _option("--learning-rate", _OPTIMISER, "LR", "Peak learning rate.")]
VisualLr = Annotated[
    float | None, _option("--visual-lr", _OPTIMISER, "LR", "Peak learning rate of the visual prompts.")
]
TextualLr = Annotated[
    float | None, _option("--textual-lr", _OPTIMISER, "LR", "Peak learning rate of the textual prompts.")
]
InteractionLr = Annotated[
    float | None, _option("--interaction-lr", _OPTIMISER, "LR", "Peak learning rate of the interaction layer.")
]
Warmup = Annotated[
    float | None,
    _option("--warmup", _OPTIMISER, "SHARE", "Fraction of the steps for warmup; cosine decay to 0 follows."),
]
WeightDecay = Annotated[
    float | None, _option("--weight-decay", _OPTIMISER, "X", "Weight decay, not on biases and norms.")
]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--gradient-checkpointing/--keep-activations",
        help="Recompute activations: less memory, about a third more time.",
        rich_help_panel=_OPTIMISER,
    ),
]

OutputDir = Annotated[
    Path | None,
    _option(
        "--output-dir", _RUN, "DIR", "Run directory. Default: runs/<method>-<base>-<data>-<n>; printed at the end."
    ),
]
Config = Annotated[
    Path | None,
    _option("--config", _RUN, "FILE", "YAML file of settings, such as a run's run.yaml; flags override it."),
]
SaveSteps = Annotated[
    int | None,
    _option("--save-steps", _RUN, "N", "Steps between checkpoints and validations. Default: a fifth of the run."),
]
Keep = Annotated[
    int | None, _option("--keep", _RUN, "N", "Checkpoints to keep. Default: 2 while training, none once finished.")
]
ReportTo = Annotated[
    list[str] | None,
    _option(
        "--report-to",
        _RUN,
        "NAME",
        "Experiment tracker: tensorboard, wandb or trackio; repeatable, or joined with commas.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --output-dir with its settings; start one where there is none.",
        rich_help_panel=_RUN,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output-dir.", rich_help_panel=_RUN)]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show settings, parameters, a tokenised sample and the estimated memory, without training.",
        rich_help_panel=_RUN,
    ),
]

Dtype = Annotated[
    str | None,
    _option("--dtype", _MODEL, "DTYPE", "float32, bfloat16, float16 or auto: bfloat16 on CUDA, float32 on a CPU."),
]
Seed = Annotated[int | None, _option("--seed", _MODEL, "N", "Random seed. Default: 0.")]


HELP = "Train an adapter on conversations about images; the run directory is printed at the end."
EPILOG = "\n\n".join(
    [
        "Examples:",
        "  m2pt train --base nano --data demo --output-dir runs/demo",
        "  m2pt train --data vision-flan",
        "  m2pt train --data mine.json --images photos --validation 0.05 --dry-run",
        "  m2pt train --resume --output-dir runs/demo",
        "  torchrun --nproc-per-node 4 -m m2pt_cli train --data vision-flan",
        "Ctrl-C saves a checkpoint and exits with code 130; --resume continues from it.",
    ]
)


def command(
    data: Data = None,
    images: Images = None,
    limit: Limit = None,
    validation: Validation = None,
    max_length: MaxLength = None,
    template: Template = None,
    image_fit: ImageFit = None,
    skip_bad: SkipBad = None,
    allow_url: AllowUrl = None,
    workers: Workers = None,
    method: Method = None,
    visual_prompts: VisualPrompts = None,
    textual_prompts: TextualPrompts = None,
    interaction: Interaction = None,
    visual_tokens: VisualTokens = None,
    train_lm_head: TrainLmHead = None,
    init: Init = None,
    lora_rank: LoraRank = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    accumulation: Accumulation = None,
    learning_rate: LearningRate = None,
    visual_lr: VisualLr = None,
    textual_lr: TextualLr = None,
    interaction_lr: InteractionLr = None,
    warmup: Warmup = None,
    weight_decay: WeightDecay = None,
    gradient_checkpointing: Checkpointing = None,
    output_dir: OutputDir = None,
    config: Config = None,
    save_steps: SaveSteps = None,
    keep: Keep = None,
    report_to: ReportTo = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    base: Base = None,
    device: options.DeviceOption = None,
    dtype: Dtype = None,
    seed: Seed = None,
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> int:
    flags = {
        key: value for key, value in locals().items() if key not in ("config", "dry_run", "json", "quiet", "verbose")
    }
    from m2pt_cli.runtime.distributed import is_first_process
    from m2pt_cli.training.run_dir import settings_file

    output = Output.configure(json=json, quiet=quiet or not is_first_process(), verbose=verbose)
    flags["report_to"] = [name for names in report_to or () for name in names.split(",")]
    # A switch that was not given must not override the file's value.
    flags |= {"resume": resume or None, "overwrite": overwrite or None}
    file = settings_file(config, output_dir=output_dir, resume=resume)
    settings = TrainSettings.from_sources(file, flags)
    if dry_run:
        from m2pt_cli.cli.train_view import show_plan

        show_plan(settings, output)
        return 0

    from m2pt_cli.cli.train_view import TrainProgress
    from m2pt_cli.training.run import run_training

    try:
        with TrainProgress(output) as progress:
            result = run_training(settings, events=progress)
    except Interrupted as stop:
        if is_first_process():
            raise
        return stop.exit_code  # only the first process reports the error
    if is_first_process():
        if output.is_json:
            output.json(result)
        else:
            output.text(result.output_dir)
    return 0
