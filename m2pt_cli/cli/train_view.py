"""Terminal output of training: the plan, progress on stderr, and the result."""

from __future__ import annotations

import math
import shlex
import time
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from m2pt_cli.cli.output import Output
from m2pt_cli.records import format_bytes
from m2pt_cli.settings import TrainSettings, flag
from m2pt_cli.training.events import Event, Finished, Notice, Saved, Started, Step, Validated

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

    from m2pt_cli.records import ParameterCounts
    from m2pt_cli.training.estimate import DryRun, MemoryEstimate


def show_plan(settings: TrainSettings, output: Output) -> None:
    """Plan the run and print it; nothing is trained or written."""
    from m2pt_cli.models.count import Recipe, count_parameters
    from m2pt_cli.training.estimate import dry_run, planned_memory

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
    """Return the JSON document of ``--dry-run --json``."""
    return {
        "output_dir": plan.output_dir,
        "base": plan.base,
        "settings": plan.settings_dict(),
        "data": plan.data,
        "steps": plan.steps,
        "passes": plan.passes,
        "tokens": {"longest": plan.longest, "mean": plan.mean, "supervised": plan.supervised, "cut": plan.cut},
        "parameters": counts,
        "memory": {"dtype": memory.dtype, "total": memory.total, "weights": memory.weights, "trained": memory.trained,
                   "activations": memory.activations},
        "sample": {"id": plan.sample_id, "images": plan.sample_images, "segments": plan.sample},
    }  # fmt: skip


def plan_lines(plan: DryRun, counts: ParameterCounts, memory: MemoryEstimate) -> list[str]:
    """Return the plan as lines of text."""
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
    lines += [
        "",
        f"steps: {plan.steps:,}, {_passes(plan.passes)} over the data",
        f"adapter: {format_bytes(counts.bytes)}",
    ]
    lines += ["", f"memory on the device, {memory.dtype}: about {format_bytes(memory.total)} (an estimate)"]
    for name in ("weights", "trained", "activations"):
        lines.append(f"  {name:26} {format_bytes(getattr(memory, name)):>13}")
    length = sum(len(part.token_ids) for part in plan.sample)
    learned = sum(len(part.token_ids) for part in plan.sample if part.is_supervised)
    lines += ["", f"sample {plan.sample_id}: {length} tokens, {learned} supervised, shown in [[ ]]"]
    lines += [f"  image {name}" for name in plan.sample_images]
    lines.append("  " + "".join(_segment(part) for part in plan.sample).replace("\n", "\\n"))
    lines.append("  ids " + " ".join(_ids(part) for part in plan.sample))
    return lines


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _passes(count: float) -> str:
    return "1 pass" if f"{count:.3g}" == "1" else f"{count:,.0f} passes" if count >= 100 else f"{count:.3g} passes"


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


# Seconds between plain lines (growing, to keep the log of a long run short) and between redraws.
_FIRST_LINE, _LAST_LINE = 5.0, 60.0
_DRAW_EVERY = 0.25
_BARS = "▁▂▃▄▅▆▇█"


class TrainProgress:
    """Show the events of `run_training`; use it as a context manager around the run."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live: Live | None = None
        self._started: Started | None = None
        self._step: Step | None = None
        self._validated: Validated | None = None
        self._losses: list[float] = []
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=50)  # seconds, tokens, step
        self._last_shown = 0.0
        self._line_every = _FIRST_LINE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, Notice):
            self._say(event.text, is_warning=event.is_warning)
        elif isinstance(event, Started):
            self._begin(event)
        elif isinstance(event, Step):
            self._advance(event)
        elif isinstance(event, Validated):
            self._validated = event
            if not self._output.live:
                best = ", the best so far" if event.is_best else ""
                self._output.status(f"step {event.step:,}: validation loss {event.loss:.4f}{best}")
        elif isinstance(event, Saved):
            self._output.detail(f"step {event.step:,}: saved {event.folder}")
        else:
            self._finish(event)

    def _say(self, text: str, *, is_warning: bool) -> None:
        # rich prints above a live view only through its own console, so stop the view; it is redrawn later.
        self._stop()
        (self._output.warn if is_warning else self._output.status)(text)

    def _begin(self, event: Started) -> None:
        self._started = event
        self._losses = list(event.losses)
        self._last_shown = time.monotonic()
        share = 100 * event.trainable / event.total
        held_out = f" and {event.validation:,} for validation" if event.validation else ""
        resumed = f" from step {event.first_step:,}" if event.first_step else ""
        self._output.status(
            f"training {event.method} on {event.base} ({event.device}){resumed}: {event.steps:,} steps, "
            f"{event.samples:,} samples{held_out} ({_passes(event.passes)}), "
            f"{event.trainable:,} of {event.total:,} parameters ({share:.3g} %)"
        )

    def _advance(self, event: Step) -> None:
        self._step = event
        self._losses.append(event.loss)
        self._recent.append((event.seconds, event.tokens, event.step))
        now = time.monotonic()
        is_last = self._started is not None and event.step >= self._started.steps
        if self._output.live:
            if now - self._last_shown >= _DRAW_EVERY or is_last:
                self._last_shown = now
                self._draw()
        elif now - self._last_shown >= self._line_every or is_last:
            self._last_shown = now
            self._line_every = min(self._line_every * 1.3, _LAST_LINE)
            self._output.status(self._line())

    # ---- numbers ----

    def _speed(self) -> tuple[float, float] | None:
        """Return tokens per second and seconds per step over the last steps."""
        if not self._recent:
            return None
        (first_seconds, first_tokens, first_step), (seconds, tokens, step) = self._recent[0], self._recent[-1]
        if step == first_step:
            # After a resume, skip the first step: its seconds and tokens are those of the whole run.
            is_first = self._started is not None and not self._started.first_step
            return (tokens / seconds, seconds) if is_first and seconds > 0 else None
        passed = max(seconds - first_seconds, 1e-9)
        return (tokens - first_tokens) / passed, passed / (step - first_step)

    def _loss(self) -> str:
        """Return the mean loss of the last steps: single steps are noisy."""
        window = self._losses[-max(5, len(self._losses) // 20) :]
        return f"{sum(window) / len(window):.4f} (mean of {_steps(len(window))})"

    def _facts(self) -> dict[str, str]:
        assert self._started is not None and self._step is not None
        step, total = self._step.step, self._started.steps
        facts = {"step": f"{step:,}/{total:,}", "loss": self._loss()}
        if self._validated is not None:
            facts["validation"] = f"{self._validated.loss:.4f}"
        speed = self._speed()
        if speed is not None and step < total:
            facts["left"] = _duration(speed[1] * (total - step))
        if speed is not None:
            facts["tokens/s"] = f"{speed[0]:,.0f}"
        if self._step.memory is not None:
            facts["memory"] = format_bytes(self._step.memory)
        facts["learning rate"] = f"{self._step.learning_rate:.1e}"
        return facts

    def _line(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._facts().items())

    # ---- the live view ----

    def _draw(self) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            console = Console(stderr=True, markup=False, emoji=False, highlight=False)
            # Not transient: the last frame, with the whole curve, stays on the screen.
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
        self._live.update(self._view(), refresh=True)

    def _view(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        from m2pt_cli.cli.tables import lines_of

        assert self._started is not None and self._step is not None and self._live is not None
        width = max(20, min(self._live.console.width - 12, 80))
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            Text(f"{100 * self._step.step / self._started.steps:3.0f} %"),
            ProgressBar(total=self._started.steps, completed=self._step.step, width=width),
        )
        grid.add_row(Text("loss"), Text(sparkline(self._losses, width), style="cyan"))
        facts = [f"{name} {value}" for name, value in self._facts().items()]
        return Group(grid, *map(Text, lines_of(facts, "   ", self._live.console.width)))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ---- the end ----

    def _finish(self, event: Finished) -> None:
        self._stop()
        self._output.status_table(result_table(event))
        if self._output.live and self._started is not None:
            kind = "--base" if self._started.method == "full" else "--adapter"
            folder = shlex.quote(str(event.output_dir))
            self._output.status(f'next: m2pt infer IMAGE "What is in this image?" {kind} {folder}')


def result_table(event: Finished) -> Table:
    """Return a table of loss, trained parameters by part, time and size of a finished run."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    kept = f" (step {event.best_step:,} kept)" if event.best_step != event.steps else ""
    table.add_row("steps", f"{event.steps:,}{kept}")
    table.add_row("loss, last tenth", "-" if event.loss is None else f"{event.loss:.4f}")
    if event.validation is not None:
        table.add_row("validation loss", f"{event.validation:.4f}")
    for name, count in event.parts.items():
        if count:
            table.add_row(name.replace("_", " "), f"{count:,}")
    trained = sum(event.parts.values())
    table.add_row("trained in all", f"{trained:,} ({100 * trained / max(event.total, 1):.3g} %)")
    table.add_row("time", _duration(event.seconds))
    if event.seconds and event.tokens:
        table.add_row("tokens/s", f"{event.tokens / event.seconds:,.0f}")
    if event.memory is not None:
        table.add_row("peak memory", format_bytes(event.memory))
    table.add_row("saved", format_bytes(event.bytes))
    return table


def sparkline(values: list[float], width: int) -> str:
    """Draw ``values`` in ``width`` characters, each the mean of its section, from the lowest ▁ to the highest █.

    The scale is logarithmic: the loss drops steeply at first, and the rest would look flat on a linear scale.
    """
    if not values:
        return ""
    width = min(width, len(values))
    bounds = [round(index * len(values) / width) for index in range(width + 1)]
    means = [math.log(max(sum(values[a:b]) / (b - a), 1e-9)) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
