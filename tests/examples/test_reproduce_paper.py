"""The paper script: cells resume, learning rates are chosen on seen families only, the arithmetic is right."""

from __future__ import annotations

import importlib
import json
import math
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from m2pt_cli.demo.questions import FAMILIES
from m2pt_cli.models.catalog import entry_of

SCRIPT = Path(__file__).parents[2] / "examples" / "reproduce_paper"
MODULES = ("cells", "running", "rates", "summary", "columns", "figures", "report", "resources", "attention")


@contextmanager
def own_modules() -> Iterator[None]:
    """Other scripts have modules of these names, too: the benchmarks a `summary`."""
    others = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    try:
        yield
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(others)


@pytest.fixture(scope="module")
def paper() -> Iterator[Any]:
    """The script's modules, imported as the script imports them."""
    with own_modules():
        sys.path.insert(0, str(SCRIPT))
        try:
            found = SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        finally:
            sys.path.remove(str(SCRIPT))
    yield found


def run_script() -> object:
    """What the script exits with, run in this process."""
    with own_modules(), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


@pytest.fixture(scope="module")
def found(paper: Any) -> Any:
    return paper.cells.experiment("nano", entry_of("nano").geometry)


def record(variant: Any, seed: int, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "name": variant.name,
        "label": variant.label,
        "seed": seed,
        "trainable": 1000,
        "percent": 0.1,
        "seconds": {"all": 60.0, "evaluation": 10.0},
        "scores": scores,
        "versions": {"torch": "2", "transformers": "5", "peft": "0"},
    }


def demo_scores(value: float) -> dict[str, float]:
    groups = [f"{kind}{group}" for kind in ("seen", "unseen") for group in ("", ", clean", ", shifted")]
    return dict.fromkeys([*groups, *FAMILIES], value)


def test_the_rows_are_the_papers(paper: Any, found: Any) -> None:
    names = [variant.name for variant in found.rows]
    assert names == [
        "full", "lora", "lora-small", "interaction", "visual", "textual", "m2pt-10-10", "m2pt-20-10", "m2pt-10-20",
    ]  # fmt: skip
    assert [one.name for one in found.ablations] == ["m2pt-0-10", "m2pt-10-0", "m2pt-10-10-no-interaction"]
    seven = paper.cells.experiment("llava-v1-7b", entry_of("llava-v1-7b").geometry)
    assert paper.cells.named(seven.rows, "lora").lora_rank == 16  # the paper's


def test_the_sizes_of_lora_follow_from_m2pts(paper: Any, found: Any) -> None:
    geometry = entry_of("nano").geometry

    def size(variant: Any) -> int:
        return paper.cells.count_parameters("nano", geometry, variant.recipe()).trainable

    whole = size(found.whole)
    assert 6.5 < size(paper.cells.named(found.rows, "lora")) / whole < 7.5
    assert 0.8 < size(paper.cells.named(found.rows, "lora-small")) / whole <= 1


def test_every_cell_occurs_once_and_whole_rounds_come_first(found: Any) -> None:
    cells = found.cells(3, 2, 1)
    assert len({cell.name for cell in cells}) == len(cells) == 3 * 9 + 2 * 3 + 1 * 6
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_finished_cells_are_never_run_again(paper: Any, found: Any, tmp_path: Path) -> None:
    cells, ran = found.cells(1, 1, 0), []

    def run(cell: Any) -> dict[str, Any]:
        ran.append(cell.name)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return {"name": cell.name}

    with pytest.raises(KeyboardInterrupt):
        paper.running.finish_cells(cells, tmp_path, run)
    assert paper.running.finish_cells(cells, tmp_path, run) == len(cells)
    assert ran[3] == ran[4]  # the one that was stopped
    assert sorted(set(ran)) == sorted(cell.name for cell in cells) and len(ran) == len(cells) + 1


def test_a_cell_that_another_process_holds_is_left_to_it(paper: Any, found: Any, tmp_path: Path) -> None:
    cells = found.cells(1, 0, 0)
    with paper.running.claimed(tmp_path / "locks" / cells[0].name) as is_ours:
        assert is_ours
        assert paper.running.finish_cells(cells, tmp_path, lambda cell: {}) == len(cells) - 1
    assert paper.running.finish_cells(cells, tmp_path, lambda cell: {}) == len(cells)


def test_no_cell_is_begun_after_the_time_is_up(paper: Any, found: Any, tmp_path: Path) -> None:
    assert paper.running.finish_cells(found.cells(1, 0, 0), tmp_path, lambda cell: {}, until=0.0) == 0


def test_rates_are_judged_by_seen_families_about_images_never_trained_on(paper: Any) -> None:
    from m2pt_cli.data.sources import load_samples, split_validation
    from m2pt_cli.demo.dataset import demo_eval_questions

    questions = paper.rates.validation_questions(2000)
    assert len(questions) > 50
    assert all(FAMILIES[sample.task].seen for sample in questions)
    training, _ = split_validation(
        load_samples(("demo",), limit=2000, seed=paper.rates.SEED).samples,
        paper.rates.VALIDATION_SHARE,
        paper.rates.SEED,
    )
    own = {sample.images[0].name for sample in questions}
    assert not own & {sample.images[0].name for sample in training}
    assert not own & {question.image.name for question in demo_eval_questions(200)}
    assert paper.rates.is_right(questions[0], questions[0].turns[1].text)
    assert not paper.rates.is_right(questions[0], "a caption of the scene.")


@pytest.mark.parametrize(
    ("best", "tried"),
    [(1.0, [1 / 3, 1.0, 3.0]), (9.0, [1 / 3, 1.0, 3.0, 9.0]), (1 / 9, [1 / 3, 1.0, 3.0, 1 / 9])],
)
def test_every_method_tries_as_much_and_one_further_at_an_edge(
    paper: Any, found: Any, best: float, tried: list[float]
) -> None:
    def attempt(variant: Any, factor: float) -> dict[str, Any]:
        return {"factor": factor, "rates": {}, "score": -abs(math.log(factor / best))}

    choice = paper.rates.choose(found.whole, attempt)
    assert choice["factor"] == pytest.approx(best)
    assert [one["factor"] for one in choice["tries"]] == pytest.approx(tried)


def test_means_and_paired_differences(paper: Any) -> None:
    mean = paper.summary.mean_of([0.5, 0.7, 0.6])
    assert (mean.value, mean.error, mean.n) == (pytest.approx(0.6), pytest.approx(0.1 / math.sqrt(3)), 3)
    assert paper.summary.mean_of([0.5]).error is None
    # Two noisy rows whose difference is steady; seed 3 has no partner.
    difference = paper.summary.difference({0: 0.50, 1: 0.70, 2: 0.60, 3: 0.0}, {0: 0.48, 1: 0.67, 2: 0.57})
    assert difference.mean.value == pytest.approx(0.08 / 3) and difference.mean.n == 3
    reach = 4.302653 * difference.mean.error  # Student's t with two degrees of freedom
    assert (difference.low, difference.high) == (
        pytest.approx(0.08 / 3 - reach), pytest.approx(0.08 / 3 + reach),
    )  # fmt: skip
    assert (difference.verdict, difference.of_seeds) == ("above", 3)
    assert paper.summary.difference({0: 0.5, 1: 0.9}, {0: 0.6, 1: 0.5}).verdict == "undecided"
    assert paper.summary.difference({0: 0.5}, {1: 0.6}) is None
    assert paper.summary.difference({0: 0.5}, {0: 0.1}).verdict == "undecided"  # one seed decides nothing


def test_a_share_over_families_counts_questions(paper: Any) -> None:
    tasks = [{"accuracy": 1.0, "n": 30}, {"accuracy": 0.5, "n": 10}]
    assert paper.running.share_right(tasks) == pytest.approx(0.875)
    assert paper.running.share_right([]) is None


def test_the_report_of_a_few_cells(paper: Any, found: Any, tmp_path: Path) -> None:
    values = {"lora": 0.5, "m2pt-10-10": 0.6, "m2pt-0-10": 0.4, "m2pt-10-10-no-interaction": 0.65, "full": 0.3}
    everything = {variant.name: variant for variant in (*found.rows, *found.ablations)}
    records = [
        record(everything[name], seed, demo_scores(value + 0.01 * seed + 0.002 * seed * (name == "lora")))
        for name, value in values.items()
        for seed in (0, 1, 2)
    ]
    records += [record(variant, 0, demo_scores(0.7)) for variant in found.grid if variant.name not in values]
    results = paper.summary.gather(records)
    file = paper.report.write_report(results, found, tmp_path, base="nano", command="the command")
    text = file.read_text(encoding="utf-8")
    assert "Differences on `unseen`" in text and "Differences on `seen`" in text
    table = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "**61.0 ± 0.6**" in table["M²PT 10/10"] and "| 3 |" in table["M²PT 10/10"]
    assert "+9.8 ± 0.1" in table[f"M²PT 10/10 − {everything['lora'].label}"]
    assert table[f"M²PT 10/10 − {everything['lora'].label}"].endswith("| above |")
    assert table["without visual prompts − M²PT 10/10"].endswith("| below |")
    assert table["without interaction − M²PT 10/10"].endswith("| above |")
    assert table["*guessing*"].count("*37.7*") == 1
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert kept["variants"]["full"]["scores"]["unseen"] == {
        "value": pytest.approx(0.31), "error": pytest.approx(0.01 / math.sqrt(3)), "n": 3,
    }  # fmt: skip
    for name in ("figure1-radar.png", "figure4-ablations.png", "grid-lengths.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert name in text
    again = paper.summary.read_results(tmp_path)  # from cells.json alone, as it is committed
    assert again.mean("lora", "unseen") == results.mean("lora", "unseen")
    paper.summary.unpack_cells(tmp_path)  # and a later run goes on from it
    missing: list[str] = []
    paper.running.finish_cells(found.cells(4, 0, 1), tmp_path, lambda cell: missing.append(cell.name) or {})
    assert "lora-seed3" in missing and "visual-seed0" in missing
    assert not {"lora-seed2", "m2pt-10-10-seed0", "m2pt-5-5-seed0"} & set(missing)


def test_the_command_runs_a_cell_and_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    said = f"--base nano --output-dir {tmp_path} --only interaction --seeds 1 --limit 64 --max-steps 2 --questions 47"
    monkeypatch.setattr(sys, "argv", ["reproduce_paper", *said.split(), "--rate-steps", "0", "--threads", "1"])
    assert run_script() == 0
    before = (tmp_path / "cells" / "interaction-seed0.json").stat().st_mtime_ns
    assert run_script() == 0
    assert (tmp_path / "cells" / "interaction-seed0.json").stat().st_mtime_ns == before
    kept = json.loads((tmp_path / "cells" / "interaction-seed0.json").read_text(encoding="utf-8"))
    assert kept["trainable"] == 20_640 and kept["rates"]["interaction_lr"] == 5e-3
    assert {"seen", "unseen", "unseen, shifted", "pope"} <= kept["scores"].keys()
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| interaction layer | 20,640 | 0.81 | 1 |" in text and "| none (untuned) | 0 |" in text
    assert str(tmp_path) not in text and str(tmp_path) not in (tmp_path / "results.json").read_text()
    assert capsys.readouterr().out.count("report.md") == 2


def test_the_grid_shows_only_seeds_that_all_its_fields_have(paper: Any, found: Any) -> None:
    records = [record(variant, 0, {"unseen": 0.5}) for variant in found.grid]
    records.append(record(found.whole, 1, {"unseen": 0.9}))
    results = paper.summary.gather(records)
    assert paper.report.grid_seeds(results) == [0]
    assert paper.figures.grid_value(results, 10, 10, "unseen", [0]) == 0.5
    assert paper.figures.grid_value(results, 10, 10, "unseen", [0, 2]) is None


def test_a_7b_reports_the_papers_columns(paper: Any) -> None:
    columns = paper.columns.columns_for(["mme", "pope", "mmavg"])
    assert columns.text("mmavg", 63.68) == "63.7" and columns.text("pope", 0.5, 0.01) == "50.0 ± 1.0"
    assert columns.headline == "mmavg"


def test_the_estimate_for_a_7b_orders_the_methods(paper: Any) -> None:
    entry = entry_of("llava-v1-7b")
    found = paper.cells.experiment(entry.name, entry.geometry)
    hours = {one.name: paper.resources.training_hours(entry.geometry, one) for one in found.rows}
    assert hours["full"] > hours["m2pt-10-10"] >= hours["lora"] > 1
    lines = list(paper.resources.estimates(entry, found))
    assert any("| M²PT 10/10 | 5,754,880 | 0.082 |" in line for line in lines)


def test_a_base_that_is_not_there_is_one_line_and_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce_paper", "--base", "nanoo", "--output-dir", str(tmp_path / "paper")])
    assert run_script() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the base 'nanoo' is not") and "\nhint: " in said
    assert "Traceback" not in said
