"""The model card (``README.md``) of a run directory: what the adapter is, how it was made, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from m2pt_cli.settings import TrainSettings, flag

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
