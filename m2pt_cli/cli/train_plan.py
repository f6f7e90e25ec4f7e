"""``m2pt train --dry-run``: resolved settings, parameters, samples, one tokenised sample, and the memory needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m2pt_cli.cli.output import Output
from m2pt_cli.settings import TrainSettings, flag

if TYPE_CHECKING:
    from m2pt_cli.records import ParameterCounts
    from m2pt_cli.training.dry_run import DryRun
    from m2pt_cli.training.memory import MemoryEstimate


def show_plan(settings: TrainSettings, output: Output) -> None:
    """Plan the run and print it; nothing is trained or written."""
    from m2pt_cli.analysis.parameters import Recipe, count_parameters
    from m2pt_cli.cli.progress import TrainProgress
    from m2pt_cli.training.dry_run import dry_run, planned_memory

    with TrainProgress(output) as progress:
        plan = dry_run(settings, events=progress)
    said = plan.settings
    recipe = Recipe(
        method=said.method,
        visual_prompts=said.visual_prompts or 0,
        textual_prompts=said.textual_prompts or 0,
        interaction=said.interaction,
        visual_tokens=said.visual_tokens,
        train_lm_head=said.train_lm_head,
        lora_rank=said.lora_rank,
    )
    counts = count_parameters(plan.base, plan.geometry, recipe)
    memory = planned_memory(plan, trainable=counts.trainable)
    if output.is_json:
        output.json(plan_dict(plan, counts, memory))
    else:
        output.text(output.clean("\n".join(plan_lines(plan, counts, memory))))


def plan_dict(plan: DryRun, counts: ParameterCounts, memory: MemoryEstimate) -> dict[str, Any]:
    """The JSON document of ``--dry-run --json``."""
    return {
        "output_dir": plan.output_dir,
        "base": plan.base,
        "settings": plan.settings_dict(),
        "data": plan.data,
        "steps": plan.steps,
        "tokens": {"longest": plan.longest, "mean": plan.mean, "supervised": plan.supervised, "cut": plan.cut},
        "parameters": counts,
        "memory": {"dtype": memory.dtype, "total": memory.total, "weights": memory.weights, "trained": memory.trained,
                   "activations": memory.activations},
        "sample": {"id": plan.sample_id, "images": plan.sample_images, "segments": plan.sample},
    }  # fmt: skip


def plan_lines(plan: DryRun, counts: ParameterCounts, memory: MemoryEstimate) -> list[str]:
    """The plan for a person."""
    data = plan.data
    lines = ["settings"]
    lines += [f"  {flag(name):26} {_shown(value)}" for name, value in plan.settings_dict().items()]
    lines += ["", f"data: {data['description']}"]
    lines += [
        f"  {data['samples']:,} training samples, {data['validation']:,} for validation, {data['skipped']:,} skipped"
    ]
    lines += [
        f"  {plan.mean:.1f} tokens a sample, at most {plan.longest:,}; {plan.supervised:,} supervised; {plan.cut:,} cut"
    ]
    lines += [
        "",
        f"parameters: {counts.trainable:,} trained, {counts.percent:.3g} % of the {counts.total:,} of {plan.base}",
    ]
    lines += [f"  {name.replace('_', ' '):26} {count:>13,}" for name, count in counts.groups.items() if count]
    if counts.without_effect:
        lines.append(f"  of these {counts.without_effect:,} have no effect (the last vision layer's prompts)")
    lines += ["", f"steps: {plan.steps:,}", f"adapter: {_size(counts.bytes)}"]
    lines += ["", f"memory on the device, {memory.dtype}: about {_size(memory.total)} (an estimate)"]
    for name in ("weights", "trained", "activations"):
        lines.append(f"  {name:26} {_size(getattr(memory, name)):>13}")
    length = sum(len(part.token_ids) for part in plan.sample)
    learned = sum(len(part.token_ids) for part in plan.sample if part.is_supervised)
    lines += ["", f"sample {plan.sample_id}: {length} tokens, {learned} supervised, shown in [[ ]]"]
    lines += [f"  image {name}" for name in plan.sample_images]
    lines.append("  " + "".join(_segment(part) for part in plan.sample).replace("\n", "\\n"))
    lines.append("  ids " + " ".join(_ids(part) for part in plan.sample))
    return lines


def _segment(part: Any) -> str:
    if part.is_image:
        return f"<image>x{len(part.token_ids)}"
    return f"[[{part.text}]]" if part.is_supervised else part.text


def _ids(part: Any) -> str:
    if part.is_image:
        return f"{part.token_ids[0]}x{len(part.token_ids)}"
    ids = " ".join(map(str, part.token_ids))
    return f"[[{ids}]]" if part.is_supervised else ids


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
