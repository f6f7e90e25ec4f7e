"""``m2pt infer``: one question, several images and adapters, and JSONL pipelines."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.models import fill_adapter
from fixtures.tiny_base import write_tiny_base
from PIL import Image

from m2pt_cli.cli.app import main


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: str) -> list[str]:
    """A full adapter and one of other lengths with the official visual tokens."""
    from peft import get_peft_model

    from m2pt_cli.method import M2PTConfig
    from m2pt_cli.models.load import load_base

    folders = []
    for seed, config in enumerate(
        [
            M2PTConfig(num_visual_prompts=2, num_textual_prompts=3, chat_template="plain", image_fit="crop"),
            M2PTConfig(num_visual_prompts=3, num_textual_prompts=5, visual_tokens="official", chat_template="plain"),
        ]
    ):
        loaded = load_base(base, device="cpu")
        model = get_peft_model(loaded.model, config)
        fill_adapter(model, scale=2.0, seed=seed)
        config.base_fingerprint = loaded.fingerprint
        folder = tmp_path_factory.mktemp("adapters") / f"a{seed}"
        model.save_pretrained(folder)
        folders.append(str(folder))
    return folders


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = []
    for number in range(2):
        path = tmp_path / f"{number}.png"
        Image.effect_mandelbrot((20, 14), (-2, -1, 1, 1), 5 + 40 * number).convert("RGB").save(path)
        paths.append(str(path))
    return paths


def ask(*arguments: str, base: str) -> int:
    return main(
        ["infer", *arguments, "--base", base, "--device", "cpu", "--max-new-tokens", "6", "--template", "plain"]
    )


def test_one_question_is_one_line(base: str, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(images[0], "what is it", base=base) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert len(out.splitlines()) == 1
    assert out.strip()
    assert err == ""


def test_json_has_the_contracts_keys(base: str, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(images[0], "what is it", "--json", base=base) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record) == ["id", "image", "question", "adapter", "answer", "error"]
    assert record["image"] == images[0]
    assert record["adapter"] is None
    assert record["answer"]


def test_one_question_of_several_images(base: str, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(*images, "-q", "what is it", base=base) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == images
    assert all(len(row) == 2 and row[1] for row in rows)


def test_adapters_answer_side_by_side_and_each_as_alone(
    base: str, adapters: list[str], images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["none", *adapters]
    alone = []
    for name in names:
        assert ask(images[0], "what is it", "--adapter", name, "--json", base=base) == 0
        alone.append(json.loads(capsys.readouterr().out)["answer"])
    assert len(set(alone)) == 3, "adapters that answer alike would prove nothing"
    flags = [word for name in names for word in ("--adapter", name)]
    assert ask(images[0], "what is it", *flags, "--json", base=base) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["adapter"] for record in records] == [None, *adapters]
    assert [record["answer"] for record in records] == alone


def test_the_adapter_comes_from_the_environment(
    base: str,
    adapters: list[str],
    images: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("M2PT_ADAPTER", adapters[0])
    monkeypatch.setenv("M2PT_BASE", base)
    assert main(["infer", images[0], "what is it", "--device", "cpu", "--json", "--max-new-tokens", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter"] == adapters[0]


def test_lines_in_lines_out_in_order_with_errors_between(
    base: str, adapters: list[str], images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[Any] = [
        {"id": "q1", "image": "0.png", "question": "what is it", "split": "dev"},
        "{broken",
        {"image": "missing.png", "question": "what is it"},
        {"image": images[1], "question": "is it red"},
        {"question": "is it a dog"},
        {"image": "0.png", "question": "is it a cat"},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    assert ask("--input", str(file), base=base) == 3
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["id"] for record in records] == ["q1", 2, 3, 4, 5, 6]
    assert records[0]["split"] == "dev"
    assert [record["error"] is None for record in records] == [True, False, False, True, True, True]
    assert [record["answer"] is None for record in records] == [False, True, True, False, False, False]
    assert "2 of 6 lines" in err
    assert ask("--input", str(file), "--adapter", adapters[0], "--adapter", "none", base=base) == 3
    out, err = capsys.readouterr()
    assert [json.loads(line)["adapter"] for line in out.splitlines()[:3]] == [adapters[0], None, None]
    assert "2 of 6 lines" in err


def test_a_line_s_own_fault_ends_with_3_and_a_model_s_failure_with_0(
    base: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"image": images[0], "question": "what is it"}
    for bad in ({"question": "<image><image> what"}, {"image": [images[0], images[1]]}, {"video": "a.mp4"}):
        file = tmp_path / "questions.jsonl"
        file.write_text("".join(json.dumps({**good, **change}) + "\n" for change in ({}, bad, {})))
        assert ask("--input", str(file), base=base) == 3
        out, err = capsys.readouterr()
        errors = [json.loads(line)["error"] for line in out.splitlines()]
        assert errors[0] is errors[2] is None and errors[1] is not None and "1 of 3 lines" in err

    from m2pt_cli.generation import engine
    from m2pt_cli.generation.engine import Question, Reply

    def fail_second(self: Any, questions: list[Question], **_: Any) -> Any:
        return (Reply(q, *((None, "too long") if q.id == "1" else ("yes", None))) for q in questions)

    monkeypatch.setattr(engine.AnswerEngine, "answer", fail_second)
    file.write_text("".join(json.dumps(good) + "\n" for _ in range(3)))
    assert ask("--input", str(file), base=base) == 0
    assert [json.loads(line)["error"] for line in capsys.readouterr().out.splitlines()] == [None, "too long", None]


def test_what_the_engine_finds_wrong_with_a_question_is_the_line_s_fault(
    base: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2pt_cli.data.collate import ImagePreparer
    from m2pt_cli.errors import InputError

    def fail(*_: Any) -> None:
        raise InputError("this image went away")

    monkeypatch.setattr(ImagePreparer, "prepare", fail)
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"image": images[0], "question": "what is it"}) + "\n")
    assert ask("--input", str(file), base=base) == 3
    assert json.loads(capsys.readouterr().out)["error"] == "this image went away"


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_may_be_one_json_array_and_name_its_image_in_a_list(
    base: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], indent: int | None
) -> None:
    assert ask(images[0], "what is it", "--json", base=base) == 0
    alone = json.loads(capsys.readouterr().out)["answer"]
    rows = [{"image": "0.png", "question": "what is it"}, {"images": ["0.png"], "question": "what is it", "id": "b"}]
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(rows, indent=indent))
    assert ask("--input", str(file), base=base) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["id"], r["image"], r["answer"]) for r in records] == [(1, "0.png", alone), ("b", "0.png", alone)]


def test_verbose_says_what_runs_where_and_how_fast(
    base: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(images[0], "what is it", "-v", base=base) == 0
    err = capsys.readouterr().err
    assert re.search(r"on cpu in float32, \d+ threads? \(m2pt .*transformers .*\), ready in \d", err)
    assert "template plain, image fit crop" in err and re.search(r"1 answer in \d", err)
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"image": images[0], "question": "what is it"}) + "\n")
    assert ask("--input", str(file), "-v", base=base) == 0
    assert re.search(r"1 line in .* s \(.* lines/s\)", capsys.readouterr().err)


def test_progress_is_on_a_terminal_s_stderr_while_answers_go_to_a_file(
    base: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"image": images[0], "question": "what is it"}) + "\n")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert ask("--input", str(file), base=base) == 0
    assert "1 line in" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # the answers themselves are on the screen
    assert ask("--input", str(file), base=base) == 0
    assert capsys.readouterr().err == ""


def test_a_picture_that_pillow_warns_about_is_answered_in_silence(
    base: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    palette = Image.open(images[0]).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png", transparency=bytes(range(100)))
    Image.open(images[0]).save(tmp_path / "exif.png", exif=b"MM\0*\0\0")
    for name in ("p.png", "exif.png"):
        for flag in ("--quiet", "--json"):
            assert ask(str(tmp_path / name), "what is it", flag, base=base) == 0
            out, err = capsys.readouterr()
            assert out.strip() and err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.png"], 2, "without a question"),
        (["a.png", "<image> or <image>"], 2, "2 <image> marks"),
        (["a.png", "b.png", "c.png"], 2, "-q"),
        (["a.png", "  "], 2, "empty"),
        ([], 2, "no image"),
        (["--input", "x.jsonl", "a.png"], 2, "--input"),
        (["-", "-", "-q", "what"], 2, "stdin"),
        (["a.png", "what", "--temperature", "-1"], 2, "--temperature"),
        (["a.png", "what", "--temperature", "1", "--num-beams", "2"], 2, "--num-beams"),
        (["a.png", "what", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
        (["a.png", "what"], 3, "a.png"),
        (["https://127.0.0.1/x.png", "what"], 3, "--allow-url"),
        (["--input", "x.jsonl"], 3, "x.jsonl"),
    ],
)
def test_mistakes(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", *arguments, "--base", "nano"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) <= 2


def test_a_file_that_is_no_image_is_code_3(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "not.png"
    file.write_text("<svg/>")
    assert ask(str(file), "what", base=base) == 3
    assert "not.png" in capsys.readouterr().err


def test_an_image_on_stdin(
    base: str, images: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(images[0], "what is it", base=base) == 0
    from_file = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(images[0]).read_bytes())))
    assert ask("-", "what is it", base=base) == 0
    assert capsys.readouterr().out == from_file


def test_a_slow_pipe_is_answered_line_by_line_and_a_closed_one_ends_quietly(base: str, images: list[str]) -> None:
    command = [sys.executable, "-m", "m2pt_cli", "infer", "--input", "-", "--base", base, "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "2", "--template", "plain"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    line = json.dumps({"image": images[0], "question": "what is it"}) + "\n"
    for number in (1, 2):  # an answer comes while the pipe stays open
        process.stdin.write(line)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == number
    process.stdout.close()
    deadline = time.monotonic() + 60
    try:
        while process.poll() is None and time.monotonic() < deadline:
            process.stdin.write(line)
            process.stdin.flush()
            time.sleep(0.1)
    except BrokenPipeError:
        pass
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
