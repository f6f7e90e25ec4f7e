"""The HTML report: questions, images and answers of all runs in one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from m2pt_cli.data.sample import ImageReference
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.results import EvalResult
from m2pt_cli.evaluation.task import Prediction

STYLE = """
:root { color-scheme: light dark; --line: #8884; --right: #1a7f37; --wrong: #cf222e; --failed: #9a6700; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
.scores th, .scores td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: right; font-size: .85rem; }
pre { overflow-x: auto; font-size: .8rem; border: 1px solid var(--line); padding: .75rem; }
.filters { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; position: sticky; top: 0;
  background: Canvas; padding: .5rem 0; border-bottom: 1px solid var(--line); }
select, input { font: inherit; } .note, .id { opacity: .7; font-size: .8rem; margin: .2rem 0; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }
article { display: flex; align-items: start; gap: .9rem; border: 1px solid var(--line); border-radius: .5rem;
  padding: .8rem; }
article[hidden] { display: none; } article > div { min-width: 0; flex: 1; overflow-wrap: anywhere; }
article img { width: 7rem; height: 7rem; object-fit: contain; background: #8882; border-radius: .3rem; flex: none;
  image-rendering: auto; }
.missing { width: 7rem; font-size: .75rem; opacity: .7; overflow-wrap: anywhere; flex: none; margin: 0; }
.question { white-space: pre-wrap; margin: .2rem 0; } .answer { margin: .2rem 0; }
article td, article th { padding: .1rem .6rem .1rem 0; text-align: left; vertical-align: top; font-size: .9rem; }
article th { font-weight: 600; } .right td { color: var(--right); } .wrong td { color: var(--wrong); }
.failed td { color: var(--failed); }
"""

SCRIPT = """
const cards = [...document.querySelectorAll('article')];
const [bench, state, words, count] = ['bench', 'state', 'words', 'count'].map(id => document.getElementById(id));
function show() {
  const wanted = words.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits = (!bench.value || card.dataset.bench === bench.value)
      && (!state.value || card.dataset.states.split(' ').includes(state.value))
      && (!wanted || card.textContent.toLowerCase().includes(wanted));
    card.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown + ' shown';
}
for (const field of [bench, state, words]) field.addEventListener('input', show);
show();
"""


# Identifies a page that this tool wrote, which it may therefore overwrite.
GENERATOR = '<meta name="generator" content="m2pt eval">'
# Longest side of an image in the page, in pixels.
_SIDE = 224
# Limits that keep a page small enough for an e-mail: questions per benchmark, and bytes of all images.
_MOST_QUESTIONS = 200
_MOST_IMAGE_BYTES = 8_000_000
_SYMBOLS = {"right": "✓", "wrong": "✗", "failed": "!"}


def gallery_page(result: EvalResult) -> str:
    """Return the page's HTML.

    Args:
        result: the runs with their predictions and images; if an image is not available, its name is shown.
    """
    store = _ImageStore()
    names = list(dict.fromkeys(bench for run in result.rows.values() for bench in run))
    cards = [
        _card(bench, question, store, result.images.get(bench, {}).get(question[0][1].id))
        for bench in names
        for question in _shown_questions(bench, result)
    ]
    title = "m2pt eval: " + ", ".join(run.name for run in result.runs)
    benches = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in names)
    total = sum(max(len(run.get(name, ())) for run in result.rows.values()) for name in names)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{GENERATOR}
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{_score_table(result)}
<details><summary>Settings</summary><pre>{escape(_settings(result))}</pre></details>
<h2>Answers</h2>
<p class="filters"><label>benchmark <select id="bench"><option value="">all</option>{benches}</select></label>
<label>show <select id="state"><option value="">all</option><option value="wrong">any wrong</option>
<option value="right">all right</option><option value="differ">runs differ</option>
<option value="failed">failed</option></select></label>
<label>search <input id="words" type="search" placeholder="question, answer, category"></label>
<span id="count" aria-live="polite"></span></p>
<p class="note">{len(cards):,} of {total:,} questions are in this page, differing and wrong answers first.</p>
<main>{"".join(cards)}</main><script>{SCRIPT}</script></body></html>
"""


def require_page_place(file: Path) -> None:
    """Check that a page may be written to ``file``: its folder exists, and the file is new or an older page.

    Raises:
        SettingsError: the folder does not exist, or the file is not a page of this tool.
    """
    if not file.parent.is_dir():
        raise SettingsError(f"--html {file}: there is no folder {file.parent}", "make the folder, or name another file")
    if file.exists() and (not file.is_file() or GENERATOR not in file.read_text(encoding="utf-8", errors="replace")):
        raise SettingsError(f"--html {file} exists and is no page of m2pt eval", "name another file")


Question = list[tuple[str, Prediction]]


def _shown_questions(bench: str, result: EvalResult) -> list[Question]:
    """Return a benchmark's questions (200 at most) with each run's prediction; differing, failed, wrong ones first."""
    questions: dict[str, Question] = {}
    for run, rows in result.rows.items():
        for row in rows.get(bench, ()):
            questions.setdefault(row.id, []).append((run, row))
    order = {"differ": 0, "failed": 1, "wrong": 2, "right": 3}
    ranked = sorted(questions.values(), key=lambda question: min(order[state] for state in _states(question)))
    return ranked[:_MOST_QUESTIONS]


def _state(row: Prediction) -> str:
    if row.failed:
        return "failed"
    return "right" if row.correct is not None and row.correct >= 0.5 else "wrong"


def _states(question: Question) -> list[str]:
    """Return the states by which the page's filter finds a question."""
    states = {_state(row) for _, row in question}
    if states == {"right"}:
        return ["right"]
    return sorted(states - {"right"}) + (["differ"] if len(states) > 1 else [])


def _card(bench: str, question: Question, store: _ImageStore, image: ImageReference | None) -> str:
    first = question[0][1]
    missing = f'<p class="missing">{escape(first.image or "no image")}</p>'
    picture = (store.tag(image) if image is not None else "") or missing
    answers = first.answer if isinstance(first.answer, str) else ", ".join(dict.fromkeys(first.answer))
    category = f" · {escape(first.category)}" if first.category else ""
    predictions = "".join(
        f'<tr class="{_state(row)}"><th>{escape(run)}</th><td>{_SYMBOLS[_state(row)]}</td>'
        f"<td>{escape(row.error or row.prediction or '') or '<i>empty</i>'}</td></tr>"
        for run, row in question
    )
    return (
        f'<article data-bench="{escape(bench)}" data-states="{" ".join(_states(question))}">'
        f'{picture}<div><p class="id">{escape(bench)}{category} · {escape(first.id)}</p>'
        f'<p class="question">{escape(first.question)}</p><p class="answer">answer: <b>{escape(answers)}</b></p>'
        f"<table>{predictions}</table></div></article>\n"
    )


class _ImageStore:
    """Encodes images as data URIs until the page's size limit is reached."""

    def __init__(self) -> None:
        self._left = _MOST_IMAGE_BYTES
        self._known: dict[str, str] = {}

    def tag(self, image: ImageReference) -> str:
        """Return an ``<img>``; an empty string if the image can't be read or the limit is reached."""
        if image.name not in self._known:
            self._known[image.name] = self._encode(image)
        uri = self._known[image.name]
        return f'<img src="{uri}" alt="{escape(image.name)}" loading="lazy">' if uri else ""

    def _encode(self, image: ImageReference) -> str:
        if self._left <= 0:
            return ""
        try:
            picture = image.open()
        except InputError:
            return ""
        picture.thumbnail((_SIDE, _SIDE))
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        self._left -= buffer.tell()
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _score_table(result: EvalResult) -> str:
    """Return a table with a row per run and a column for every top-level number of a benchmark's results."""
    numbers = [
        {
            (bench, key): value
            for bench, scores in run.benchmarks.items()
            for key, value in scores.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for run in result.runs
    ]
    columns = list(dict.fromkeys(column for row in numbers for column in row))
    heads = "".join(f"<th>{escape(bench)}<br>{escape(key)}</th>" for bench, key in columns)
    body = "".join(
        f"<tr><th>{escape(run.name)}</th>"
        + "".join(f"<td>{_number(row[column]) if column in row else ''}</td>" for column in columns)
        + "</tr>"
        for run, row in zip(result.runs, numbers, strict=True)
    )
    return f'<div class="wide"><table class="scores"><tr><th></th>{heads}</tr>{body}</table></div>'


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:,.1f}"


def _settings(result: EvalResult) -> str:
    shown: Sequence[object] = [
        {"run": run.name, "base": run.base, "adapter": run.adapter, "settings": run.settings, "versions": run.versions}
        for run in result.runs
    ]
    return json.dumps(shown, ensure_ascii=False, indent=2)
