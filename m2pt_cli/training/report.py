"""Write the results of a finished run: final weights, model card, loss curve and result."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from m2pt_cli.data.sample import IMAGE_MARK
from m2pt_cli.data.vision_flan import REPO as VISION_FLAN
from m2pt_cli.errors import DivergenceError, M2PTError
from m2pt_cli.families.family import LLAVA
from m2pt_cli.generation.engine import AnswerEngine, Question
from m2pt_cli.method import check_prompts
from m2pt_cli.method.card import CITATION, LICENCE, front_matter, shown_base, usage
from m2pt_cli.models.load import NEEDS_GPU
from m2pt_cli.records import TrainResult, format_bytes
from m2pt_cli.runtime.distributed import is_first_process, process_count
from m2pt_cli.settings import TrainSettings, flag
from m2pt_cli.training.callbacks import peak_memory
from m2pt_cli.training.checkpoints import checkpoints, digest, full_disk_named, load_weights, remove_old, write_text
from m2pt_cli.training.events import Events, Finished
from m2pt_cli.training.metrics_file import METRICS_FILE, read_rows
from m2pt_cli.training.plan import Plan, needs_download
from m2pt_cli.training.run_dir import CARD_FILE, LOSS_FILE, RUN_FILE, missing_reports, write_run_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from m2pt_cli.training.setup import Prepared

# The window of the running mean as a fraction of the run.
_WINDOW = 0.05
# Number of answers in the card, and the longest answer in tokens.
_SAMPLES, _LONGEST_ANSWER = 3, 32


def plot_loss(rows: Sequence[dict[str, Any]], file: Path, *, title: str) -> None:
    """Plot the rows of ``metrics.jsonl``: each step, a running mean labelled with its window, and the validation loss.

    The axis is logarithmic if the loss falls by a factor of ten or more. Values that are not finite are omitted; a
    step of loss 0 is drawn down to the axis, and the axis is linear if a mean or a validation loss is not above 0.

    Args:
        rows: with ``step`` and either ``loss`` or ``validation_loss``.
        file: the PNG to write.
    """
    # The object interface: no pyplot, so no global state, no display and no backend to choose.
    figure = loss_figure(rows, title=title)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # characters that the font lacks are drawn as boxes
        figure.savefig(file, format="png")


def loss_figure(rows: Sequence[dict[str, Any]], *, title: str) -> Figure:
    """Return the figure; see `plot_loss`."""
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
        is_short = len(losses) < 3  # a line of one point is invisible
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
    """Return steps and values of the rows whose value is finite."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    return [step for step, _ in found], [value for _, value in found]


def _wants_logarithm(means: Sequence[float], validation: Sequence[float]) -> bool:
    values = [*means, *validation]
    return len(values) > 1 and min(values) > 0 and max(values) >= 10 * min(values)


def _window_of(count: int, share: float = _WINDOW) -> int:
    return max(1, round(count * share))


def running_mean(values: Sequence[float], share: float = _WINDOW) -> list[float]:
    """Return the mean of each value and those before it; the window is the fraction ``share`` of all values."""
    window = _window_of(len(values), share)
    means = []
    total = 0.0
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        means.append(total / min(index + 1, window))
    return means


# Settings shown in the card; run.yaml has all of them.
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
    base_models: Sequence[str],
    model_type: str = "llava",
    data: Mapping[str, Any],
    result: Mapping[str, Any],
    versions: Mapping[str, str],
) -> str:
    """Return the model card: Markdown with the Hub's front matter.

    Args:
        settings: resolved.
        base: the base's name, as the adapter's config holds it.
        base_models: its Hub ids, see `BaseEntry.hub_ids`.
        model_type: of its config.
        data: ``description``, ``samples``, ``validation``, ``skipped``.
        result: ``steps``, ``best_step``, ``loss``, ``validation``, ``seconds``, ``bytes``; ``parts``: trained
            parameters by part; ``total``: parameters of the base; ``answers``: ``image``, ``question``, ``answer``.
    """
    is_full = settings.method == "full"
    total, trained = result["total"], sum(result["parts"].values())
    embedded = " (the small model that is embedded in m2pt_cli)" if base == "nano" else ""
    lines = [
        *front_matter(
            base_models=base_models,
            tags=[*(["llava"] if model_type in LLAVA.classes else [model_type]), settings.method],
            library="transformers" if is_full else "peft",
            datasets=hub_datasets(settings.data),
        ),
        f"# {_TITLES[settings.method]} on {shown_base(base)}",
        "",
        f"Trained with `m2pt train` {versions['m2pt']}: {trained:,} parameters, {100 * trained / total:.3g} % of the "
        f"{total:,} of the base{embedded}, which stays frozen."
        if not is_full
        else f"Trained with `m2pt train` {versions['m2pt']}: {trained:,} of the model's {total:,} parameters.",
        "",
        *(_USE_MODEL if is_full else usage(base, is_m2pt=settings.method != "lora")),
        *_answers(result["answers"]),
        "## Data",
        "",
        f"{data['description']}: {data['samples']:,} training samples"
        + (f", {data['validation']:,} held out for validation" if data["validation"] else "")
        + (f", {data['skipped']:,} faulty ones skipped" if data["skipped"] else "")
        + ".",
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *_scores(result),
        "",
        "![loss](loss.png)",
        "",
        "No benchmark was run yet: "
        f"`m2pt eval {'--base' if is_full else '--adapter'} . --bench demo` (or `mme`, `pope`, ...) gives scores.",
        "",
        "## Trained parts",
        "",
        "| part | parameters |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {count:,} |" for name, count in result["parts"].items() if count),
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
        *LICENCE,
        *(CITATION if settings.method not in ("lora", "full") else ()),
    ]
    return "\n".join(lines)


_USE_MODEL = (
    "## Use", "", "`.` is this folder; give its path, or its id on the Hub.", "",
    "```bash", 'm2pt infer image.jpg "What is in this image?" --base .', "```", "",
    "In Python:", "",
    "```python", "from m2pt_cli import answer, load", "",
    'model, processor = load(base=".")', 'print(answer(model, "image.jpg", "What is in this image?"))', "```", "",
)  # fmt: skip


def hub_datasets(data: Sequence[str]) -> list[str]:
    """Return the Hub ids among the sources of ``--data``, without their subsets."""
    found = []
    for name in data:
        if name == "vision-flan":
            found.append(VISION_FLAN)
        elif needs_download(name):
            found.append(name.partition(":")[0])
    return list(dict.fromkeys(found))


def _answers(answers: Sequence[Mapping[str, str]]) -> list[str]:
    if not answers:
        return []
    rows = [f"| {_cell(row['image'])} | {_cell(row['question'])} | {_cell(row['answer'])} |" for row in answers]
    return ["## Sample answers", "", "| image | question | answer |", "|---|---|---|", *rows, ""]


def _cell(text: str) -> str:
    """Escape text for a cell of a Markdown table, on one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", line) or " "


def _scores(result: Mapping[str, Any]) -> list[str]:
    rows = {
        "steps": f"{result['steps']:,}",
        "training loss (last tenth)": _number(result["loss"]),
        "validation loss": _number(result["validation"]),
        "kept weights of step": f"{result['best_step']:,}",
        "seconds": f"{result['seconds']:,.0f}",
        "size": format_bytes(result["bytes"]),
    }
    return [f"| {name} | {value} |" for name, value in rows.items() if value is not None]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def finish(plan: Plan, prepared: Prepared, record: dict[str, Any], *, seconds: float, events: Events) -> TrainResult:
    """Write the run directory's final files and return the result.

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
    before = prepared.recorder.earlier
    seconds += before.seconds
    result: dict[str, Any] = {
        "steps": steps,
        "best_step": best,
        "loss": loss,
        "validation": trainer.state.best_metric,
        "trainable": sum(prepared.parts.values()),
        "seconds": round(seconds, 1),
        "bytes": 0,
        "parts": dict(prepared.parts),
        "total": prepared.total,
        "answers": [],
        "files": {},
    }
    if is_first_process():
        with full_disk_named(run_dir):
            files = publish(prepared, run_dir)
            result["files"] = files
            result["bytes"] = sum(written.get("bytes", 0) for written in files.values())
            result["answers"] = sample_answers(plan, prepared)
            _plot(plan, rows, run_dir)
        write_text(run_dir / CARD_FILE, _card(plan, record | {"result": result}))
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
            tokens=before.tokens + trainer.tokens_seen * trainer.args.world_size,
            memory=memory,
            bytes=result["bytes"],
        )
    )
    fields = {name: result[name] for name in ("steps", "loss", "validation", "trainable", "seconds", "bytes")}
    return TrainResult(output_dir=str(run_dir), method=plan.settings.method, base=plan.base, **fields)


def _plot(plan: Plan, rows: Sequence[dict[str, Any]], run_dir: Path) -> None:
    title = f"{plan.settings.method} on {Path(plan.base).name}, {plan.data['description']}"
    plot_loss(rows, run_dir / LOSS_FILE, title=title)


def _card(plan: Plan, record: Mapping[str, Any]) -> str:
    return model_card(
        plan.settings,
        base=plan.entry.repo_id or plan.entry.name,
        base_models=plan.entry.hub_ids,
        model_type=plan.entry.geometry.model_type,
        data=record["data"],
        result=record["result"],
        versions=record["versions"],
    )


def rewrite_reports(plan: Plan, run_dir: Path, record: Mapping[str, Any]) -> list[str]:
    """Write a finished run's missing files other than the weights, from its record.

    Returns:
        A line for each file that was missing or empty.
    """
    rows = read_rows(run_dir / METRICS_FILE)
    said = []
    for name in missing_reports(run_dir):
        if name == CARD_FILE and "parts" in record["result"]:
            write_text(run_dir / CARD_FILE, _card(plan, record))
            said.append(f"{name} was missing and is written again")
        elif name == LOSS_FILE and rows:
            _plot(plan, rows, run_dir)
            said.append(f"{name} was missing and is drawn again")
        else:
            said.append(f"{name} is missing and can't be made again without training; the weights are complete")
    return said


def sample_answers(plan: Plan, prepared: Prepared) -> list[dict[str, str]]:
    """Return the trained model's answers to the first questions about one image, from validation samples if any.

    Empty if several processes train, or if a large model would take minutes on a CPU.
    """
    loaded = prepared.loaded
    if process_count() > 1 or (loaded.device.type == "cpu" and prepared.total > NEEDS_GPU):
        return []
    samples = (s for s in chain(plan.validation, plan.train) if len(s.images) == 1 and s.turns)
    asked = [
        Question(str(index), sample.turns[0].text.replace(IMAGE_MARK, "").strip(), sample.images, _LONGEST_ANSWER)
        for index, sample in enumerate(islice(samples, _SAMPLES))
    ]
    settings = plan.settings
    model: Any = prepared.model.eval()
    try:
        with torch.no_grad(), prepared.trainer.compute_loss_context_manager():
            engine = AnswerEngine(
                dataclasses.replace(loaded, model=model),
                template=settings.template or "plain",
                image_fit=settings.image_fit or "base",
            )
            replies = sorted(engine.answer(asked), key=lambda reply: int(reply.question.id))
    except (M2PTError, RuntimeError):
        return []  # a failed example must not fail a finished training
    return [
        {"image": Path(reply.question.images[0].name).name, "question": reply.question.text, "answer": reply.text}
        for reply in replies
        if reply.text is not None
    ]


def publish(prepared: Prepared, run_dir: Path) -> dict[str, dict[str, Any]]:
    """Move the final weights and configs into ``run_dir``, the config last: without it no adapter can be loaded.

    Returns:
        The written files by name, for weights with ``bytes`` and ``sha256``.
    """
    partial = run_dir / ".final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        prepared.save_final(partial)
        files = sorted(partial.iterdir(), key=lambda file: (file.name.endswith("config.json"), file.name))
        written = {
            file.name: {"bytes": file.stat().st_size, "sha256": digest(file)} if file.suffix == ".safetensors" else {}
            for file in files
        }
        for file in files:
            # safetensors makes its files readable only for the owner, regardless of the umask.
            shutil.copymode(run_dir / RUN_FILE, file)
            os.replace(file, run_dir / file.name)
        return written
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_finite(prepared: Prepared) -> None:
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(
                f"{name} became NaN or infinite in the last step; the last good checkpoint is kept",
                "lower --learning-rate (or --visual-lr, --textual-lr, --interaction-lr), or raise --warmup",
            )
