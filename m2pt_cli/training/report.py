"""What a finished run leaves: kept weights, model card, loss curve and result."""

from __future__ import annotations

import json
import math
import os
import shutil
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from m2pt_cli.errors import DivergenceError
from m2pt_cli.method import check_prompts
from m2pt_cli.records import TrainResult
from m2pt_cli.runtime.distributed import is_first_process
from m2pt_cli.settings import TrainSettings, flag
from m2pt_cli.training.callbacks import peak_memory, read_rows
from m2pt_cli.training.checkpoints import checkpoints, full_disk_named, load_weights, remove_old, write_text
from m2pt_cli.training.events import Events, Finished
from m2pt_cli.training.plan import Plan
from m2pt_cli.training.run_dir import CARD_FILE, LOSS_FILE, METRICS_FILE, RUN_FILE, write_run_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from m2pt_cli.training.setup import Prepared

# The running mean looks back over this share of the run.
_WINDOW = 0.05


def plot_loss(rows: Sequence[dict[str, Any]], file: Path, *, title: str) -> None:
    """Draw the rows of ``metrics.jsonl``: each step, a running mean that says its window, and the validation loss.

    The axis is logarithmic if the loss falls by a factor of ten or more. Values that are not finite are left out; a
    step of loss 0 goes down to the axis, and the axis is linear if a mean or a validation loss is not above 0.

    Args:
        rows: with ``step`` and either ``loss`` or ``validation_loss``.
        file: the PNG to write.
    """
    # The object interface: no pyplot, so no global state, no display and no backend to choose.
    figure = loss_figure(rows, title=title)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # a script without a font is drawn as boxes
        figure.savefig(file, format="png")


def loss_figure(rows: Sequence[dict[str, Any]], *, title: str) -> Figure:
    """The figure itself; see `plot_loss`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, losses = _finite(rows, "loss")
    validated, validation = _finite(rows, "validation_loss")
    means = running_mean(losses)
    window = _window_of(len(losses))
    figure = Figure(figsize=(6, 3.4), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if losses:
        is_short = len(losses) < 3  # a line of one point is none
        axes.plot(steps, losses, color="#9ecae1", linewidth=0.7, marker="." if is_short else None, label="each step")
    if window > 1:
        axes.plot(steps, means, color="#08519c", linewidth=1.6, label=f"mean of the last {window} steps")
    if validation:
        axes.plot(validated, validation, color="#d94801", marker="o", markersize=3.5, linewidth=1.2, label="validation")
    axes.set_title("\n".join(textwrap.wrap(title, 80, max_lines=2, placeholder=" …")), fontsize=9, parse_math=False)
    axes.set_xlabel("step", fontsize=8)
    if _wants_logarithm(means, validation):
        low, high = min(value for value in (*losses, *validation) if value > 0), max(*losses, *validation)
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(low / 1.2, high * 1.2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("loss (mean over supervised tokens,\nlogarithmic)", fontsize=8)
    else:
        axes.set_ylabel("loss (mean over supervised tokens)", fontsize=8)
        if not any(value < 0 for value in (*losses, *validation)):
            axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if losses or validation:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _finite(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have a finite one."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    return [step for step, _ in found], [value for _, value in found]


def _wants_logarithm(means: Sequence[float], validation: Sequence[float]) -> bool:
    values = [*means, *validation]
    return len(values) > 1 and min(values) > 0 and max(values) >= 10 * min(values)


def _window_of(count: int, share: float = _WINDOW) -> int:
    return max(1, round(count * share))


def running_mean(values: Sequence[float], share: float = _WINDOW) -> list[float]:
    """The mean of each value and those before it, over a window of ``share`` of all values."""
    window = _window_of(len(values), share)
    means = []
    total = 0.0
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        means.append(total / min(index + 1, window))
    return means


# Settings a reader of the card wants; run.yaml holds all of them.
_SHOWN = (
    "method", "visual_prompts", "textual_prompts", "interaction", "visual_tokens", "train_lm_head", "init", "lora_rank",
    "epochs", "max_steps", "batch_size", "accumulation", "learning_rate", "visual_lr", "textual_lr", "interaction_lr",
    "warmup", "weight_decay", "max_length", "template", "image_fit", "gradient_checkpointing", "seed", "dtype",
)  # fmt: skip

_TITLES = {
    "m2pt": "M²PT adapter", "visual": "Visual prompts", "textual": "Textual prompts",
    "interaction": "Interaction layer", "lora": "LoRA adapter", "full": "Fine-tuned model",
}  # fmt: skip


def model_card(
    settings: TrainSettings,
    *,
    base: str,
    data: Mapping[str, Any],
    result: Mapping[str, Any],
    parts: Mapping[str, int],
    total: int,
    versions: Mapping[str, str],
) -> str:
    """Markdown with the Hub's front matter.

    Args:
        settings: resolved.
        base: the base's name, as the adapter's config holds it.
        data: ``description``, ``samples``, ``validation``, ``skipped``.
        result: ``steps``, ``best_step``, ``loss``, ``validation``, ``seconds``, ``bytes``.
        parts: trained parameters by part; ``total``: parameters of the base.
    """
    is_full = settings.method == "full"
    trained = sum(parts.values())
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"library_name: {'transformers' if is_full else 'peft'}",
        "pipeline_tag: image-text-to-text",
        f"tags: [{', '.join(dict.fromkeys(['m2pt', 'llava', settings.method]))}]",
        "---",
        "",
        f"# {_TITLES[settings.method]} on {base}",
        "",
        f"Trained with `m2pt train` {versions['m2pt']}: {trained:,} parameters, {100 * trained / total:.3g} % of the "
        f"{total:,} of the base, which stays frozen."
        if not is_full
        else f"Trained with `m2pt train` {versions['m2pt']}: {trained:,} of the model's {total:,} parameters.",
        "",
        "## Use",
        "",
        *_use(settings, base),
        "",
        "## Data",
        "",
        f"{data['description']}: {data['samples']:,} training samples"
        + (f", {data['validation']:,} held out for validation" if data["validation"] else "")
        + (f", {data['skipped']:,} faulty ones skipped" if data["skipped"] else "")
        + ".",
        "",
        "## Scores",
        "",
        "| | |",
        "|---|---|",
        *_scores(result),
        "",
        "![loss](loss.png)",
        "",
        "Evaluate it: `m2pt eval --adapter . --bench demo` (or `mme`, `pope`, ...).",
        "",
        "## Trained parts",
        "",
        "| part | parameters |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {count:,} |" for name, count in parts.items() if count),
        "",
        "## Settings",
        "",
        "`run.yaml` repeats this run: `m2pt train --config run.yaml`.",
        "",
        "| setting | value |",
        "|---|---|",
        *(
            f"| `{flag(name)}` | {getattr(settings, name)} |"
            for name in _SHOWN
            if getattr(settings, name) is not None and (name != "lora_rank" or settings.method == "lora")
        ),
        "",
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}.",
        "",
    ]
    return "\n".join(lines)


def _use(settings: TrainSettings, base: str) -> list[str]:
    question = '"What is in this image?"'
    if settings.method == "full":
        return ["```bash", f"m2pt infer image.jpg {question} --base .", "```"]
    lines = ["```bash", f"m2pt infer image.jpg {question} --adapter .", "```", "", "In Python:", "", "```python"]
    if settings.method == "lora":
        lines += ["from peft import PeftModel"]
    else:
        lines += ["import m2pt_cli.method  # registers M2PT with PEFT: needed before from_pretrained", ""]
        lines += ["from peft import PeftModel"]
    if base == "nano":
        lines += ["from m2pt_cli import load", "", 'model, processor = load(base="nano", adapter=".")', "```"]
        return [line for line in lines if line != "from peft import PeftModel"]
    return [
        *lines,
        "from transformers import AutoModelForImageTextToText",
        "",
        f"base = AutoModelForImageTextToText.from_pretrained({json.dumps(base)})",
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
    ]


def _scores(result: Mapping[str, Any]) -> list[str]:
    rows = {
        "steps": f"{result['steps']:,}",
        "training loss (last tenth)": _number(result["loss"]),
        "validation loss": _number(result["validation"]),
        "kept weights of step": f"{result['best_step']:,}",
        "seconds": f"{result['seconds']:,.0f}",
        "size": f"{result['bytes'] / 2**20:.2f} MiB",
    }
    return [f"| {name} | {value} |" for name, value in rows.items() if value is not None]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def finish(plan: Plan, prepared: Prepared, record: dict[str, Any], *, seconds: float, events: Events) -> TrainResult:
    """Write the run directory's final files and say what came out.

    With validation samples the weights of the best checkpoint are kept, else those of the last step.
    """
    run_dir, trainer = prepared.run_dir, prepared.trainer
    steps = trainer.state.global_step
    best = trainer.state.best_global_step or steps
    if best != steps:
        load_weights(prepared.model, run_dir / f"checkpoint-{best}")
    _require_finite(prepared)
    rows = read_rows(run_dir / METRICS_FILE) if is_first_process() else []
    losses = [row["loss"] for row in rows if "loss" in row]
    tail = losses[-max(1, len(losses) // 10) :]
    loss = sum(tail) / len(tail) if tail else None
    memory = peak_memory(prepared.loaded.device)
    result: dict[str, Any] = {
        "steps": steps,
        "best_step": best,
        "loss": loss,
        "validation": trainer.state.best_metric,
        "trainable": sum(prepared.parts.values()),
        "seconds": round(seconds, 1),
        "bytes": 0,
    }
    if is_first_process():
        title = f"{plan.settings.method} on {Path(plan.base).name}, {plan.data['description']}"
        with full_disk_named(run_dir):
            result["bytes"] = publish(prepared, run_dir)
            plot_loss(rows, run_dir / LOSS_FILE, title=title)
        card = model_card(
            plan.settings,
            base=prepared.loaded.name,
            data=plan.data,
            result=result,
            parts=prepared.parts,
            total=prepared.total,
            versions=record["versions"],
        )
        write_text(run_dir / CARD_FILE, card)
        write_run_file(run_dir, record | {"result": result})
        if plan.settings.keep is None:
            for _, folder in checkpoints(run_dir):
                shutil.rmtree(folder, ignore_errors=True)
        else:
            remove_old(run_dir, keep=plan.settings.keep, best_step=best)
    if isinstance(prepared.model, PeftModel):
        check_prompts(prepared.model.eval(), str(run_dir))
    events(
        Finished(
            output_dir=run_dir,
            steps=steps,
            best_step=best,
            loss=loss,
            validation=result["validation"],
            parts=prepared.parts,
            total=prepared.total,
            seconds=seconds,
            tokens=trainer.tokens_seen * trainer.args.world_size,
            memory=memory,
            bytes=result["bytes"],
        )
    )
    fields = {name: result[name] for name in ("steps", "loss", "validation", "trainable", "seconds", "bytes")}
    return TrainResult(output_dir=str(run_dir), method=plan.settings.method, base=plan.base, **fields)


def publish(prepared: Prepared, run_dir: Path) -> int:
    """Move the final weights and configs into ``run_dir``, the config last: without it there is no adapter to load.

    Returns:
        Bytes of the weights.
    """
    partial = run_dir / ".final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        prepared.save_final(partial)
        files = sorted(partial.iterdir(), key=lambda file: (file.name.endswith("config.json"), file.name))
        size = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
        for file in files:
            # safetensors makes its files readable for their owner alone, whatever the umask says.
            shutil.copymode(run_dir / RUN_FILE, file)
            os.replace(file, run_dir / file.name)
        return size
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_finite(prepared: Prepared) -> None:
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(
                f"{name} became NaN or infinite in the last step; the last good checkpoint is kept",
                "lower --learning-rate (or --visual-lr, --textual-lr, --interaction-lr), or raise --warmup",
            )
