"""``m2pt eval``: its output, JSON and exit codes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.tiny_base import write_tiny_base

from m2pt_cli.cli.app import main

SCORING = Path(__file__).parent.parent / "scoring"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture(scope="module")
def evaluated(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations of the same questions with different words, side by side."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name, template in [("one", "plain"), ("two", "vicuna_v1")]:
        options = ["--template", template, "--limit", "47", "--max-new-tokens", "2", "--quiet"]
        assert main(["eval", "--base", base, "--bench", "demo", "--output-dir", str(folder / name), *options]) == 0
    return folder


def _again(evaluated: Path, base: str) -> list[str]:
    options = ["--template", "plain", "--limit", "47", "--max-new-tokens", "2"]
    return ["eval", "--base", base, "--bench", "demo", "--output-dir", str(evaluated / "one"), *options]


def _refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def _document(text: str) -> Any:
    """Exactly one JSON document, without NaN."""
    assert text.count("\n") == 1
    return json.loads(text, parse_constant=_refuse_constant)


def test_verbose_says_what_runs_where_and_how_long(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--base", base, "--bench", "demo", "--limit", "4", "--max-new-tokens", "2", "--device", "cpu"]
    assert main([*command, "--output-dir", str(tmp_path / "a"), "-v"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"tiny on cpu in float32, \d+ threads? \(m2pt .*transformers .*\), loaded in \d", err)
    assert "template vicuna_v1, image fit" in err and re.search(
        r"on demo: [\d.]+ s, batches of up to 1,024 tokens", err
    )
    assert main([*command, "--output-dir", str(tmp_path / "b")]) == 0
    err = capsys.readouterr().err
    assert "float32" not in err and "batches of" not in err


def test_the_table_shows_tasks_majority_and_both_kinds(
    evaluated: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_again(evaluated, base)) == 0
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("│")]
    cells = {parts[0]: parts for line in lines if (parts := [cell.strip() for cell in line.strip("│").split("│")])}
    assert "majority %" in out and "95 % interval" in out
    assert cells["all seen"][2] == "31" and cells["all unseen"][2] == "16"
    assert cells["mnist"][1] == "unseen" and float(cells["mnist"][3]) == pytest.approx(10.5, abs=1)
    assert "47 from an earlier start" in err and "writing to" in err and "\x1b" not in out + err


def test_json_is_one_document_equal_to_the_file(evaluated: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_again(evaluated, base), "--json"]) == 0
    content = _document(capsys.readouterr().out)
    stored = json.loads((evaluated / "one" / "results.json").read_text())
    assert content == stored
    demo = content["benchmarks"]["demo"]
    assert {"accuracy", "seen", "unseen", "majority", "tasks"} <= demo.keys()
    assert set(demo["majority"]) == {"seen", "unseen"}
    assert {"accuracy", "majority", "n", "seen"} <= demo["tasks"]["pope"].keys()
    assert content["name"] == Path(base).name and content["base"] == base and content["adapter"] is None
    assert content["mmavg"] is None
    assert all(0 <= task["accuracy"] <= 1 for task in demo["tasks"].values())


def test_quiet_says_nothing_on_stderr(evaluated: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_again(evaluated, base), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_failures_and_a_gallery(evaluated: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert main([*_again(evaluated, base), "--show-failures", "3", "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    assert "At most 3 failed or wrong answers" in out and str(page) in err
    assert page.read_text(encoding="utf-8").count("<article") == 47
    assert main([*_again(evaluated, base), "--html", str(tmp_path / "none" / "r.html")]) == 2


def test_figures_are_written_and_bad_places_met_first(
    evaluated: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    radar, bars = tmp_path / "radar.png", tmp_path / "bars.svg"
    assert main([*_again(evaluated, base), "--plot", str(radar), "--plot", str(bars)]) == 0
    assert radar.read_bytes()[:4] == b"\x89PNG" and "mnist" in bars.read_text(encoding="utf-8")
    assert f"figure written to {radar}" in capsys.readouterr().err
    assert main([*_again(evaluated, base), "--plot", str(tmp_path / "radar.jpg")]) == 2
    assert "radar.jpg: a figure ends in .png, .svg, .pdf" in capsys.readouterr().err


def test_compare_two_runs(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(evaluated / "one"), str(evaluated / "two")]
    compare = ["eval", "--compare", folders[0], "--compare", folders[1]]
    assert main(compare) == 0
    assert "McNemar" in capsys.readouterr().out
    assert main([*compare, "--json"]) == 0
    content = _document(capsys.readouterr().out)
    (entry,) = content["benchmarks"]
    assert [content["first"], content["second"]] == folders
    assert entry["bench"] == "demo" and entry["n"] == 47 and 0 < entry["p_value"] <= 1
    assert main(["eval", "--compare", folders[0]]) == 2
    assert main([*compare[:4], str(evaluated)]) == 3


def test_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--list", "--json"]) == 0
    entries = {entry["name"]: entry for entry in _document(capsys.readouterr().out)}
    names = {"demo", "mme", "pope", "vsr", "snli-ve", "cifar10", "cifar100", "mnist", "textvqa"}
    assert set(entries) == names and entries["mme"]["questions"] == 2374
    assert entries["demo"]["cached"] is None and entries["mme"]["cached"] in (True, False)
    assert main(["eval", "--list"]) == 0
    assert "lmms-lab/POPE" in capsys.readouterr().out


@pytest.mark.parametrize(("protocol", "total"), [("official", 1095.2380952380952), ("lmms-eval", 1514.8809523809523)])
def test_predictions_are_scored_without_a_model(
    protocol: str, total: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = SCORING / "mme_predictions.jsonl"
    arguments = ["eval", "--bench", "mme", "--predictions", str(file), "--protocol", protocol, "--json"]
    assert main([*arguments, "--output-dir", str(tmp_path / "scored")]) == 0
    content = _document(capsys.readouterr().out)
    assert math.isclose(content["benchmarks"]["mme"]["total"], total, abs_tol=1e-6)
    assert content["base"] is None and content["settings"]["protocol"] == protocol
    # What was written is scored alike.
    written = tmp_path / "scored" / "predictions-mme.jsonl"
    assert main([*arguments[:4], str(written), *arguments[5:]]) == 0
    assert _document(capsys.readouterr().out)["benchmarks"] == content["benchmarks"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--bench", "dmeo"], 2, "Did you mean 'demo'?"),
        ([], 2, "--bench is missing"),
        (["--bench", "demo", "--limit", "0"], 2, "--limit 0 must be at least 1"),
        (["--bench", "demo", "--wording", "mine"], 2, "--wording 'mine' is not one of m2pt-1, stored"),
        (["--bench", "demo", "--protocol", "lmms-eval"], 2, "means nothing to --bench demo"),
        (["--bench", "demo", "--adapter", "a", "--adapter", "a"], 2, "given twice"),
        (["--bench", "mme,pope", "--predictions", "x.jsonl"], 2, "scores one benchmark"),
        (["--bench", "mme", "--predictions", "x.jsonl", "--base", "nano"], 2, "--base means nothing"),
        (["--bench", "mme", "--predictions", "none.jsonl"], 3, "can't be read"),
        (["--bench", "none.jsonl"], 3, "does not exist"),
        (["--bench", "demo", "--config", "none.yaml"], 3, "can't be read"),
        (["--bench", "demo", "--adapter", "no-such-adapter"], 4, "no-such-adapter"),
        (["--bench", "demo", "--base", "no-such-base"], 1, "no-such-base"),
        (["--bench", "mme", "--base", "nano"], 1, "lmms-lab/MME"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments, "--json"]) == code
    out, err = capsys.readouterr()
    error = json.loads(err.splitlines()[-1])["error"]
    assert out == "" and words in error["message"] and set(error) == {"type", "message", "hint"}
    # Nothing is left behind by a mistake.
    assert list(tmp_path.iterdir()) == []


def test_another_run_in_the_directory_is_refused(
    evaluated: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (evaluated / "one" / "results.json").read_bytes()
    assert main([*_again(evaluated, base), "--limit", "3"]) == 2
    assert "limit was 47, now 3" in capsys.readouterr().err
    assert (evaluated / "one" / "results.json").read_bytes() == before


def test_the_environment_names_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("M2PT_ADAPTER", str(tmp_path / "empty"))
    assert main(["eval", "--bench", "demo"]) == 4
    assert "is empty" in capsys.readouterr().err


def test_existing_answers_are_scored_without_torch() -> None:
    script = (
        "import sys; from m2pt_cli.cli.app import main; code = main(sys.argv[1:]);"
        "heavy = [name for name in ('torch', 'transformers', 'peft', 'datasets') if name in sys.modules];"
        "print(code, heavy, file=sys.stderr)"
    )
    for arguments in (
        ["--bench", "pope", "--predictions", str(SCORING / "pope_predictions.jsonl")],
        ["--bench", "demo", "--adapter", "no-such-adapter"],
    ):
        command = [sys.executable, "-c", script, "eval", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] in ("0 []", "4 []")
