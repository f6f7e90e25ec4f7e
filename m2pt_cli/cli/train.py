"""``m2pt train``: tune an adapter."""

from __future__ import annotations

from m2pt_cli.cli import options
from m2pt_cli.cli import train_options as its
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import Interrupted
from m2pt_cli.settings import TrainSettings

HELP = "Tune an adapter on images and conversations; the run directory is printed at the end."
EPILOG = "\n\n".join(
    [
        "Examples:",
        "  m2pt train --base nano --data demo --output-dir runs/demo",
        "  m2pt train --data vision-flan",
        "  m2pt train --data mine.json --images photos --validation 0.05 --dry-run",
        "  m2pt train --resume --output-dir runs/demo",
        "  torchrun --nproc-per-node 4 -m m2pt_cli train --data vision-flan",
        "Ctrl-C saves a checkpoint and leaves with 130; --resume goes on from it.",
    ]
)


def command(
    data: its.Data = None,
    images: its.Images = None,
    limit: its.Limit = None,
    validation: its.Validation = None,
    max_length: its.MaxLength = None,
    template: its.Template = None,
    image_fit: its.ImageFit = None,
    skip_bad: its.SkipBad = None,
    allow_url: its.AllowUrl = None,
    workers: its.Workers = None,
    method: its.Method = None,
    visual_prompts: its.VisualPrompts = None,
    textual_prompts: its.TextualPrompts = None,
    interaction: its.Interaction = None,
    visual_tokens: its.VisualTokens = None,
    train_lm_head: its.TrainLmHead = None,
    init: its.Init = None,
    lora_rank: its.LoraRank = None,
    epochs: its.Epochs = None,
    max_steps: its.MaxSteps = None,
    batch_size: its.BatchSize = None,
    accumulation: its.Accumulation = None,
    learning_rate: its.LearningRate = None,
    visual_lr: its.VisualLr = None,
    textual_lr: its.TextualLr = None,
    interaction_lr: its.InteractionLr = None,
    warmup: its.Warmup = None,
    weight_decay: its.WeightDecay = None,
    gradient_checkpointing: its.Checkpointing = None,
    output_dir: its.OutputDir = None,
    config: its.Config = None,
    save_steps: its.SaveSteps = None,
    keep: its.Keep = None,
    report_to: its.ReportTo = None,
    resume: its.Resume = False,
    overwrite: its.Overwrite = False,
    dry_run: its.DryRun = False,
    base: its.Base = None,
    device: options.DeviceOption = None,
    dtype: its.Dtype = None,
    seed: its.Seed = None,
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> int:
    flags = {
        key: value for key, value in locals().items() if key not in ("config", "dry_run", "json", "quiet", "verbose")
    }
    from m2pt_cli.training.distributed import is_first_process
    from m2pt_cli.training.run_folder import settings_file

    output = Output.configure(json=json, quiet=quiet or not is_first_process(), verbose=verbose)
    flags["report_to"] = [name for names in report_to or () for name in names.split(",")]
    # A switch that was not said must not go over the file's value.
    flags |= {"resume": resume or None, "overwrite": overwrite or None}
    file = settings_file(config, output_dir=output_dir, resume=resume)
    settings = TrainSettings.from_sources(file, flags)
    if dry_run:
        from m2pt_cli.cli.train_plan import show_plan

        show_plan(settings, output)
        return 0

    from m2pt_cli.cli.progress import TrainProgress
    from m2pt_cli.training.run import run_training

    try:
        with TrainProgress(output) as progress:
            result = run_training(settings, events=progress)
    except Interrupted as stop:
        if is_first_process():
            raise
        return stop.exit_code  # the first process says it for all
    if is_first_process():
        if output.is_json:
            output.json(result)
        else:
            output.text(result.output_dir)
    return 0
