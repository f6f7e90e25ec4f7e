"""Progress lines of downloads, and messages for failures of the Hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.hub_server import HubServer
from fixtures.parquet_sets import png, write_parquet
from huggingface_hub.errors import LocalEntryNotFoundError

from m2pt_cli.errors import UnavailableError
from m2pt_cli.evaluation.tasks.cifar import CIFAR10_NAMES, CIFAR100_NAMES
from m2pt_cli.files import hub
from m2pt_cli.files.hub import Progress, _has_all_shards, gigabytes, hub_errors, is_network_error


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 25.0, 30.0, 50.0])
    monkeypatch.setattr(hub.time, "monotonic", lambda: next(clock))
    said: list[str] = []
    progress = Progress("images.zip", said.append, total=36e9, initial=1e9)
    for _ in range(4):
        progress.update(500_000_000)
    assert said == [
        "images.zip: 2.0 GB of 36.0 GB, 40 MB/s, 14 min left",
        "images.zip: 3.0 GB of 36.0 GB, 40 MB/s, 14 min left",
    ]


def test_sizes_for_people() -> None:
    assert [gigabytes(size) for size in (1234, 3.2e6, 14.1e9)] == ["1.2 kB", "3.2 MB", "14.1 GB"]


def test_errors_of_every_http_library_are_network_errors() -> None:
    for module in ("httpx", "httpx2._exceptions", "requests.exceptions"):
        assert is_network_error(type("ConnectError", (Exception,), {"__module__": module})())
    assert is_network_error(ConnectionResetError()) and not is_network_error(ValueError())


def test_failures_name_the_set_the_cache_and_the_way_out() -> None:
    with (
        pytest.raises(
            UnavailableError, match=r"a/b is not in the cache \(.*\), and the Hub can't be reached"
        ) as caught,
        hub_errors("a/b"),
    ):
        raise LocalEntryNotFoundError("x")
    assert "hf download a/b --repo-type dataset" in str(caught.value.hint)
    reset = r"a/b can't be downloaded to .*: reset by peer"
    with pytest.raises(UnavailableError, match=reset) as caught, hub_errors("a/b"):
        raise ConnectionResetError("reset by peer")
    assert "what has arrived is kept" in str(caught.value.hint)
    with pytest.raises(ZeroDivisionError), hub_errors("a/b"):
        raise ZeroDivisionError


# Loads what it is told to and prints ids and the pixels of the first image, or the error and its hint.
_SCRIPT = """
import json, sys
from pathlib import Path
from m2pt_cli.errors import M2PTError
from m2pt_cli.evaluation.task import TaskOptions
from m2pt_cli.evaluation.tasks import find_tasks, list_benchmarks
said = []
for name in sys.argv[2:]:
    images = (Path(sys.argv[1]),)
    try:
        items = find_tasks([name])[0].items(TaskOptions(images=images, report=said.append))
        color = items[0].image.open().getpixel((0, 0))
        result = {"ids": [item.id for item in items], "answers": [item.answer for item in items], "color": color}
    except M2PTError as error:
        result = {"error": error.message, "hint": error.hint, "code": error.exit_code}
    print(json.dumps({"name": name, **result}))
print(json.dumps({"said": said, "cached": {entry["name"]: entry["cached"] for entry in list_benchmarks()}}))
print(json.dumps([name for name in ("torch", "transformers", "datasets") if name in sys.modules]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set of the paper, a few rows each, in the files and columns of the real ones."""
    root = tmp_path_factory.mktemp("hub")
    sets = root / "datasets"
    images = root / "coco"
    images.mkdir()
    cell = png((10, 20, 30))
    yes_no = {"question": "Is it? Please answer yes or no.", "answer": "Yes", "category": "existence"}
    mme = [{"question_id": "existence/1.png", "image": cell, **yes_no}] * 2
    for shard in range(2):
        write_parquet(sets / f"lmms-lab/MME/data/test-{shard:05d}-of-00002-abc.parquet", mme, images=("image",))
    for split in ("adversarial", "popular", "random"):
        row = {"id": "0", "question_id": "1", "question": "Is there a cat?", "answer": "no", "image_source": "c"}
        rows = [{**row, "image": cell, "category": split}]
        write_parquet(sets / f"lmms-lab/POPE/Full/{split}-00000-of-00001.parquet", rows, images=("image",))
    vsr = {
        "image": "1.png",
        "image_link": "http://127.0.0.1:1/1.png",
        "caption": "It is.",
        "label": 0,
        "relation": "on",
    }
    (sets / "cambridgeltl/vsr_zeroshot").mkdir(parents=True)
    (sets / "cambridgeltl/vsr_zeroshot/test.jsonl").write_text(json.dumps(vsr) + "\n")
    (images / "1.png").write_bytes(cell["bytes"])
    labels = {"label": ("entailment", "neutral", "contradiction")}
    entailment = [{"image": cell, "filename": "1.jpg", "premise": "p", "hypothesis": "h", "label": 2}]
    write_parquet(
        sets / "sedrickkeh/snli-ve/data/test-00000-of-00001.parquet", entailment, images=("image",), labels=labels
    )
    small = [{"img": cell, "label": 3}]
    write_parquet(
        sets / "uoft-cs/cifar10/plain_text/test-00000-of-00001.parquet",
        small,
        images=("img",),
        labels={"label": CIFAR10_NAMES},
    )
    large = [{"img": cell, "fine_label": 3, "coarse_label": 0}]
    write_parquet(
        sets / "uoft-cs/cifar100/cifar100/test-00000-of-00001.parquet",
        large,
        images=("img",),
        labels={"fine_label": CIFAR100_NAMES},
    )
    digits = [{"image": png(200, "L"), "label": 7}]
    names = {"label": [str(digit) for digit in range(10)]}
    write_parquet(sets / "ylecun/mnist/mnist/test-00000-of-00001.parquet", digits, images=("image",), labels=names)
    text = [
        {"image_id": "a", "question_id": 1, "question": "what?", "image": cell, "answers": ["x"] * 10, "ocr_tokens": []}
    ]
    write_parquet(sets / "lmms-lab/textvqa/data/validation-00000-of-00001.parquet", text, images=("image",))
    # What must not be downloaded: the other splits.
    for name in (
        "lmms-lab/textvqa/data/train-00000-of-00001.parquet",
        "ylecun/mnist/mnist/train-00000-of-00001.parquet",
    ):
        (sets / name).write_bytes(b"x" * 1000)
    return root


def _load(
    hub: HubServer, root: Path, home: Path, *names: str, **extra: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    command = [sys.executable, "-c", _SCRIPT, str(root / "coco"), *names]
    environment = hub.environment(home, **extra)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    *results, state, heavy = [json.loads(line) for line in done.stdout.splitlines()]
    assert heavy == []
    return results, state


def test_the_papers_benchmarks_come_from_the_hub_once(root: Path, tmp_path: Path) -> None:
    names = ["mme", "pope", "vsr", "snli-ve", "cifar10", "cifar100", "mnist", "textvqa"]
    with HubServer(root) as hub:
        results, state = _load(hub, root, tmp_path, *names)
        assert not [result for result in results if "error" in result]
        by_name = {result["name"]: result for result in results}
        assert by_name["mme"]["ids"] == [f"existence/1.png#{n}" for n in range(4)]
        assert by_name["pope"]["ids"] == ["random/1#0", "popular/1#0", "adversarial/1#0"]
        assert by_name["snli-ve"]["answers"] == ["contradiction"] and by_name["vsr"]["answers"] == ["no"]
        assert by_name["cifar10"]["answers"] == ["cat"] and by_name["cifar100"]["answers"] == ["bear"]
        assert by_name["mnist"]["answers"] == ["7"] and by_name["mnist"]["color"] == [200, 200, 200]
        assert all(result["color"] == [10, 20, 30] for result in results if result["name"] != "mnist")
        assert not [request.path for request in hub.requests if "train-" in request.path]
        assert any("downloading" in line and "free" in line for line in state["said"])
        # From the cache, with no network: nothing is asked of the server.
        before = len(hub.requests)
        again, offline = _load(hub, root, tmp_path, *names, HF_HUB_OFFLINE="1")
        assert again == results and len(hub.requests) == before and offline["said"] == []
        assert all(offline["cached"][name] for name in names)
        # A cache that holds one of two shards does not hold the data set.
        (shard,) = tmp_path.glob("hub/datasets--lmms-lab--MME/snapshots/*/data/test-00001-*")
        shard.unlink()
        _, partial = _load(hub, root, tmp_path, HF_HUB_OFFLINE="1")
        assert not partial["cached"]["mme"] and partial["cached"]["pope"]


def test_a_broken_connection_is_resumed(root: Path, tmp_path: Path) -> None:
    with HubServer(root) as hub:
        hub.cut("random-00000-of-00001.parquet", after=1000, times=20)
        (failed,), state = _load(hub, root, tmp_path, "pope")
        assert failed["code"] == 1 and "lmms-lab/POPE" in failed["error"] and state["cached"]["pope"] is False
        assert failed["hint"].startswith("run it again (what has arrived is kept)") and "--data" not in failed["hint"]
        assert "--include 'Full/random-*.parquet'" in failed["hint"]
        hub.cut("random-00000-of-00001.parquet", after=0, times=0)
        (result,), state = _load(hub, root, tmp_path, "pope")
        assert len(result["ids"]) == 3 and state["cached"]["pope"] is True


def test_what_is_not_there_is_said(root: Path, tmp_path: Path) -> None:
    with HubServer(tmp_path / "empty") as hub:
        (missing,), _ = _load(hub, root, tmp_path / "home", "mnist")
        assert missing["code"] == 1 and "there is no data set ylecun/mnist" in missing["error"]
        assert "--source" in missing["hint"] and "--bench demo" in missing["hint"]
        (offline,), _ = _load(hub, root, tmp_path / "home", "mnist", HF_HUB_OFFLINE="1")
        assert offline["code"] == 1 and "not in the cache" in offline["error"]
        assert "hf download ylecun/mnist --repo-type dataset --include 'mnist/test-*.parquet'" in offline["hint"]
    folder = tmp_path / "other" / "datasets" / "ylecun" / "mnist"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("nothing")
    with HubServer(tmp_path / "other") as hub:
        (empty,), _ = _load(hub, root, tmp_path / "home2", "mnist")
        assert "holds no files mnist/test-*.parquet" in empty["error"]
    with HubServer(tmp_path / "other", gated={"ylecun/mnist"}) as hub:
        (gated,), _ = _load(hub, root, tmp_path / "home3", "mnist")
        assert "needs its owner's permission" in gated["error"] and "hf auth login" in gated["hint"]


def test_half_of_the_shards_is_not_a_data_set() -> None:
    names = [f"data/test-{n:05d}-of-00003-hash{n}.parquet" for n in range(3)]
    assert all(_has_all_shards(name, names) for name in names)
    assert not any(_has_all_shards(name, names[:2]) for name in names[:2])
    assert _has_all_shards("test.jsonl", ["test.jsonl"])


@pytest.mark.slow
def test_the_papers_table_is_one_command(root: Path, tiny_base: Path, tmp_path: Path) -> None:
    options = ["--base", str(tiny_base), "--template", "plain", "--images", str(root / "coco"), "--json"]
    command = [sys.executable, "-m", "m2pt_cli", "eval", "--bench", "paper", "--output-dir", str(tmp_path / "out")]
    with HubServer(root) as hub:
        environment = hub.environment(tmp_path / "home")
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, check=False)
        blind = subprocess.run(
            [*command, *options, "--shuffle-images"], capture_output=True, text=True, env=environment, check=False
        )
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    names = ["mme", "pope", "vsr", "snli-ve", "cifar10", "cifar100", "mnist", "textvqa"]
    assert list(content["benchmarks"]) == names
    parts = [content["benchmarks"][name]["accuracy"] for name in names if name != "mme"]
    assert content["mmavg"] == pytest.approx(100 * sum(parts) / 7) and content["scored_by"] == "rules"
    # One image can't be shuffled, which is said before anything is asked.
    assert blind.returncode == 2 and "at least two images" in blind.stderr and "answers" not in blind.stderr
