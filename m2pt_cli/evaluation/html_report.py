"""Write an HTML page with scores, figures, questions, images and answers, in one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from m2pt_cli.data.sample import ImageReference
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.html_scores import breakable, score_sections
from m2pt_cli.evaluation.results import EvalResult
from m2pt_cli.evaluation.task import Prediction

# Colours of text have a contrast of 4.5 or more to their ground in both schemes (WCAG 2, AA). Marks and words say what
# colours say. Nothing is wider than the screen: tables scroll by themselves, and names break behind - _ / . alone.
STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --raised: #f6f8fa; --text: #1f2328; --muted: #57606a;
  --line: #d0d7de; --link: #0550ae; --right: #116329; --wrong: #a40e26; --failed: #7d4e00; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --raised: #161b22; --text: #e6edf3;
  --muted: #a0aab4; --line: #3d444d; --link: #79b8ff; --right: #56d364; --wrong: #ff9492; --failed: #e3b341; } }
*, *::before { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem;
  background: var(--ground); color: var(--text); overflow-wrap: break-word; }
h1 { font-size: 1.4rem; line-height: 1.3; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h3 { font-size: 1.05rem; margin-bottom: .4rem; } small { color: var(--muted); white-space: nowrap; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
a { color: var(--link); } .note, .id { color: var(--muted); font-size: .875rem; margin: .3rem 0; }
.wide { overflow-x: auto; max-width: 100%; margin-bottom: .6rem; } table { border-collapse: collapse; }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: right; font-size: .875rem;
  vertical-align: top; }
thead th { background: var(--raised); vertical-align: bottom; min-width: 4rem; max-width: 12rem; }
tbody th, thead th:first-child { text-align: left; min-width: 7rem; max-width: 15rem; }
thead th.long { min-width: 9rem; } tbody th.long { min-width: 10rem; }
tbody th { font-weight: 400; } .scores tbody th, .whole th, .whole td, .best { font-weight: 700; }
td small { display: block; font-weight: 400; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
.plots img { width: 100%; min-width: 30rem; max-width: 44rem; height: auto; display: block;
  background: #ffffff; border-radius: .4rem; }
pre { overflow-x: auto; font-size: .8rem; border: 1px solid var(--line); padding: .75rem; }
summary { cursor: pointer; padding: .3rem 0; }
.filters { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: end; background: var(--ground);
  padding: .5rem 0; border-bottom: 1px solid var(--line); } .filters[hidden] { display: none; }
.filters label { display: grid; font-size: .875rem; max-width: 100%; }
select, input { font: inherit; max-width: 100%; min-width: 0; color: inherit; background: var(--raised);
  border: 1px solid var(--muted); border-radius: .3rem; padding: .2rem .4rem; }
@media (min-width: 48rem) and (min-height: 30rem) { .filters { position: sticky; top: 0; } }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
article { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: .5rem .9rem; align-content: start;
  border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; }
@media (max-width: 30rem) { article { grid-template-columns: 5rem minmax(0, 1fr); } }
article[hidden] { display: none; } article > div { min-width: 0; }
article img { width: 100%; height: auto; max-height: 7rem; object-fit: contain; background: var(--raised);
  border-radius: .3rem; }
.missing { font-size: .8rem; color: var(--muted); overflow-wrap: anywhere; margin: 0; }
.question { white-space: pre-wrap; margin: .2rem 0; overflow-wrap: anywhere; }
.answer { margin: .2rem 0; overflow-wrap: anywhere; }
.said { grid-column: 1 / -1; list-style: none; margin: 0; padding: 0; }
.said li { border-top: 1px solid var(--line); padding: .3rem 0; overflow-wrap: anywhere; }
.run { display: block; color: var(--muted); font-size: .875rem; overflow-wrap: break-word; }
.right .says { color: var(--right); } .wrong .says { color: var(--wrong); } .failed .says { color: var(--failed); }
@media print { .filters, .skip { display: none; } article { break-inside: avoid; } }
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
document.getElementById('filters').hidden = false;
for (const field of [bench, state, words]) field.addEventListener('input', show);
show();
"""


# Identifies a page written by this tool, which may be overwritten.
GENERATOR = '<meta name="generator" content="m2pt eval">'
# Longest side of an image in the page, in pixels.
_SIDE = 224
# A page stays small enough to be sent by mail: questions per benchmark, and bytes of images in all.
_MOST_QUESTIONS = 200
_MOST_IMAGE_BYTES = 8_000_000
_MARKS = {"right": "✓", "wrong": "✗", "failed": "!"}

# What an image shows, and the SVG itself.
Plot = tuple[str, bytes]


def gallery_page(result: EvalResult, plots: Sequence[Plot] = ()) -> str:
    """Return the page as self-contained HTML.

    Args:
        plots: figures of the scores, as SVG.
        result: the runs, with their rows and images; a question without an image shows its image's name.
    """
    store = _ImageStore()
    names = list(dict.fromkeys(bench for run in result.rows.values() for bench in run))
    cards = [
        _card(bench, question, store, result.images.get(bench, {}).get(question[0][1].id))
        for bench in names
        for question in _chosen(bench, result)
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
<a class="skip" href="#answers">to the answers</a>
<h1>{breakable(title)}</h1>
{score_sections(result.runs)}
{_figures(plots)}
<details><summary>Settings and versions</summary><pre tabindex="0">{escape(_settings(result))}</pre></details>
<h2 id="answers">Answers</h2>
<p class="filters" id="filters" hidden>
<label>benchmark <select id="bench"><option value="">all</option>{benches}</select></label>
<label>show <select id="state"><option value="">all</option><option value="wrong">any wrong</option>
<option value="right">all right</option><option value="differ">runs differ</option>
<option value="failed">failed</option></select></label>
<label>search <input id="words" type="search" placeholder="question, answer, category"></label>
<span id="count" aria-live="polite"></span></p>
<p class="note">{len(cards):,} of {total:,} questions are in this page, differing and wrong answers first.</p>
<main>{"".join(cards)}</main><script>{SCRIPT}</script></body></html>
"""


def _figures(plots: Sequence[Plot]) -> str:
    images = "".join(
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(said)}"><img alt="{escape(said)}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(svg).decode("ascii")}"></div>'
        for said, svg in plots
    )
    return f'<div class="plots">{images}</div>' if images else ""


def require_page_place(file: Path) -> None:
    """Check that a page may be written to ``file``: its folder exists, and an existing file is an older page.

    Raises:
        SettingsError: the folder is missing, or the file was not written by this tool.
    """
    if not file.parent.is_dir():
        raise SettingsError(f"--html {file}: there is no folder {file.parent}", "make the folder, or name another file")
    if file.exists() and (not file.is_file() or GENERATOR not in file.read_text(encoding="utf-8", errors="replace")):
        raise SettingsError(f"--html {file} exists and is no page of m2pt eval", "name another file")


Question = list[tuple[str, Prediction]]


def _chosen(bench: str, result: EvalResult) -> list[Question]:
    """Return a benchmark's questions with each run's row; if too many, those that differ, failed or are wrong first."""
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
    """Return the states by which the page filters a question."""
    states = {_state(row) for _, row in question}
    if states == {"right"}:
        return ["right"]
    return sorted(states - {"right"}) + (["differ"] if len(states) > 1 else [])


def _card(bench: str, question: Question, store: _ImageStore, image: ImageReference | None) -> str:
    first = question[0][1]
    missing = f'<p class="missing">{breakable(first.image or "no image")}</p>'
    picture = (store.tag(image) if image is not None else "") or missing
    answers = first.answer if isinstance(first.answer, str) else ", ".join(dict.fromkeys(first.answer))
    category = f" · {breakable(first.category)}" if first.category else ""
    said = "".join(
        f'<li class="{_state(row)}"><span class="run">{breakable(run)}</span> '
        f'<span class="says"><span role="img" aria-label="{_state(row)}">{_MARKS[_state(row)]}</span> '
        f"{escape(row.error or row.prediction or '') or '<i>empty</i>'}</span></li>"
        for run, row in question
    )
    return (
        f'<article data-bench="{escape(bench)}" data-states="{" ".join(_states(question))}">'
        f'{picture}<div><p class="id">{breakable(bench)}{category} · {breakable(first.id)}</p>'
        f'<p class="question">{escape(first.question)}</p><p class="answer">answer: <b>{escape(answers)}</b></p></div>'
        f'<ul class="said">{said}</ul></article>\n'
    )


class _ImageStore:
    """Images as data URIs, up to the page's size limit."""

    def __init__(self) -> None:
        self._left = _MOST_IMAGE_BYTES
        self._known: dict[str, str] = {}

    def tag(self, image: ImageReference) -> str:
        """Return an ``<img>``; empty if the image can't be read or the page is full."""
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


def _settings(result: EvalResult) -> str:
    shown: Sequence[object] = [
        {"run": run.name, "base": run.base, "adapter": run.adapter, "settings": run.settings, "versions": run.versions}
        for run in result.runs
    ]
    return json.dumps(shown, ensure_ascii=False, indent=2)
