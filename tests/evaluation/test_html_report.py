"""The HTML report: escaped, self-contained, limited in size, and working in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fixtures.stand_ins import Drawn, item
from PIL import Image

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.html_report import gallery_page, require_page_place
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
    assert "<img" not in page and "image-0.png" in page


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    require_page_place(page)
    page.write_text(gallery_page(_result()), encoding="utf-8")
    require_page_place(page)
    (tmp_path / "thesis.html").write_text("mine")
    for file in (tmp_path / "thesis.html", tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(SettingsError):
            require_page_place(file)


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
