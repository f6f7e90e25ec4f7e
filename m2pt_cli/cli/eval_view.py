"""Terminal output of an evaluation: progress on stderr, and tables of results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group, RenderableType
from rich.text import Text

from m2pt_cli.analysis.figure_text import cut_middle
from m2pt_cli.cli.output import Output
from m2pt_cli.cli.tables import FittingTable
from m2pt_cli.evaluation.events import Notice, Progress
from m2pt_cli.evaluation.results import LEVEL, Comparison, EvalResult, EvalRun, Headline, headlines

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

# Seconds between plain lines, and between redrawings of the live table.
_LINE_EVERY = 20.0
_DRAW_EVERY = 0.25
# On a terminal narrower than this, optional columns are dropped.
_NARROW = 72
_SPARED = ("questions/s", "failed")
_LEAST_NAME = 8


class EvalProgress:
    """Show the events of `run_evaluation`; use it as a context manager around the run."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live: Live | None = None
        self._lines: dict[tuple[str, str], _Line] = {}
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: Notice | Progress, /) -> None:
        if isinstance(event, Notice):
            if event.is_detail and not self._output.is_verbose:
                return
            self._stop()
            (self._output.warn if event.is_warning else self._output.status)(event.text)
            return
        key = (event.run, event.bench)
        if key not in self._lines and event.resumed and self._output.live:
            self._stop()  # the live table is erased; the line on resumed answers stays
            kept = f"{event.resumed:,} of {event.total:,} answers are from an earlier start"
            self._output.status(f"{event.run} on {event.bench}: {kept}")
        line = self._lines.setdefault(key, _Line(event))
        line.take(event)
        ended = event.done == event.total
        now = time.monotonic()
        if self._output.live:
            if now - self._last >= _DRAW_EVERY or ended:
                self._last = now
                self._draw()
        elif ended or now - self._last >= _LINE_EVERY:
            self._last = now
            self._output.status(line.text())

    def _draw(self) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            console = Console(stderr=True, markup=False, emoji=False, highlight=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._table(self._live.console.width), refresh=True)

    def _table(self, width: int) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        titles = ("run", "benchmark", "done", "questions/s", "score", "failed", "left")
        shown = [place for place, title in enumerate(titles) if width >= _NARROW or title not in _SPARED]
        for place in shown:
            table.add_column(titles[place], justify="left" if place < 2 else "right", no_wrap=True)
        rows = [[self._output.clean(line.cells()[place]) for place in shown] for line in self._lines.values()]
        # Numbers keep their width. Names of runs are cut in the middle: they often differ only at their ends.
        columns = list(zip([titles[place] for place in shown], *rows, strict=True))
        taken = sum(max(map(len, column)) + 2 for column in columns[1:])
        for run, *cells in rows:
            table.add_row(cut_middle(run, max(_LEAST_NAME, width - taken)), *cells)
        return table


class _Line:
    """One benchmark of one run, with its speed."""

    def __init__(self, event: Progress) -> None:
        self.event = event
        self._started = self._latest = time.monotonic()
        self._first = event.done

    def take(self, event: Progress) -> None:
        """Keep the newest state and its time: a finished benchmark keeps its speed while others run."""
        self.event, self._latest = event, time.monotonic()

    def _speed(self) -> float | None:
        asked, seconds = self.event.done - self._first, self._latest - self._started
        return asked / seconds if asked and seconds > 0 else None

    def cells(self) -> list[str]:
        event, speed = self.event, self._speed()
        left = "" if speed is None else _duration((event.total - event.done) / speed)
        score = "" if event.score is None else f"{100 * event.score:.1f}"
        rate = "" if speed is None else f"{speed:.1f}"
        return [event.run, event.bench, f"{event.done:,}/{event.total:,}", rate, score, str(event.failed), left]

    def text(self) -> str:
        run, bench, done, rate, score, failed, left = self.cells()
        resumed = f", {self.event.resumed:,} from an earlier start" if self.event.resumed else ""
        parts = [f"{run} on {bench}: {done}{resumed}"]
        parts += [f"{rate} questions/s"] if rate else []
        parts += [f"{score} % right so far"] if score and self.event.done < self.event.total else []
        parts += [f"{failed} failed"] if self.event.failed else []
        parts += [f"{left} left"] if left and self.event.done < self.event.total else []
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# Columns in points, not fractions.
_POINTS = frozenset(("mme", "mmavg"))


def result_tables(result: EvalResult) -> list[RenderableType]:
    """Return the tables for stdout: the categories of every benchmark that has some, then the summary."""
    tables: list[RenderableType] = []
    if demos := [run for run in result.runs if "demo" in run.benchmarks]:
        tables.append(_tasks_table(demos))
    for run in result.runs:
        for name, block in run.benchmarks.items():
            title = f"{Output.clean(name)}: {Output.clean(run.name)}"
            if "categories" in block and "perception" in block:
                tables.append(_mme_table(title, block))
            elif "splits" in block:
                tables.append(_splits_table(title, block))
    return [*tables, _summary(result.runs)]


def percent(share: float | None, interval: Sequence[float] | None = None) -> str:
    """Format a fraction in percent, ``61.3`` or ``61.3 (59.2-63.4)``; a dash for None."""
    if share is None:
        return "-"
    text = f"{100 * share:.1f}"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def _titled(title: str, table: FittingTable, caption: str | None = None) -> RenderableType:
    """Return a table with title and caption on separate lines; rich would wrap a title at the table's width."""
    return Group(Text(title, style="bold"), table, *([] if caption is None else [Text(caption)]))


def points(value: float | None) -> str:
    """Format a number in points with one decimal; a dash for None."""
    return "-" if value is None else f"{value:.1f}"


def _table(*columns: str, left: int = 1, spare: Sequence[str] = ()) -> FittingTable:
    """Return a table: the first ``left`` columns hold text, the others numbers; ``spare`` ones are dropped first."""
    table = FittingTable()
    for number, column in enumerate(columns):
        table.add_column(column, left=number < left, spare=column in spare)
    return table


def _summary(runs: Sequence[EvalRun]) -> RenderableType:
    """Return a table with a row per run and a column per score; the best of several runs is marked."""
    rows = [headlines(run) for run in runs]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = _table("run", *(Output.clean(column) for column in columns))
    has_interval = has_mark = False
    for run, row in zip(runs, rows, strict=True):
        cells = []
        for column in columns:
            found = row.get(column, Headline(None))
            value = found.value
            others = [score for other in rows if column in other and (score := other[column].value) is not None]
            is_best = value is not None and value == max(others) > min(others)  # if all are equal, none is best
            mark = " *" if is_best else ""
            interval = found.interval if len(runs) == 1 else None
            has_interval |= interval is not None
            has_mark |= is_best
            cells.append((points(value) if column.split()[0] in _POINTS else percent(value, interval)) + mark)
        is_bare = run.adapter is None and run.base is not None
        table.add_row(Output.clean(run.name) + (" (bare base)" if is_bare else ""), *cells)
    kinds = {column.split()[0] == "mme" for column in columns}
    title = "Scores, in percent" + (" (95 % interval)" if has_interval else "")
    if True in kinds:
        title = "Scores, in points" if kinds == {True} else f"{title}; MME in points"
    return _titled(title, table, "* best of its column" if has_mark else None)


def _tasks_table(runs: Sequence[EvalRun]) -> RenderableType:
    """Return demo's tasks with chance level and each run; a single run with intervals and blind-baseline score."""
    blocks = [run.benchmarks["demo"] for run in runs]
    blind = blocks[0]["shuffled"] if len(runs) == 1 else None
    columns = ["right % (95 % interval)"] if len(runs) == 1 else [Output.clean(run.name) for run in runs]
    columns += [] if blind is None else ["blind %"]
    table = _table("task", "", "questions", "majority %", *columns, left=2, spare=[""])

    def scores(task: str, kind: str) -> list[str]:
        """Return the cells of one task; ``""`` for all tasks of a kind."""
        if len(runs) > 1:
            return [percent(block["tasks"][task]["accuracy"] if task else block[kind]) for block in blocks]
        whole = {"accuracy": blocks[0][kind], "interval": blocks[0]["intervals"][kind]}
        part = blocks[0]["tasks"][task] if task else whole
        cells = [percent(part["accuracy"], part["interval"])]
        if blind is not None:
            cells.append(percent(blind["tasks"][task]["accuracy"] if task else blind[kind]))
        return cells

    for kind in ("seen", "unseen"):
        tasks = {name: task for name, task in blocks[0]["tasks"].items() if task["seen"] is (kind == "seen")}
        for name, task in tasks.items():
            table.add_row(name, kind, f"{task['n']:,}", percent(task["majority"]), *scores(name, kind))
        table.add_section()
        n = sum(task["n"] for task in tasks.values())
        majority = percent(blocks[0]["majority"][kind])
        table.add_row(f"all {kind}", "", f"{n:,}", majority, *scores("", kind), style="bold")
        table.add_section()
    names = ", ".join(Output.clean(run.name) for run in runs)
    return _titled(f"demo: {names}, right answers in percent", table)


def _mme_table(title: str, block: dict[str, Any]) -> RenderableType:
    table = _table("category", "score", "acc", "acc+")
    for name, part in block["categories"].items():
        table.add_row(Output.clean(name), *(points(part[key]) for key in ("score", "acc", "acc_plus")))
    table.add_section()
    for key in ("perception", "cognition", "total"):
        table.add_row(key, points(block[key]), "", "", style="bold")
    return _titled(title, table)


def _splits_table(title: str, block: dict[str, Any]) -> RenderableType:
    keys = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    table = _table("split", *keys)
    for name, part in block["splits"].items():
        table.add_row(Output.clean(name), *(percent(part[key]) for key in keys))
    table.add_section()
    table.add_row("mean", *(percent(block[key]) for key in keys), style="bold")
    return _titled(title, table)


def list_table(entries: Sequence[dict[str, Any]]) -> RenderableType:
    """Return the table of ``m2pt eval --list``."""
    table = _table("name", "source", "cached", "questions", left=3)
    for entry in entries:
        cached = {None: "built in", True: "yes", False: "no"}[entry["cached"]]
        table.add_row(entry["name"], entry["source"], cached, f"{entry['questions']:,}")
    caption = (
        "--bench NAME asks one of these, --bench paper all of them but demo; what is not cached is downloaded once.\n"
        '--bench FILE.jsonl asks your own questions: a line is {"image", "question", "answer"}.'
    )
    return _titled("Benchmarks of m2pt eval", table, caption)


def comparison_table(folders: Sequence[Path], comparisons: Sequence[Comparison]) -> RenderableType:
    """Return the table of ``m2pt eval --compare``."""
    columns = ("benchmark", "questions", "first %", "second %", "only first right", "only second right", "p", "differ")
    table = _table(*columns)
    for entry in comparisons:
        shares = (percent(entry.first), percent(entry.second))
        counts = (f"{entry.only_first:,}", f"{entry.only_second:,}", f"{entry.p_value:.2g}")
        verdict = "yes" if entry.significant else "not shown"
        table.add_row(Output.clean(entry.bench), f"{entry.n:,}", *shares, *counts, verdict)
    caption = Output.clean(f"first: {folders[0]}, second: {folders[1]}; differ: p < {LEVEL}")
    return _titled("McNemar's exact test on the questions both answered", table, caption)


def failures_table(result: EvalResult, most: int) -> RenderableType:
    """Return the table of ``--show-failures``: failed questions, then wrong answers, run by run."""
    table = _table("run", "question", "asked", "answer", "said", left=5)
    if not any(
        row.failed or not row.correct for benches in result.rows.values() for rows in benches.values() for row in rows
    ):
        return Text("No failed or wrong answers")
    for run, benches in result.rows.items():
        rows = [row for rows in benches.values() for row in rows if row.failed or not row.correct]
        for row in sorted(rows, key=lambda row: not row.failed)[:most]:
            answer = row.answer if isinstance(row.answer, str) else ", ".join(dict.fromkeys(row.answer))
            said = f"failed: {row.error}" if row.failed else row.prediction or ""
            table.add_row(*(_shorten(text) for text in (run, row.id, row.question, answer, said)))
    return _titled(f"At most {most} failed or wrong answers of each run", table)


def _shorten(text: str, longest: int = 60) -> str:
    words = " ".join(Output.clean(text).split())
    return words if len(words) <= longest else words[: longest - 1] + "…"
