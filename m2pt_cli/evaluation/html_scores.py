"""Evaluation scores as HTML: the summary, and the categories of every benchmark with the chance level."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from m2pt_cli.evaluation.results import EvalRun, Headline, headlines

# Benchmarks with more categories than this are collapsed.
_MOST_OPEN = 20
# Characters of a name that fit a column as it is.
_LONG = 18
_PARTS = ("relations", "classes", "categories")
# Columns in points, not shares.
_POINTS = ("mme", "mmavg")


def score_sections(runs: Sequence[EvalRun]) -> str:
    """Return the summary of all runs, then each benchmark's categories and notes."""
    benches = dict.fromkeys(bench for run in runs for bench in run.benchmarks)
    return _summary(runs) + "".join(_bench(bench, runs) for bench in benches)


def breakable(text: str) -> str:
    """Escaped text that may break behind ``- _ / . : =``: a long name breaks there, and not in the middle of a word."""
    return "<wbr>".join(escape(part) for part in re.split(r"(?<=[-_/.:=])(?=\S)", text))


def _summary(runs: Sequence[EvalRun]) -> str:
    rows = [headlines(run) for run in runs]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    body = []
    for run, row in zip(runs, rows, strict=True):
        cells = []
        for column in columns:
            found = row.get(column, Headline(None))
            others = [score for other in rows if column in other and (score := other[column].value) is not None]
            value = found.value
            best = len(runs) > 1 and value is not None and value == max(others) > min(others)
            text = _points(value) if column.split()[0] in _POINTS else percent(value, found.interval)
            cells.append(f'<td class="best">{text}</td>' if best else f"<td>{text}</td>")
        body.append(f'<tr><th scope="row"{_long(run.name)}>{breakable(run.name)}</th>{"".join(cells)}</tr>')
    said = "Right answers in percent, with 95 % intervals; MME in points."
    said += " The best of a column is bold." if len(runs) > 1 else ""
    return f"<h2>Scores</h2><p class=note>{said}</p>" + _table("scores", ["run", *columns], body)


def _bench(bench: str, runs: Sequence[EvalRun]) -> str:
    blocks = [(run.name, run.benchmarks[bench]) for run in runs if bench in run.benchmarks]
    first = blocks[0][1]
    notes = [
        f"{breakable(name)}: {note}"
        for name, block in blocks
        for note in (*map(escape, block.get("notes") or ()), *_unread(block))
    ]
    text = "".join(f"<li>{note}</li>" for note in notes)
    table, count = "", 0
    if "tasks" in first and "majority" in first:
        table, count = _families(blocks)
    elif "perception" in first:
        titles = {"score": "score", "acc": "acc", "acc_plus": "acc+"}
        table, count = _by_run(blocks, "categories", titles, _points)
    elif "splits" in first:
        names = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "yes_ratio": "yes"}
        table, count = _by_run(blocks, "splits", names, percent)
    elif part := next((key for key in _PARTS if first.get(key)), None):
        table, count = _categories(blocks, part)
    if not table and not text:
        return ""
    if count > _MOST_OPEN:
        table = f"<details><summary>{count} parts of {escape(bench)}</summary>{table}</details>"
    return f"<h3>{breakable(bench)}</h3>{table}" + (f"<ul class=note>{text}</ul>" if text else "")


def _unread(block: Mapping[str, Any]) -> list[str]:
    count = block.get("unparsed")
    return [f"{count:,} answers could not be read"] if count else []


def _families(blocks: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, int]:
    """demo: families under seen and unseen, each with what guessing scores, and the blind score where there is one."""
    first = blocks[0][1]
    heads = ["family", "n", "guess"]
    for name, block in blocks:
        heads += [name] + ([f"{name}, blind"] if block.get("shuffled") else [])
    body = []
    for kind in ("seen", "unseen"):
        tasks = {name: task for name, task in first["tasks"].items() if task["seen"] is (kind == "seen")}
        n = sum(task["n"] for task in tasks.values())
        cells = [f"{n:,}", percent(first["majority"][kind])]
        for _, block in blocks:
            cells.append(percent(block[kind], block["intervals"][kind]))
            cells += [percent(block["shuffled"][kind])] if block.get("shuffled") else []
        body.append(_row(f"all {kind}", cells, "whole"))
        for name, task in tasks.items():
            cells = [f"{task['n']:,}", percent(task["majority"])]
            for _, block in blocks:
                part = block["tasks"].get(name, {})
                cells.append(percent(part.get("accuracy"), part.get("interval")))
                if blind := block.get("shuffled"):
                    cells.append(percent(blind["tasks"].get(name, {}).get("accuracy")))
            body.append(_row(name, cells))
    return _table("parts", heads, body), len(first["tasks"])


def _categories(blocks: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> tuple[str, int]:
    """Categories of any benchmark, a column for each run."""
    names = dict.fromkeys(name for _, block in blocks for name in block.get(key) or ())
    body = []
    for name in names:
        parts = [(block.get(key) or {}).get(name, {}) for _, block in blocks]
        n = max(part.get("n", 0) for part in parts)
        body.append(_row(name, [f"{n:,}", *(percent(part.get("accuracy"), part.get("interval")) for part in parts)]))
    return _table("parts", ["category", "n", *(name for name, _ in blocks)], body), len(names)


def _by_run(
    blocks: Sequence[tuple[str, Mapping[str, Any]]],
    part: str,
    titles: Mapping[str, str],
    shown: Callable[[float | None], str],
) -> tuple[str, int]:
    """Several numbers (by key of a part, with their titles) for each part: rows for each run under its name."""
    body = []
    for name, block in blocks:
        if len(blocks) > 1:
            head = f'<th scope="rowgroup" colspan="{len(titles) + 1}">{breakable(name)}</th>'
            body.append(f'<tr class="whole">{head}</tr>')
        body += [_row(label, [shown(found[key]) for key in titles]) for label, found in block[part].items()]
    first = {"categories": "category", "splits": "split"}[part]
    return _table("parts", [first, *titles.values()], body), len(blocks[0][1][part])


def _row(name: str, cells: Sequence[str], kind: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    found = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{marked}><th scope="row"{_long(name)}>{breakable(name)}</th>{found}</tr>'


def _table(kind: str, heads: Sequence[str], body: Sequence[str]) -> str:
    """Return a table that scrolls separately if it is too wide, with the keyboard too."""
    titles = "".join(f'<th scope="col"{_long(head)}>{breakable(head)}</th>' for head in heads)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(heads[0])} scores"><table class="{kind}">'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _long(name: str) -> str:
    """Return the class attribute of a heading that needs a wide column."""
    return ' class="long"' if len(name) > _LONG else ""


def percent(share: float | None, interval: Sequence[float] | None = None) -> str:
    """Format a fraction as percent, followed by its interval; a dash for None."""
    if share is None:
        return "–"
    if interval is None:
        return f"{100 * share:.1f}"
    return f"{100 * share:.1f} <small>{100 * interval[0]:.1f}–{100 * interval[1]:.1f}</small>"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
