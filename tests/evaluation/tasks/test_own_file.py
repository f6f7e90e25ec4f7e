"""A user's own benchmark file and its four scores."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.task import Prediction, TaskOptions
from m2pt_cli.evaluation.tasks import find_tasks
from m2pt_cli.evaluation.tasks.own_file import OwnBenchmark, token_f1


def _file(folder: Path) -> Path:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "a.png")
    lines = [
        {"image": "a.png", "question": "What?", "answer": "a cat", "category": "animals"},
        {"image": "a.png", "question": "Who?", "answer": ["Ada", "Ada Lovelace"], "id": "who"},
    ]
    file = folder / "my, questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_file_is_a_benchmark_even_with_a_comma_in_its_name(tmp_path: Path) -> None:
    (bench,) = find_tasks([str(_file(tmp_path))])
    first, second = bench.items(TaskOptions())
    assert bench.name == "my, questions"
    assert (first.id, first.category, second.id, second.answer) == ("1#0", "animals", "who#0", ["Ada", "Ada Lovelace"])
    assert first.image.open().getpixel((0, 0)) == (1, 2, 3)


def test_the_same_questions_as_an_array(tmp_path: Path) -> None:
    lines = _file(tmp_path)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    array = tmp_path / "questions.json"
    array.write_text("\n " + json.dumps(rows, indent=2))
    for name in ("questions.json", "array.jsonl", "lines.json"):
        (tmp_path / name).write_text(lines.read_text() if name == "lines.json" else array.read_text())
        assert OwnBenchmark(tmp_path / name).items(TaskOptions()) == OwnBenchmark(lines).items(TaskOptions())
    array.write_text(json.dumps([*rows, {**rows[0], "answer": None}, "no"]))
    with pytest.raises(InputError, match=r"holds 2 bad objects: object 3: answer is None.*; object 4 has no image"):
        OwnBenchmark(array).items(TaskOptions())
    array.write_text(json.dumps(rows)[:-1])
    with pytest.raises(InputError, match=r"questions\.json can't be read: Expecting"):
        OwnBenchmark(array).items(TaskOptions())


def test_a_file_that_is_not_there_is_an_input_error_and_a_typo_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_tasks([str(tmp_path / "none.jsonl")])
    with pytest.raises(SettingsError, match="Did you mean 'mnist'"):
        find_tasks(["mme,mnst"])


def test_groups_and_lists_name_each_benchmark_once() -> None:
    assert [bench.name for bench in find_tasks(["mme,pope", "mme", " vsr "])] == ["mme", "pope", "vsr"]
    paper = [bench.name for bench in find_tasks(["paper"])]
    assert paper == ["mme", "pope", "vsr", "snli-ve", "cifar10", "cifar100", "mnist", "textvqa"]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no questions"):
        OwnBenchmark(tmp_path / "none.jsonl").items(TaskOptions())


def test_the_four_scores() -> None:
    bench = OwnBenchmark(Path("mine.jsonl"))
    said = [
        ("cat", "cat"),  # exact
        ("cat", "The Cat!"),  # normalised
        ("cat", "I see a cat there"),  # contains
        ("cat", "concatenate"),  # none
    ]
    rows = [Prediction(f"{n}#0", str(n), None, None, "?", answer, text) for n, (answer, text) in enumerate(said)]
    scores = bench.scores([row.marked(bench.mark(row, "official")) for row in rows], "official")
    assert (scores["exact"], scores["accuracy"], scores["contains"]) == (0.25, 0.5, 0.75)
    assert scores["token_f1"] == pytest.approx((1 + 1 + 2 * 1 / (1 + 4) + 0) / 4)


@pytest.mark.parametrize(
    ("said", "wanted", "score"),
    [("a red car", "red car", 1.0), ("red", "blue", 0.0), ("red red", "red", 2 / 3), ("", "the", 0.0), ("", "x", 0.0)],
)
def test_token_f1(said: str, wanted: str, score: float) -> None:
    assert token_f1(said, wanted) == pytest.approx(score)


@pytest.mark.parametrize("said", ["", " ", "\u200b", "B", "the"])
def test_an_empty_answer_is_never_right(said: str) -> None:
    bench = OwnBenchmark(Path("mine.jsonl"))
    row = Prediction("1#0", "1", None, None, "?", ["A", "the A"], said)
    scores = bench.scores([row.marked(bench.mark(row, "official"))], "official")
    assert [scores[key] for key in ("accuracy", "exact", "contains", "token_f1")] == [0.0] * 4
    assert scores["unparsed"] == (said not in ("B", "the"))
    right = Prediction("1#0", "1", None, None, "?", "A", " a. ")
    assert bench.mark(right, "official").correct is True


@pytest.mark.parametrize(("answer", "said"), [("👍", "👎"), ("-5", "5"), (".5", "5"), ("C++", "C#"), ("की", "का")])
def test_all_four_scores_tell_different_answers_apart(answer: str, said: str) -> None:
    bench = OwnBenchmark(Path("mine.jsonl"))
    row = Prediction("1#0", "1", None, None, "?", answer, said)
    scores = bench.scores([row.marked(bench.mark(row, "official"))], "official")
    assert [scores[key] for key in ("accuracy", "exact", "contains", "token_f1")] == [0.0] * 4


def test_blank_references_are_refused(tmp_path: Path) -> None:
    good = {"image": "a.png", "question": "What?", "answer": "a cat"}
    file = tmp_path / "mine.jsonl"
    for blank in ("", " ", "\u200b", ["a cat", ""]):
        file.write_text(json.dumps(good) + "\n" + json.dumps({**good, "answer": blank}) + "\n")
        with pytest.raises(InputError, match=r"line 2: answer is .*, an answer that is not blank was expected"):
            OwnBenchmark(file).items(TaskOptions())


@pytest.mark.parametrize("kind", ["llava", "messages"])
def test_training_files_are_benchmarks_too(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.png")
    if kind == "llava":
        turns = [("human", "<image>\nWhat is it?"), ("gpt", "a cat"), ("human", "Sure?"), ("gpt", "yes")]
        conversation = [{"from": who, "value": text} for who, text in turns]
        file = tmp_path / "set.json"
        file.write_text(json.dumps([{"id": "x", "image": "a.png", "conversations": conversation, "task_name": "t"}]))
    else:
        messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a cat"}]
        file = tmp_path / "set.jsonl"
        file.write_text(json.dumps({"id": "x", "messages": messages, "images": ["a.png"], "task": "t"}) + "\n")
    (bench,) = find_tasks([str(file)])
    (item,) = bench.items(TaskOptions())
    assert (item.id, item.category, item.question, item.answer) == ("x#0", "t", "What is it?", "a cat")
    assert item.image.open().getpixel((0, 0)) == (1, 2, 3)


def test_a_sample_without_an_image_is_no_question(tmp_path: Path) -> None:
    file = tmp_path / "set.json"
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a cat"}]
    file.write_text(json.dumps([{"id": "x", "conversations": turns}]))
    with pytest.raises(InputError, match=r"1 samples of .* are not about one image, the first is x"):
        OwnBenchmark(file).items(TaskOptions())


def test_a_line_that_can_not_be_asked_is_named(tmp_path: Path) -> None:
    good = {"image": "a.png", "question": "What?", "answer": "a cat"}
    bad = [{"answer": float("nan")}, {"question": None}, {"image": ["a", "b"]}, {"answer": []}, {"question": "\ud83d"}]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({**good, **change}) + "\n" for change in [{}, *bad]))
    with pytest.raises(InputError, match=r"mine\.jsonl holds 5 bad lines: line 2: answer is nan, .*; line 3") as caught:
        OwnBenchmark(file).items(TaskOptions())
    assert "line 6: question is '\\ud83d', whole characters" in caught.value.message
    file.write_text(json.dumps({**good, "answer": 7}) + "\n")
    assert OwnBenchmark(file).items(TaskOptions())[0].answer == "7"


def test_a_list_of_one_image_is_that_image(tmp_path: Path) -> None:
    expected = OwnBenchmark(_file(tmp_path)).items(TaskOptions())[0]
    for change in ({"image": ["a.png"]}, {"image": None, "images": ["a.png"]}, {"image": None, "images": "a.png"}):
        line = {"image": "a.png", "question": "What?", "answer": "a cat", "category": "animals", **change}
        (tmp_path / "one.jsonl").write_text(json.dumps(line) + "\n")
        assert OwnBenchmark(tmp_path / "one.jsonl").items(TaskOptions()) == [expected]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": ["a.png", "b.png"]}, "'image' holds 2 images"),
        ({"images": ["b.png"]}, "both 'image' and 'images'"),
        ({"video": "a.mp4"}, "'video' in it: only images"),
        ({"audios": ["a.wav"]}, "'audios' in it: only images"),
        ({"image": None, "image_path": "a.png"}, "'image_path' in it: name the image with the key 'image'"),
        ({"question": "<video>What?"}, "the mark <video> in a question"),
        ({"question": "<image> or <image>?"}, "2 <image> marks in its question for 1 image"),
    ],
)
def test_media_that_would_be_dropped_are_refused_by_name(tmp_path: Path, change: dict[str, object], said: str) -> None:
    file = tmp_path / "mine.jsonl"
    good = {"image": "a.png", "question": "What?", "answer": "a cat"}
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
    with pytest.raises(InputError, match=f"holds 1 bad lines: line 2: {said}"):
        OwnBenchmark(file).items(TaskOptions())


def test_lines_that_are_lists_say_so(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("[1]\n[2]\n")
    with pytest.raises(
        InputError, match="holds 2 bad lines: line 1 is a list, an object was expected; line 2 is a list"
    ):
        OwnBenchmark(tmp_path / "mine.jsonl").items(TaskOptions())


def test_images_with_impossible_names_fail_alone(tmp_path: Path) -> None:
    names = ["x" * 300, "a/" * 3000, "http://[x", "http://127.0.0.1:1/a.png", "nul\0.png"]
    lines = [{"image": name, "question": "What?", "answer": "a cat"} for name in names]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = OwnBenchmark(file).items(TaskOptions())
    for number, words in enumerate(["is in none of", "is in none of", "--allow-url", "--allow-url", "is in none of"]):
        with pytest.raises(InputError, match=words):
            items[number].image.open()
    with pytest.raises(InputError, match="can't be fetched"):
        OwnBenchmark(file).items(TaskOptions(allow_url=True))[2].image.open()


def test_a_name_that_is_no_file_and_no_name_at_all(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, words in [("loop", "does not exist"), ("pipe", "is neither a file nor a folder"), ("x" * 300, "exist")]:
        with pytest.raises(InputError, match=words):
            find_tasks([str(tmp_path / f"{name}.jsonl")])
    for names in ([""], [","], [" "]):
        with pytest.raises(SettingsError, match="names no benchmark"):
            find_tasks(names)
