"""The HTML report: escaped, self-contained, limited in size, and working in a browser."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fixtures.stand_ins import Drawn, item
from PIL import Image

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.html_report import STYLE, gallery_page, require_page_place
from m2pt_cli.evaluation.html_scores import breakable
from m2pt_cli.evaluation.results import EvalResult, EvalRun
from m2pt_cli.evaluation.task import Prediction, Score

_HOSTILE = "</td><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">&amp;'\""
_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass(frozen=True)
class _Broken:
    name: str = "broken.png"

    def open(self) -> Image.Image:
        raise InputError("can't be read")


def _result(count: int = 6) -> EvalResult:
    """Two runs; question 0 is right in both, 1 in the first alone, 2 in none, 3 failed, the others right."""
    first, second = [], []
    for number in range(count):
        question = item(number, category="color")
        said = _HOSTILE if number == 2 else f"it is {number}"
        first.append(Prediction.of(question, said).marked(Score(None, number != 2)))
        second.append(Prediction.of(question, f"maybe {number}").marked(Score(None, number not in (1, 2))))
    first[3] = Prediction.of(item(3, category=_HOSTILE), None, _HOSTILE)
    runs = tuple(
        EvalRun(
            name=name,
            base="nano",
            adapter=None,
            benchmarks={"demo": {"accuracy": 0.625, "n": count, "tasks": {}}},
            settings={"template": _HOSTILE},
            versions={},
            seconds=1.0,
        )
        for name in ("first", _HOSTILE)
    )
    images = {item(number).id: Drawn(f"image-{number}.png", (40 * (number % 6), 120, 200)) for number in range(count)}
    return EvalResult(runs, None, rows={"first": {"demo": first}, _HOSTILE: {"demo": second}}, images={"demo": images})


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_of_a_model_or_a_data_set_becomes_markup() -> None:
    page = gallery_page(_result())
    parsed = _Tags()
    parsed.feed(page)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert all("onerror" not in attributes for _, attributes in parsed.tags)
    sources = [attributes["src"] or "" for tag, attributes in parsed.tags if tag == "img"]
    assert len(sources) == 6 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"(src|href)=[\"']?https?:", page)


def test_the_most_telling_questions_come_first_and_the_page_is_bounded() -> None:
    page = gallery_page(_result(500))
    cards = re.findall(r'<article data-bench="demo" data-states="([^"]*)"', page)
    assert len(cards) == 200
    assert cards[:3] == ["wrong differ", "failed differ", "wrong"] and set(cards[3:]) == {"right"}
    assert "200 of 500 questions are in this page" in page
    assert len(page) < 9_000_000


def test_an_image_that_can_not_be_read_is_named() -> None:
    result = _result()
    result = EvalResult(result.runs, None, rows=result.rows, images={"demo": {"q0#0": _Broken()}})
    page = gallery_page(result)
    assert "<img" not in page and "image-0.png" in page.replace("<wbr>", "")


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    require_page_place(page)
    page.write_text(gallery_page(_result()), encoding="utf-8")
    require_page_place(page)
    (tmp_path / "thesis.html").write_text("mine")
    for file in (tmp_path / "thesis.html", tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(SettingsError):
            require_page_place(file)


_LONG = "runs/m2pt-nano-demo-with-a-long-name_and-many-words-in-it-seed"


def _scored() -> EvalResult:
    """Two runs of long names on every kind of block, one of them with a blind control."""
    part = {"accuracy": 0.5, "interval": [0.25, 0.75], "n": 1234}
    plain = {**part, "failed": 0, "notes": [], "shuffled": None, "judge": None}
    tasks = {"striped-shape-sentence": {**part, "majority": 0.3, "seen": True}}
    tasks["noisy-digit-truefalse"] = {**part, "accuracy": 0.125, "majority": 0.4, "seen": False}
    demo = {
        **plain, "seen": 0.875, "unseen": 0.375, "majority": {"seen": 0.3, "unseen": 0.4}, "tasks": tasks,
        "intervals": {"seen": [0.8, 0.9], "unseen": [0.3, 0.4], "accuracy": [0.25, 0.75]},
        "notes": ["4 of 9 <questions>"],
    }  # fmt: skip
    blind = {**demo, "seen": 0.31, "unseen": 0.29, "accuracy": 0.3}
    numbers = {"accuracy": 0.81, "precision": 0.82, "recall": 0.83, "f1": 0.84, "yes_ratio": 0.46}
    benches = {
        "demo": {**demo, "shuffled": blind},
        "pope": {**plain, **numbers, "splits": {"adversarial": numbers}},
        "mme": {
            **plain, "perception": 1234.5, "cognition": 234.5, "total": 1469.0,
            "categories": {"existence": {"score": 195.0, "acc": 98.5, "acc_plus": 96.5}},
        },
        "cifar100": {**plain, "unparsed": 17, "classes": {f"class-{n}": {**part, "n": n} for n in range(100)}},
    }  # fmt: skip
    runs = tuple(EvalRun(f"{_LONG}{n}", "nano", None, benches, {}, {}, 1.0, mmavg=61.25) for n in range(2))
    rows = {run.name: {"demo": [Prediction.of(item(0), "a").marked(Score(None, True))]} for run in runs}
    return EvalResult(runs, None, rows=rows)


def test_the_page_shows_what_the_terminal_shows() -> None:
    page = gallery_page(_scored(), [("Bars <of> scores", b"<svg/>")])
    text = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S).replace("<wbr>", "")
    assert page.count('src="data:image/svg+xml;base64,PHN2Zy8+"') == 1 and 'alt="Bars &lt;of&gt; scores"' in page
    cells = re.findall(r"<tr[^>]*><th[^>]*>([^<]*)</th>(.*?)</tr>", text)
    found: dict[str, list[str]] = {}
    for head, row in cells:
        found.setdefault(head, re.findall(r"<td[^>]*>(.*?)</td>", row))
    headline = found[f"{_LONG}0"]
    assert "87.5 <small>80.0–90.0</small>" in headline and "37.5 <small>30.0–40.0</small>" in headline  # seen, unseen
    assert "30.0" in headline and "1,469.0" in headline and "61.2" in headline  # blind, MME, MMAvg
    interval = "<small>25.0–75.0</small>"
    assert found["noisy-digit-truefalse"] == ["1,234", "40.0", f"12.5 {interval}", "12.5", f"12.5 {interval}", "12.5"]
    assert found["all unseen"] == ["1,234", "40.0", *["37.5 <small>30.0–40.0</small>", "29.0"] * 2]
    assert found["existence"] == ["195.0", "98.5", "96.5"]
    assert found["adversarial"] == ["81.0", "82.0", "83.0", "84.0", "46.0"]
    assert found["class-99"] == ["99", f"50.0 {interval}", f"50.0 {interval}"]
    assert "<summary>100 parts of cifar100</summary>" in text
    assert f"{_LONG}0: 4 of 9 &lt;questions&gt;" in text and f"{_LONG}0: 17 answers could not be read" in text


def test_the_best_of_several_runs_is_marked() -> None:
    result = _scored()
    weaker = dataclasses.replace(
        result.runs[1], benchmarks={"own": {**result.runs[1].benchmarks["pope"], "splits": {}}}
    )
    stronger = dataclasses.replace(result.runs[0], benchmarks={"own": {**weaker.benchmarks["own"], "accuracy": 0.9}})
    page = gallery_page(EvalResult((stronger, weaker), None))
    assert '<td class="best">90.0 ' in page and page.count('class="best"') == 1


def test_long_names_break_at_their_marks_alone() -> None:
    page = gallery_page(_scored())
    assert "m2pt-<wbr>nano-<wbr>demo-<wbr>with-<wbr>" in page
    names = re.findall(r'<(?:th scope="row"[^>]*|span class="run")>(.*?)</', page)
    assert names and all("<" not in re.sub(r"[-_/.:=]<wbr>", "", name) for name in names)
    assert f'class="long">{breakable(_LONG)}' in page  # and has a column of some width
    # Where a name stands the browser may not break it anywhere else.
    style = re.sub(r"\s+", " ", STYLE)
    for rule in re.findall(r"([^{}]*)\{([^{}]*)\}", style):
        if re.search(r"\.run|th\b", rule[0]):
            assert "anywhere" not in rule[1] and "break-all" not in rule[1]


def _colours(block: str) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(int(value[place : place + 2], 16) / 255 for place in (0, 2, 4))
        for name, value in re.findall(r"--(\w+): #([0-9a-f]{6})\b", block)
    }


def _luminance(colour: tuple[float, ...]) -> float:
    """WCAG 2's relative luminance of sRGB values from 0 to 1."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(scheme: str) -> None:
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")[0], STYLE.split("prefers-color-scheme: dark")[1]
    colours = _colours(light if scheme == "light" else dark.split("}\n*")[0])
    assert set(colours) == {"ground", "raised", "text", "muted", "line", "link", "right", "wrong", "failed"}
    for ground in ("ground", "raised"):
        for name in ("text", "muted", "link", "right", "wrong", "failed"):
            low, high = sorted(_luminance(colours[one]) for one in (ground, name))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{name} on {ground}"
    # All text is of these colours, at full strength.
    assert "opacity" not in STYLE
    assert set(re.findall(r"(?<![-\w])color: ([^;}]+)", STYLE)) <= {
        "inherit", *(f"var(--{name})" for name in ("text", "muted", "link", "right", "wrong", "failed"))
    }  # fmt: skip


def test_all_is_reached_with_the_keyboard_and_named() -> None:
    parsed = _Tags()
    parsed.feed(gallery_page(_scored(), [("Bars", b"<svg/>")]))
    wide = [attributes for tag, attributes in parsed.tags if attributes.get("class") == "wide"]
    assert wide and all(one.get("tabindex") == "0" and one.get("aria-label") for one in wide)
    assert all(attributes.get("alt") for tag, attributes in parsed.tags if tag == "img")
    assert ("a", {"class": "skip", "href": "#answers"}) in parsed.tags
    identities = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(set(identities)) == len(identities) and "answers" in identities
    assert ":focus-visible" in STYLE


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [360, 400, 1100])
def test_nothing_is_wider_than_the_screen(width: int, tmp_path: Path) -> None:
    """Long names, long answers without spaces, wide tables and figures: the page itself never scrolls sideways."""
    result = _scored()
    rows = {
        run.name: {"demo": [Prediction.of(item(0, category=_LONG), "x" * 300).marked(Score(None, False))]}
        for run in result.runs
    }
    figure = b'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="300"/>'
    page = gallery_page(dataclasses.replace(result, rows=rows), [("Bars", figure)])
    # A window is at least 500 pixels wide: a frame stands for a telephone.
    (tmp_path / "frame.html").write_text(
        f'<body><iframe id="frame" style="width:{width}px;height:900px;border:0" srcdoc="{escape(page)}"></iframe>'
        "<script>frame.onload = () => { const root = frame.contentDocument.documentElement; "
        "const cards = [...root.querySelectorAll('article *')].map(one => one.getBoundingClientRect().right); "
        "document.title = [root.clientWidth, root.scrollWidth, Math.max(...cards)].join(' '); }</script></body>",
        encoding="utf-8",
    )
    title = re.search(r"<title>([\d. ]+)</title>", _dom(tmp_path / "frame.html"))
    assert title is not None
    seen, needed, right = map(float, title[1].split())
    assert width - 20 <= seen <= width and needed <= seen and right <= seen


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium on this machine")
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    """The page's own script filters it, and no injected one runs: seen in the DOM after its scripts have run."""
    page = gallery_page(_result())
    # The filter is used as a person would: a value is chosen and the event is fired.
    choose = "<script>state.value = 'wrong'; state.dispatchEvent(new Event('input'));</script>"
    (tmp_path / "all.html").write_text(page, encoding="utf-8")
    (tmp_path / "wrong.html").write_text(page.replace("</body>", choose + "</body>"), encoding="utf-8")
    dom = {name: _dom(tmp_path / f"{name}.html") for name in ("all", "wrong")}
    assert all("<title>m2pt eval:" in text and "taken</title>" not in text for text in dom.values())
    assert ">6 shown</span>" in dom["all"] and len(re.findall(r"<article[^>]*hidden", dom["all"])) == 0
    assert ">2 shown</span>" in dom["wrong"] and len(re.findall(r"<article[^>]*hidden", dom["wrong"])) == 4


def _dom(file: Path) -> str:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent / 'profile'}"]
    command = [str(_BROWSER), *flags, "--virtual-time-budget=2000", "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
