"""Values of ``--data``: files, folders and names, checked as a whole; and the validation split."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.pictures import picture_file

from m2pt_cli.data import sources
from m2pt_cli.data.sample import Sample, Turn
from m2pt_cli.data.sources import LoadedSamples, fingerprint, load_samples, split_validation
from m2pt_cli.errors import InputError, SettingsError, UnavailableError


def row(number: int, image: str | None = None, answer: str = "A cat.") -> dict[str, Any]:
    mark = "" if image is None else "<image>\n"
    turns = [{"from": "human", "value": f"{mark}What is {number}?"}, {"from": "gpt", "value": answer}]
    return {"id": f"s{number}", "image": image, "conversations": turns, "task_name": f"task{number % 3}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``a.json`` of 20 samples on 5 images, ``b.jsonl`` of 3 in text alone, ``pictures/``."""
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        picture_file(tmp_path / f"pictures/{number}.png", seed=number)
    (tmp_path / "a.json").write_text(json.dumps([row(i, f"{i % 5}.png") for i in range(20)]))
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"messages": messages}) for _ in range(3)))
    return tmp_path


def load(folder: Path, *names: str, **options: Any) -> LoadedSamples:
    options.setdefault("images", [folder / "pictures"])
    return load_samples([str(folder / name) for name in names], **options)


def test_several_files_are_one_set(folder: Path) -> None:
    loaded = load(folder, "a.json", "b.jsonl")
    assert len(loaded.samples) == 23 and loaded.faults == loaded.skipped == 0
    assert loaded.description == "a.json (20 samples) + b.jsonl (3 samples)"
    first = loaded.samples[0]
    assert (first.id, first.task) == ("s0", "task0") and first.images[0].open().size == (60, 40)
    assert loaded.samples[-1].images == ()


def test_images_lie_beside_the_file_by_default(folder: Path) -> None:
    (folder / "a.json").rename(folder / "pictures/a.json")
    assert len(load(folder, "pictures/a.json", images=()).samples) == 20


def test_a_limit_is_a_choice_by_seed(folder: Path) -> None:
    chosen = [[s.id for s in load(folder, "a.json", "b.jsonl", limit=6, seed=seed).samples] for seed in (0, 0, 1)]
    assert len(chosen[0]) == 6 and chosen[0] == chosen[1] != chosen[2]
    assert load(folder, "a.json", limit=100).description == "a.json (20 samples)"


def test_the_fingerprint_follows_content_not_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = load(folder, "a.json")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    folder.rename(elsewhere)
    assert load(elsewhere, "a.json").fingerprint == loaded.fingerprint == fingerprint(loaded.samples)
    rows = [row(i, f"{i % 5}.png", answer="A dog." if i == 7 else "A cat.") for i in range(20)]
    (elsewhere / "a.json").write_text(json.dumps(rows))
    assert load(elsewhere, "a.json").fingerprint != loaded.fingerprint


def faulty(folder: Path) -> None:
    (folder / "pictures/half.png").write_bytes((folder / "pictures/0.png").read_bytes()[:200])
    rows = [
        row(0, "0.png"), row(1, "missing.png"), row(2, "../a.json"), row(3, "/etc/passwd"), row(4, "half.png"),
        row(5, "0.png", answer=" "), {**row(6, "0.png"), "image": None}, row(7, "1.png"),
    ]  # fmt: skip
    (folder / "bad.json").write_text(json.dumps(rows))


def test_all_faults_of_all_sources_are_in_one_report(folder: Path) -> None:
    faulty(folder)
    with (folder / "b.jsonl").open("a") as file:
        file.write('\n{"messages": ')
    with pytest.raises(InputError) as caught:
        load(folder, "bad.json", "b.jsonl")
    text = str(caught.value)
    assert text.startswith("7 faulty samples: ") and caught.value.exit_code == 3
    for said in (
        "bad.json sample 2 (s1): image " + str(folder / "pictures/missing.png") + " does not exist",
        "bad.json sample 3 (s2): image ../a.json lies outside",
        "bad.json sample 4 (s3): image /etc/passwd lies outside",
        "half.png can't be read",
        "bad.json sample 6 (s5): turn 2 is empty",
        "bad.json sample 7 (s6): 1 <image> marks for 0 images",
        "b.jsonl line 4: not valid JSON",
    ):
        assert said in text
    assert "--skip-bad" in str(caught.value.hint)


def test_faulty_samples_are_dropped_and_counted_on_request(folder: Path) -> None:
    faulty(folder)
    loaded = load(folder, "bad.json", skip_bad=True)
    assert [sample.id for sample in loaded.samples] == ["s0", "s7"] and loaded.faults == loaded.skipped == 6
    (folder / "bad.json").write_text(json.dumps([row(1, "missing.png")]))
    with pytest.raises(InputError, match=r"no samples in .*bad\.json: all 1 were faulty, the first bad\.json sample 1"):
        load(folder, "bad.json", skip_bad=True)


def test_a_known_source_may_have_a_few_faults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vision-Flan as published has an empty answer; nobody can mend it."""
    from m2pt_cli.data import vision_flan

    faults = {3: " ", 8: ""}
    rows = [(i + 1, row(i, f"{i % 5}.png", answer=faults.get(i, "A cat."))) for i in range(20)]
    monkeypatch.setattr(vision_flan, "read_vision_flan", lambda **options: (rows, (folder / "pictures",)))
    said: list[str] = []
    loaded = load_samples(["vision-flan"], report=said.append)
    assert len(loaded.samples) == 18 and loaded.faults == loaded.skipped == 2
    assert said == [
        "2 faulty samples of vision-flan are left out, the first: "
        "vision-flan sample 4 (s3): turn 2 is empty: an answer was expected"
    ]
    rows[:8] = [(i, row(i, "gone.png")) for i in range(8)]
    with pytest.raises(
        InputError, match=r"^9 faulty samples: vision-flan sample 0 \(s0\): image .*gone.png does not exist"
    ):
        load_samples(["vision-flan"])


@pytest.mark.parametrize(
    ("spec", "said", "hint"),
    [
        ("vision-flam", r"no Hub id \(owner/name\). Did you mean 'vision-flan'\?", "known sources: demo, vision-flan"),
        ("dem", "Did you mean 'demo'", "known sources"),
        ("a/b/c", "is no known source, no file here", "known sources"),
        ("missing.json", "--data missing.json: no such file", "check the path"),
        ("./missing", "--data ./missing: no such file", "check the path"),
        ("/missing/folder", "no such file or folder", "check the path"),
    ],
)
def test_a_name_that_is_nothing(spec: str, said: str, hint: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_samples([spec])
    assert hint in str(caught.value.hint)


def test_a_bad_name_is_met_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_read", lambda request: pytest.fail("read"))
    with pytest.raises(InputError, match=r"gone\.json"):
        load(folder, "a.json", "gone.json")


def test_offline_a_data_set_of_the_hub_is_named_with_a_way_out() -> None:
    for spec in ("vision-flan", "someone/some-set"):
        with pytest.raises(
            UnavailableError, match=r"is not in the cache \(.*\), and the Hub can't be reached"
        ) as caught:
            load_samples([spec])
        assert "hf download" in str(caught.value.hint) and "--data demo" in str(caught.value.hint)


def test_an_existing_path_comes_before_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``./demo`` is a folder, ``demo`` the known source."""
    (folder / "demo").mkdir()
    (folder / "demo/train.jsonl").write_text((folder / "b.jsonl").read_text())
    monkeypatch.chdir(folder)
    assert len(load_samples(["./demo"]).samples) == 3
    assert len(load_samples(["demo"], limit=5).samples) == 5


def test_a_file_of_another_kind(folder: Path) -> None:
    (folder / "a.txt").write_text("hello")
    with pytest.raises(InputError, match=r"a\.txt is of no known kind: \.txt") as caught:
        load(folder, "a.txt")
    assert ".jsonl" in str(caught.value.hint)


def test_validation_by_share_keeps_an_image_on_one_side(folder: Path) -> None:
    samples = load(folder, "a.json").samples
    training, validation = split_validation(samples, "0.3", 0)
    assert len(training) + len(validation) == 20 and len(validation) == 8  # whole images, of 4 samples each
    sides = [{sample.images[0].name for sample in side} for side in (training, validation)]
    assert not sides[0] & sides[1]
    again, other = (split_validation(samples, "0.3", seed)[1] for seed in (0, 1))
    assert again == validation != other
    assert [s.id for s in training] == [s.id for s in samples if s in training]


def test_validation_of_text_samples_is_drawn_one_by_one() -> None:
    samples = [Sample(str(i), (), (Turn("user", "q"), Turn("assistant", "a"))) for i in range(100)]
    training, validation = split_validation(samples, "0.05", 0)
    assert (len(training), len(validation)) == (95, 5)


def test_validation_by_a_second_file(folder: Path) -> None:
    samples = load(folder, "a.json").samples
    training, validation = split_validation(samples, str(folder / "b.jsonl"), 0)
    assert training == samples and len(validation) == 3


@pytest.mark.parametrize("spec", ["0", "1", "-0.1", "5", "nan"])
def test_a_share_that_is_none(folder: Path, spec: str) -> None:
    with pytest.raises(SettingsError, match=f"--validation {spec} is not a share between 0 and 1"):
        split_validation(load(folder, "a.json").samples, spec, 0)


def test_a_share_that_leaves_nothing_to_train_on(folder: Path) -> None:
    samples = load(folder, "a.json").samples
    with pytest.raises(SettingsError, match="leaves none to train on"):
        split_validation([samples[0], samples[5]], "0.5", 0)


def test_reading_data_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from m2pt_cli.data.sources import load_samples, split_validation;"
        "from pathlib import Path;"
        f"load_samples([{str(folder / 'a.json')!r}], images=[Path({str(folder / 'pictures')!r})]);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_images_that_no_source_uses_are_named(tmp_path: Path) -> None:
    told: list[str] = []
    load_samples(["demo"], images=[tmp_path], limit=4, report=told.append)
    assert any("--images is not used" in line for line in told)


def test_a_folder_of_images_that_is_not_there_is_met_whoever_needs_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_samples(["demo"], images=[tmp_path / "none"], limit=4)
