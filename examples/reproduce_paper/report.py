"""The report: table 1, the claims tested seed by seed, the figures, and all numbers as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cells import GRID_LENGTHS, Experiment, Variant
from columns import DEMO, Columns, columns_for
from figures import draw_ablations, draw_grid, draw_radar, grid_value
from running import UNTUNED, read_json, write_json
from summary import Difference, Results

from m2pt_cli.demo.dataset import demo_eval_questions, majority_guess
from m2pt_cli.demo.questions import FAMILIES

RATES = "rates.json"
VERDICTS = {"above": "above", "below": "below", "undecided": "not decided by these seeds"}


def write_report(results: Results, found: Experiment, folder: Path, *, base: str, command: str) -> Path:
    """Write ``report.md``, ``results.json``, ``cells.json`` and the figures into ``folder``.

    The tables omit unfinished cells, and the report says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = columns_for(
        name for seeds in results.records.values() for one in seeds.values() for name in one["scores"]
    )
    records = [record for seeds in results.records.values() for _, record in sorted(seeds.items())]
    write_json(folder / "cells.json", records)
    write_json(folder / "results.json", numbers(results, found, columns, base=base, command=command))
    parts = [f"# The paper's argument on {base}", "", f"Made by `{command}`. {scope(results, found)}", ""]
    parts += ["## Table 1", "", *score_table(results, found, columns, (*columns.benchmarks, columns.headline)), ""]
    if columns.others:
        parts += ["## Means", "", *score_table(results, found, columns, (columns.headline, *columns.others)), ""]
    parts += [f"* **{name}**: {text}." for name, text in columns.explained.items()]
    parts += ["* **guessing**: always the commonest answer, or any of the choices, whichever scores more.", ""]
    parts += ["## What the seeds decide", "", *claims(results, found, columns)]
    if found.whole.name in results:
        draw_radar(results, found, columns, folder / "figure1-radar.png")
        parts += ["## Figure 1", "", "![Benchmarks by method](figure1-radar.png)", ""]
        if (folder / "figure3-attention.png").exists():
            parts += ["## Figure 3", "", "![Attention received](figure3-attention.png)", ""]
    if found.whole.name in results and any(ablation.name in results for ablation in found.ablations):
        draw_ablations(results, found, columns, folder / "figure4-ablations.png")
        parts += ["## Figure 4", "", "![M²PT without one of its parts](figure4-ablations.png)", ""]
    seeds = grid_seeds(results)
    if seeds:
        draw_grid(results, columns, folder / "grid-lengths.png", seeds)
        parts += [
            "## Prompt lengths",
            "",
            "![Prompt lengths](grid-lengths.png)",
            "",
            *grid_text(results, columns, seeds),
        ]
    parts += ["## Learning rates", "", *rates_table(folder / RATES)]
    file = folder / "report.md"
    file.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return file


def scope(results: Results, found: Experiment) -> str:
    """Return what was run: seeds by part, and time."""
    records = [record for seeds in results.records.values() for record in seeds.values()]
    hours = sum(record["seconds"].get("all", record["seconds"]["evaluation"]) for record in records) / 3600
    finished = []
    for part, variants in (
        ("rows of table 1", found.rows),
        ("ablations", found.ablations),
        ("prompt lengths", found.grid),
    ):
        counts = Counter(len(results.seeds(variant.name)) for variant in variants)
        del counts[0]
        words = ", ".join(
            f"{n} with {seeds} seed{'s' * (seeds != 1)}" for seeds, n in sorted(counts.items(), reverse=True)
        )
        if words:
            finished.append(f"{part}: {words}")
    versions = records[0]["versions"]
    return (
        f"{len(records)} cells, {hours:.1f} hours of one worker; {'; '.join(finished)}. "
        f"torch {versions['torch']}, transformers {versions['transformers']}, peft {versions['peft']}. "
        "Scores are per cent, mean ± standard error over seeds."
    )


def score_table(results: Results, found: Experiment, columns: Columns, names: Sequence[str]) -> Iterator[str]:
    """Return the rows of the paper's table 1 with these columns."""
    yield "| method | trained | % | seeds | " + " | ".join(names) + " |"
    yield "|---|" + "---:|" * (3 + len(names))
    if columns is DEMO:
        guesses = guess_scores()
        cells = [columns.text(name, guesses[name]) for name in names]
        yield "| *guessing* | | | | " + " | ".join(f"*{cell}*" for cell in cells) + " |"
    for name in (UNTUNED, *(variant.name for variant in found.rows)):
        if name not in results:
            continue
        record = results.one(name)
        shown = []
        for column in names:
            mean = results.mean(name, column)
            text = "" if mean is None else columns.text(column, mean.value, mean.error)
            shown.append(f"**{text}**" if column == columns.headline and text else text)
        size = f"{record['trainable']:,} | {record['percent']:.2f}"
        yield f"| {record['label']} | {size} | {len(results.seeds(name))} | " + " | ".join(shown) + " |"


def claims(results: Results, found: Experiment, columns: Columns) -> Iterator[str]:
    """Return the paper's claims, each as differences of the same seeds with a 95 % interval (Student's t)."""
    for column in columns.tested:
        yield from differences_on(column, results, found, columns)


def differences_on(column: str, results: Results, found: Experiment, columns: Columns) -> Iterator[str]:
    """Return the claims for one score."""
    yield f"Differences on `{column}`, the same seeds compared; the interval is Student's at 95 %."
    yield ""
    yield "| compared | difference | 95 % interval | seeds above | verdict |"
    yield "|---|---:|---:|---:|---|"
    for first, second in comparisons(found):
        difference = results.difference(first.name, second.name, column)
        if difference is None:
            continue
        text = columns.text(column, difference.mean.value, difference.mean.error, signed=True)
        interval = "one seed"
        if difference.low is not None and difference.high is not None:
            ends = (columns.text(column, end, signed=True) for end in (difference.low, difference.high))
            interval = " to ".join(ends)
        counted = f"{difference.of_seeds} of {difference.mean.n}"
        compared = f"{first.label} − {second.label}"
        yield f"| {compared} | {text} | {interval} | {counted} | {VERDICTS[difference.verdict]} |"
    yield ""


def comparisons(found: Experiment) -> list[tuple[Variant, Variant]]:
    """Return the pairs to compare: M²PT with every other row, then every ablation with the whole."""
    lengths = [variant for variant in found.rows if variant.method == "m2pt"]
    others = [variant for variant in found.rows if variant.method != "m2pt"]
    pairs = [(found.whole, other) for other in others]
    lora = next(variant for variant in others if variant.name == "lora")
    pairs += [(variant, lora) for variant in lengths if variant != found.whole]
    return pairs + [(ablation, found.whole) for ablation in found.ablations]


def grid_seeds(results: Results) -> list[int]:
    """Return the seeds for which every field of the grid is finished."""
    fields = [f"m2pt-{visual}-{textual}" for visual in GRID_LENGTHS for textual in GRID_LENGTHS]
    return sorted(set.intersection(*(set(results.seeds(name)) for name in fields)))


def grid_text(results: Results, columns: Columns, seeds: Sequence[int]) -> Iterator[str]:
    """Return the grid as numbers."""
    yield "| visual \\ textual | " + " | ".join(map(str, GRID_LENGTHS)) + " |"
    yield "|---:|" + "---:|" * len(GRID_LENGTHS)
    for visual in GRID_LENGTHS:
        values = [grid_value(results, visual, textual, columns.headline, seeds) for textual in GRID_LENGTHS]
        yield (
            f"| {visual} | " + " | ".join("" if v is None else columns.text(columns.headline, v) for v in values) + " |"
        )
    yield ""
    yield f"`{columns.headline}`, mean of seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}."
    yield ""


def rates_table(file: Path) -> Iterator[str]:
    """Return how the learning rates were chosen; without a choice, that the base's defaults were used."""
    if not file.exists():
        yield "The base's own defaults, none chosen here."
        return
    choices = read_json(file)
    first = next(iter(choices.values()))["tries"][0]
    yield (
        f"Chosen once per method: {first['steps']} steps at each factor of the base's default rates, judged by the "
        f"{first['measured']}; at the edge one factor further. Held-out families were never asked."
    )
    yield ""
    factors = sorted({one["factor"] for choice in choices.values() for one in choice["tries"]})
    yield "| method | " + " | ".join(f"x{factor:.3g}" for factor in factors) + " | chosen |"
    yield "|---|" + "---:|" * len(factors) + "---|"
    for name, choice in choices.items():
        scores = {one["factor"]: one["score"] for one in choice["tries"]}
        shown = " | ".join(f"{scores[factor]:.3f}" if factor in scores else "" for factor in factors)
        rates = ", ".join(f"{key} {value:.2g}" for key, value in choice["rates"].items())
        yield f"| {name} | {shown} | {rates} |"


def numbers(results: Results, found: Experiment, columns: Columns, *, base: str, command: str) -> dict[str, Any]:
    """Return ``results.json``: mean and standard error of each score per variant, differences behind the claims."""
    variants = {}
    for name in results.records:
        record = results.one(name)
        means = {column: results.mean(name, column) for column in record["scores"]}
        variants[name] = {
            "label": record["label"],
            "trainable": record["trainable"],
            "percent": record["percent"],
            "seeds": results.seeds(name),
            "scores": {column: dataclasses.asdict(mean) for column, mean in means.items() if mean is not None},
        }
    differences = []
    for first, second in comparisons(found):
        for column in (columns.headline, *columns.others):
            difference = results.difference(first.name, second.name, column)
            if difference is not None:
                differences.append({"first": first.name, "second": second.name, "score": column, **as_json(difference)})
    return {"base": base, "command": command, "variants": variants, "differences": differences}


def as_json(difference: Difference) -> dict[str, Any]:
    return {**dataclasses.asdict(difference), "verdict": difference.verdict}


def guess_scores() -> dict[str, float]:
    """Return the accuracy of guessing on the demo benchmark, by family and by group."""
    questions = demo_eval_questions()
    guesses = majority_guess(questions)
    sizes = Counter(question.family for question in questions)

    def over(names: list[str]) -> float:
        return sum(guesses[name] * sizes[name] for name in names) / sum(sizes[name] for name in names)

    scores = dict(guesses)
    for kind, is_seen in (("seen", True), ("unseen", False)):
        members = [name for name, family in FAMILIES.items() if family.seen is is_seen]
        scores[kind] = over(members)
        scores[f"{kind}, clean"] = over([name for name in members if FAMILIES[name].style == "plain"])
        scores[f"{kind}, shifted"] = over([name for name in members if FAMILIES[name].style != "plain"])
    return scores
