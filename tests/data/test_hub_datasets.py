"""Data sets read with the ``datasets`` library: folders, single files, and ids on a local stand-in Hub."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from fixtures.hub_server import HubServer
from fixtures.pictures import picture, picture_file

from m2pt_cli.data import validation as checks
from m2pt_cli.data.hub_datasets import CellImage
from m2pt_cli.data.sources import load_samples
from m2pt_cli.errors import InputError

from .test_vision_flan import run_driver


def cell(seed: int = 0) -> dict[str, Any]:
    content = io.BytesIO()
    picture(40, 30, seed).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{seed}.png"}


def messages(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]


def write_set(file: Path, rows: list[dict[str, Any]], *, listed: bool = True) -> Path:
    """Rows as parquet, with ``images`` (a list) or ``image`` as an image column."""
    from datasets import Dataset, Features, Image, List

    plain = Dataset.from_list(rows)
    column = {"images": List(Image())} if listed else {"image": Image()}
    file.parent.mkdir(parents=True, exist_ok=True)
    plain.cast(Features({**plain.features, **column})).to_parquet(str(file))
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config, utils

    utils.logging.disable_progress_bar()
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [{"messages": messages(f"answer {n}"), "images": [cell(n), cell(n + 1)][: n % 3]} for n in range(6)]


def test_a_folder_of_parquet(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write_set(tmp_path / "set/train-00000-of-00001.parquet", rows)
    loaded = load_samples([str(tmp_path / "set")])
    assert loaded.description == "set (6 samples)" and [len(s.images) for s in loaded.samples] == [0, 1, 2] * 2
    two = loaded.samples[2]
    assert two.turns[0].text == "<image>\n<image>\nWhat?" and two.turns[1].text == "answer 2"
    first, second = two.images
    assert isinstance(first, CellImage) and first.name != second.name and first.size() == (40, 30)
    assert second.open().tobytes() == picture(40, 30, 3).tobytes()
    assert pickle.loads(pickle.dumps(second)).open().tobytes() == second.open().tobytes()
    assert len(load_samples([str(tmp_path / "set")], limit=2).samples) == 2


def test_a_single_file_with_one_image_a_row(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    rows = [{"id": n, "conversations": turns, "image": cell(n)} for n in range(3)]
    file = write_set(tmp_path / "some.parquet", rows, listed=False)
    loaded = load_samples([str(file)])
    assert [s.id for s in loaded.samples] == ["0", "1", "2"] and loaded.samples[1].images[0].open().size == (40, 30)


def test_saved_to_disk_and_jsonl_folders(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    from datasets import Dataset, DatasetDict

    plain = Dataset.from_list([{"messages": row["messages"]} for row in rows])
    plain.save_to_disk(tmp_path / "saved")
    DatasetDict(train=plain, test=plain.select([0])).save_to_disk(tmp_path / "dict")
    (tmp_path / "lines").mkdir()
    plain.to_json(tmp_path / "lines/train.jsonl")
    for name in ("saved", "dict", "lines"):
        assert len(load_samples([str(tmp_path / name)]).samples) == 6


def test_images_named_by_path_stay_within_the_folder(tmp_path: Path) -> None:
    from datasets import Dataset

    picture_file(tmp_path / "secret.png")
    (tmp_path / "set").mkdir()
    picture_file(tmp_path / "set/a.png")
    plain = [{"messages": messages("A."), "images": [name]} for name in ("a.png", "../secret.png")]
    Dataset.from_list(plain).to_parquet(str(tmp_path / "set/train.parquet"))
    with pytest.raises(InputError, match=r"1 faulty sample: set sample 2: image \.\./secret\.png lies outside"):
        load_samples([str(tmp_path / "set")])
    rows = [{"messages": messages("A."), "images": [{"bytes": None, "path": str(tmp_path / "secret.png")}]}]
    write_set(tmp_path / "other/train.parquet", rows)
    with pytest.raises(InputError, match=r"secret\.png lies outside .*other: refused"):
        load_samples([str(tmp_path / "other")])


def test_a_broken_image_in_a_cell_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = {"bytes": cell()["bytes"][:1000], "path": None}
    rows = [{"messages": messages("A."), "images": [image]} for image in (cell(), half, {"bytes": b"x", "path": None})]
    write_set(tmp_path / "set/train.parquet", rows)
    with pytest.raises(InputError, match=r"2 faulty samples: sample 2: image set row 2 \(images\) can't be read"):
        load_samples([str(tmp_path / "set")])
    monkeypatch.setattr(checks, "DECODED_UP_TO", 0)  # headers alone
    with pytest.raises(InputError, match=r"1 faulty sample: sample 3: image set row 3"):
        load_samples([str(tmp_path / "set")])


def test_other_columns_and_other_folders_are_named(tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "qa").mkdir()
    Dataset.from_list([{"question": "q", "answer": "a"}]).to_parquet(str(tmp_path / "qa/train.parquet"))
    with pytest.raises(InputError, match="qa has the columns question, answer; conversations or messages was expected"):
        load_samples([str(tmp_path / "qa")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no data files"):
        load_samples([str(tmp_path / "empty")])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/train.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="bad can't be read: "):
        load_samples([str(tmp_path / "bad")])


def test_splits_without_train(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write_set(tmp_path / "one/test.parquet", rows)
    assert len(load_samples([str(tmp_path / "one")]).samples) == 6
    for name in ("test", "validation"):
        write_set(tmp_path / f"two/{name}.parquet", rows)
    with pytest.raises(InputError, match="two has no split called train, but validation, test"):
        load_samples([str(tmp_path / "two")])


def test_a_loading_script_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted/scripted.py").write_text("open('ran', 'w')")
    with pytest.raises(InputError, match="wants to run a loading script, which is refused"):
        load_samples([str(tmp_path / "scripted")])
    assert not list(tmp_path.rglob("ran"))


def test_sets_of_the_hub(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    root = tmp_path / "hub/datasets/some"
    write_set(root / "set/data/train-00000-of-00001.parquet", rows)
    for name in ("one", "two"):
        write_set(root / f"subsets/{name}/train.parquet", rows if name == "one" else rows[:2])
    configs = "".join(f"- config_name: {n}\n  data_files: {n}/train.parquet\n" for n in ("one", "two"))
    (root / "subsets/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (root / "scripted").mkdir()
    (root / "scripted/scripted.py").write_text("raise SystemExit('ran')")
    with HubServer(tmp_path / "hub") as server:
        environment = server.environment(tmp_path / "home")
        whole, subset, unsaid, scripted = run_driver(
            environment, ("some/set", None), ("some/subsets:two", None), ("some/subsets", None), ("some/scripted", None)
        )
    (offline,) = run_driver({**environment, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}, ("some/set", None))
    assert whole["ids"] == offline["ids"] == [str(n + 1) for n in range(6)]
    assert whole["sizes"] == offline["sizes"] == [[40, 30]] * 6 and whole["said"][0].startswith("reading some/set (")
    assert len(subset["ids"]) == 2
    assert unsaid["error"]["message"].startswith("some/subsets has several subsets")
    assert unsaid["error"]["hint"] == "name one: --data some/subsets:SUBSET"
    assert "loading script, which is refused" in scripted["error"]["message"]
